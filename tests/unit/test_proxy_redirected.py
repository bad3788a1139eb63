"""Clients that ignore the proxy: what happens to a connection that the gateway handed over."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import trio

from netns_runtime.config import Limits
from netns_runtime.owner import Owner
from netns_runtime.policy import Endpoint, Inspection, Policy, Rule
from netns_runtime.proxy.admit import ACCESS_DENIED
from netns_runtime.proxy.redirected import REFUSED_AT_ONCE
from tests.support.hellos import POST_QUANTUM, hello, real_hello, records, server_name
from tests.support.proxy_stage import (
    LOOPBACK,
    BrokenAudit,
    Stage,
    echo,
    outcome_of,
    play,
    read_all,
    read_until,
)

HELLO = real_hello("up.test")
OPAQUE = b"\x00\x01 opaque"
NOBODY = "198.18.0.9"


@pytest.mark.parametrize(
    ("words", "protocol"),
    [
        (HELLO, "tls"),
        (records(hello(POST_QUANTUM, server_name("UP.test.")), 100), "tls"),
        (OPAQUE, "tcp"),
        (b"SSH-2.0-client\r\n", "tcp"),
    ],
)
@pytest.mark.parametrize("address", ["198.18.0.1", "fd00:c8:0:1::1"])
def test_a_client_is_carried_to_the_name_of_the_virtual_address(
    words: bytes, protocol: str, address: str
) -> None:
    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        port = await stage.upstream(nursery, echo)
        async with stage.redirected(port, address) as client:
            await client.send_all(words)
            assert await read_until(client, words) == words
            await client.send_all(b" and late")
            await client.send_eof()
            assert await read_all(client) == b" and late"
        await stage.settled()

    stage = play(scenario)
    [decided], [closed] = stage.of("flow.decided"), stage.of("flow.closed")
    assert (decided["host"], decided["address"]) == ("up.test", "127.0.0.1")
    assert (decided["entry"], decided["protocol"]) == ("redirected", protocol)
    assert decided["action"] == "allow"
    assert closed["bytes_out"] == closed["bytes_in"] == len(words) + 9
    assert (closed["entry"], closed.get("reason")) == ("redirected", None)
    assert stage.reports == []


def test_a_literal_address_that_the_policy_lists_is_carried_without_a_name() -> None:
    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        port = await stage.upstream(nursery, echo)
        for address in ("127.0.0.1", "::ffff:127.0.0.1"):
            async with stage.redirected(port, address) as client:
                await client.send_all(real_hello(None))
                await read_until(client, b"\x16")

    stage = play(scenario)
    assert [line["host"] for line in stage.of("flow.decided")] == ["127.0.0.1"] * 2


def test_a_client_that_waits_for_its_server_is_dialled_for_after_a_moment() -> None:
    async def greet(stream: trio.SocketStream) -> None:
        await stream.send_all(b"220 ready\r\n")
        await echo(stream)

    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        port = await stage.upstream(nursery, greet)
        async with stage.redirected(port) as client:
            assert await read_until(client, b"\n") == b"220 ready\r\n"
            await client.send_all(b"EHLO me.test\r\n")
            assert await read_until(client, b"\n") == b"EHLO me.test\r\n"

    play(scenario, timeouts={"identify": 0.01})


def test_a_client_that_sends_nothing_and_ends_is_carried_half_closed() -> None:
    async def daytime(stream: trio.SocketStream) -> None:
        assert await read_all(stream) == b""
        await stream.send_all(b"noon")
        await stream.send_eof()

    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        port = await stage.upstream(nursery, daytime)
        async with stage.redirected(port) as client:
            await client.send_eof()
            assert await read_all(client) == b"noon"
        await stage.settled()

    play(scenario)


class Owners:
    def __init__(self) -> None:
        self.asked: list[Any] = []

    def owner_of(self, ip: str, port: int, *destination: Any) -> Owner | None:
        self.asked.append(destination)
        return Owner(42, "node", exe="/usr/bin/node")


def test_the_owner_is_asked_for_by_the_original_destination() -> None:
    owners = Owners()

    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        stage.sandbox.owners = owners
        async with stage.redirected(443, NOBODY) as client:
            assert await outcome_of(client) == b"RESET"

    stage = play(scenario)
    [[address, port]] = owners.asked
    assert (str(address), port) == (NOBODY, 443)
    assert stage.of("flow.decided")[0]["exe"] == "/usr/bin/node"


OURS = ["10.200.0.1", "fd00:c8::1", "::ffff:10.200.0.1"]


@pytest.mark.parametrize(
    ("address", "report"),
    [
        *((address, report) for address in (NOBODY, *OURS) for report in (False, True)),
        ("fd00:c8:0:1::9", False),
        ("192.0.2.7", False),
    ],
)
def test_what_stands_for_nobody_is_reset_with_one_line(address: str, report: bool) -> None:
    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        async with stage.redirected(3129, address) as client:
            assert await outcome_of(client) == b"RESET"
        await stage.settled()

    stage = play(scenario, report=report)
    [decided] = stage.events
    assert (decided["event"], decided["action"]) == ("flow.decided", "refuse")
    assert decided["reason"] in {"destination_ip_prohibited", "http_request_denied"}
    assert (decided["entry"], decided["said_by"]) == ("redirected", "policy")
    assert stage.names.asked == []


CLOSED = Policy((Rule("closed", (Endpoint("up.test", (1,)),)),))


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (HELLO, ACCESS_DENIED),
        (HELLO[:100], ACCESS_DENIED),
        (b"GET / HTTP/1.1\r\nHost: up.test\r\n\r\n", b"HTTP/1.1 403 Forbidden\r\n"),
        (b"GET / HTTP/1.1\r\nHost: up.test\r\n", b"RESET"),
        (OPAQUE, b"RESET"),
        (b"", b"RESET"),
    ],
)
def test_a_refused_client_is_answered_in_its_own_language(words: bytes, answer: bytes) -> None:
    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        async with stage.redirected(443) as client:
            # Where the machine is slow, the short time to say something may be over.
            with suppress(trio.BrokenResourceError):
                await client.send_all(words)
            told = await outcome_of(client)
            assert told.startswith(answer)
            if answer.startswith(b"HTTP"):
                assert b"--allow up.test:443" in told
        await stage.settled()

    # What is whole is answered at once; the rest only when nothing more has come for so long.
    is_whole = words == HELLO or answer.startswith(b"HTTP")
    patience = 5.0 if is_whole else 0.1
    stage = play(scenario, policy=CLOSED, timeouts={"refuse": patience})
    [decided] = stage.events
    assert (decided["reason"], decided["remedy"]) == ("http_request_denied", "--allow up.test:443")
    assert stage.names.asked == []
    assert stage.sandbox.refusing == 0


def test_only_so_many_refused_clients_are_waited_for() -> None:
    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        stage.sandbox.refusing = REFUSED_AT_ONCE
        async with stage.redirected(443) as client:
            assert await outcome_of(client) == b"RESET"

    play(scenario, policy=CLOSED, timeouts={"refuse": 60.0})


def test_past_the_limit_of_flows_a_client_is_reset_and_the_line_says_why() -> None:
    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        port = await stage.upstream(nursery, echo)
        async with stage.redirected(port) as first:
            await first.send_all(OPAQUE)
            await read_until(first, OPAQUE)
            async with stage.redirected(port) as second:
                assert await outcome_of(second) == b"RESET"

    stage = play(scenario, limits=Limits(flows=1))
    assert stage.of("flow.decided")[1]["reason"] == "connection_limit_reached"


def test_without_a_record_nothing_is_dialled() -> None:
    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        async def never(stream: trio.SocketStream) -> None:
            raise AssertionError("dialled")

        port = await stage.upstream(nursery, never)
        stage.sandbox.audit = BrokenAudit(None, "s")
        async with stage.redirected(port) as client:
            await client.send_all(OPAQUE)
            assert await outcome_of(client) == b"RESET"

    play(scenario)


def test_a_failure_of_upstream_resets_the_client_and_is_no_refusal() -> None:
    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        stage.sandbox.names.table[NOBODY] = "missing.test"  # type: ignore[union-attr]
        async with stage.redirected(443, NOBODY) as client:
            await client.send_all(real_hello("missing.test"))
            assert await outcome_of(client) == b"RESET"

    stage = play(scenario)
    assert stage.of("flow.decided")[0]["action"] == "allow"
    assert stage.of("flow.closed")[0]["reason"] == "dns_error"


async def serve_http(stream: trio.SocketStream) -> None:
    """Answer each request with its own head, or switch where it asks for that."""
    async with stream:
        data = b""
        while True:
            while b"\r\n\r\n" not in data:
                part = await stream.receive_some()
                if not part:
                    return
                data += bytes(part)
            head, _, rest = data.partition(b"\r\n\r\n")
            data = bytes(rest)
            if b"Upgrade: websocket" in head:
                await stream.send_all(
                    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
                    b"Upgrade: websocket\r\n\r\n"
                )
                await stream.send_all(data)
                async for frame in stream:
                    await stream.send_all(frame)
                return
            length = f"Content-Length: {len(head)}\r\n\r\n".encode()
            await stream.send_all(b"HTTP/1.1 200 OK\r\n" + length + head)


@pytest.mark.parametrize("step", [1, 10_000])
@pytest.mark.parametrize("entry", ["redirected", "tunnel"])
def test_plain_http_goes_request_by_request_over_one_upstream(entry: str, step: int) -> None:
    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        port = await stage.upstream(nursery, serve_http)
        requests = (
            f"GET /one?q HTTP/1.1\r\nHost: up.test:{port}\r\n\r\n"
            f"GET http://up.test:{port}/two HTTP/1.1\r\nHost: UP.test.\r\n\r\n"
            "GET /three HTTP/1.0\r\n\r\n"
        ).encode()
        async with getattr(stage, entry)(port) as client:
            for at in range(0, len(requests), step):
                await client.send_all(requests[at : at + step])
            answer = await read_until(client, b"GET /three HTTP/1.1")
            assert b"GET /one?q HTTP/1.1" in answer
            assert b"GET /two HTTP/1.1" in answer
            assert (answer + await outcome_of(client)).count(f"Host: up.test:{port}".encode()) == 3
        await stage.settled()

    stage = play(scenario)
    assert [line["path"] for line in stage.of("http.request")] == ["/one?q", "/two", "/three"]
    assert len(stage.of("flow.closed")) == 1
    expected = "redirected" if entry == "redirected" else "explicit"
    assert {line["entry"] for line in stage.events} == {expected}
    assert stage.reports == []


@pytest.mark.parametrize("entry", ["redirected", "tunnel"])
def test_a_websocket_upgrade_inside_a_connection_is_carried(entry: str) -> None:
    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        port = await stage.upstream(nursery, serve_http)
        async with getattr(stage, entry)(port) as client:
            await client.send_all(
                f"GET / HTTP/1.1\r\nHost: up.test:{port}\r\nConnection: Upgrade\r\n"
                "Upgrade: websocket\r\n\r\nframe".encode()
            )
            answer = await read_until(client, b"frame")
            assert answer.startswith(b"HTTP/1.1 101 ")
            await client.send_all(b"GET later")
            assert await read_until(client, b"later") == b"GET later"
        await stage.settled()

    stage = play(scenario)
    assert stage.of("flow.closed")[-1]["protocol"] == "websocket"


def test_protocol_tcp_means_that_its_bytes_are_no_http() -> None:
    raw = Endpoint("up.test", None, LOOPBACK, inspection=Inspection(protocol="tcp"))

    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        port = await stage.upstream(nursery, echo)
        words = b"GET / HTTP/1.1\r\nHost: any.test\r\n\r\n"
        async with stage.redirected(port) as client:
            await client.send_all(words)
            assert await read_until(client, words) == words

    play(scenario, policy=Policy((Rule("raw", (raw,)),)))
