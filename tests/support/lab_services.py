"""The lab's servers that are no web servers: as little of each as makes a real client content.

`SERVERS` says which port has which. SMTP speaks first and so proves that nobody waits for the
client's words; PostgreSQL and Redis wait for theirs. A broken peer ends its own connection only.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

from tests.support import world

if TYPE_CHECKING:
    import trio

    from tests.support.lab_tcp import Server

MOST: Final = 65536


class Ended(OSError):
    """The peer went in the middle of a message."""


class Reader:
    """Exact amounts and lines from a stream."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._data = b""

    async def _more(self) -> None:
        data = bytes(await self._stream.receive_some(MOST))
        if not data or len(self._data) > MOST:
            raise Ended
        self._data += data

    async def exactly(self, count: int) -> bytes:
        while len(self._data) < count:
            await self._more()
        taken, self._data = self._data[:count], self._data[count:]
        return taken

    async def line(self) -> bytes:
        while b"\r\n" not in self._data:
            await self._more()
        line, _, self._data = self._data.partition(b"\r\n")
        return line


async def smtp(stream: trio.SocketStream) -> None:
    """RFC 5321, section 4.1.1. A message is accepted and thrown away."""
    reader = Reader(stream)
    await stream.send_all(b"220 mail.lab.test ESMTP\r\n")
    while True:
        verb = (await reader.line()).upper().partition(b" ")[0]
        match verb:
            case b"DATA":
                await stream.send_all(b"354 go on\r\n")
                while await reader.line() != b".":
                    pass
                await stream.send_all(b"250 queued as lab-1\r\n")
            case b"QUIT":
                await stream.send_all(b"221 bye\r\n")
                return
            case b"EHLO" | b"HELO" | b"MAIL" | b"RCPT" | b"RSET" | b"NOOP":
                await stream.send_all(b"250 mail.lab.test\r\n")
            case _:
                await stream.send_all(b"502 not here\r\n")


def _redis_answer(words: list[bytes]) -> bytes:
    match [words[0].upper(), *words[1:]]:
        case [b"PING"]:
            return b"+PONG\r\n"
        case [b"ECHO", text]:
            return b"$%d\r\n%s\r\n" % (len(text), text)
    return b"-ERR unknown command\r\n"


async def redis(stream: trio.SocketStream) -> None:
    """RESP2: an array of bulk strings in, one reply out."""
    reader = Reader(stream)
    while True:
        count = int((await reader.line())[1:])
        words = []
        for _ in range(count):
            size = int((await reader.line())[1:])
            words.append((await reader.exactly(size + 2))[:-2])
        await stream.send_all(_redis_answer(words))


def _pg(kind: bytes, body: bytes = b"") -> bytes:
    return kind + struct.pack("!I", len(body) + 4) + body


SSL_REQUEST: Final = 80877103
GSS_REQUEST: Final = 80877104
_READY: Final = _pg(b"Z", b"I")
_TEXT: Final = 25
_COLUMN: Final = b"said\0" + struct.pack("!IHIhih", 0, 0, _TEXT, -1, -1, 0)
_ROWS: Final = b"".join(
    (
        _pg(b"T", struct.pack("!H", 1) + _COLUMN),
        _pg(b"D", struct.pack("!HI", 1, 18) + b"hello from the lab"),
        _pg(b"C", b"SELECT 1\0"),
    )
)


async def postgres(stream: trio.SocketStream) -> None:
    """PostgreSQL's protocol 3.0: no TLS, no password, and one row for every query."""
    reader = Reader(stream)
    while True:
        size, code = struct.unpack("!II", await reader.exactly(8))
        await reader.exactly(size - 8)
        if code not in (SSL_REQUEST, GSS_REQUEST):
            break
        await stream.send_all(b"N")
    await stream.send_all(_pg(b"R", struct.pack("!I", 0)) + _READY)
    while True:
        kind, size = struct.unpack("!cI", await reader.exactly(5))
        await reader.exactly(size - 4)
        if kind == b"X":
            return
        await stream.send_all(_ROWS + _READY)


SERVERS: Final[dict[int, Server]] = {
    world.SMTP_PORT: smtp,
    world.POSTGRES_PORT: postgres,
    world.REDIS_PORT: redis,
}
