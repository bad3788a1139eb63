"""The content of a request and the response to it, event by event.

`ContentReader` takes what a client sends after a head that `wire.head` has read; `ResponseReader`
takes what an upstream sends. Framing is h11's wherever there is more to it than a count, and what
it refuses is a `ProtocolError`. What is sent is written here anew, so that no peer's spelling of a
frame is passed on. Held at most: HEAD_LIMIT of an unfinished head or chunk line, and what was fed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import h11

from netns_runtime.wire import NEED_DATA, ProtocolError
from netns_runtime.wire.forward import end_to_end
from netns_runtime.wire.head import HEAD_LIMIT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from netns_runtime.wire import NeedData
    from netns_runtime.wire.forward import Headers
    from netns_runtime.wire.head import RequestHead

_CHUNKED: Final = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
# h11 asks of a request only what frames its response: these stand for all of them.
_HOST: Final = ("Host", "a")
_STANDINS: Final = {
    "GET": h11.Request(method="GET", target="/", headers=[_HOST]),
    "HEAD": h11.Request(method="HEAD", target="/", headers=[_HOST]),
    "upgrade": h11.Request(
        method="GET", target="/", headers=[_HOST, ("Connection", "upgrade"), ("Upgrade", "x")]
    ),
}
_END_OF_REQUEST: Final = h11.EndOfMessage()
# RFC 9110, 6.5.1: what a trailer must not say.
_NOT_IN_TRAILERS: Final = frozenset(
    {
        *(b"host", b"content-length", b"content-type", b"content-encoding", b"content-range"),
        *(b"authorization", b"cookie", b"set-cookie", b"expect", b"range", b"trailer"),
    }
)


@dataclass(frozen=True, slots=True)
class EndOfContent:
    """The content is whole; `trailers` are the end-to-end ones."""

    trailers: Headers


_PLAIN_END: Final = EndOfContent([])


def _end_of(event: h11.EndOfMessage) -> EndOfContent:
    if not event.headers:
        return _PLAIN_END
    pairs = end_to_end(event.headers.raw_items())
    return EndOfContent([pair for pair in pairs if pair[0].lower() not in _NOT_IN_TRAILERS])


class ContentReader:
    """The content of one request. `length` is its Content-Length; None where it is chunked."""

    __slots__ = ("_buffer", "_chunks", "_has_ended", "_left", "is_done", "length")

    def __init__(self, head: RequestHead) -> None:
        self._buffer = b""
        self._chunks: h11.Connection | None = None
        self._has_ended = False
        self.length: int | None = None
        if head.values(b"transfer-encoding"):
            self._chunks = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_LIMIT)
            self._chunks.receive_data(_CHUNKED)
            self._chunks.next_event()
        else:
            lengths = head.values(b"content-length")
            self.length = int(lengths[0]) if lengths else 0
        self._left = self.length or 0
        self.is_done = self.length == 0

    def feed(self, data: bytes) -> None:
        """Append what the client sent; empty at its end."""
        if self._chunks is not None:
            self._chunks.receive_data(data)
        elif data:
            self._buffer = self._buffer + data if self._buffer else data
        else:
            self._has_ended = True

    def next(self) -> bytes | EndOfContent | NeedData:
        """A part of the content, its end, or NEED_DATA. Raises ProtocolError."""
        if self._chunks is not None:
            return self._next_chunk(self._chunks)
        if not self._left:
            self.is_done = True
            return _PLAIN_END
        data, self._buffer = self._buffer[: self._left], self._buffer[self._left :]
        if data:
            self._left -= len(data)
            return data
        if self._has_ended:
            raise ProtocolError("it ends before its Content-Length")
        return NEED_DATA

    def _next_chunk(self, chunks: h11.Connection) -> bytes | EndOfContent | NeedData:
        try:
            event = chunks.next_event()
        except h11.RemoteProtocolError as error:
            raise ProtocolError(str(error)) from error
        if isinstance(event, h11.Data):
            return bytes(event.data)
        if isinstance(event, h11.EndOfMessage):
            self.is_done = True
            return _end_of(event)
        return NEED_DATA

    def rest(self) -> bytes:
        """What came after the content."""
        return self._chunks.trailing_data[0] if self._chunks is not None else self._buffer


class ResponseReader:
    """The response to one request, its informational ones first.

    Only where `is_upgrade` is 101 understood; after it nothing is read any more.
    """

    __slots__ = ("_connection",)

    def __init__(self, method: str, *, is_upgrade: bool = False) -> None:
        self._connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_LIMIT)
        standin = "upgrade" if is_upgrade else "HEAD" if method == "HEAD" else "GET"
        self._connection.send(_STANDINS[standin])
        self._connection.send(_END_OF_REQUEST)

    def feed(self, data: bytes) -> None:
        """Append what upstream sent; empty at its end."""
        self._connection.receive_data(data)

    def next(self) -> h11.InformationalResponse | h11.Response | bytes | EndOfContent | NeedData:
        """A head, a part of the content, the end, or NEED_DATA. Raises ProtocolError."""
        try:
            event = self._connection.next_event()
        except h11.RemoteProtocolError as error:
            raise ProtocolError(str(error), status=502) from error
        if isinstance(event, h11.Data):
            return bytes(event.data)
        if event is h11.NEED_DATA:
            return NEED_DATA
        if isinstance(event, (h11.Response, h11.InformationalResponse)):
            return event
        if isinstance(event, h11.EndOfMessage):
            return _end_of(event)
        raise ProtocolError("upstream closed early", status=502)

    @property
    def is_reusable(self) -> bool:
        """Whether the response is whole and another request may follow it."""
        connection = self._connection
        return connection.their_state is h11.DONE and not connection.trailing_data[0]

    def rest(self) -> bytes:
        """What came after a 101."""
        return self._connection.trailing_data[0]


def write_head(first: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """A head whose first line is `first`; neither it nor the headers hold a line's end."""
    lines = [first]
    lines += [name + b": " + value for name, value in headers]
    return b"\r\n".join(lines) + b"\r\n\r\n"


def write_chunk(data: bytes) -> bytes:
    """One chunk; nothing for no data, which would be the last one."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def write_last_chunk(trailers: Headers) -> bytes:
    """The end of chunked content."""
    return write_head(b"0", trailers) if trailers else b"0\r\n\r\n"


def header_value(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    """The first value of the header `name`, given in lower case."""
    return next((value for key, value in headers if key.lower() == name), None)


def without(headers: Headers, *names: bytes) -> Headers:
    """The headers but for `names`, given in lower case."""
    return [pair for pair in headers if pair[0].lower() not in names]
