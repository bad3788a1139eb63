"""Reads the head of one HTTP/1 request, strictly.

`HeadReader` collects bytes up to the empty line, within HEAD_LIMIT; `parse_head` turns them into a
frozen `RequestHead`. Where HTTP leaves two readings of one message (both framings, two lengths, two
Hosts, folded lines, a lone LF), the head is refused: the proxy decides on what it read, and the
next server must not be able to read something else (RFC 9112, sections 2.2, 5.2, 6.3 and 11.2).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from netns_runtime.wire import NEED_DATA, ProtocolError

if TYPE_CHECKING:
    from netns_runtime.wire import NeedData

# Others chose: squid 64 KiB, Node 16 KiB, nginx 4 x 8 KiB, Apache 8 KiB a line, h11 16 KiB.
HEAD_LIMIT: Final = 65_536

_END: Final = b"\r\n\r\n"
_REQUEST_LINE = re.compile(
    rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64}) ([\x21-\x7e\x80-\xff]+) HTTP/([0-9])\.([0-9])"
)
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_BARE = re.compile(rb"(?<!\r)\n|\r(?!\n)(?=.)", re.DOTALL)
_LENGTH = re.compile(rb"[0-9]{1,18}")
_METHOD_START = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]")


@dataclass(frozen=True, slots=True)
class RequestHead:
    """One request head. `headers` keep order and spelling; `raw` ends with the empty line."""

    method: str
    target: str
    version: tuple[int, int]
    headers: tuple[tuple[bytes, bytes], ...]
    raw: bytes
    has_body: bool = field(init=False, repr=False)
    """Whether content follows the head."""
    _values: dict[bytes, list[bytes]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        values: dict[bytes, list[bytes]] = {}
        for name, value in self.headers:
            values.setdefault(name.lower(), []).append(value)
        length = values.get(b"content-length", [b""])[0]
        has_body = b"transfer-encoding" in values or length.strip(b"0") != b""
        object.__setattr__(self, "_values", values)
        object.__setattr__(self, "has_body", has_body)

    def values(self, name: bytes) -> list[bytes]:
        """All values of the header `name` (given in lower case), in order."""
        return list(self._values.get(name, ()))

    def words(self, name: bytes) -> set[bytes]:
        """The comma-separated members of the header `name`, in lower case."""
        values = self._values.get(name)
        if values is None:
            return set()
        joined = b",".join(values).lower()
        return {word for part in joined.split(b",") if (word := part.strip(b" \t"))}


class HeadReader:
    """Collects one head after another from a connection."""

    def __init__(self, limit: int = HEAD_LIMIT) -> None:
        self._limit = limit
        self._buffer = bytearray()
        self._scanned = 0

    def __bool__(self) -> bool:
        """Whether part of a head, or what follows one, is held."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> None:
        """Append what the client sent."""
        self._buffer += data

    def rest(self) -> bytes:
        """Take what follows the last head out of the buffer."""
        data = bytes(self._buffer)
        self._buffer.clear()
        self._scanned = 0
        return data

    def next(self) -> RequestHead | NeedData:
        """Return the next head or NEED_DATA. Raises ProtocolError: 400, 431 or 505."""
        buffer = self._buffer
        if self._scanned == 0:
            # RFC 9112, 2.2: empty lines before the request line are ignored.
            while buffer.startswith(b"\r\n"):
                del buffer[:2]
            if not buffer or buffer == b"\r":
                return NEED_DATA
            if not _METHOD_START.match(buffer):
                raise ProtocolError(_not_http(buffer))
        end = buffer.find(_END, max(0, self._scanned - 3))
        if end >= 0 and end + 4 <= self._limit:
            raw = bytes(buffer[: end + 4])
            del buffer[: end + 4]
            self._scanned = 0
            return parse_head(raw)
        if len(buffer) >= self._limit:
            raise ProtocolError(f"the request head is longer than {self._limit} bytes", status=431)
        if bare := _BARE.search(buffer, max(0, self._scanned - 1)):
            raise ProtocolError(f"a line ends without CR LF (byte {bare.start()})")
        self._scanned = len(buffer)
        return NEED_DATA


def _not_http(data: bytearray) -> str:
    if data[0] == 0x16:
        return "TLS was spoken to the proxy, which speaks plain HTTP: use http://, not https://"
    if data[0] in {4, 5}:
        return "SOCKS was spoken to the proxy, which speaks HTTP: use http://, not socks://"
    return "this is not HTTP"


def parse_head(raw: bytes) -> RequestHead:
    """Parse one head that ends with an empty line. Raises ProtocolError."""
    first, *lines = raw[:-4].split(b"\r\n")
    match = _REQUEST_LINE.fullmatch(first)
    if match is None:
        raise ProtocolError("the request line is malformed")
    version = (int(match[3]), int(match[4]))
    if version not in {(1, 0), (1, 1)}:
        raise ProtocolError(f"HTTP/{version[0]}.{version[1]} is not spoken here", status=505)
    headers = []
    framing: dict[bytes, bytes] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon or not _NAME.fullmatch(name):
            folded = line[:1] in {b" ", b"\t"}
            raise ProtocolError("a folded header line" if folded else "a malformed header line")
        value = value.strip(b" \t")
        if _CONTROL.search(value):
            raise ProtocolError("a header value holds a control character")
        lower = name.lower()
        if lower in _ONCE:
            if lower in framing:
                raise ProtocolError(f"{_ONCE[lower]} is given twice")
            framing[lower] = value
        headers.append((name, value))
    try:
        target = match[2].decode()
    except UnicodeDecodeError:
        raise ProtocolError("the request target is neither ASCII nor UTF-8") from None
    head = RequestHead(match[1].decode(), target, version, tuple(headers), raw)
    if framing:
        _check_framing(head, framing)
    if version == (1, 1) and b"host" not in framing and head.method != "CONNECT":
        raise ProtocolError("an HTTP/1.1 request needs a Host header")
    return head


_ONCE: Final = {
    b"content-length": "Content-Length",
    b"transfer-encoding": "Transfer-Encoding",
    b"host": "Host",
}


def _check_framing(head: RequestHead, framing: dict[bytes, bytes]) -> None:
    length = framing.get(b"content-length")
    encoding = framing.get(b"transfer-encoding")
    if length is not None and not _LENGTH.fullmatch(length):
        raise ProtocolError("Content-Length is not a number")
    if encoding is not None:
        if length is not None:
            raise ProtocolError("Content-Length and Transfer-Encoding exclude each other")
        if head.version == (1, 0):
            raise ProtocolError("HTTP/1.0 has no Transfer-Encoding")
        if encoding.lower() != b"chunked":
            raise ProtocolError("Transfer-Encoding other than chunked is not understood")
    if head.method == "CONNECT" and (encoding is not None or (length and int(length))):
        raise ProtocolError("CONNECT takes no content")
