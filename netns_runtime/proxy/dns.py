"""Policy DNS on its sockets: UDP packets in batches, TCP connections in a bounded number.

The answers are `Resolver53`'s. A refused name's audit line is written before its answer is sent,
while the process that asked is still there to be named. `serve_dns` ends when it is cancelled, and
then tells the last counts; a client can end its own connection and nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from netns_runtime.proxy.dnsaudit import FIRST_REPEAT
from netns_runtime.proxy.dnspolicy import DNSLimits, Resolver53
from netns_runtime.proxy.peer import Peer, tune
from netns_runtime.wire import NEED_DATA, dns

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from netns_runtime.proxy.dnsaudit import Refused

__all__ = ["DNSLimits", "Resolver53", "serve_dns"]


async def serve_dns(
    resolver: Resolver53, udp: Sequence[socket.socket], tcp: Sequence[socket.socket] = ()
) -> None:
    """Serve until cancelled. The sockets are bound (TCP: listening) and borrowed."""
    try:
        async with trio.open_nursery() as nursery:
            for sock in udp:
                sock.setblocking(False)
                nursery.start_soon(_serve_packets, resolver, sock, nursery)
            connections = _Connections(resolver.limits.connections)
            for sock in tcp:
                sock.setblocking(False)
                tune(sock)
                nursery.start_soon(_accept, resolver, sock, connections, nursery)
            while True:
                await trio.sleep(FIRST_REPEAT)
                resolver.refused.flush()
    finally:
        resolver.refused.flush(everything=True)


async def _serve_packets(resolver: Resolver53, sock: socket.socket, nursery: trio.Nursery) -> None:
    fd = sock.fileno()
    batch = resolver.limits.batch
    receive, reply_to = sock.recvfrom, resolver.reply_to
    while True:
        await trio.lowlevel.wait_readable(fd)
        for _ in range(batch):
            try:
                data, peer = receive(dns.QUERY_LIMIT + 1)
            except OSError:
                break
            reply = reply_to(data)
            if reply is None:
                continue
            wire = data[:2] + reply.tail
            refused = reply.refused
            if refused is not None and resolver.refused.note(refused):
                nursery.start_soon(_tell_and_send, resolver, refused, sock, wire, peer)
            elif resolver.is_watched:
                nursery.start_soon(_name_and_send, resolver, sock, wire, peer)
            else:
                _send(sock, wire, peer)


async def _tell_and_send(
    resolver: Resolver53,
    refused: Refused,
    sock: socket.socket,
    wire: bytes,
    peer: tuple[str, int],
) -> None:
    await resolver.tell(refused, "udp", peer[1])
    _send(sock, wire, peer)


async def _name_and_send(
    resolver: Resolver53, sock: socket.socket, wire: bytes, peer: tuple[str, int]
) -> None:
    """Once it is answered, who asked may be gone."""
    await resolver.asker("udp", peer[1])
    _send(sock, wire, peer)


def _send(sock: socket.socket, wire: bytes, peer: tuple[str, int]) -> None:
    try:
        sock.sendto(wire, peer)
    except OSError:
        return  # no room, or nobody there any more: UDP loses packets, and resolvers ask again


class _Connections:
    """The open TCP connections, longest silent first; past the limit that one is ended."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._scopes: dict[trio.CancelScope, None] = {}

    def enter(self, scope: trio.CancelScope) -> None:
        self._scopes.pop(scope, None)
        while len(self._scopes) >= self._limit:
            oldest = next(iter(self._scopes))
            del self._scopes[oldest]
            oldest.cancel()
        self._scopes[scope] = None

    def leave(self, scope: trio.CancelScope) -> None:
        self._scopes.pop(scope, None)


async def _accept(
    resolver: Resolver53,
    listener: socket.socket,
    connections: _Connections,
    nursery: trio.Nursery,
) -> None:
    fd = listener.fileno()
    while True:
        await trio.lowlevel.wait_readable(fd)
        try:
            sock, address = listener.accept()
        except BlockingIOError:
            continue
        except OSError as error:
            resolver.report(f"dns: accept: {error.strerror}")
            await trio.sleep(0.1)
            continue
        sock.setblocking(False)
        nursery.start_soon(_serve_stream, resolver, sock, address[1], connections)


async def _serve_stream(
    resolver: Resolver53, sock: socket.socket, port: int, connections: _Connections
) -> None:
    peer, reader = Peer(sock), dns.MessageReader()
    with sock, trio.CancelScope() as scope:
        try:
            connections.enter(scope)
            while await _serve_message(resolver, peer, reader, port):
                connections.enter(scope)
        except (OSError, dns.DNSError):
            pass  # the client went away, or sends what no client does
        finally:
            connections.leave(scope)


async def _serve_message(
    resolver: Resolver53, peer: Peer, reader: dns.MessageReader, port: int
) -> bool:
    """Answer the next message; False at the client's end, its silence, or ours."""
    with trio.move_on_after(resolver.limits.idle):
        while (message := reader.next()) is NEED_DATA:
            data = await peer.receive()
            if not data:
                return False
            reader.feed(data)
        assert isinstance(message, bytes)
        reply = resolver.reply_to(message, over_tcp=True)
        if reply is None:
            return False
        if reply.refused is not None and resolver.refused.note(reply.refused):
            await resolver.tell(reply.refused, "tcp", port)
        await peer.send(dns.framed(message[:2] + reply.tail))
        return True
    return False
