"""What a peer of an HTTP/2 connection may send: frames, cut whole and counted, before h2 sees them.

`FrameReader` gives at most TURN frames at once, refuses a frame by its header alone, and takes out
GOAWAY, after which h2 would let no stream finish. Every frame that asks for work and brings nothing
costs points of a `Budget`, every useful one earns some; a peer that has none left, or whose header
block has no end, is told so by `TooMuch`, as is one that breaks the framing. Held at most: what was
fed and one frame.

Points, not rates by kind, because floods come in every kind (rapid reset, CVE-2023-44487; its
server-made twin, CVE-2025-8671; CONTINUATION, CVE-2024-27316; SETTINGS, PING, PRIORITY and empty
DATA, CVE-2019-9511 to 9518), and because what is a flood without data is normal with it: Go answers
a read of 512 bytes with two WINDOW_UPDATEs, gRPC sends a PING for a round trip's worth of DATA.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from h2.errors import ErrorCodes
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
FRAME_LIMIT: Final = 16_384
"""SETTINGS_MAX_FRAME_SIZE, which we leave at its default."""
BLOCK_LIMIT: Final = 65_536
"""Bytes of one header block as sent, which is also what it may unpack to."""
BLOCK_FRAMES: Final = 32
TURN: Final = 64

BURST: Final = 2_000
PER_SECOND: Final = 200
# A reset costs a client what its stream made us do; a server resets only what was asked of it.
CLIENT_RESET: Final = 10
SERVER_RESET: Final = 2
FINISHED: Final = 8

_DATA: Final = int(DataFrame.type)
_HEADERS: Final = int(HeadersFrame.type)
_RST_STREAM: Final = int(RstStreamFrame.type)
_GOAWAY: Final = int(GoAwayFrame.type)
_CONTINUATION: Final = int(ContinuationFrame.type)
_COSTS: Final = {
    int(SettingsFrame.type): 20,
    int(PingFrame.type): 4,
    int(PriorityFrame.type): 2,
    int(WindowUpdateFrame.type): 1,
}
_EMPTY_DATA: Final = 5
_UNKNOWN: Final = 2
# A header block up to here is free: browsers' cookies fit.
_SMALL_BLOCK: Final = 4_096

_END_STREAM, _END_HEADERS, _PADDED = 0x1, 0x4, 0x8
_HEAD: Final = struct.Struct(">HBBBL")
_NAMES: Final = {
    int(kind.type): name
    for kind, name in (
        *((SettingsFrame, "SETTINGS"), (PingFrame, "PING"), (PriorityFrame, "PRIORITY")),
        *((WindowUpdateFrame, "WINDOW_UPDATE"), (DataFrame, "empty DATA")),
        *((RstStreamFrame, "RST_STREAM"), (HeadersFrame, "HEADERS")),
        (ContinuationFrame, "CONTINUATION"),
    )
}


class TooMuch(Exception):
    """The peer sent what nobody serves. `code` is what GOAWAY tells it."""

    def __init__(self, what: str, code: ErrorCodes = ErrorCodes.ENHANCE_YOUR_CALM) -> None:
        super().__init__(what)
        self.code = code


@dataclass(frozen=True, slots=True)
class GoAway:
    """The peer takes no stream beyond `last`."""

    last: int
    code: int

    @property
    def text(self) -> str:
        """The code's name."""
        return name_of(self.code)


def name_of(code: int) -> str:
    """An error code's name, or its number."""
    try:
        return ErrorCodes(code).name
    except ValueError:
        return f"{code:#x}"


class Budget:
    """Points of one peer: BURST at first and at most, PER_SECOND more with time."""

    __slots__ = ("_at", "_left")

    def __init__(self, now: float) -> None:
        self._left = float(BURST)
        self._at = now

    def refill(self, now: float) -> None:
        """Add what the time since the last call is worth."""
        self._left = min(BURST, self._left + (now - self._at) * PER_SECOND)
        self._at = now

    def earn(self, points: int) -> None:
        """Add what useful work is worth."""
        if self._left < BURST:
            self._left += points

    def spend(self, points: int, what: str) -> None:
        """Take points. Raises TooMuch where there are none."""
        self._left -= points
        if self._left < 0:
            raise TooMuch(f"too many {what} frames for what else it sent")


class FrameReader:
    """What one peer sends. `is_server` where the peer is a client, which begins with PREFACE."""

    __slots__ = ("_block", "_block_frames", "_budget", "_buffer", "_preface", "_reset_cost")

    def __init__(self, budget: Budget, *, is_server: bool) -> None:
        self._budget = budget
        self._buffer = b""
        self._preface = PREFACE if is_server else b""
        self._reset_cost = CLIENT_RESET if is_server else SERVER_RESET
        self._block = self._block_frames = 0

    def feed(self, data: bytes) -> None:
        """Append what the peer sent."""
        self._buffer = self._buffer + data if self._buffer else data

    def next(self) -> bytes | GoAway | None:
        """Whole frames, as sent; a GOAWAY in its place among them; None where none is whole.

        Raises TooMuch.
        """
        buffer = self._buffer
        start = position = 0
        if self._preface:
            if not self._preface.startswith(buffer[: len(PREFACE)]):
                raise TooMuch("this is not HTTP/2", ErrorCodes.PROTOCOL_ERROR)
            if len(buffer) < len(PREFACE):
                return None
            self._preface, position = b"", len(PREFACE)
        end = len(buffer)
        for _ in range(TURN):
            if end - position < 9:
                break
            high, low, kind, flags, _stream = _HEAD.unpack_from(buffer, position)
            length = high << 8 | low
            if length > FRAME_LIMIT:
                raise TooMuch(f"a frame of {length} bytes", ErrorCodes.FRAME_SIZE_ERROR)
            stop = position + 9 + length
            if stop > end:
                break
            if kind == _GOAWAY and not self._block:
                if position > start:
                    break
                self._buffer = buffer[stop:]
                return _goaway_of(buffer[position:stop])
            self._charge(kind, flags, length, buffer[position + 9] if length else 0)
            position = stop
        if position == start:
            return None
        self._buffer = buffer[position:]
        return buffer[start:position] if position < end else buffer

    def _charge(self, kind: int, flags: int, length: int, first: int) -> None:
        if kind == _DATA:
            if length == 0 or (flags & _PADDED and first + 1 >= length):
                if not flags & _END_STREAM:
                    self._budget.spend(_EMPTY_DATA, _NAMES[kind])
            else:
                self._budget.earn(2 + (length >> 9))
        elif kind in (_HEADERS, _CONTINUATION):
            self._charge_block(kind, flags, length)
        elif kind == _RST_STREAM:
            self._budget.spend(self._reset_cost, _NAMES[kind])
        else:
            self._budget.spend(_COSTS.get(kind, _UNKNOWN), _NAMES.get(kind, "unknown"))

    def _charge_block(self, kind: int, flags: int, length: int) -> None:
        self._block += length
        self._block_frames += 1
        if self._block > BLOCK_LIMIT or self._block_frames > BLOCK_FRAMES:
            raise TooMuch(f"a header block of more than {self._block - length} bytes")
        large = min(length, self._block - _SMALL_BLOCK)
        if large > 0:
            self._budget.spend(large >> 9, f"large {_NAMES[kind]}")
        if flags & _END_HEADERS:
            self._block = self._block_frames = 0


def _goaway_of(data: bytes) -> GoAway:
    if len(data) < 17 or data[5:9] != b"\0\0\0\0":
        raise TooMuch("a malformed GOAWAY", ErrorCodes.PROTOCOL_ERROR)
    last, code = struct.unpack_from(">LL", data, 9)
    return GoAway(last & 0x7FFF_FFFF, code)


def goaway(last: int, code: int) -> bytes:
    """A GOAWAY frame, for h2 not to know that the connection is ending."""
    frame: Frame = GoAwayFrame(0, last_stream_id=last, error_code=code)
    return bytes(frame.serialize())
