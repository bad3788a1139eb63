"""A policy swapped while flows are open: what it would refuse is cut, all others stay."""

from __future__ import annotations

import json
import os
import pickle
import socket
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from netns_runtime.address import HostPort
from netns_runtime.owner import Owner
from netns_runtime.policy import EMPTY, Endpoint, Policy, Rule, decide, load_policy
from netns_runtime.policy.requests import Asked, decide_request
from netns_runtime.proxy.control import Control
from netns_runtime.proxy.flow import Flow
from netns_runtime.proxy.inspect import judged_alike
from netns_runtime.proxy.reload import swap_policy
from tests.support.proxy_stage import LOOPBACK, Stage, outcome_of, play, read_until
from tests.unit.test_proxy_redirected import serve_http

if TYPE_CHECKING:
    from collections.abc import Iterator

ADDRESS_ONLY = Policy((Rule("only", (Endpoint("127.0.0.1", None, LOOPBACK),)),))
UNSCREENED = Policy((Rule("bare", (Endpoint("up.test", None),)),))


async def echo(stream: trio.SocketStream) -> None:
    """Send back what comes, until the end or a reset."""
    with suppress(trio.BrokenResourceError):
        async with stream:
            async for data in stream:
                await stream.send_all(data)


@pytest.mark.parametrize("entry", ["redirected", "tunnel"])
@pytest.mark.parametrize("policy", [EMPTY, ADDRESS_ONLY, UNSCREENED])
def test_a_flow_that_the_new_policy_would_refuse_is_cut(entry: str, policy: Policy) -> None:
    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        port = await stage.upstream(nursery, echo)
        async with getattr(stage, entry)(port) as client, stage.tunnel(port, "127.0.0.1") as other:
            for stream in (client, other):
                await stream.send_all(b"\0abc")
                await read_until(stream, b"\0abc")
            assert swap_policy(stage.sandbox, policy) == (1 if policy is ADDRESS_ONLY else 2)
            assert await outcome_of(client) == b"RESET"
            if policy is ADDRESS_ONLY:
                await other.send_all(b"on")
                assert await read_until(other, b"on") == b"on"

    stage = play(scenario)
    closed = stage.of("flow.closed")[0]
    assert (closed["reason"], closed["said_by"], closed["action"]) == (
        *("policy_changed", "policy"),
        "refuse",
    )
    assert closed["bytes_out"] == closed["bytes_in"] == 4


def test_a_policy_that_allows_the_same_leaves_every_flow_as_it_is() -> None:
    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        port = await stage.upstream(nursery, echo)
        same = Policy((Rule("other words", (Endpoint("up.test", None, LOOPBACK),)),))
        async with stage.tunnel(port) as client:
            assert swap_policy(stage.sandbox, same) == 0
            await client.send_all(b"\0on")
            await read_until(client, b"\0on")
            [flow] = stage.sandbox.flows.values()
            assert flow.decision.rule == "other words"

    play(scenario)


MESSAGES = """
network_policies:
  chat:
    endpoints:
      - host: up.test
        port: 443
        protocol: websocket
        rules:
          - allow: {method: GET, path: /ws}
          - allow: {method: WEBSOCKET_TEXT, path: /ws, message: {pointer: /op, in: [1]}}
"""
ASKED = Asked("GET", "/ws", (), is_websocket=True)
TARGET = HostPort("up.test", 443)


def upgraded(policy: Policy) -> Flow:
    rules = decide_request(policy, TARGET, None, ASKED).websocket
    decision = decide(policy, TARGET, None)
    flow = Flow(1, TARGET, "websocket", 0.0, None, decision, policy)
    flow.upgrade = ASKED, rules
    return flow


@pytest.mark.parametrize(
    ("edit", "is_alike"),
    [
        (("network_policies", "# a line more, so that all move\nnetwork_policies"), True),
        (("in: [1]", "in: [1, 2]"), False),
        (("path: /ws}", "path: /other}"), False),
        (("protocol: websocket", "enforcement: audit\n        protocol: websocket"), False),
    ],
)
def test_an_open_websocket_stays_where_its_messages_are_judged_alike(
    edit: tuple[str, str], is_alike: bool
) -> None:
    flow = upgraded(load_policy(MESSAGES.encode(), "old.yaml"))
    policy = load_policy(MESSAGES.replace(*edit).encode(), "new.yaml")
    flow.decision = decide(policy, TARGET, None)
    assert flow.upgrade is not None
    assert judged_alike(policy, flow, *flow.upgrade) is is_alike


def test_an_idle_connection_loses_its_upstream_and_its_next_request_is_refused() -> None:
    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        port = await stage.upstream(nursery, serve_http)
        request = f"GET http://up.test:{port}/ HTTP/1.1\r\nHost: x\r\n\r\n".encode()
        async with stage.client() as client:
            await client.send_all(request)
            await read_until(client, b"GET / HTTP/1.1")
            await trio.testing.wait_all_tasks_blocked()
            assert swap_policy(stage.sandbox, EMPTY) == 1
            assert stage.of("flow.closed")[0]["reason"] == "policy_changed"
            await client.send_all(request)
            assert b" 403 " in await read_until(client, b"no rule allows")

    play(scenario)


def test_a_request_under_way_is_cut_and_answered() -> None:
    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        begun = trio.Event()

        async def silent(stream: trio.SocketStream) -> None:
            await read_until(stream, b"\r\n\r\n")
            begun.set()
            await trio.sleep_forever()

        port = await stage.upstream(nursery, silent)
        async with stage.client() as client:
            request = f"GET http://up.test:{port}/ HTTP/1.1\r\nHost: x\r\n\r\n"
            await client.send_all(request.encode())
            await begun.wait()
            assert swap_policy(stage.sandbox, EMPTY) == 1
            assert (await outcome_of(client)).startswith(b"HTTP/1.1 403 ")
        await stage.settled()

    assert play(scenario).of("flow.closed")[0]["reason"] == "policy_changed"


def test_a_name_that_was_being_resolved_is_decided_by_the_new_policy() -> None:
    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        async def never(stream: trio.SocketStream) -> None:
            raise AssertionError("dialled")

        real, port = stage.names.resolve, await stage.upstream(nursery, never)

        async def resolve(host: str) -> Any:
            swap_policy(stage.sandbox, EMPTY)
            return await real(host)

        stage.names.resolve = resolve  # type: ignore[method-assign]
        answer = await stage.ask(f"CONNECT up.test:{port} HTTP/1.1\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 403 ")

    [decided] = play(scenario).of("flow.decided")
    assert decided["action"] == "refuse"


@contextmanager
def controlled() -> Iterator[tuple[Control, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        theirs.settimeout(5)
        yield Control(ours), theirs


def told(data: bytes, count: int = 1) -> tuple[dict[str, Any], list[Policy]]:
    """What the control socket answers to a memfd with `data`, and what was swapped in."""
    swapped: list[Policy] = []

    def swap(policy: Policy) -> int:
        swapped.append(policy)
        return 7

    with controlled() as (control, supervisor):
        fd = os.memfd_create("policy")
        os.write(fd, data)
        socket.send_fds(supervisor, [b'{"kind":"policy"}'], [fd] * count)
        os.close(fd)
        supervisor.send(b'{"kind":"stop"}')
        before = len(os.listdir("/proc/self/fd"))
        trio.run(control.serve, list, swap)
        assert len(os.listdir("/proc/self/fd")) == before
        return json.loads(supervisor.recv(4096)), swapped


def test_a_policy_comes_with_its_descriptor() -> None:
    answer, swapped = told(pickle.dumps(ADDRESS_ONLY))
    assert answer == {"kind": "policy", "closed": 7}
    assert swapped == [ADDRESS_ONLY]


@pytest.mark.parametrize(
    ("data", "count"), [(b"", 1), (b"nonsense", 1), (pickle.dumps("no policy"), 1), (b"x", 2)]
)
def test_a_damaged_policy_changes_nothing_and_says_why(data: bytes, count: int) -> None:
    answer, swapped = told(data, count)
    assert answer["kind"] == "policy"
    assert answer["error"]
    assert swapped == []


@pytest.mark.parametrize("known", [True, False])
def test_the_owner_of_a_port_is_asked_for(known: bool) -> None:
    async def main() -> None:
        with controlled() as (control, supervisor):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(control.serve, list)

                async def answer() -> None:
                    await trio.testing.wait_all_tasks_blocked()
                    asked = json.loads(supervisor.recv(4096))
                    assert (asked["kind"], asked["protocol"], asked["port"]) == ("owner", "udp", 53)
                    facts = {"pid": 42, "comm": "dig", "exe": None} if known else {"pid": None}
                    reply = {"kind": "owner", "id": asked["id"]} | facts
                    supervisor.send(json.dumps(reply).encode())

                nursery.start_soon(answer)
                owner = await control.owner_of("udp", 53)
                assert owner == (Owner(42, "dig") if known else None)
                nursery.cancel_scope.cancel()

    trio.run(main)
