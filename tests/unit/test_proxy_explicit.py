"""CONNECT through the explicit proxy, on loopback."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

import pytest
import trio
import trio.testing

from netns_runtime.owner import Owner
from netns_runtime.policy import Endpoint, Policy, Rule
from netns_runtime.proxy import admit
from netns_runtime.proxy import dial as dial_module
from netns_runtime.proxy.explicit import accept_clients
from tests.support.proxy_stage import BrokenAudit, Stage, echo, play, read_all, read_until

OK = b"HTTP/1.1 200 Connection established\r\n\r\n"

FORMS = [
    "CONNECT {host}:{port} HTTP/1.0\r\n\r\n",
    "CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}\r\n\r\n",
    "CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n",
    "CONNECT {host}:{port} HTTP/1.1\r\n\r\n",
    "CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}\r\nProxy-Connection: close\r\n\r\n",
    "\r\nCONNECT {host}:{port} HTTP/1.1\r\nHost: else.test\r\n\r\n",
]
SPELLINGS = ["up.test", "UP.Test", "up.test.", "127.0.0.1"]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("host", SPELLINGS)
def test_every_form_of_connect_makes_a_tunnel(form: str, host: str) -> None:
    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        port = await stage.upstream(nursery, echo)
        async with stage.client() as client:
            await client.send_all(form.format(host=host, port=port).encode() + b"early")
            assert await read_until(client, b"\r\n\r\n" + b"early") == OK + b"early"
            await client.send_all(b" and late")
            await client.send_eof()
            assert await read_all(client) == b" and late"
        await stage.settled()

    stage = play(scenario)
    [decided], [closed] = stage.of("flow.decided"), stage.of("flow.closed")
    assert decided["action"] == "allow"
    assert decided["rule"] == "test rule"
    assert decided["host"] in {"up.test", "127.0.0.1"}
    assert decided["address"] == "127.0.0.1"
    assert (closed["bytes_out"], closed["bytes_in"]) == (14, 14)
    assert "reason" not in closed
    assert stage.reports == []


def test_a_unicode_name_is_decided_in_its_a_label_form() -> None:
    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        stage.names.table["xn--bcher-kva.test"] = ("127.0.0.1",)
        port = await stage.upstream(nursery, echo)
        async with stage.client() as client:
            await client.send_all(f"CONNECT B\u00fccher.test:{port} HTTP/1.1\r\n\r\n".encode())
            assert await read_until(client, b"\r\n\r\n") == OK

    stage = play(scenario)
    assert stage.names.asked == ["xn--bcher-kva.test"]


def test_an_ipv6_authority_is_dialled() -> None:
    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        [listener] = await trio.open_tcp_listeners(0, host="::1")
        nursery.start_soon(trio.serve_listeners, echo, [listener])
        port = listener.socket.getsockname()[1]
        async with stage.client() as client:
            await client.send_all(f"CONNECT [0:0::1]:{port} HTTP/1.1\r\n\r\n".encode())
            assert await read_until(client, b"\r\n\r\n") == OK

    assert play(scenario).of("flow.decided")[0]["host"] == "::1"


def test_an_unlisted_host_is_refused_and_nothing_is_asked_or_dialled() -> None:
    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        answer = await stage.ask(b"CONNECT evil.test:443 HTTP/1.1\r\nHost: evil.test\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert b"Proxy-Status: netns-runtime; error=http_request_denied;" in answer
        assert b"--allow evil.test:443" in answer

    stage = play(scenario)
    [decided] = stage.of("flow.decided")
    assert (decided["action"], decided["reason"]) == ("refuse", "http_request_denied")
    assert (decided["said_by"], decided["remedy"]) == ("policy", "--allow evil.test:443")
    assert stage.names.asked == []
    assert stage.of("flow.closed") == []


def test_a_name_that_resolves_to_a_private_address_is_refused() -> None:
    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        stage.names.table["open.test"] = (
            "127.0.0.1",
            "10.1.2.3",
            "169.254.169.254",
            "::ffff:10.1.2.3",
        )
        port = await stage.upstream(nursery, echo)
        answer = await stage.ask(f"CONNECT open.test:{port} HTTP/1.1\r\n\r\n".encode())
        assert answer.startswith(b"HTTP/1.1 403 ")
        assert b"error=destination_ip_prohibited" in answer
        assert b"allowed_ips" in answer
        assert b"127.0.0.1" in answer

    for report in (False, True):
        stage = play(scenario, report=report)
        [decided] = stage.of("flow.decided")
        assert (decided["action"], decided["reason"]) == ("refuse", "destination_ip_prohibited")
        assert decided["address"] == "127.0.0.1"


def test_report_mode_lets_pass_what_policy_would_refuse_and_says_so() -> None:
    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        stage.names.table["unlisted.test"] = ()
        answer = await stage.ask(b"CONNECT unlisted.test:443 HTTP/1.1\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 502 ")

    [decided] = play(scenario, report=True).of("flow.decided")
    assert decided["action"] == "allow"
    assert decided["reason"] == "http_request_denied"
    assert decided["detail"].startswith("would be refused: no rule allows")


@pytest.mark.parametrize(
    ("host", "status", "error", "more"),
    [
        ("missing.test", b"502", b"error=dns_error", b'rcode="NXDOMAIN"'),
        ("up.test", b"502", b"error=connection_refused", b"refused the connection"),
    ],
)
def test_a_failure_of_upstream_is_no_refusal(
    host: str, status: bytes, error: bytes, more: bytes
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]

        async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
            answer = await stage.ask(f"CONNECT {host}:{port} HTTP/1.1\r\n\r\n".encode())
            assert answer.startswith(b"HTTP/1.1 " + status)
            assert error in answer
            assert more in answer

        stage = play(scenario)
    assert stage.of("flow.decided")[0]["action"] == "allow"
    [closed] = stage.of("flow.closed")
    assert closed["said_by"] == "upstream"
    assert closed["reason"].encode() in error


def test_the_record_is_written_before_anything_is_dialled() -> None:
    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        seen: list[list[str]] = []

        async def note(stream: trio.SocketStream) -> None:
            seen.append([line["event"] for line in stage.events])
            await echo(stream)

        port = await stage.upstream(nursery, note)
        async with stage.client() as client:
            await client.send_all(f"CONNECT up.test:{port} HTTP/1.1\r\n\r\n".encode())
            await read_until(client, b"\r\n\r\n")
            await client.send_all(b"x")
            await read_until(client, b"x")
        assert seen == [["flow.decided"]]

    play(scenario)


@pytest.mark.parametrize("form", ["CONNECT up.test:{}", "GET http://up.test:{}/"])
def test_without_a_record_nothing_is_dialled(form: str) -> None:
    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        dialled = []

        async def note(stream: trio.SocketStream) -> None:
            dialled.append(1)
            await stream.aclose()

        port = await stage.upstream(nursery, note)
        stage.sandbox.audit = BrokenAudit(None, "s")
        request = form.format(port) + " HTTP/1.1\r\nHost: up.test\r\n\r\n"
        answer = await stage.ask(request.encode())
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"nothing leaves without a record" in answer
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert dialled == []

    play(scenario)


MALFORMED = {
    b"\x16\x03\x01\x00\x05hello": b"400",
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n": b"400",
    b"CONNECT up.test HTTP/1.1\r\n\r\n": b"400",
    b"CONNECT up.test:0 HTTP/1.1\r\n\r\n": b"400",
    b"CONNECT up.test:99999 HTTP/1.1\r\n\r\n": b"400",
    b"CONNECT 0x7f.1:80 HTTP/1.1\r\n\r\n": b"400",
    b"CONNECT u@up.test:80 HTTP/1.1\r\n\r\n": b"400",
    b"GET http://up.test/ HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n": b"400",
    b"GET http://up.test/ HTTP/3.0\r\n\r\n": b"505",
    b"GET http://up.test/ HTTP/1.1\r\nX: " + b"y" * 70_000: b"431",
}


@pytest.mark.parametrize("raw", MALFORMED)
def test_malformed_http_is_answered_and_recorded_and_ends_nothing_else(raw: bytes) -> None:
    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        port = await stage.upstream(nursery, echo)
        async with stage.client() as other:
            await other.send_all(f"CONNECT up.test:{port} HTTP/1.1\r\n\r\n".encode())
            await read_until(other, b"\r\n\r\n")
            answer = await stage.ask(raw, end=True)
            assert answer.split()[1] == MALFORMED[raw]
            assert b"error=http_request_error" in answer
            await other.send_all(b"still here")
            await read_until(other, b"still here")

    stage = play(scenario)
    refused = [line for line in stage.of("flow.decided") if line["action"] == "refuse"]
    assert [line["status"] for line in refused] == [int(MALFORMED[raw])]
    assert stage.reports == []


def test_a_head_that_does_not_come_in_time_is_answered_with_408() -> None:
    clock = trio.testing.MockClock()

    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        async with stage.client() as client:
            await client.send_all(b"CONNECT up.test:443 HT")
            while not stage.sandbox.connections:
                await trio.testing.wait_all_tasks_blocked(0.001)
            await trio.testing.wait_all_tasks_blocked(0.005)
            clock.jump(31)
            assert (await read_until(client, b"\r\n\r\n")).startswith(b"HTTP/1.1 408 ")

    play(scenario, clock=clock)


def test_an_open_tunnel_outlives_every_deadline() -> None:
    clock = trio.testing.MockClock()

    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        port = await stage.upstream(nursery, echo)
        async with stage.client() as client:
            await client.send_all(f"CONNECT up.test:{port} HTTP/1.1\r\n\r\n".encode())
            await read_until(client, b"\r\n\r\n")
            for _ in range(3):
                await trio.testing.wait_all_tasks_blocked(0.005)
                clock.jump(40 * 24 * 3600)
                await client.send_all(b"ping")
                await read_until(client, b"ping")

    play(scenario, clock=clock)


def test_past_the_limit_of_flows_a_client_is_told_which_limit() -> None:
    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        stage.limit_flows(1)
        port = await stage.upstream(nursery, echo)
        request = f"CONNECT up.test:{port} HTTP/1.1\r\n\r\n".encode()
        async with stage.client() as client:
            await client.send_all(request)
            await read_until(client, b"\r\n\r\n")
            answer = await stage.ask(request)
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"--limit flows=" in answer
            assert b"connection_limit_reached" in answer
        await stage.settled()
        async with stage.client() as client:
            await client.send_all(request)
            assert await read_until(client, b"\r\n\r\n") == OK

    play(scenario)


def test_a_crash_in_one_flow_is_told_and_ends_that_flow_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real = dial_module.dial

    async def dial(sandbox: Any, target: Any, addresses: Any) -> Any:
        if target.port == 1:
            raise ZeroDivisionError("a bug")
        return await real(sandbox, target, addresses)

    monkeypatch.setattr(admit, "dial", dial)

    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        port = await stage.upstream(nursery, echo)
        assert await stage.ask(b"CONNECT up.test:1 HTTP/1.1\r\n\r\n") == b""
        async with stage.client() as client:
            await client.send_all(f"CONNECT up.test:{port} HTTP/1.1\r\n\r\n".encode())
            assert await read_until(client, b"\r\n\r\n") == OK

    stage = play(scenario)
    assert "ZeroDivisionError" in stage.reports[0]
    assert stage.of("flow.closed")[0]["reason"] == "proxy_internal_error"


class Owners:
    def owner_of(self, ip: str, port: int) -> Owner | None:
        return Owner(42, "curl", 7, 8)


@pytest.mark.parametrize("answers", [True, False])
def test_the_owner_is_named_and_its_executable_where_the_supervisor_answers(answers: bool) -> None:
    asked: list[int] = []

    async def exe_of(pid: int, inode: int, device: int) -> str | None:
        asked.append(pid)
        if not answers:
            await trio.sleep_forever()
        return "/usr/bin/curl"

    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        stage.sandbox.owners = Owners()
        stage.sandbox.exe_of = exe_of
        for _ in range(2):
            await stage.ask(b"CONNECT evil.test:443 HTTP/1.1\r\n\r\n")

    stage = play(scenario, timeouts={"exe": 0.01})
    for line in stage.of("flow.decided"):
        assert (line["pid"], line["comm"]) == (42, "curl")
        assert line.get("exe") == ("/usr/bin/curl" if answers else None)
    assert len(asked) == (1 if answers else 2)


def test_three_hundred_tunnels_at_once_and_none_is_left_over() -> None:
    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        port = await stage.upstream(nursery, echo)
        request = f"CONNECT up.test:{port} HTTP/1.1\r\n\r\n".encode()
        open_now, all_open = 0, trio.Event()

        async def one() -> None:
            nonlocal open_now
            async with stage.client() as client:
                await client.send_all(request)
                await read_until(client, b"\r\n\r\n")
                open_now += 1
                if open_now == 300:
                    all_open.set()
                await all_open.wait()
                await client.send_all(b"x")
                await read_until(client, b"x")

        async with trio.open_nursery() as clients:
            for _ in range(300):
                clients.start_soon(one)
        await stage.settled()

    stage = play(scenario)
    assert len(stage.of("flow.closed")) == 300
    assert stage.reports == []


def test_stopping_closes_open_flows_and_says_so() -> None:
    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        port = await stage.upstream(nursery, echo)
        client = await trio.open_tcp_stream(*stage.address)
        await client.send_all(f"CONNECT up.test:{port} HTTP/1.1\r\n\r\n".encode())
        await read_until(client, b"\r\n\r\n")

    [closed] = play(scenario).of("flow.closed")
    assert closed["detail"] == "the sandbox ended"


class Listener:
    """Stands before a listening socket and fails with `errors` first."""

    def __init__(self, real: socket.socket, errors: list[int]) -> None:
        self.real = real
        self.errors = errors

    def fileno(self) -> int:
        return self.real.fileno()

    def accept(self) -> tuple[socket.socket, Any]:
        if self.errors:
            code = self.errors.pop(0)
            raise OSError(code, os.strerror(code))
        return self.real.accept()


def test_accepting_goes_on_after_errors_that_pass() -> None:
    clock = trio.testing.MockClock(autojump_threshold=0.05)
    stage = Stage()

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as real, trio.fail_after(60):
            real.setblocking(False)
            errors = [errno.ECONNABORTED, errno.EMFILE, errno.ENOBUFS]
            async with trio.open_nursery() as nursery:
                listener: Any = Listener(real, errors)
                nursery.start_soon(accept_clients, stage.sandbox, listener, nursery)
                stage.address = real.getsockname()
                answer = await stage.ask(b"nonsense\r\n\r\n")
                assert answer.startswith(b"HTTP/1.1 400 ")
                nursery.cancel_scope.cancel()

    trio.run(main, clock=clock)
    assert stage.reports == ["accept: Too many open files", "accept: No buffer space available"]


def test_names_invented_under_a_wildcard_are_bounded_by_connect_too() -> None:
    policy = Policy((Rule("wild rule", (Endpoint("*.wild.test", None),)),))
    answers: dict[str, bytes] = {}

    async def scenario(stage: Stage, _nursery: trio.Nursery) -> None:
        for label in ("a", "b", "c", "a"):
            async with stage.client() as client:
                await client.send_all(f"CONNECT {label}.wild.test:443 HTTP/1.1\r\n\r\n".encode())
                answers[label] = await read_all(client)
        refused = [line for line in stage.of("flow.decided") if line["action"] == "refuse"]
        assert [line["host"] for line in refused] == ["c.wild.test"]

    play(scenario, policy=policy)
    assert answers["c"].startswith(b"HTTP/1.1 403 ")
    assert b"--limit names=" in answers["c"]
    # The stage's resolver does not know the others: that they were asked for is the point.
    assert not answers["a"].startswith(b"HTTP/1.1 403 ")
