"""Content codings that can be opened and closed again, streaming: gzip and deflate.

`Opened` expands in pieces of at most `PIECE` octets whatever the input says, and refuses content
that expands more than `EXPANSION` times beyond its first `FREE` octets; `Closed` compresses anew.
Broken or unfinished content raises ProtocolError and nothing else.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Final

from netns_runtime.wire import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netns_runtime.wire.forward import Headers

PIECE: Final = 256 * 1024
FREE: Final = 4 * 1024 * 1024
EXPANSION: Final = 200
"""Times. JSON and HTML reach 5 to 50; deflate's own limit, which bombs reach, is 1032."""

_GZIP: Final = 16 + zlib.MAX_WBITS
_ZLIB: Final = zlib.MAX_WBITS
_RAW: Final = -zlib.MAX_WBITS
_OPENABLE: Final = {b"gzip": b"gzip", b"x-gzip": b"gzip", b"deflate": b"deflate"}
# Level 1 compresses at about three times the speed of 6 for some 10 % more octets.
_LEVEL: Final = 1


def coding_of(headers: Headers) -> bytes | None:
    """The one content coding; b"" for none, None for one that cannot be opened, or several."""
    words = [
        word.strip(b" \t").lower()
        for name, value in headers
        if name.lower() == b"content-encoding"
        for word in value.split(b",")
    ]
    words = [word for word in words if word not in (b"", b"identity")]
    if not words:
        return b""
    return _OPENABLE.get(words[0]) if len(words) == 1 else None


class Opened:
    """One stream of `coding` (gzip, of any number of members, or deflate, with zlib's frame or
    without). `status` is for the ProtocolErrors: 400 for a request's, 502 for a response's."""

    def __init__(self, coding: bytes, *, status: int) -> None:
        self._coding, self._status = coding, status
        self._stream: zlib._Decompress | None = None
        self._first = b""
        self._read = self._given = 0
        self._is_over = False
        self.window_bits = _GZIP

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """What `data` expands to. Raises ProtocolError."""
        self._read += len(data)
        data = self._first + data
        self._first = b""
        while data:
            if self._stream is None and not self._begin(data):
                return
            stream = self._stream
            assert stream is not None
            while True:
                try:
                    piece = stream.decompress(data, PIECE)
                except zlib.error:
                    raise self._error("the content is not the coding it names") from None
                data = stream.unconsumed_tail
                self._given += len(piece)
                if self._given > FREE + EXPANSION * self._read:
                    raise self._error("the content expands too much", status=413)
                if piece:
                    yield piece
                if stream.eof or (not data and len(piece) < PIECE):
                    break
            if not stream.eof:
                return
            data, self._stream, self._is_over = stream.unused_data, None, True

    def finish(self) -> None:
        """Raises ProtocolError where the content ends too soon."""
        if self._first or self._stream is not None:
            raise self._error("the coded content ends too soon")

    def _begin(self, data: bytes) -> bool:
        if self._is_over and (self._coding != b"gzip" or not data.startswith(b"\x1f")):
            return False
        if self._coding == b"deflate":
            if len(data) < 2:
                self._first = data
                return False
            has_frame = data[0] & 0x0F == 8 and int.from_bytes(data[:2]) % 31 == 0
            self.window_bits = _ZLIB if has_frame else _RAW
        self._stream = zlib.decompressobj(self.window_bits)
        return True

    def _error(self, what: str, *, status: int = 400) -> ProtocolError:
        return ProtocolError(what, status=self._status if self._status >= 500 else status)


class Closed:
    """Compresses with the frame that an `Opened` found (`window_bits`)."""

    def __init__(self, window_bits: int) -> None:
        self._stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, window_bits)

    def feed(self, data: bytes) -> bytes:
        return self._stream.compress(data)

    def finish(self) -> bytes:
        return self._stream.flush()
