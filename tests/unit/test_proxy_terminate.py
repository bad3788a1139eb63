"""Terminated flows: who is greeted how, and what either side's failure looks like to the other."""

from __future__ import annotations

import ssl
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from netns_runtime.policy import Policy, load_policy
from netns_runtime.proxy import terminate as terminating
from netns_runtime.proxy.ca import Authority, server_context
from netns_runtime.proxy.flow import Ended
from netns_runtime.proxy.reload import swap_policy
from netns_runtime.proxy.secure import upstream_context
from netns_runtime.proxy.upstream import end
from tests.support.hellos import real_hello as client_hello
from tests.support.proxy_stage import BrokenAudit, Stage, outcome_of, play, read_until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

POLICY = b"""
version: 1
network_policies:
  inspected:
    endpoints:
      - {host: up.test, ports: [1], protocol: rest, access: full, allowed_ips: [127.0.0.0/8]}
  addressed:
    endpoints:
      - {host: 127.0.0.1, ports: [1], protocol: rest, access: full, allowed_ips: [127.0.0.0/8]}
  skipped:
    endpoints:
      - {host: skip.test, ports: [1], tls: skip, allowed_ips: [127.0.0.0/8]}
"""
GET = b"GET /a HTTP/1.1\r\nHost: up.test:%d\r\n\r\n"


@cache
def outside() -> Authority:
    """Signs the upstreams."""
    return Authority()


@cache
def inside() -> Authority:
    """The sandbox's."""
    return Authority()


@cache
def roots() -> ssl.SSLContext:
    context = upstream_context()
    context.load_verify_locations(cadata=outside().pem.decode())
    return context


@cache
def trusting(*alpn: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=inside().pem.decode())
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def policy_for(port: int) -> Policy:
    return load_policy(POLICY.replace(b"[1]", b"[%d]" % port), "test.yaml")


class Upstreams:
    """TLS servers to play: HTTP/1.1 that answers every request, `seen` of them in order."""

    def __init__(self, host: str = "up.test", alpn: str | None = "http/1.1") -> None:
        self.context = outside().context_for(host, alpn)
        self.seen: list[bytes] = []
        self.names: list[str | None] = []
        self.closes = False

    async def __call__(self, stream: trio.SocketStream) -> None:
        secure = trio.SSLStream(stream, self.context, server_side=True, https_compatible=True)
        self.context.sni_callback = lambda _object, name, _context: self.names.append(name)
        try:
            data = b""
            async for part in secure:
                data += part
                while b"\r\n\r\n" in data:
                    head, _, data = data.partition(b"\r\n\r\n")
                    self.seen.append(head)
                    await secure.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                    if self.closes:
                        await secure.aclose()
                        return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return


def staged(
    scenario: Callable[[Stage, int], Awaitable[None]],
    upstream: Callable[[trio.SocketStream], Awaitable[None]],
    **options: Any,
) -> Stage:
    """Play `scenario(stage, port of the upstream)` in a sandbox that terminates."""
    stage = options.pop("stage", None) or Stage(**options)

    async def run(stage: Stage, nursery: trio.Nursery) -> None:
        port = await stage.upstream(nursery, upstream)
        stage.sandbox.config = replace(stage.sandbox.config, policy=policy_for(port))
        await scenario(stage, port)

    stage.names.table["skip.test"] = ("127.0.0.1",)
    stage.sandbox.authority, stage.sandbox.upstream_context = inside(), roots()
    play(run, stage=stage)
    assert not stage.reports, stage.reports
    return stage


def over_tls(
    stream: trio.SocketStream, host: str | None = "up.test", *alpn: str
) -> trio.SSLStream[trio.SocketStream]:
    return trio.SSLStream(stream, trusting(*alpn), server_hostname=host, https_compatible=True)


async def exchanged(secure: trio.SSLStream[trio.SocketStream], port: int) -> bytes:
    await secure.send_all(GET % port)
    return await read_until(secure, b"ok")  # type: ignore[arg-type]


entries = pytest.mark.parametrize("entry", ["explicit", "redirected"])


def entering(stage: Stage, entry: str, port: int) -> Any:
    return stage.tunnel(port) if entry == "explicit" else stage.redirected(port)


@entries
def test_an_inspected_host_is_terminated_on_every_way_in(entry: str) -> None:
    upstream = Upstreams()

    async def scenario(stage: Stage, port: int) -> None:
        async with entering(stage, entry, port) as stream:
            secure = over_tls(stream, "up.test", "http/1.1")
            for _ in range(3):
                answer = await exchanged(secure, port)
                assert answer.startswith(b"HTTP/1.1 200 OK")
            assert secure.selected_alpn_protocol() == "http/1.1"
            certificate = secure.getpeercert()
            assert ("commonName", "up.test") in certificate["subject"][0]
            await secure.aclose()
        await stage.settled()

    stage = staged(scenario, upstream)
    assert len(upstream.seen) == 3
    assert upstream.names == ["up.test"]
    requests = stage.of("http.request")
    assert [line["status"] for line in requests] == [200, 200, 200]
    assert {line["entry"] for line in requests} == {entry}
    assert len(stage.of("flow.closed")) == 1
    assert "detail" not in stage.of("flow.closed")[0]


def test_tls_skip_is_not_terminated() -> None:
    upstream = Upstreams("skip.test")

    async def scenario(stage: Stage, port: int) -> None:
        async with stage.tunnel(port, "skip.test") as stream:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_verify_locations(cadata=outside().pem.decode())
            secure = trio.SSLStream(
                stream, context, server_hostname="skip.test", https_compatible=True
            )
            assert (await exchanged(secure, port)).endswith(b"ok")
            await secure.aclose()
        await stage.settled()

    stage = staged(scenario, upstream)
    assert stage.of("http.request") == []


@entries
def test_a_hello_in_pieces_after_a_long_silence(entry: str) -> None:
    upstream = Upstreams()

    async def scenario(stage: Stage, port: int) -> None:
        async with entering(stage, entry, port) as stream:
            near, far = trio.testing.memory_stream_pair()

            async def trickle() -> None:
                async for data in far:
                    for byte in data:
                        await stream.send_all(bytes((byte,)))

            async def back() -> None:
                async for data in stream:
                    await far.send_all(data)

            await trio.testing.wait_all_tasks_blocked(0.015)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trickle)
                nursery.start_soon(back)
                secure = trio.SSLStream(near, trusting(), server_hostname="up.test")
                await secure.send_all(GET % port)
                assert (await secure.receive_some()).startswith(b"HTTP/1.1 200")
                nursery.cancel_scope.cancel()
        await stage.settled()

    staged(scenario, upstream, timeouts={"identify": 0.01})
    assert len(upstream.seen) == 1


def test_a_hello_that_comes_with_its_connect() -> None:
    upstream = Upstreams()

    async def scenario(stage: Stage, port: int) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        client = trusting().wrap_bio(incoming, outgoing, server_hostname="up.test")
        with pytest.raises(ssl.SSLWantReadError):
            client.do_handshake()
        async with stage.tunnel(port, early=outgoing.read()) as stream:
            while True:
                try:
                    client.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    incoming.write(await stream.receive_some())
            client.write(GET % port)
            await stream.send_all(outgoing.read())
            incoming.write(await stream.receive_some())
            assert client.read().startswith(b"HTTP/1.1 200")
        await stage.settled()

    staged(scenario, upstream)
    assert len(upstream.seen) == 1


@pytest.mark.parametrize(
    ("offered", "spoken", "agreed"),
    [
        ((), "http/1.1", None),
        ((), None, None),
        (("http/1.1",), None, None),
        (("h2", "http/1.1"), "http/1.1", "http/1.1"),
        (("h2", "http/1.1"), None, None),
        (("http/1.0", "http/1.1"), "http/1.1", "http/1.1"),
        (("http/1.0",), "http/1.1", None),
    ],
)
def test_both_sides_speak_what_upstream_chose(
    offered: tuple[str, ...], spoken: str | None, agreed: str | None
) -> None:
    upstream = Upstreams(alpn=spoken)

    async def scenario(stage: Stage, port: int) -> None:
        async with stage.tunnel(port) as stream:
            secure = over_tls(stream, "up.test", *offered)
            await exchanged(secure, port)
            assert secure.selected_alpn_protocol() == agreed
        await stage.settled()

    staged(scenario, upstream)


def test_h2_is_served_by_its_own_module(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[Any] = []

    async def serve_http2(sandbox: Any, flow: Any, *rest: Any) -> None:
        down, up, counted = rest
        served.append((down.alpn, up.alpn, flow.protocol, counted.peer is up))
        await down.send(b"two")
        end(sandbox, counted, Ended())

    monkeypatch.setattr(terminating, "serve_http2", serve_http2)

    async def scenario(stage: Stage, port: int) -> None:
        async with stage.tunnel(port) as stream:
            secure = over_tls(stream, "up.test", "http/1.1", "h2")
            assert await secure.receive_some() == b"two"
            assert await secure.receive_some() == b""
        await stage.settled()

    staged(scenario, Upstreams(alpn="h2"))
    assert served == [("h2", "h2", "h2", True)]


def test_an_address_without_a_server_name_is_verified_as_that_address() -> None:
    upstream = Upstreams("127.0.0.1")

    async def scenario(stage: Stage, port: int) -> None:
        async with stage.tunnel(port, "127.0.0.1") as stream:
            secure = over_tls(stream, "127.0.0.1")
            await secure.send_all(b"GET / HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n\r\n" % port)
            assert (await secure.receive_some()).startswith(b"HTTP/1.1 200")
        await stage.settled()

    staged(scenario, upstream)
    assert upstream.names == [None]


def test_a_client_that_names_no_host_gets_the_flows() -> None:
    upstream = Upstreams()

    async def scenario(stage: Stage, port: int) -> None:
        nameless = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        nameless.check_hostname = False
        nameless.load_verify_locations(cadata=inside().pem.decode())
        async with stage.tunnel(port) as stream:
            secure = trio.SSLStream(stream, nameless, https_compatible=True)
            await exchanged(secure, port)
            assert secure.getpeercert()["subjectAltName"] == (("DNS", "up.test"),)
        await stage.settled()

    staged(scenario, upstream)
    assert upstream.names == ["up.test"]


def test_upstream_that_ends_between_requests_is_dialled_and_greeted_again() -> None:
    upstream = Upstreams()
    upstream.closes = True

    async def scenario(stage: Stage, port: int) -> None:
        async with stage.tunnel(port) as stream:
            secure = over_tls(stream)
            for _ in range(2):
                assert b"200 OK" in await exchanged(secure, port)
                await trio.testing.wait_all_tasks_blocked(0.005)
        await stage.settled()

    stage = staged(scenario, upstream)
    assert upstream.names == ["up.test", "up.test"]
    assert len(stage.of("flow.closed")) == 2


def self_made(host: str, **changes: Any) -> ssl.SSLContext:
    return server_context(Authority(**changes).leaf_for(host), None)


async def plain_http(stream: trio.SocketStream) -> None:
    await stream.receive_some()
    await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await stream.aclose()


async def hangs_up(stream: trio.SocketStream) -> None:
    await stream.receive_some()
    await stream.aclose()


async def wants_a_certificate(stream: trio.SocketStream) -> None:
    await stream.receive_some()
    await stream.send_all(bytes.fromhex("15030300020274"))
    await stream.aclose()


def with_context(context: ssl.SSLContext) -> Upstreams:
    upstream = Upstreams()
    upstream.context = context
    return upstream


FAILURES: dict[str, tuple[Callable[[], Any], str, str, str]] = {
    "unknown issuer": (
        lambda: with_context(self_made("up.test")),
        "tls_certificate_error",
        "an authority that is not known here",
        "--upstream-ca",
    ),
    "expired": (
        lambda: with_context(
            server_context(Authority(now=lambda: 1_000_000_000.0).leaf_for("up.test"), None)
        ),
        "tls_certificate_error",
        "certificate",
        "",
    ),
    "another host": (
        lambda: Upstreams("other.test"),
        "tls_certificate_error",
        "its certificate is for another name",
        "or list up.test with `tls: skip`",
    ),
    "no TLS": (lambda: plain_http, "tls_protocol_error", "what it speaks is no TLS", ""),
    "hangs up": (lambda: hangs_up, "connection_terminated", "in the middle", ""),
    "client certificate": (
        lambda: wants_a_certificate,
        "tls_alert_received",
        "certificate_required",
        "tls: skip",
    ),
}


@pytest.mark.parametrize("alpn", [(), ("http/1.1",), ("h2", "http/1.1")], ids=str)
@pytest.mark.parametrize("name", FAILURES)
def test_upstreams_failure_is_told_inside_the_clients_tls(name: str, alpn: tuple[str, ...]) -> None:
    make, reason, detail, remedy = FAILURES[name]

    async def scenario(stage: Stage, port: int) -> None:
        async with stage.tunnel(port) as stream:
            secure = over_tls(stream, "up.test", *alpn)
            await secure.send_all(GET % port)
            answer = b""
            async for part in secure:
                answer += part
            assert answer.startswith(b"HTTP/1.1 502 "), answer
            assert f"Proxy-Status: netns-runtime; error={reason}".encode() in answer
            assert detail.encode() in answer
            assert remedy.encode() in answer
            assert b"said_by: upstream" in answer
        await stage.settled()

    stage = staged(scenario, make())
    [closed] = stage.of("flow.closed")
    assert (closed["reason"], closed["said_by"]) == (reason, "upstream")
    assert detail in closed["detail"]
    assert remedy in closed.get("remedy", "")
    [request] = stage.of("http.request")
    assert (request["status"], request["said_by"]) == (502, "upstream")
    assert request["flow"] == closed["flow"]


def test_a_client_that_speaks_h2_alone_is_told_in_h2(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    async def refuse_http2(*words: Any) -> None:
        *_, down, refusal = words
        told.append(refusal.reason)
        await down.send(b"no")

    monkeypatch.setattr(terminating, "refuse_http2", refuse_http2)

    async def scenario(stage: Stage, port: int) -> None:
        async with stage.tunnel(port) as stream:
            secure = over_tls(stream, "up.test", "h2")
            assert await secure.receive_some() == b"no"
            assert secure.selected_alpn_protocol() == "h2"
        await stage.settled()

    staged(scenario, Upstreams("other.test"))
    assert told == ["tls_certificate_error"]


def test_an_upstream_that_asks_for_a_certificate_is_explained_in_the_audit() -> None:
    """As nginx does, which takes the handshake and then answers 400."""
    context = server_context(outside().leaf_for("up.test"), "http/1.1")
    context.load_verify_locations(cadata=outside().pem.decode())
    context.verify_mode = ssl.CERT_OPTIONAL

    async def scenario(stage: Stage, port: int) -> None:
        async with stage.tunnel(port) as stream:
            secure = over_tls(stream)
            await exchanged(secure, port)
            await secure.aclose()
        await stage.settled()

    stage = staged(scenario, with_context(context))
    [closed] = stage.of("flow.closed")
    assert "asked for a client certificate" in closed["detail"]
    assert "up.test in the policy with `tls: skip`" in closed["remedy"]
    assert "reason" not in closed


def test_a_slow_upstream_is_given_up() -> None:
    async def silent(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await trio.sleep_forever()

    async def scenario(stage: Stage, port: int) -> None:
        async with stage.tunnel(port) as stream:
            secure = over_tls(stream)
            await secure.send_all(GET % port)
            answer = await read_until(secure, b"\r\n\r\n")  # type: ignore[arg-type]
            assert answer.startswith(b"HTTP/1.1 504 ")
        await stage.settled()

    stage = staged(scenario, silent, timeouts={"tls": 0.05})
    assert stage.of("flow.closed")[0]["reason"] == "connection_timeout"


@entries
def test_a_client_that_does_not_trust_us_is_explained(entry: str) -> None:
    async def scenario(stage: Stage, port: int) -> None:
        async with entering(stage, entry, port) as stream:
            stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            secure = trio.SSLStream(stream, stranger, server_hostname="up.test")
            with pytest.raises(trio.BrokenResourceError):
                await secure.do_handshake()
        await stage.settled()

    stage = staged(scenario, Upstreams())
    [closed] = stage.of("flow.closed")
    assert (closed["reason"], closed["said_by"]) == ("client_tls_error", "sandbox")
    assert "may not trust this sandbox" in closed["detail"]
    assert "list up.test in the policy with `tls: skip`" in closed["remedy"]
    assert stage.of("http.request") == []


def test_a_client_that_pins_and_leaves_without_a_word_is_explained() -> None:
    async def scenario(stage: Stage, port: int) -> None:
        async with stage.tunnel(port) as stream:
            secure = over_tls(stream)
            await secure.do_handshake()
            await secure.aclose()
        await stage.settled()

    stage = staged(scenario, Upstreams())
    [closed] = stage.of("flow.closed")
    assert "ended before its first request" in closed["detail"]
    assert "`tls: skip`" in closed["remedy"]


def test_a_client_with_another_name_in_its_hello_is_refused() -> None:
    upstream = Upstreams()

    async def scenario(stage: Stage, port: int) -> None:
        async with stage.tunnel(port) as stream:
            await stream.send_all(client_hello("front.test"))
            assert await outcome_of(stream) == terminating_alert()
        await stage.settled()

    stage = staged(scenario, upstream)
    assert upstream.names == []
    [closed] = stage.of("flow.closed")
    assert (closed["reason"], closed["action"]) == ("sni_mismatch", "refuse")


def terminating_alert() -> bytes:
    return bytes.fromhex("15 03 03 00 02 02 31")


@entries
@pytest.mark.parametrize("said", [b"SSH-2.0-x\r\n", b"\x00\x01\x02", b"PRI * HTTP/2.0\r\n\r\nSM"])
def test_what_cannot_be_looked_into_is_refused(entry: str, said: bytes) -> None:
    upstream = Upstreams()

    async def scenario(stage: Stage, port: int) -> None:
        async with entering(stage, entry, port) as stream:
            await stream.send_all(said)
            assert await outcome_of(stream) == b"RESET"
        await stage.settled()

    stage = staged(scenario, upstream)
    assert upstream.seen == []
    assert upstream.names == []
    lines = stage.of("flow.closed") or stage.of("flow.decided")
    assert (lines[-1]["reason"], lines[-1]["action"]) == ("http_unverifiable", "refuse")
    assert "`tls: skip`" in lines[-1]["remedy"]


@entries
def test_plain_http_on_an_inspected_endpoint_is_judged_as_it_is(entry: str) -> None:
    async def web(stream: trio.SocketStream) -> None:
        async with stream:
            await read_until(stream, b"\r\n\r\n")
            await stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    async def scenario(stage: Stage, port: int) -> None:
        async with entering(stage, entry, port) as stream:
            await stream.send_all(GET % port)
            assert (await read_until(stream, b"ok")).startswith(b"HTTP/1.1 200 OK")
        await stage.settled()

    stage = staged(scenario, web)
    assert [line["status"] for line in stage.of("http.request")] == [200]


def test_a_client_that_says_nothing_and_goes_costs_no_line_of_blame() -> None:
    async def scenario(stage: Stage, port: int) -> None:
        async with stage.tunnel(port):
            pass
        await stage.settled()

    stage = staged(scenario, Upstreams())
    assert "reason" not in stage.of("flow.closed")[0]


def test_in_report_mode_a_refused_hello_passes_untouched() -> None:
    async def echo(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(b"got " + await stream.receive_some())

    async def scenario(stage: Stage, port: int) -> None:
        async with stage.tunnel(port) as stream:
            hello = client_hello("front.test")
            await stream.send_all(hello)
            assert await read_until(stream, hello) == b"got " + hello
        await stage.settled()

    staged(scenario, echo, report=True)


def test_a_policy_swap_ends_a_handshake_and_a_tunnel_that_it_would_terminate() -> None:
    async def silent(stream: trio.SocketStream) -> None:
        async with stream:
            await trio.sleep_forever()

    async def scenario(stage: Stage, port: int) -> None:
        open_, inspected = b"tls: skip", b"tls: terminate"
        text = POLICY.replace(b"[1]", b"[%d]" % port)
        async with stage.tunnel(port) as waiting, stage.tunnel(port, "skip.test") as tunnel:
            await waiting.send_all(client_hello("up.test"))
            await tunnel.send_all(client_hello("skip.test"))
            await trio.testing.wait_all_tasks_blocked(0.005)
            changed = load_policy(text.replace(open_, inspected), "new.yaml")
            assert swap_policy(stage.sandbox, changed) == 1
            assert await outcome_of(tunnel) == b"RESET"
            assert swap_policy(stage.sandbox, Policy()) == 1
            assert await outcome_of(waiting) == b"RESET"
        await stage.settled()

    stage = staged(scenario, silent)
    assert [line["reason"] for line in stage.of("flow.closed")] == ["policy_changed"] * 2
    assert "this is a tunnel" in stage.of("flow.closed")[0]["detail"]


def test_no_record_no_greeting() -> None:
    upstream = Upstreams()
    stage = Stage()
    stage.sandbox.audit = BrokenAudit(None, "s", stage.events.append)

    async def scenario(stage: Stage, port: int) -> None:
        answer = await stage.ask(b"CONNECT up.test:%d HTTP/1.1\r\n\r\n" % port)
        assert answer.startswith(b"HTTP/1.1 503 ")
        stage.reports.clear()

    staged(scenario, upstream, stage=stage)
    assert upstream.names == []


def test_many_clients_at_once_share_nothing_but_the_leaf() -> None:
    upstream = Upstreams()

    async def scenario(stage: Stage, port: int) -> None:
        async def one(number: int) -> None:
            async with stage.tunnel(port) as stream:
                secure = over_tls(stream)
                await secure.send_all(GET.replace(b"/a", b"/%d" % number) % port)
                await read_until(secure, b"ok")  # type: ignore[arg-type]

        async with trio.open_nursery() as nursery:
            for number in range(15):
                nursery.start_soon(one, number)
        await stage.settled()

    stage = staged(scenario, upstream)
    assert len({line["path"] for line in stage.of("http.request")}) == 15
    assert not stage.sandbox.flows
