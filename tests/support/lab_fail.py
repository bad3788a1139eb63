"""A WebSocket server of the lab that misbehaves as it is told: one way of failing for each path.

`/fail/CASE[/ARGUMENT]`, as `CASES` lists them. What it does to its client is all that it does; the
connection ends with it.
"""

from __future__ import annotations

import base64
import hashlib
import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import trio

from tests.support.lab_http import header_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import h11

    from tests.support.lab_http import Connection, Web

    Case = Callable[[Connection, h11.Request, str], Awaitable[None]]

GOOD_ORIGIN: Final = "https://good.test"
MAGIC: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
CLOSE: Final = 8
HEADERS: Final = {
    301: {"location": "https://elsewhere.test/socket?token=hidden"},
    401: {"www-authenticate": "Bearer"},
    426: {"sec-websocket-version": "13"},
    429: {"retry-after": "30"},
    503: {"retry-after": "5"},
}


def accept_of(request: h11.Request) -> str:
    key = header_of(request, b"sec-websocket-key").encode()
    return base64.b64encode(hashlib.sha1(key + MAGIC).digest()).decode()


async def switch(c: Connection, request: h11.Request, **headers: str) -> None:
    fields = {"sec-websocket-accept": accept_of(request), "server": "lab-gateway/1.0"}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{name}: {value}" for name, value in fields.items() if value]
    head = ["HTTP/1.1 101 Switching Protocols", "upgrade: websocket", "connection: upgrade", *lines]
    await c.stream.send_all(("\r\n".join(head) + "\r\n\r\n").encode())


async def say(c: Connection, first: int, payload: bytes) -> None:
    """One unmasked frame."""
    size = len(payload)
    length = bytes((size,)) if size < 126 else struct.pack("!BQ", 127, size)
    await c.stream.send_all(bytes((first,)) + length + payload)


async def until_end(c: Connection) -> None:
    """Until the client has ended; its close frame is answered, or was the answer to one."""
    while data := await c.stream.receive_some(65536):
        if data[0] & 0x0F == CLOSE:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await say(c, 0x80 | CLOSE, b"")
            return


def tcp_of(c: Connection) -> Any:
    stream: Any = c.stream
    while not isinstance(stream, trio.SocketStream):
        stream = stream.transport_stream
    return stream


async def close(c: Connection, request: h11.Request, rest: str) -> None:
    code, _, reason = rest.partition("/")
    await switch(c, request)
    await say(c, 0x88, struct.pack("!H", int(code)) + reason.encode())
    await until_end(c)


async def reset(c: Connection, request: h11.Request, rest: str) -> None:
    await switch(c, request)
    await say(c, 0x81, b"soon")
    tcp = tcp_of(c)
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    tcp.socket.close()


async def end(c: Connection, request: h11.Request, rest: str) -> None:
    """An orderly end of TCP after so many seconds of silence, without a close frame."""
    await switch(c, request)
    await say(c, 0x81, b"hello")
    await trio.sleep(float(rest or 0))
    await c.stream.aclose()


async def idle_close(c: Connection, request: h11.Request, rest: str) -> None:
    await switch(c, request)
    await trio.sleep(float(rest))
    await say(c, 0x88, struct.pack("!H", 1001) + b"idle timeout")
    await until_end(c)


async def accept(c: Connection, request: h11.Request, rest: str) -> None:
    wrong = base64.b64encode(bytes(20)).decode()
    await switch(c, request, sec_websocket_accept=wrong if rest == "wrong" else "")
    await until_end(c)


async def protocol(c: Connection, request: h11.Request, rest: str) -> None:
    await switch(c, request, sec_websocket_protocol=rest)
    await until_end(c)


async def extension(c: Connection, request: h11.Request, rest: str) -> None:
    await switch(c, request, sec_websocket_extensions=rest)
    await until_end(c)


async def frame(c: Connection, request: h11.Request, rest: str) -> None:
    frames = {
        "text-not-utf8": (0x81, b"\xff\xfe"),
        "too-big": (0x81, bytes(1 << 17)),
        "reserved-opcode": (0x83, b"x"),
        "continuation": (0x80, b"x"),
    }
    await switch(c, request)
    await say(c, *frames[rest])
    await until_end(c)


async def hang_up(c: Connection, request: h11.Request, rest: str) -> None:
    """In the middle of the handshake."""
    await c.stream.aclose()


async def status(c: Connection, request: h11.Request, rest: str) -> None:
    await c.body()
    headers = HEADERS.get(int(rest), {})
    await c.answer(int(rest), b"no\n", **{k.replace("-", "_"): v for k, v in headers.items()})


async def origin(c: Connection, request: h11.Request, rest: str) -> None:
    if header_of(request, b"origin") == GOOD_ORIGIN:
        await close(c, request, "1000/bye")
        return
    await c.body()
    await c.answer(403, b"not from there\n")


async def listen(c: Connection, request: h11.Request, rest: str) -> None:
    """Listens to whatever comes and says nothing."""
    await switch(c, request)
    await until_end(c)


CASES: Final[dict[str, Case]] = {
    "close": close,
    "reset": reset,
    "end": end,
    "idle-close": idle_close,
    "accept": accept,
    "protocol": protocol,
    "extension": extension,
    "frame": frame,
    "hang-up": hang_up,
    "status": status,
    "origin": origin,
    "listen": listen,
}


async def fail(web: Web, c: Connection, request: h11.Request, rest: str) -> None:
    case, _, argument = rest.partition("/")
    await CASES[case](c, request, argument)


UPGRADES: Final[dict[str, Callable[[Web, Any, h11.Request, str], Awaitable[None]]]] = {"fail": fail}
