"""Tells from a client's first bytes what it speaks: TLS, HTTP/1, HTTP/2, or something opaque.

`Sniffer` judges by bytes, never by the port, and is wider than any parser of ours: what some server
would still read as a request or as a hello is called HTTP or TLS here, so that the strict readers
that come next can refuse it. An undecided sniffer says how long its bytes may be held back
(`patience`); past that they can go on and it keeps judging what follows, with constant memory.
"""

from __future__ import annotations

import enum
import re
from typing import TYPE_CHECKING, Final

from netns_runtime.wire import NEED_DATA
from netns_runtime.wire.clienthello import HANDSHAKE, ClientHello, ClientHelloReader

if TYPE_CHECKING:
    from netns_runtime.wire import NeedData


class Kind(enum.Enum):
    """What the first bytes are, where they are no TLS 1.x ClientHello."""

    HTTP1 = "http"
    HTTP2 = "http2"
    SSL2 = "ssl2"
    OPAQUE = "opaque"


class Patience(enum.Enum):
    """How long undecided bytes may be held back: not at all, a moment, or until a deadline."""

    NONE = 0
    MOMENT = 1
    DEADLINE = 2


# IANA's registry of methods, and what caches and UPnP add. Lower case is no method to a server that
# has a list, and any token is one to a server that has none: those need the whole line.
METHODS: Final = frozenset(
    b"ACL BASELINE-CONTROL BIND CHECKIN CHECKOUT CONNECT COPY DELETE GET HEAD LABEL LINK LOCK "
    b"M-SEARCH MERGE MKACTIVITY MKCALENDAR MKCOL MKREDIRECTREF MKWORKSPACE MOVE NOTIFY OPTIONS "
    b"ORDERPATCH PATCH POST PRI PROPFIND PROPPATCH PURGE PUT QUERY REBIND REPORT SEARCH SOURCE "
    b"SUBSCRIBE TRACE UNBIND UNCHECKOUT UNLINK UNLOCK UNSUBSCRIBE UPDATE UPDATEREDIRECTREF "
    b"VERSION-CONTROL".split()
)
_PREFIXES: Final = frozenset(method[:end] for method in METHODS for end in range(1, len(method)))
_BLANK: Final = b" \t\x0b\x0c\r"
# Servers skip empty lines before a request (RFC 9112, 2.2), and some any blank.
_LEADING = re.compile(rb"[\r\n \t]*")
_WORD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]*")
_SHORT: Final = 32
_MARK: Final = b"HTTP/"


class Sniffer:
    """Feed it what the client sends, in order, until `next` gives something else than NEED_DATA."""

    __slots__ = ("_hello", "_marked", "_start", "_tail", "_word", "patience")

    def __init__(self) -> None:
        self._start: bytes | None = b""
        self._hello: ClientHelloReader | None = None
        self._word = b""
        self._marked = False
        self._tail = b""
        self.patience = Patience.NONE

    def feed(self, data: bytes) -> ClientHello | Kind | NeedData:
        """Append and judge. Raises ProtocolError for TLS that cannot be understood."""
        if self._hello is not None:
            self._hello.feed(data)
            return self._hello.next()
        if self._start is None:
            return self._line(data)
        if self._word:
            return self._first_word(data)
        data = self._start + data
        first = data[0] if data else 0
        if first == HANDSHAKE:
            return self._tls(data)
        if first & 0x80:
            return self._ssl2(data)
        rest = data[_LEADING.match(data).end() :]  # type: ignore[union-attr]
        self._start = data[-1:]
        if not rest:
            self.patience = Patience.MOMENT
            return NEED_DATA
        return self._first_word(rest)

    def _tls(self, data: bytes) -> ClientHello | Kind | NeedData:
        self._start = data
        self.patience = Patience.DEADLINE
        if len(data) < 6 and data[1:2] in {b"", b"\x03"}:
            return NEED_DATA
        # Servers differ in which record versions they take: Go's below 16, GnuTLS's up to 3.
        if data[1] != 3 and (data[1] > 15 or len(data) < 6 or data[5] != 1):
            return NEED_DATA if data[1] <= 15 and len(data) < 6 else Kind.OPAQUE
        self._hello = ClientHelloReader()
        self._hello.feed(data)
        return self._hello.next()

    def _ssl2(self, data: bytes) -> Kind | NeedData:
        """OpenSSL's servers take a hello in SSL 2's form, for TLS 1.x too; it can name nobody."""
        self._start = data
        self.patience = Patience.NONE
        if data[2:3] not in {b"", b"\x01"}:
            return Kind.OPAQUE
        if len(data) < 11:
            return NEED_DATA
        sizes = [int.from_bytes(data[at : at + 2], "big") for at in (5, 7, 9)]
        fits = ((data[0] & 0x7F) << 8 | data[1]) == 9 + sum(sizes) and sizes[0] % 3 == 0
        return Kind.SSL2 if fits and sizes[0] else Kind.OPAQUE

    def _first_word(self, data: bytes) -> Kind | NeedData:
        end = _WORD.match(data).end()  # type: ignore[union-attr]
        self._word = (self._word + data[:end])[:_SHORT]
        if not self._word or (end < len(data) and data[end] not in _BLANK):
            return Kind.OPAQUE
        if end == len(data):
            known = self._word in METHODS or self._word in _PREFIXES
            self.patience = Patience.MOMENT if known else Patience.NONE
            return NEED_DATA
        self._start = None
        return self._line(data[end:])

    def _line(self, data: bytes) -> Kind | NeedData:
        """The rest of the first line, as far as it came."""
        end = data.find(b"\n")
        part = self._tail + (data if end < 0 else data[:end])
        self._marked = self._marked or _MARK in part.upper()
        # A known method and a path: HTTP already, whether a version follows or not (HTTP/0.9).
        target = part.lstrip(_BLANK)
        if not self._tail and target and self._word in METHODS and target[:1] in b"/*":
            return Kind.HTTP2 if self._word == b"PRI" else Kind.HTTP1
        if end >= 0:
            return Kind.HTTP1 if self._marked else Kind.OPAQUE
        self._tail = part[-len(_MARK) :] if target else b""
        self.patience = Patience.MOMENT if self._word in METHODS else Patience.NONE
        return NEED_DATA
