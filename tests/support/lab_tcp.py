"""The lab's raw TCP servers, one short coroutine each; `SERVERS` says which port has which.

A broken peer ends its own connection only.
"""

from __future__ import annotations

import socket
import struct
from typing import TYPE_CHECKING, Final, Protocol

import trio

from tests.support import world

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Server = Callable[[trio.SocketStream], Awaitable[None]]


class Connections(Protocol):
    connections: list[tuple[str, int]]


async def echo(stream: trio.SocketStream) -> None:
    async for data in stream:
        await stream.send_all(data)
    await stream.send_eof()


async def half_close(stream: trio.SocketStream) -> None:
    count = 0
    async for data in stream:
        count += len(data)
    await stream.send_all(f"{count}\n".encode())


async def silent(stream: trio.SocketStream) -> None:
    async for _ in stream:
        pass


async def banner(stream: trio.SocketStream) -> None:
    await stream.send_all(b"220 lab ready\r\n")
    await echo(stream)


async def reset(stream: trio.SocketStream) -> None:
    """Reset at the first bytes: earlier, it could fall into the connect itself."""
    await stream.receive_some()
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


SERVERS: Final[dict[int, Server]] = {
    world.ECHO_PORT: echo,
    world.HALF_CLOSE_PORT: half_close,
    world.SILENT_PORT: silent,
    world.BANNER_PORT: banner,
    world.RESET_PORT: reset,
}


def plain_address(address: str) -> str:
    """`::ffff:192.0.2.10`, which a dual-stack listener reports, is 192.0.2.10."""
    return address.removeprefix("::ffff:")


def local_of(stream: trio.SocketStream) -> tuple[str, int]:
    address, port = stream.socket.getsockname()[:2]
    return plain_address(address), port


def watched(server: Server, seen: Connections) -> Server:
    """Write down where the connection came in, serve it, and close it."""

    async def serve(stream: trio.SocketStream) -> None:
        seen.connections.append(local_of(stream))
        async with stream:
            try:
                await server(stream)
            except (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
                return

    return serve
