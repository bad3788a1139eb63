"""Reads a TLS ClientHello: which name it asks for, and whether it hides another (ECH).

`ClientHelloReader` puts the handshake message together from records, however they were cut, within
HELLO_LIMIT; `parse_client_hello` turns it into a frozen `ClientHello`. Where two servers could read
two names out of one hello (two server_name extensions, two names in one, lengths that do not add
up), it is refused: the proxy decides on the name it read (RFC 8446, 4.1.2 and 4.2; RFC 6066, 3).
What follows the hello's last record is not looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from netns_runtime.wire import NEED_DATA, ProtocolError

if TYPE_CHECKING:
    from netns_runtime.wire import NeedData

# A hello with two post-quantum key shares is 2.5 KiB. OpenSSL takes 128 KiB, Go 64 KiB.
HELLO_LIMIT: Final = 65_536
# RFC 8446, 5.1: 2^14 octets of content in one record.
RECORD_LIMIT: Final = 16_384
# Some clients cut their hello into tiny records; a header for each octet is no client's.
_RECORDS: Final = 256

HANDSHAKE: Final = 0x16
_CLIENT_HELLO: Final = 1
_SERVER_NAME: Final = 0
_ALPN: Final = 16
# RFC 9849 and the last drafts; 0xffce was ESNI's.
_ECH: Final = frozenset({0xFE0D, 0xFE0C, 0xFE0B, 0xFE0A, 0xFE09, 0xFE08, 0xFF02, 0xFFCE})


@dataclass(frozen=True, slots=True)
class ClientHello:
    """`server_name` as written, ASCII, or None; `has_ech` also where that is only GREASE.

    `protocols` are what it offers by ALPN, in its order, latin-1.
    """

    server_name: str | None = None
    has_ech: bool = False
    protocols: tuple[str, ...] = ()


class ClientHelloReader:
    """Collects one ClientHello from the records that carry it."""

    __slots__ = ("_buffer", "_message", "_records", "_taken")

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._message = bytearray()
        self._records = 0
        self._taken = 0

    def feed(self, data: bytes) -> None:
        """Append what the client sent."""
        self._buffer += data

    def next(self) -> ClientHello | NeedData:
        """The hello or NEED_DATA. Raises ProtocolError."""
        buffer, message = self._buffer, self._message
        while True:
            at = self._taken
            if len(buffer) > at and buffer[at] != HANDSHAKE:
                raise ProtocolError("a TLS record that is no handshake")
            if len(buffer) < at + 5:
                return NEED_DATA
            if buffer[at + 1] != 3:
                raise ProtocolError(f"a TLS record of version {buffer[at + 1]}.{buffer[at + 2]}")
            length = buffer[at + 3] << 8 | buffer[at + 4]
            if not 0 < length <= RECORD_LIMIT:
                raise ProtocolError(f"a TLS record of {length} bytes")
            if len(buffer) > at + 5 and not message and buffer[at + 5] != _CLIENT_HELLO:
                raise ProtocolError("the TLS handshake does not begin with a ClientHello")
            if len(buffer) < at + 5 + length:
                if len(message) + length > HELLO_LIMIT + 4:
                    raise ProtocolError(f"the ClientHello is longer than {HELLO_LIMIT} bytes")
                return NEED_DATA
            message += buffer[at + 5 : at + 5 + length]
            self._taken = at + 5 + length
            self._records += 1
            if self._records > _RECORDS:
                raise ProtocolError(f"the ClientHello is in more than {_RECORDS} records")
            if len(message) < 4:
                continue
            total = 4 + int.from_bytes(message[1:4], "big")
            if total > HELLO_LIMIT:
                raise ProtocolError(f"the ClientHello is longer than {HELLO_LIMIT} bytes")
            if len(message) > total:
                # RFC 8446, 5.1: what follows would be sent under keys that do not exist yet.
                raise ProtocolError("something follows the ClientHello in its record")
            if len(message) == total:
                return parse_client_hello(bytes(message[4:]))


class _Cursor:
    """Takes vectors off the front; every length must fit."""

    __slots__ = ("_at", "_data", "_end")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._end = len(data)

    def __bool__(self) -> bool:
        return self._at < self._end

    def take(self, size: int) -> bytes:
        start, self._at = self._at, self._at + size
        if self._at > self._end:
            raise ProtocolError("a length in the ClientHello does not fit")
        return self._data[start : self._at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def vector(self, size: int) -> bytes:
        return self.take(self.number(size))

    def finish(self) -> None:
        if self:
            raise ProtocolError("a length in the ClientHello does not fit")


def parse_client_hello(body: bytes) -> ClientHello:
    """Parse the body of a ClientHello, without its four bytes of handshake header."""
    cursor = _Cursor(body)
    version = cursor.number(2)
    if version >> 8 != 3:
        raise ProtocolError(f"a ClientHello of version {version:#06x}")
    cursor.take(32)
    if len(cursor.vector(1)) > 32:
        raise ProtocolError("the session id in the ClientHello is too long")
    suites = cursor.vector(2)
    if not suites or len(suites) % 2:
        raise ProtocolError("the ClientHello has no proper list of cipher suites")
    if not cursor.vector(1):
        raise ProtocolError("the ClientHello has no compression method")
    if not cursor:
        return ClientHello()
    extensions = _Cursor(cursor.vector(2))
    cursor.finish()
    seen: set[int] = set()
    server_name = None
    protocols: tuple[str, ...] = ()
    while extensions:
        kind = extensions.number(2)
        value = extensions.vector(2)
        if kind in seen:
            raise ProtocolError(f"the ClientHello has extension {kind} twice")
        seen.add(kind)
        if kind == _SERVER_NAME:
            server_name = _server_name(value)
        elif kind == _ALPN:
            protocols = _protocols(value)
    return ClientHello(server_name, not _ECH.isdisjoint(seen), protocols)


def _server_name(value: bytes) -> str:
    cursor = _Cursor(value)
    names = _Cursor(cursor.vector(2))
    cursor.finish()
    kind, name = names.number(1), names.vector(2)
    names.finish()
    if kind != 0:
        raise ProtocolError("the server_name in the ClientHello is of an unknown type")
    if not name or not name.isascii() or not name.decode("ascii").isprintable():
        raise ProtocolError("the server_name in the ClientHello is not a name")
    return name.decode("ascii")


def _protocols(value: bytes) -> tuple[str, ...]:
    """RFC 7301, 3.1: at least one name, none of them empty."""
    cursor = _Cursor(value)
    names = _Cursor(cursor.vector(2))
    cursor.finish()
    found = []
    while names:
        found.append(names.vector(1).decode("latin-1"))
    if not found or not all(found):
        raise ProtocolError("the ALPN list in the ClientHello is malformed")
    return tuple(found)
