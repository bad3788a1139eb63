"""What both ends of tests.bench.terminated say: frames of HTTP/2 and of WebSockets.

As little of each protocol (RFC 9113, RFC 7541, RFC 6455) as costs next to nothing, because what is
measured is between the two. Both readers wait for a whole frame; one that will not come raises
`WrongAnswerError`.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import ssl

PORT: Final = 443
PLAIN: Final = "plain.bench.test"
SECRET: Final = "secret.bench.test"
"""Here the secret is bound, and the loads put its placeholder in a slot."""
NAME: Final = "BENCH_TOKEN"
PLACEHOLDER: Final = f"openshell:resolve:env:{NAME}"
VALUE: Final = "bench-" + "0123456789abcdef" * 3
BODY: Final = b"x" * 1024
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
ACK: Final = 1
END_STREAM: Final = 1
END_HEADERS: Final = 4


class WrongAnswerError(Exception):
    """What came is not what was asked for."""


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack("!I", len(payload))[1:] + struct.pack("!BBI", kind, flags, stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header field, neither indexed nor compressed (RFC 7541, 6.2.2)."""

    def text(data: bytes) -> bytes:
        if len(data) < 127:
            return bytes((len(data),)) + data
        rest = len(data) - 127
        return bytes((127, rest & 127 | 128, rest >> 7) if rest > 127 else (127, rest)) + data

    return b"\0" + text(name) + text(value)


WIDE: Final = frame(WINDOW_UPDATE, 0, 0, struct.pack("!I", (1 << 31) - 65536))
"""A connection's window that no run uses up."""


class Frames:
    """Frames from a TLS socket; settings and pings are answered."""

    def __init__(self, tls: ssl.SSLSocket, begun: bytes = b"") -> None:
        self._tls = tls
        self._data = bytearray(begun)

    def next(self) -> tuple[int, int, int, bytes]:
        while True:
            while len(self._data) < 9 or len(self._data) < 9 + self._size():
                more = self._tls.recv(1 << 16)
                if not more:
                    raise WrongAnswerError("the connection ended")
                self._data += more
            size = self._size()
            kind, flags, stream = struct.unpack_from("!BBI", self._data, 3)
            payload = bytes(self._data[9 : 9 + size])
            del self._data[: 9 + size]
            if kind == SETTINGS and not flags & ACK:
                self._tls.sendall(frame(SETTINGS, ACK, 0))
            elif kind == PING and not flags & ACK:
                self._tls.sendall(frame(PING, ACK, 0, payload))
            else:
                return kind, flags, stream, payload

    def _size(self) -> int:
        return int.from_bytes(self._data[:3], "big")


class Messages:
    """Text frames of a WebSocket; a message is one frame, as both ends make them."""

    def __init__(self, tls: ssl.SSLSocket, begun: bytes = b"") -> None:
        self._tls = tls
        self._data = bytearray(begun)

    def _need(self, count: int) -> None:
        while len(self._data) < count:
            more = self._tls.recv(1 << 16)
            if not more:
                raise WrongAnswerError("the socket ended")
            self._data += more

    def next(self) -> bytes:
        while True:
            self._need(2)
            first, size = self._data[0], self._data[1] & 127
            is_masked = bool(self._data[1] & 128)
            at = 2
            if size == 126:
                self._need(4)
                size, at = int.from_bytes(self._data[2:4], "big"), 4
            self._need(at + 4 * is_masked + size)
            key = bytes(self._data[at : at + 4]) if is_masked else bytes(4)
            at += 4 * is_masked
            payload = bytes(self._data[at : at + size])
            del self._data[: at + size]
            if key != bytes(4):
                mask = int.from_bytes((key * (size // 4 + 1))[:size], "big")
                payload = (int.from_bytes(payload, "big") ^ mask).to_bytes(size, "big")
            if first & 15 == 1:
                return payload


def text_frame(payload: bytes, *, is_masked: bool) -> bytes:
    """With a mask of zeros, which is as valid as any."""
    bit = 128 if is_masked else 0
    size = bytes((bit | len(payload),))
    if len(payload) > 125:
        size = bytes((bit | 126,)) + struct.pack("!H", len(payload))
    return b"\x81" + size + bytes(4 * is_masked) + payload
