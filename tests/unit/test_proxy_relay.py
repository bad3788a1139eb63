"""The relay, between loopback sockets."""

from __future__ import annotations

import hashlib
import socket
from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing

from netns_runtime.proxy import relay as relay_module
from netns_runtime.proxy.flow import Ended
from netns_runtime.proxy.pipe import PIPE_SIZE
from netns_runtime.proxy.relay import CHUNK, HELD_LIMIT, Relay

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

YEAR = 365 * 24 * 3600.0


def connected() -> tuple[socket.socket, socket.socket]:
    """Both ends of a TCP connection, non-blocking."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    for sock in (near, far):
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return near, far


class Rig:
    """A relay with one tunnel; `client` and `server` are the outer ends."""

    def __init__(self, *, splice: bool = True, to_upstream: bytes = b"", late: bytes = b"") -> None:
        self.crashes: list[BaseException] = []
        self.ended: list[Ended] = []
        self.relay = Relay(splice=splice, crashed=self.crashes.append)
        self.client, client = connected()
        upstream, self.server = connected()
        self.tunnel = self.relay.add(
            client, upstream, self.ended.append, to_upstream=to_upstream, to_client=late
        )

    def close(self) -> None:
        self.relay.close_all(None, None, None)
        self.relay.close()
        self.client.close()
        self.server.close()

    async def until_ended(self) -> Ended:
        with trio.fail_after(5):
            while not self.ended:
                await trio.testing.wait_all_tasks_blocked(0.001)
        return self.ended[0]


def run(
    rig: Rig, scenario: Callable[[], Awaitable[None]], clock: trio.abc.Clock | None = None
) -> None:
    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.relay.run)
            await scenario()
            nursery.cancel_scope.cancel()

    try:
        trio.run(main, clock=clock)
    finally:
        rig.close()
    assert rig.crashes == []


async def receive(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        await trio.lowlevel.wait_readable(sock)
        part = sock.recv(size - len(data))
        if not part:
            break
        data += part
    return data


async def send(sock: socket.socket, data: bytes) -> None:
    view = memoryview(data)
    while view:
        try:
            view = view[sock.send(view) :]
        except BlockingIOError:
            await trio.lowlevel.wait_writable(sock)


def test_bytes_pass_both_ways_and_what_was_owed_goes_first() -> None:
    rig = Rig(to_upstream=b"early ", late=b"200 ")

    async def scenario() -> None:
        await send(rig.client, b"up")
        assert await receive(rig.server, 8) == b"early up"
        await send(rig.server, b"down")
        assert await receive(rig.client, 8) == b"200 down"
        rig.client.shutdown(socket.SHUT_WR)
        rig.server.shutdown(socket.SHUT_WR)
        ended = await rig.until_ended()
        assert ended == Ended(bytes_out=8, bytes_in=4)

    run(rig, scenario)


@pytest.mark.parametrize("first", ["client", "server"])
def test_one_side_may_end_and_still_hear_the_other(first: str) -> None:
    rig = Rig()
    ending, other = (rig.client, rig.server) if first == "client" else (rig.server, rig.client)

    async def scenario() -> None:
        await send(ending, b"last words")
        ending.shutdown(socket.SHUT_WR)
        assert await receive(other, 100) == b"last words"
        await send(other, b"an answer")
        assert await receive(ending, 9) == b"an answer"
        assert not rig.ended
        other.shutdown(socket.SHUT_WR)
        assert (await rig.until_ended()).reason is None
        assert await receive(ending, 1) == b""

    run(rig, scenario)


@pytest.mark.parametrize("splice", [True, False])
def test_bulk_arrives_whole_and_in_order(splice: bool) -> None:
    rig = Rig(splice=splice)
    data = hashlib.shake_128(b"seed").digest(12 * 1024 * 1024)

    async def scenario() -> None:
        got: list[bytes] = []

        async def read() -> None:
            while part := await receive(rig.client, CHUNK):
                got.append(part)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await send(rig.server, data)
            rig.server.shutdown(socket.SHUT_WR)
        assert b"".join(got) == data
        rig.client.shutdown(socket.SHUT_WR)
        assert (await rig.until_ended()).bytes_in == len(data)

    run(rig, scenario)


@pytest.mark.parametrize("splice", [True, False])
def test_a_slow_reader_stops_the_reading_and_holds_no_more_than_a_chunk(splice: bool) -> None:
    rig = Rig(splice=splice)
    held = []

    async def scenario() -> None:
        sent = 0
        with trio.move_on_after(0.1):
            while True:
                try:
                    sent += rig.server.send(bytes(65536))
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(rig.server)
                held.append(rig.tunnel.held)
        assert max(held) <= max(CHUNK, PIPE_SIZE)
        assert rig.relay.held <= CHUNK
        rig.server.shutdown(socket.SHUT_WR)
        assert len(await receive(rig.client, 1 << 30)) == sent
        assert rig.tunnel.held == 0
        assert rig.relay.held == 0

    run(rig, scenario)


def test_less_is_held_for_each_tunnel_once_all_hold_much() -> None:
    rig = Rig(splice=False)
    rig.relay._held = HELD_LIMIT

    async def scenario() -> None:
        with trio.move_on_after(0.05):
            while True:
                try:
                    rig.server.send(bytes(65536))
                except BlockingIOError:
                    await trio.lowlevel.wait_writable(rig.server)
        assert 0 < rig.tunnel.held <= relay_module.SMALL_CHUNK

    run(rig, scenario)


@pytest.mark.parametrize(("who", "said_by"), [("server", "upstream"), ("client", "sandbox")])
def test_a_reset_is_passed_on_as_a_reset_and_blamed_on_who_sent_it(who: str, said_by: str) -> None:
    rig = Rig()
    one, other = (rig.server, rig.client) if who == "server" else (rig.client, rig.server)

    async def scenario() -> None:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
        one.close()
        ended = await rig.until_ended()
        assert (ended.reason, ended.said_by) == ("connection_terminated", said_by)
        with pytest.raises(ConnectionResetError):
            other.recv(1)

    run(rig, scenario)


def test_data_before_a_reset_still_arrives() -> None:
    rig = Rig()

    async def scenario() -> None:
        await send(rig.server, b"x" * 1000)
        assert len(await receive(rig.client, 1000)) == 1000
        rig.server.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1] + [0] * 7))
        rig.server.close()
        assert (await rig.until_ended()).bytes_in == 1000

    run(rig, scenario)


def test_a_tunnel_that_is_quiet_for_a_year_is_not_cut() -> None:
    rig = Rig()
    clock = trio.testing.MockClock()

    async def scenario() -> None:
        await send(rig.client, b"a")
        assert await receive(rig.server, 1) == b"a"
        clock.jump(YEAR)
        await trio.testing.wait_all_tasks_blocked(0.005)
        assert not rig.ended
        await send(rig.server, b"b")
        assert await receive(rig.client, 1) == b"b"

    run(rig, scenario, clock)


def test_urgent_data_does_not_stall_what_follows_it() -> None:
    rig = Rig()

    async def scenario() -> None:
        rig.client.send(b"before")
        rig.client.send(b"!", socket.MSG_OOB)
        rig.client.send(b"after")
        with trio.fail_after(2):
            assert await receive(rig.server, 11) == b"beforeafter"

    run(rig, scenario)


def test_a_thousand_tunnels_hold_nothing_while_idle() -> None:
    rig = Rig()
    pairs: list[tuple[socket.socket, socket.socket]] = []
    ended: list[Ended] = []
    for _ in range(1000):
        client, inner = socket.socketpair()
        outer, server = socket.socketpair()
        for sock in (client, inner, outer, server):
            sock.setblocking(False)
        rig.relay.add(inner, outer, ended.append)
        pairs.append((client, server))

    async def scenario() -> None:
        for client, _ in pairs:
            client.send(b"ping")
        for _, server in pairs:
            assert await receive(server, 4) == b"ping"
        assert len(rig.relay) == 1001
        assert rig.relay.held == 0
        assert all(tunnel.held == 0 for tunnel in rig.relay.tunnels())
        for client, server in pairs:
            client.close()
            server.close()
        with trio.fail_after(5):
            while len(ended) < 1000:
                await trio.lowlevel.checkpoint()

    run(rig, scenario)


def test_a_bug_in_one_tunnel_ends_it_alone_and_is_told() -> None:
    rig = Rig()
    second_client, inner = connected()
    outer, second_server = connected()
    rig.relay.add(inner, outer, rig.ended.append)

    def broken(_: object) -> bool:
        raise ZeroDivisionError("a bug")

    async def scenario() -> None:
        rig.tunnel.up.streak = relay_module.BULK_READS
        rig.relay._pump = broken  # type: ignore[method-assign,assignment]
        await send(rig.client, b"x")
        ended = await rig.until_ended()
        assert (ended.reason, ended.said_by) == ("proxy_internal_error", "proxy")
        await send(second_client, b"still")
        assert await receive(second_server, 5) == b"still"
        assert len(rig.ended) == 1
        second_client.close()
        second_server.close()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.relay.run)
            await scenario()
            nursery.cancel_scope.cancel()

    trio.run(main)
    rig.close()
    assert [type(crash) for crash in rig.crashes] == [ZeroDivisionError]
