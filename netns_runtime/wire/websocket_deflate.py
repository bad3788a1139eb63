"""permessage-deflate (RFC 7692): what a 101 negotiated, and both of its codecs, bounded.

`extensions_of` reads the response's headers. An `Inflater` opens messages piece by piece; a bomb
costs one piece at a time. `Window` decides whether a message may go on as the bytes it came in.

Theory of the window. A deflate stream may point back into the last 2**bits bytes of the text that
came before it, in earlier messages too (context takeover). While no message was altered, both ends
have seen the same text, so a message that is not altered goes on as it came: inflating it was
needed to look, deflating it again is not. An altered message is deflated by a compressor of ours
that begins empty there, which is sound, since it points back only to what it wrote itself. From
then on the receiver's last 2**bits bytes differ from the sender's, and messages of the sender would
point to text that the receiver does not have; so they are deflated again, with context takeover of
our own, until 2**bits bytes of unaltered text have passed. Then the two windows are equal once
more, the sender's own bytes go on again, and our compressor (256 KiB) is dropped. A message sent
without compression enters no window. Where the sender resets (*_no_context_takeover) every message
stands alone and none of this is needed.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from netns_runtime.wire import ProtocolError
from netns_runtime.wire.websocket import FrameError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netns_runtime.wire.forward import Headers

NAME: Final = "permessage-deflate"
FIELD: Final = b"sec-websocket-extensions"
PIECE: Final = 65_536
"""Inflated bytes that are in hand at a time."""
_TAIL: Final = b"\x00\x00\xff\xff"
# Blocks marked as a stream's last, each of which costs a new inflater.
_FINALS: Final = 16
_TOKEN: Final = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_PARAMETER: Final = re.compile(rf"({_TOKEN})(?:[ \t]*=[ \t]*(?:({_TOKEN})|\"({_TOKEN})\"))?")
_BITS: Final = {str(bits): bits for bits in range(8, 16)}


@dataclass(frozen=True, slots=True)
class Codec:
    """One direction's parameters: the window's bits, and whether it is reset at each message."""

    bits: int = 15
    resets: bool = False


@dataclass(frozen=True, slots=True)
class Extensions:
    """What was negotiated: codecs of both directions (None: no compression), and other names."""

    client: Codec | None = None
    server: Codec | None = None
    others: tuple[str, ...] = ()


def extensions_of(response: Headers) -> Extensions:
    """Read a 101's headers. Raises ProtocolError where they cannot be what they should."""
    found = Extensions()
    others: list[str] = []
    for element in _elements(response):
        name, *parameters = (part.strip(" \t") for part in element.split(";"))
        if name.lower() != NAME:
            others.append(name[:64])
        elif found.client is not None:
            raise ProtocolError(f"{NAME} is negotiated twice", status=502)
        else:
            found = _codecs_of(parameters)
    return Extensions(found.client, found.server, tuple(others))


def only_deflate(request: Headers) -> Headers:
    """The headers of an upgrade, offering no extension that cannot be looked into."""
    kept: Headers = []
    for name, value in request:
        if name.lower() == FIELD:
            offers = [
                offer
                for offer in _elements([(name, value)])
                if offer.split(";")[0].strip(" \t").lower() == NAME
            ]
            if offers:
                kept.append((name, ", ".join(offers).encode("latin-1")))
        else:
            kept.append((name, value))
    return kept


def _elements(headers: Headers) -> list[str]:
    """No parameter of an extension we know has a comma or semicolon inside quotes."""
    text = b",".join(value for name, value in headers if name.lower() == FIELD).decode("latin-1")
    return [element for part in text.split(",") if (element := part.strip(" \t"))]


def _codecs_of(parameters: list[str]) -> Extensions:
    values: dict[str, str | None] = {}
    for parameter in parameters:
        match = _PARAMETER.fullmatch(parameter)
        if match is None or match[1].lower() in values:
            raise ProtocolError(f"{NAME} has a parameter {parameter[:64]!r}", status=502)
        values[match[1].lower()] = match[2] or match[3]
    codecs = []
    for side in ("client", "server"):
        bits = values.pop(f"{side}_max_window_bits", "15")
        reset = values.pop(f"{side}_no_context_takeover", "")
        if bits not in _BITS or reset:
            raise ProtocolError(
                f"{NAME} has parameters for the {side} that are not valid", status=502
            )
        codecs.append(Codec(_BITS[bits], reset is None))
    if values:
        raise ProtocolError(f"{NAME} has an unknown parameter {min(values)[:64]!r}", status=502)
    return Extensions(codecs[0], codecs[1])


class Inflater:
    """Opens the messages of one direction, one after the other. Memory: a window, 32 KiB."""

    __slots__ = ("_codec", "_finals", "_inflate")

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._finals = 0
        self._inflate = zlib.decompressobj(-codec.bits)

    def pieces(self, data: bytes, *, is_last: bool = False) -> Iterator[bytes]:
        """What the next part of a message holds, at most PIECE at a time. Raises FrameError."""
        if is_last:
            data += _TAIL
        try:
            while True:
                piece = self._inflate.decompress(data, PIECE)
                if piece:
                    yield piece
                if self._inflate.eof:
                    data = self._inflate.unused_data
                    self._renew()
                    if not data:
                        break
                else:
                    data = self._inflate.unconsumed_tail
                    # A full piece may have left a copy unfinished inside zlib.
                    if not data and len(piece) < PIECE:
                        break
        except zlib.error as error:
            raise FrameError(1007, "a compressed message cannot be inflated") from error
        if is_last:
            self._finals = 0
            if self._codec.resets:
                self._inflate = zlib.decompressobj(-self._codec.bits)

    def _renew(self) -> None:
        """After a block with BFINAL (RFC 7692, 7.2.3.5) a stream begins anew."""
        self._finals += 1
        if self._finals > _FINALS:
            raise FrameError(1007, "a compressed message ends again and again")
        self._inflate = zlib.decompressobj(-self._codec.bits)


class Window:
    """What the receiver of a direction has seen of its sender's text, and our compressor for it."""

    __slots__ = ("_bits", "_deflate", "_resets", "_same")

    def __init__(self, codec: Codec) -> None:
        self._bits = codec.bits
        self._resets = codec.resets
        self._same = float("inf")
        self._deflate: zlib._Compress | None = None

    @property
    def is_in_step(self) -> bool:
        """Whether a message that is not altered may go on in the bytes it came in."""
        return self._resets or self._same >= 1 << self._bits

    @property
    def can_deflate(self) -> bool:
        """zlib has no compressor for a window of 8 bits: such messages go uncompressed."""
        return self._bits > 8

    def passed(self, size: int, *, altered: bool) -> None:
        """A compressed message of `size` bytes of text has gone on, whatever it was sent as."""
        if self._resets:
            self._deflate = None
        elif not altered:
            self._same += size if self.can_deflate or self.is_in_step else 0
            if self.is_in_step:
                self._deflate = None
        else:
            self._same = 0

    def deflate(self, data: bytes, *, is_last: bool) -> bytes:
        """The next part of a message."""
        if self._deflate is None:
            self._deflate = zlib.compressobj(wbits=-self._bits)
        out = self._deflate.compress(data)
        if is_last:
            out = (out + self._deflate.flush(zlib.Z_SYNC_FLUSH))[: -len(_TAIL)]
        return out
