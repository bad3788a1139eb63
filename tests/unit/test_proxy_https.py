"""HTTP/1.1 in terminated TLS: both sides encrypted, and the requests between them."""

from __future__ import annotations

import gc
import ssl
from functools import cache
from typing import TYPE_CHECKING, Any

import trio
import trio.testing

from netns_runtime.proxy.ca import Authority
from netns_runtime.proxy.reload import swap_policy
from netns_runtime.proxy.secure import upstream_context
from netns_runtime.secret import Binding, Secret, Slot
from tests.support.proxy_stage import Stage, play, read_until
from tests.support.recorder import Recorder, policy_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

VALUE = "s3cret-value"
HOLDER = "openshell:resolve:env:TOKEN"
SECRET = Secret(Binding("TOKEN", ("up.test",), (Slot("header", "authorization"),)), VALUE)
FULL = "protocol: rest, access: full"
Secure = trio.SSLStream[trio.SocketStream]


@cache
def authority(_whose: str) -> Authority:
    return Authority()


@cache
def roots() -> ssl.SSLContext:
    context = upstream_context()
    context.load_verify_locations(cadata=authority("outside").pem.decode())
    return context


@cache
def trusting() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=authority("inside").pem.decode())
    context.set_alpn_protocols(["http/1.1"])
    return context


def staged(
    upstream: Recorder,
    scenario: Callable[[Stage, Secure, int], Awaitable[None]],
    *,
    rules: str = FULL,
    compatible: bool = False,
    **config: Any,
) -> Stage:
    """Play `scenario(stage, client, port)` over one terminated connection."""
    stage = Stage(policy=policy_of(rules), secrets=(SECRET,), **config)
    stage.sandbox.authority = authority("inside")
    stage.sandbox.upstream_context = roots()

    async def run(stage: Stage, nursery: trio.Nursery) -> None:
        async def server(stream: trio.SocketStream) -> None:
            context = authority("outside").context_for("up.test", "http/1.1")
            secure = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
            try:
                await upstream(secure)
            except trio.BrokenResourceError:
                return

        port = await stage.upstream(nursery, server)
        async with stage.redirected(port) as plain:
            secure = trio.SSLStream(
                plain, trusting(), server_hostname="up.test", https_compatible=compatible
            )
            await secure.do_handshake()
            await scenario(stage, secure, port)
        await stage.settled()

    play(run, stage=stage)
    gc.collect()
    assert stage.reports == []
    return stage


def get(port: int, path: str = "/a", *headers: str, version: str = "1.1") -> bytes:
    lines = (f"GET {path} HTTP/{version}", f"Host: up.test:{port}", *headers)
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


async def answer_of(client: Secure) -> bytes:
    return await read_until(client, b"ok")  # type: ignore[arg-type]


def test_the_value_reaches_upstream_through_tls_and_the_connection_is_kept() -> None:
    upstream = Recorder()

    async def scenario(_stage: Stage, client: Secure, port: int) -> None:
        for _ in range(2):
            await client.send_all(get(port, "/a", f"Authorization: Bearer {HOLDER}"))
            assert (await answer_of(client)).startswith(b"HTTP/1.1 200 OK\r\n")

    stage = staged(upstream, scenario)
    assert [seen["authorization"] for seen in upstream.requests] == [f"Bearer {VALUE}"] * 2
    assert upstream.connections == 1
    assert {line["protocol"] for line in stage.of("http.request")} == {"https"}


def test_a_kept_upstream_that_ended_is_dialled_again_with_tls() -> None:
    upstream = Recorder()
    upstream.closes = True

    async def scenario(_stage: Stage, client: Secure, port: int) -> None:
        for _ in range(2):
            await client.send_all(get(port))
            await answer_of(client)
            await trio.testing.wait_all_tasks_blocked(0.005)

    staged(upstream, scenario)
    assert upstream.connections == 2
    assert len(upstream.requests) == 2


def test_a_whole_https_url_inside_is_taken_and_an_http_one_is_not() -> None:
    upstream = Recorder()

    async def scenario(_stage: Stage, client: Secure, port: int) -> None:
        await client.send_all(get(port, f"https://up.test:{port}/b"))
        await answer_of(client)
        await client.send_all(get(port, f"http://up.test:{port}/c"))
        told = await read_until(client, b"\r\n\r\n")  # type: ignore[arg-type]
        assert told.startswith(b"HTTP/1.1 400 ")

    staged(upstream, scenario, compatible=True)
    assert [seen.target for seen in upstream.requests] == ["/b"]


def test_the_connections_end_is_said_in_tls_so_that_it_does_not_look_cut() -> None:
    async def scenario(_stage: Stage, client: Secure, port: int) -> None:
        await client.send_all(get(port, version="1.0"))
        told = b""
        # Without close_notify this raises BrokenResourceError.
        async for part in client:
            told += part
        assert told.endswith(b"\r\n\r\nok")

    staged(Recorder(), scenario)


def test_a_request_for_another_host_inside_is_refused() -> None:
    upstream = Recorder()

    async def scenario(_stage: Stage, client: Secure, port: int) -> None:
        await client.send_all(get(port).replace(b"up.test", b"evil.test"))
        told = await read_until(client, b"remedy")  # type: ignore[arg-type]
        assert told.startswith(b"HTTP/1.1 403 ")
        await client.send_all(get(port))
        await answer_of(client)

    staged(upstream, scenario)
    assert [seen.target for seen in upstream.requests] == ["/a"]


def test_a_refused_upgrade_is_a_403_and_the_fallback_works_on_the_same_connection() -> None:
    upstream = Recorder()

    async def scenario(_stage: Stage, client: Secure, port: int) -> None:
        upgrade = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: k")
        await client.send_all(get(port, "/ws", *upgrade))
        told = await read_until(client, b"remedy")  # type: ignore[arg-type]
        assert told.startswith(b"HTTP/1.1 403 ")
        await client.send_all(get(port, "/poll"))
        await answer_of(client)

    staged(upstream, scenario, rules=FULL + ", websocket: refuse")
    assert [seen.target for seen in upstream.requests] == ["/poll"]


def test_a_policy_that_refuses_the_host_cuts_an_idle_terminated_connection() -> None:
    async def scenario(stage: Stage, client: Secure, port: int) -> None:
        await client.send_all(get(port))
        await answer_of(client)
        assert swap_policy(stage.sandbox, policy_of(FULL, host="other.test")) == 1
        await client.send_all(get(port))
        told = await read_until(client, b"remedy")  # type: ignore[arg-type]
        assert told.startswith(b"HTTP/1.1 403 ")

    stage = staged(Recorder(), scenario)
    assert [line["action"] for line in stage.of("flow.closed")] == ["refuse"]


KEY = "dGhlIHNhbXBsZSBub25jZQ=="


def test_a_websocket_is_carried_through_tls_to_its_end() -> None:
    switching = (
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n\x81\x05hello\x88\x02\x03\xe8"
    )

    class Switching(Recorder):
        async def __call__(self, stream: Any) -> None:
            self.connections += 1
            await read_until(stream, b"\r\n\r\n")
            await stream.send_all(switching)
            frame = b"\x88\x82\0\0\0\0\x03\xe8"
            assert await read_until(stream, frame) == frame

    async def scenario(_stage: Stage, client: Secure, port: int) -> None:
        upgrade = ("Connection: Upgrade", "Upgrade: websocket", f"Sec-WebSocket-Key: {KEY}")
        await client.send_all(get(port, "/ws", *upgrade, "Sec-WebSocket-Version: 13"))
        told = await read_until(client, b"\x88\x02\x03\xe8")  # type: ignore[arg-type]
        assert told.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
        assert b"\x81\x05hello" in told
        await client.send_all(b"\x88\x82\0\0\0\0\x03\xe8")

    stage = staged(Switching(), scenario, compatible=True)
    assert [line["code"] for line in stage.of("ws.closed")] == [1000]
    [closed] = stage.of("flow.closed")
    assert (closed["protocol"], closed.get("reason")) == ("websocket", None)
