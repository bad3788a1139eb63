"""Domain fronting: a connection to an allowed host whose words are for another one.

Every entry (a CONNECT tunnel, a redirected connection, either of them with the words coming late or
in pieces) meets every disagreement. Upstream is a server that would serve anybody, so a byte that
reaches it is the attack's success; each attack is seen to reach it where the check is not made.
"""

from __future__ import annotations

import pytest
import trio
import trio.testing

from netns_runtime.policy import Endpoint, Inspection, Policy, Rule
from netns_runtime.proxy import guard as guard_module
from netns_runtime.proxy.admit import ACCESS_DENIED
from tests.support.hellos import ECH, SSL2, hello, real_hello, records, server_name
from tests.support.proxy_stage import LOOPBACK, Stage, outcome_of, play, read_until

UP, OTHER = server_name("up.test"), server_name("other.test")
# The web's ports are where a name is always to be had; everything here listens elsewhere, so the
# rule says that this is the web.
WEB = Inspection(protocol="rest", access="full")

TLS_ATTACKS = {
    "another SNI": (real_hello("other.test"), "sni_mismatch"),
    "SNI of a subdomain": (real_hello("sub.up.test"), "sni_mismatch"),
    "SNI of the domain above": (real_hello("test"), "sni_mismatch"),
    "SNI with NUL": (records(hello(server_name("up.test\0other.test"))), "client_tls_error"),
    "SNI that is an address": (records(hello(server_name("127.0.0.1"))), "sni_mismatch"),
    "two names in one SNI": (
        records(hello(server_name("up.test", "other.test"))),
        "client_tls_error",
    ),
    "two SNI": (records(hello(UP, OTHER)), "client_tls_error"),
    "no SNI": (real_hello(None), "sni_missing"),
    "ECH behind the right SNI": (records(hello(UP, ECH)), "ech_unverifiable"),
    "another SNI in tiny records": (records(hello(OTHER), 3), "sni_mismatch"),
    "another record version": (b"\x16\x02\x00" + records(hello(OTHER))[3:], "client_tls_error"),
    "an empty record first": (b"\x16\x03\x01\0\0" + records(hello(OTHER)), "client_tls_error"),
}
RESET_ATTACKS = {
    "a hello in SSL 2's form": (SSL2, "sni_missing"),
    "HTTP/2 without TLS": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "http_unverifiable"),
}
HTTP_ATTACKS = {
    "another Host": b"GET / HTTP/1.1\r\nHost: other.test\r\n\r\n",
    "Host with another port": b"GET / HTTP/1.1\r\nHost: up.test:1\r\n\r\n",
    "Host that is no host": b"GET / HTTP/1.1\r\nHost: up.test, other.test\r\n\r\n",
    "an empty Host": b"GET / HTTP/1.1\r\nHost: \r\n\r\n",
    "a whole URL of another": b"GET http://other.test/ HTTP/1.1\r\nHost: up.test\r\n\r\n",
    "another Host beside the right URL": b"GET http://up.test/ HTTP/1.1\r\n"
    b"Host: other.test\r\n\r\n",
    "CONNECT inside": b"CONNECT other.test:443 HTTP/1.1\r\nHost: up.test\r\n\r\n",
    "a method nobody knows": b"BREW / HTTP/1.1\r\nHost: other.test\r\n\r\n",
    "an empty line first": b"\r\nGET / HTTP/1.1\r\nHost: other.test\r\n\r\n",
    "a websocket": b"GET / HTTP/1.1\r\nHost: other.test\r\nConnection: upgrade\r\n"
    b"Upgrade: websocket\r\n\r\n",
}
MALFORMED = {
    "two Hosts": b"GET / HTTP/1.1\r\nHost: up.test\r\nHost: other.test\r\n\r\n",
    "no Host": b"GET / HTTP/1.1\r\n\r\n",
    "blanks that only some take": b"GET\t/\tHTTP/1.1\r\nHost: other.test\r\n\r\n",
    "a blank first": b" GET / HTTP/1.1\r\nHost: other.test\r\n\r\n",
    "lines that only some end": b"GET / HTTP/1.1\nHost: other.test\n\n",
    "an old request": b"GET /\r\nHost: other.test\r\n\r\n",
    "lower case": b"get / http/1.1\r\nHost: other.test\r\n\r\n",
}


def web(**config: object) -> Stage:
    endpoint = Endpoint("up.test", None, LOOPBACK, inspection=WEB)
    return Stage(policy=Policy((Rule("web rule", (endpoint,)),)), **config)


class Server:
    """Counts what reaches it."""

    def __init__(self) -> None:
        self.taken = b""
        self.changed = trio.Event()
        self.dialled = trio.Event()

    async def until(self, data: bytes) -> None:
        """Wait until that and nothing else has come."""
        while self.taken != data:
            await self.changed.wait()

    async def __call__(self, stream: trio.SocketStream) -> None:
        self.dialled.set()
        async with stream:
            async for data in stream:
                self.taken += data
                self.changed.set()
                self.changed = trio.Event()


async def attack(stage: Stage, entry: str, words: bytes, step: int, server: Server) -> bytes:
    """Say `words` through `entry`; what the client is told."""
    was_reset = False
    async with trio.open_nursery() as nursery:
        port = await stage.upstream(nursery, server)
        opened = stage.redirected(port) if entry == "redirected" else stage.tunnel(port)
        if entry == "early":
            opened = stage.tunnel(port, early=words)
            words = b""
        if entry == "late":
            opened = stage.redirected(port)
        async with opened as client:
            if entry == "late":
                await server.dialled.wait()  # without a word of the client
            try:
                for at in range(0, len(words), step):
                    await client.send_all(words[at : at + step])
            except trio.BrokenResourceError:
                was_reset = True
            with trio.fail_after(5):
                told = await outcome_of(client)
        nursery.cancel_scope.cancel()
    return told + b"RESET" if was_reset and not told.endswith(b"RESET") else told


def played(entry: str, words: bytes, step: int) -> tuple[Stage, bytes, bytes]:
    server, told = Server(), b""

    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        nonlocal told
        told = await attack(stage, entry, words, step, server)
        await stage.settled()

    timeouts = {"identify": 0.005} if entry == "late" else {}
    stage = play(scenario, stage=web(timeouts=timeouts))
    assert stage.reports == []
    return stage, told, server.taken


def refused(stage: Stage) -> dict[str, object]:
    [line] = [line for line in stage.events if line.get("reason")]
    assert (line["action"], line["said_by"], line["rule"]) == ("refuse", "policy", "web rule")
    return line


ENTRIES = [("redirected", 100_000), ("redirected", 40), ("tunnel", 100_000), ("tunnel", 40)]
ENTRIES += [("early", 100_000), ("late", 100_000), ("late", 40)]


@pytest.mark.parametrize("case", TLS_ATTACKS)
@pytest.mark.parametrize(("entry", "step"), ENTRIES)
def test_tls_for_another_host_gets_an_alert_and_nothing_goes_upstream(
    case: str, entry: str, step: int
) -> None:
    words, reason = TLS_ATTACKS[case]
    stage, told, taken = played(entry, words, step)
    assert told.removesuffix(b"RESET") == ACCESS_DENIED
    assert taken == b""
    assert refused(stage)["reason"] == reason


@pytest.mark.parametrize("case", RESET_ATTACKS)
@pytest.mark.parametrize(("entry", "step"), ENTRIES)
def test_what_cannot_be_told_in_its_language_is_reset(case: str, entry: str, step: int) -> None:
    words, reason = RESET_ATTACKS[case]
    stage, told, taken = played(entry, words, step)
    assert told == b"RESET"
    # SSL 2's first bytes may be anything's: where they come in pieces, some pass before the rest.
    assert taken in {b"", words[:0]} or (case.startswith("a hello") and len(taken) < 11)
    assert refused(stage)["reason"] == reason


@pytest.mark.parametrize("case", HTTP_ATTACKS)
@pytest.mark.parametrize(("entry", "step"), ENTRIES)
def test_a_request_for_another_host_gets_403_and_nothing_goes_upstream(
    case: str, entry: str, step: int
) -> None:
    words = HTTP_ATTACKS[case].replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    if b"websocket" in words:
        words = words.replace(b"Connection: close\r\n", b"")
        words += b"GET / HTTP/1.0\r\nHost: other.test\r\n\r\n"
    stage, told, taken = played(entry, words, step)
    assert told.startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert b"error=http_request_denied" in told
    assert b"reason: host_mismatch" in told
    assert taken == b""
    reasons = {line["reason"] for line in stage.events if line.get("action") == "refuse"}
    assert reasons == {"host_mismatch"}


@pytest.mark.parametrize("case", MALFORMED)
@pytest.mark.parametrize(("entry", "step"), ENTRIES)
def test_a_request_that_servers_read_differently_gets_400_and_nothing_goes_upstream(
    case: str, entry: str, step: int
) -> None:
    _, told, taken = played(entry, MALFORMED[case], step)
    assert told.startswith(b"HTTP/1.1 400 ")
    assert taken == b""


# A hello that is not understood is refused by its parser, not by a check.
UNDERSTOOD = {
    case: words
    for case, (words, reason) in (TLS_ATTACKS | RESET_ATTACKS).items()
    if reason != "client_tls_error"
}


@pytest.mark.parametrize("case", UNDERSTOOD)
def test_the_attacks_succeed_where_the_check_is_not_made(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = UNDERSTOOD[case]
    monkeypatch.setattr(guard_module, "fault_of_first", lambda *_, **__: None)
    server = Server()

    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        port = await stage.upstream(nursery, server)
        async with stage.tunnel(port) as client:
            await client.send_all(words)
            await server.until(words)

    play(scenario, stage=web())


@pytest.mark.parametrize("entry", ["redirected", "tunnel"])
@pytest.mark.parametrize("begin", [b"G", b"GET", b"\r\n", b"BREW", b"BREW /", b"BREW / HTT"])
def test_a_request_that_waits_for_the_check_to_tire_is_reset(entry: str, begin: bytes) -> None:
    whole = b"\r\nGET / HTTP/1.1\r\nHost: other.test\r\n\r\n"
    if not begin.startswith(b"\r"):
        whole = whole[2:]
    if begin.startswith(b"BREW"):
        whole = whole.replace(b"GET", b"BREW")
    server = Server()

    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        port = await stage.upstream(nursery, server)
        async with getattr(stage, entry)(port) as client:
            await client.send_all(begin)
            await server.until(begin)
            await client.send_all(whole[len(begin) :])
            assert await outcome_of(client) == b"RESET"
        await stage.settled()

    stage = play(scenario, stage=web(timeouts={"hold": 0.005, "identify": 0.005}))
    assert refused(stage)["reason"] == "http_unverifiable"
    assert server.taken == begin


@pytest.mark.parametrize("entry", ["redirected", "tunnel"])
def test_a_hello_that_is_never_finished_is_never_let_go(entry: str) -> None:
    server = Server()

    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        port = await stage.upstream(nursery, server)
        async with getattr(stage, entry)(port) as client:
            await client.send_all(real_hello("up.test")[:-1])
            assert await outcome_of(client) == ACCESS_DENIED
        await stage.settled()

    timeouts = {"hold": 0.005, "identify": 0.005, "head": 0.02}
    stage = play(scenario, stage=web(timeouts=timeouts))
    assert refused(stage)["reason"] == "client_tls_error"
    assert server.taken == b""


@pytest.mark.parametrize("entry", ["redirected", "tunnel"])
def test_the_second_request_of_a_connection_is_judged_like_the_first(entry: str) -> None:
    async def once(stream: trio.SocketStream) -> None:
        assert b"other" not in await read_until(stream, b"\r\n\r\n")
        await stream.send_all(b"HTTP/1.1 204 No Content\r\n\r\n")
        assert await stream.receive_some() == b""

    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        port = await stage.upstream(nursery, once)
        async with getattr(stage, entry)(port) as client:
            await client.send_all(f"GET /1 HTTP/1.1\r\nHost: up.test:{port}\r\n\r\n".encode())
            await read_until(client, b"\r\n\r\n")
            await client.send_all(b"GET /2 HTTP/1.0\r\nHost: other.test\r\n\r\n")
            assert (await outcome_of(client)).startswith(b"HTTP/1.1 403 ")
        await stage.settled()

    stage = play(scenario, stage=web())
    assert [line["status"] for line in stage.of("http.request")] == [204, 403]


LENIENT = {
    "tls: skip": Inspection(tls="skip"),
    "protocol: tcp": Inspection(protocol="tcp"),
    "a port of its own": None,
}


@pytest.mark.parametrize("rule", LENIENT)
@pytest.mark.parametrize("entry", ["redirected", "tunnel"])
@pytest.mark.parametrize("case", [*TLS_ATTACKS, *RESET_ATTACKS])
def test_where_the_rule_says_so_a_name_may_be_missing_but_not_another(
    rule: str, entry: str, case: str
) -> None:
    words, reason = (TLS_ATTACKS | RESET_ATTACKS)[case]
    endpoint = Endpoint("up.test", None, LOOPBACK, inspection=LENIENT[rule])
    server = Server()
    passes = reason in {"sni_missing", "ech_unverifiable", "http_unverifiable"}

    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        port = await stage.upstream(nursery, server)
        async with getattr(stage, entry)(port) as client:
            await client.send_all(words)
            if passes:
                await server.until(words)
            else:
                assert (await outcome_of(client)).startswith(ACCESS_DENIED)
        await stage.settled()

    stage = play(scenario, policy=Policy((Rule("web rule", (endpoint,)),)))
    if not passes:
        assert refused(stage)["reason"] == reason
        assert server.taken == b""


def test_report_mode_lets_fronting_pass_and_says_so() -> None:
    server = Server()

    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        port = await stage.upstream(nursery, server)
        words = real_hello("other.test")
        async with stage.redirected(port) as client:
            await client.send_all(words)
            await server.until(words)

    [decided] = play(scenario, stage=web(report=True)).of("flow.decided")
    assert (decided["action"], decided["reason"]) == ("allow", "sni_mismatch")
    assert decided["detail"].startswith("would be refused: ")
