"""TLS over a socket: what an upstream, a client or the network may do to it."""

from __future__ import annotations

import socket
import ssl
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from netns_runtime.proxy.ca import Authority, server_context
from netns_runtime.proxy.peer import RECEIVE, RESET, Peer
from netns_runtime.proxy.tls import TlsPeer, accept_tls, connect_tls, hearing
from netns_runtime.proxy.tlserrors import HandshakeFailed, TlsError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

HOST = "up.test"
Ends = tuple[TlsPeer, TlsPeer]
VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)


@cache
def authority() -> Authority:
    return Authority()


@cache
def trusting(version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = context.maximum_version = version
    context.load_verify_locations(cadata=authority().pem.decode())
    return hearing(context)


def pair() -> tuple[socket.socket, socket.socket]:
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)
    return ends


async def greeted(
    client: socket.socket,
    server: socket.socket,
    *,
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    alpn: str | None = None,
    offers: tuple[str, ...] = (),
    context: ssl.SSLContext | None = None,
) -> Ends:
    """A client's end and a server's, after their handshake."""
    ends: dict[str, TlsPeer] = {}

    async def connect() -> None:
        ends["client"] = await connect_tls(Peer(client), trusting(version), HOST, offers)

    async def accept() -> None:
        chosen = context or authority().context_for(HOST, alpn)
        ends["server"] = await accept_tls(Peer(server), chosen, b"")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(connect)
        nursery.start_soon(accept)
    return ends["client"], ends["server"]


def play(
    scenario: Callable[[TlsPeer, TlsPeer], Awaitable[None]],
    version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
    **options: Any,
) -> None:
    """Run a scenario between a client's and a server's end, within five seconds."""

    async def run() -> None:
        client, server = pair()
        with client, server, trio.fail_after(5):
            await scenario(*await greeted(client, server, version=version, **options))

    trio.run(run)


async def received(peer: TlsPeer, size: int | None = None) -> bytes:
    """`size` bytes, or all until the end."""
    data = b""
    while size is None or len(data) < size:
        part = await peer.receive()
        if not part:
            break
        data += part
    return data


both_versions = pytest.mark.parametrize("version", VERSIONS, ids=str)


@both_versions
def test_carries_both_ways_and_ends_cleanly(version: ssl.TLSVersion) -> None:
    async def scenario(client: TlsPeer, server: TlsPeer) -> None:
        assert client.version == server.version == version.name.replace("_", ".").replace("v", "v")
        await client.send(b"question")
        assert await server.receive() == b"question"
        await server.send(b"answer")
        await server.end()
        assert await received(client) == b"answer"
        assert not client.is_truncated
        await client.send(b"after the other's end")
        await client.end()
        assert await received(server) == b"after the other's end"
        assert not server.is_truncated

    play(scenario, version)


@both_versions
@pytest.mark.parametrize("size", [1, 16_384, 16_385, RECEIVE, 1_000_003])
def test_every_byte_comes_in_order_whatever_the_size(version: ssl.TLSVersion, size: int) -> None:
    data = (bytes(range(251)) * (size // 251 + 1))[:size]

    async def scenario(client: TlsPeer, server: TlsPeer) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, data)
            assert await received(server, size) == data
        assert server.receive_nowait() is None

    play(scenario, version)


def test_no_read_gives_more_than_its_bound() -> None:
    async def scenario(client: TlsPeer, server: TlsPeer) -> None:
        got: list[int] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, bytes(500_000))
            while sum(got) < 500_000:
                got.append(len(await server.receive()))
        assert max(got) <= RECEIVE + 16_384

    play(scenario)


@both_versions
def test_carries_byte_by_byte(version: ssl.TLSVersion) -> None:
    """Between the two a network that delivers one byte at a time."""

    async def run() -> None:
        (client, near), (far, server) = pair(), pair()
        with client, near, far, server, trio.fail_after(5):

            async def trickle(source: socket.socket, sink: socket.socket) -> None:
                while True:
                    await trio.lowlevel.wait_readable(source)
                    byte = source.recv(1)
                    if not byte:
                        sink.shutdown(socket.SHUT_WR)
                        return
                    sink.send(byte)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(trickle, near, far)
                nursery.start_soon(trickle, far, near)
                ends = await greeted(client, server, version=version)
                await ends[0].send(b"in pieces")
                assert await received(ends[1], 9) == b"in pieces"
                for one, other in (ends, ends[::-1]):
                    await one.end()
                    assert await received(other) == b""
                    assert not other.is_truncated

    trio.run(run)


def test_a_hello_that_was_read_already_is_not_lost() -> None:
    async def run() -> None:
        client, server = pair()
        with client, server, trio.fail_after(5):
            context = authority().context_for(HOST, "h2")

            async def accept() -> None:
                hello = b""
                while len(hello) < 100:
                    hello += await Peer(server).receive()
                end = await accept_tls(Peer(server), context, hello)
                assert end.alpn == "h2"

            async with trio.open_nursery() as nursery:
                nursery.start_soon(accept)
                end = await connect_tls(Peer(client), trusting(), HOST, ("h2", "http/1.1"))
                assert end.alpn == "h2"

    trio.run(run)


def test_offers_of_one_connection_are_not_those_of_the_next() -> None:
    found: list[str | None] = []

    async def scenario(client: TlsPeer, server: TlsPeer) -> None:
        await trio.lowlevel.checkpoint()
        assert client.alpn == server.alpn
        found.append(client.alpn)

    play(scenario, offers=("h2",), alpn="h2")
    play(scenario, offers=(), alpn="h2")
    play(scenario, offers=("http/1.1",), alpn="h2")
    play(scenario, offers=("h2", "http/1.1"), alpn="http/1.1")
    assert found == ["h2", None, None, "http/1.1"]


def test_an_end_without_close_notify_is_told_apart() -> None:
    async def scenario(client: TlsPeer, server: TlsPeer) -> None:
        await server.send(b"half of it")
        server.sock.shutdown(socket.SHUT_WR)
        assert await received(client) == b"half of it"
        assert client.is_truncated

    play(scenario)


def test_data_that_crosses_our_end_is_not_lost() -> None:
    async def scenario(client: TlsPeer, server: TlsPeer) -> None:
        await client.send(b"a" * 40_000)
        assert (await server.receive())[:1] == b"a"
        await server.end()
        rest = await received(server, 40_000 - RECEIVE) if RECEIVE < 40_000 else b""
        assert server.receive_nowait() is None or rest
        await client.send(b"more")
        await client.end()
        assert (await received(server)).endswith(b"more")

    play(scenario)


def test_quiet_is_whoever_said_nothing_that_is_not_received() -> None:
    async def scenario(client: TlsPeer, server: TlsPeer) -> None:
        assert client.is_quiet()
        await server.send(b"unasked")
        assert not client.is_quiet()
        assert not client.is_quiet()
        assert await client.receive() == b"unasked"
        assert client.is_quiet()
        await server.end()
        assert not client.is_quiet()

    play(scenario)


def test_session_tickets_are_no_words() -> None:
    """A server that sends tickets after its handshake is as quiet as one that does not."""

    async def scenario(client: TlsPeer, _server: TlsPeer) -> None:
        await trio.lowlevel.wait_readable(client.sock)
        assert client.is_quiet()
        assert client.receive_nowait() is None

    context = server_context(authority().leaf_for(HOST), None)
    context.num_tickets = 2
    play(scenario, context=context)


def test_our_own_servers_send_no_tickets() -> None:
    async def scenario(client: TlsPeer, _server: TlsPeer) -> None:
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(BlockingIOError):
            client.sock.recv(1)

    play(scenario)


def test_two_senders_take_turns_record_by_record() -> None:
    async def scenario(client: TlsPeer, server: TlsPeer) -> None:
        size = 600_000
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, b"a" * size)
            nursery.start_soon(client.send, b"b" * size)
            data = await received(server, 2 * size)
        assert data in (b"a" * size + b"b" * size, b"b" * size + b"a" * size)

    play(scenario)


def test_a_cancelled_send_leaves_whole_records() -> None:
    async def scenario(client: TlsPeer, server: TlsPeer) -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.send, b"a" * 2_000_000)
                await trio.testing.wait_all_tasks_blocked()
                scope.cancel()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, b"the end")
            data = b""
            while not data.endswith(b"the end"):
                data += await server.receive()
        assert set(data[:-7]) == {ord("a")}
        assert len(data) < 2_000_000

    play(scenario)


def test_a_cancelled_receive_loses_nothing() -> None:
    async def scenario(client: TlsPeer, server: TlsPeer) -> None:
        for _ in range(3):
            with trio.move_on_after(0):
                await server.receive()
        await client.send(b"still there")
        assert await server.receive() == b"still there"

    play(scenario)


def test_receiving_and_sending_at_once_do_not_wait_for_each_other() -> None:
    async def scenario(client: TlsPeer, server: TlsPeer) -> None:
        size = 1_000_000
        got: dict[str, int] = {}

        async def receive(name: str, peer: TlsPeer) -> None:
            got[name] = len(await received(peer, size))

        async with trio.open_nursery() as nursery:
            for name, peer in (("client", client), ("server", server)):
                nursery.start_soon(peer.send, bytes(size))
                nursery.start_soon(receive, name, peer)
        assert got == {"client": size, "server": size}

    play(scenario)


def test_a_damaged_record_ends_in_one_sentence() -> None:
    async def scenario(client: TlsPeer, server: TlsPeer) -> None:
        server.sock.send(b"\x17\x03\x03\x00\x20" + bytes(32))
        with pytest.raises(TlsError, match="decryption failed or bad record mac") as caught:
            await client.receive()
        assert isinstance(caught.value, OSError)
        with pytest.raises(TlsError, match="TLS alert bad_record_mac"):
            await server.receive()

    play(scenario)


def test_what_came_before_the_damage_is_not_lost() -> None:
    async def scenario(client: TlsPeer, server: TlsPeer) -> None:
        await server.send(b"whole")
        server.sock.send(b"\x17\x03\x03\x00\x20" + bytes(32))
        assert await client.receive() == b"whole"
        for _ in range(2):
            with pytest.raises(TlsError, match="bad record mac"):
                await client.receive()
        assert not client.is_quiet()

    play(scenario)


def test_a_reset_is_a_reset() -> None:
    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.create_connection(listener.getsockname())
            server, _ = listener.accept()
            client.setblocking(False)
            server.setblocking(False)
            ends = await greeted(client, server)
            ends[1].abort()
            ends[1].finish()
            server.close()
            with client, pytest.raises(ConnectionResetError):
                await ends[0].receive()

    trio.run(run)


def test_finishing_says_the_end_without_waiting() -> None:
    async def scenario(client: TlsPeer, server: TlsPeer) -> None:
        server.finish()
        server.sock.close()
        assert await client.receive() == b""
        assert not client.is_truncated
        client.finish()

    play(scenario)


def test_finishing_spares_what_is_to_be_reset() -> None:
    async def scenario(client: TlsPeer, server: TlsPeer) -> None:
        server.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        server.finish()
        await trio.testing.wait_all_tasks_blocked()
        assert client.is_quiet()

    play(scenario)


async def _fails(
    server: Callable[[socket.socket], Awaitable[None]], host: str = HOST, **changes: Any
) -> HandshakeFailed:
    client, far = pair()
    context = trusting()
    if changes:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        for name, value in changes.items():
            setattr(context, name, value)
    with client, trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server, far)
            try:
                with pytest.raises(HandshakeFailed) as caught:
                    await connect_tls(Peer(client), context, host, ("h2",))
            finally:
                nursery.cancel_scope.cancel()
    far.close()
    return caught.value


def failure(
    server: Callable[[socket.socket], Awaitable[None]], host: str = HOST, **changes: Any
) -> HandshakeFailed:
    async def run() -> HandshakeFailed:
        return await _fails(server, host, **changes)

    return trio.run(run)


def serving(context: ssl.SSLContext) -> Callable[[socket.socket], Awaitable[None]]:
    async def serve(sock: socket.socket) -> None:
        try:
            await accept_tls(Peer(sock), context, b"")
        except HandshakeFailed:
            return

    return serve


def test_names_a_certificate_of_an_unknown_authority() -> None:
    found = failure(serving(Authority().context_for(HOST, None)))
    assert found.reason == "tls_certificate_error"
    assert "an authority that is not known here" in found.detail


def test_names_a_certificate_for_another_name() -> None:
    found = failure(serving(authority().context_for("other.test", None)))
    assert (found.reason, found.detail) == (
        "tls_certificate_error",
        "its certificate is for another name",
    )


def test_names_a_certificate_for_another_address() -> None:
    found = failure(serving(authority().context_for("192.0.2.1", None)), "192.0.2.2")
    assert found.detail == "its certificate is for another address"


def test_names_a_certificate_that_has_expired() -> None:
    past = Authority(now=lambda: 1_000_000_000.0)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=past.pem.decode())

    async def run() -> HandshakeFailed:
        client, far = pair()
        with client, far:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serving(past.context_for(HOST, None)), far)
                with pytest.raises(HandshakeFailed) as caught:
                    await connect_tls(Peer(client), context, HOST)
        return caught.value

    assert trio.run(run).detail == "its certificate has expired"


def test_names_a_certificate_that_is_self_signed() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, HOST)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(HOST)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    chain = certificate.public_bytes(Encoding.PEM) + key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    found = failure(serving(server_context(chain, None)))
    assert found.detail == "its certificate is self-signed"


def asking(verify_mode: ssl.VerifyMode) -> ssl.SSLContext:
    """A server's context that asks for a client's certificate, or does not."""
    context = server_context(authority().leaf_for(HOST), None)
    context.load_verify_locations(cadata=authority().pem.decode())
    context.verify_mode = verify_mode
    return context


@both_versions
@pytest.mark.parametrize("verify_mode", [ssl.CERT_NONE, ssl.CERT_OPTIONAL])
def test_notices_that_a_certificate_is_asked_for(
    version: ssl.TLSVersion, verify_mode: ssl.VerifyMode
) -> None:
    async def scenario(client: TlsPeer, server: TlsPeer) -> None:
        assert client.asks_certificate is (verify_mode is ssl.CERT_OPTIONAL)
        await client.send(b"x" * 100_000)
        assert len(await received(server, 100_000)) == 100_000
        await server.send(b"y")
        assert await client.receive() == b"y"

    play(scenario, version, context=asking(verify_mode))


def test_notices_that_a_certificate_is_insisted_on() -> None:
    async def run() -> None:
        client, server = pair()
        with client, server, trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serving(asking(ssl.CERT_REQUIRED)), server)
                end = await connect_tls(Peer(client), trusting(), HOST)
                assert end.asks_certificate
                with pytest.raises(TlsError, match="insists on a client certificate"):
                    await end.receive()

    trio.run(run)


def test_notices_that_a_certificate_is_insisted_on_in_an_older_handshake() -> None:
    async def run() -> None:
        client, server = pair()
        with client, server, trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serving(asking(ssl.CERT_REQUIRED)), server)
                with pytest.raises(HandshakeFailed) as caught:
                    await connect_tls(Peer(client), trusting(ssl.TLSVersion.TLSv1_2), HOST)
        assert caught.value.wants_certificate

    trio.run(run)


def test_names_what_is_no_tls() -> None:
    async def http(sock: socket.socket) -> None:
        await Peer(sock).receive()
        await Peer(sock).send(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    found = failure(http)
    assert found.reason == "tls_protocol_error"
    assert "what it speaks is no TLS" in found.detail


def test_names_an_end_in_the_middle() -> None:
    async def gone(sock: socket.socket) -> None:
        await Peer(sock).receive()
        sock.close()

    found = failure(gone)
    assert found.reason == "connection_terminated"
    assert "in the middle of the TLS handshake" in found.detail


def test_names_an_upstream_that_speaks_none_of_our_protocols() -> None:
    async def picky(sock: socket.socket) -> None:
        await Peer(sock).receive()
        await Peer(sock).send(bytes.fromhex("15030300020278"))  # no_application_protocol

    found = failure(picky)
    assert (found.reason, found.alert) == ("tls_alert_received", "no_application_protocol")


def test_a_handshake_without_end_is_not_read_without_end() -> None:
    async def endless(sock: socket.socket) -> None:
        peer = Peer(sock)
        await peer.receive()
        while True:
            await peer.send(bytes.fromhex("16030340000b00ffff") + bytes(16380))

    found = failure(endless)
    assert found.reason == "tls_protocol_error"


@pytest.mark.parametrize("version", VERSIONS, ids=str)
def test_a_client_that_does_not_know_our_authority_is_told_apart(version: ssl.TLSVersion) -> None:
    async def run() -> HandshakeFailed:
        client, far = pair()
        stranger = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        stranger.minimum_version = stranger.maximum_version = version
        caught: list[HandshakeFailed] = []

        async def accept() -> None:
            try:
                await accept_tls(Peer(far), authority().context_for(HOST, None), b"")
            except HandshakeFailed as failed:
                caught.append(failed)

        with client, far:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(accept)
                with pytest.raises(HandshakeFailed):
                    await connect_tls(Peer(client), stranger, HOST)
        return caught[0]

    found = trio.run(run)
    assert found.alert == "unknown_ca"
    assert found.is_refusal


def test_a_client_that_hangs_up_on_our_certificate_may_not_trust_it() -> None:
    async def run() -> HandshakeFailed:
        client, far = pair()
        with far:
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            hello = trusting().wrap_bio(incoming, outgoing, server_hostname=HOST)
            with pytest.raises(ssl.SSLWantReadError):
                hello.do_handshake()
            client.send(outgoing.read())
            client.shutdown(socket.SHUT_WR)
            with client, pytest.raises(HandshakeFailed) as caught:
                await accept_tls(Peer(far), authority().context_for(HOST, None), b"")
        return caught.value

    assert trio.run(run).is_refusal
