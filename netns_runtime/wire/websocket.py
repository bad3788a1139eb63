"""Frames of RFC 6455: their heads, their masks, and the close frame.

`read_head` judges a frame by its head alone, so that a bad one is refused before any byte of it is
passed on. What breaks the protocol raises `FrameError` (a `ProtocolError` with the close code that
says so). Opcodes, close codes and the masker for long payloads are wsproto's; its FrameDecoder is
not used, because it hides where a frame began and ended in the stream, which is what lets frames
that nobody changes go on as they came, and because its inflating has no bound.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from struct import Struct
from typing import TYPE_CHECKING, Final

from wsproto.frame_protocol import (
    LOCAL_ONLY_CLOSE_REASONS,
    MAX_CLOSE_REASON,
    MIN_CLOSE_REASON,
    CloseReason,
    Opcode,
    XorMaskerSimple,
)

from netns_runtime.wire import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterator

FIN: Final = 0x80
RSV1: Final = 0x40
CONTROL: Final = 0x08
CONTINUATION: Final = int(Opcode.CONTINUATION)
TEXT: Final = int(Opcode.TEXT)
BINARY: Final = int(Opcode.BINARY)
CLOSE: Final = int(Opcode.CLOSE)
PING: Final = int(Opcode.PING)
NO_STATUS: Final = int(CloseReason.NO_STATUS_RCVD)
ABNORMAL: Final = int(CloseReason.ABNORMAL_CLOSURE)
CONTROL_LIMIT: Final = 125
REASON_LIMIT: Final = CONTROL_LIMIT - 2
"""Bytes of UTF-8 (RFC 6455, 5.5)."""

_OPCODES: Final = frozenset(map(int, Opcode))
_NEVER_SENT: Final = frozenset(map(int, LOCAL_ONLY_CLOSE_REASONS))
_SHORT: Final = Struct("!H")
_LONG: Final = Struct("!Q")
# Measured: below this the exclusive or of two integers is faster than wsproto's four tables.
_INTEGER_LIMIT: Final = 512


class FrameError(ProtocolError):
    """The peer broke the protocol; `code` is the close code that tells it so."""

    def __init__(self, code: int, what: str) -> None:
        super().__init__(what)
        self.code = code


@dataclass(frozen=True, slots=True)
class Close:
    """What a close frame says. NO_STATUS stands for an empty one; it is never sent as a code."""

    code: int
    reason: str = ""


def _fault_of(first: int, rsv: int) -> str | None:
    opcode, used = first & 0x0F, first & 0x70
    if opcode not in _OPCODES:
        return f"opcode {opcode:#x} is reserved"
    if opcode & CONTROL and not first & FIN:
        return "a control frame may not be fragmented"
    if used & ~rsv:
        return "a reserved bit is set and no extension was negotiated that has a use for it"
    if rsv == RSV1 and used and opcode not in {TEXT, BINARY}:
        return "a reserved bit is set where permessage-deflate has no use for it"
    return None


Faults = tuple[str | None, ...]
FAULTS: Final[dict[str, Faults]] = {
    name: tuple(_fault_of(first, rsv) for first in range(256))
    for name, rsv in {"none": 0, "deflate": RSV1, "any": 0x70}.items()
}
"""What is wrong with a frame's first byte, by which extensions were negotiated."""


def read_head(
    data: bytes, at: int, faults: Faults, *, masked: bool
) -> tuple[int, int, bytes, int] | None:
    """The head at `at`: first byte, payload length, mask (empty: none), where the payload begins.

    None where it is not whole. `masked` is what frames of this direction must be.
    """
    if len(data) - at < 2:
        return None
    first, second = data[at], data[at + 1]
    fault = faults[first]
    if fault is not None:
        raise FrameError(1002, fault)
    if (second >= 0x80) is not masked:
        raise FrameError(1002, "a client's frame is not masked" if masked else "a server masks")
    length = second & 0x7F
    at += 2
    if length > 125:
        if first & CONTROL:
            raise FrameError(1002, "a control frame is longer than 125 bytes")
        layout, least = (_SHORT, 126) if length == 126 else (_LONG, 0x10000)
        if len(data) - at < layout.size:
            return None
        (length,) = layout.unpack_from(data, at)
        if length < least or length >> 63:
            raise FrameError(1002, "a frame's length is not in its shortest form")
        at += layout.size
    if not masked:
        return first, length, b"", at
    key = data[at : at + 4]
    return (first, length, key, at + 4) if len(key) == 4 else None


def unmask(payload: bytes, key: bytes) -> bytes:
    """Apply a mask, or take it off; an empty `key` is none. The key begins where `payload` does."""
    size = len(payload)
    if not key or not size:
        return payload
    if size > _INTEGER_LIMIT:
        return bytes(XorMaskerSimple(key).process(payload))  # type: ignore[arg-type]
    mask = int.from_bytes((key * (size // 4 + 1))[:size], "little")
    return (int.from_bytes(payload, "little") ^ mask).to_bytes(size, "little")


def write_frame(first: int, payload: bytes, *, masked: bool) -> bytes:
    """One frame, with a mask of its own where `masked` (RFC 6455, 5.3: fresh, from the system)."""
    size, bit = len(payload), 0x80 if masked else 0
    if size < 126:
        head = bytes((first, bit | size))
    elif size < 0x10000:
        head = bytes((first, bit | 126)) + _SHORT.pack(size)
    else:
        head = bytes((first, bit | 127)) + _LONG.pack(size)
    if not masked:
        return head + payload
    key = os.urandom(4)
    return head + key + unmask(payload, key)


def read_close(payload: bytes) -> Close:
    """Raises FrameError for what RFC 6455, 5.5.1 and 7.4 do not let a peer send."""
    if not payload:
        return Close(NO_STATUS)
    code = int.from_bytes(payload[:2], "big")
    if len(payload) < 2:
        raise FrameError(1002, "a close frame has one byte")
    if code < MIN_CLOSE_REASON or code > MAX_CLOSE_REASON or code in _NEVER_SENT:
        raise FrameError(1002, f"the close code {code} may not be sent")
    try:
        return Close(code, payload[2:].decode("utf-8"))
    except UnicodeDecodeError as error:
        raise FrameError(1007, "the reason of a close frame is not UTF-8") from error


def write_close(close: Close, *, masked: bool) -> bytes:
    """A close frame; its reason is cut to what fits."""
    payload = b""
    if close.code != NO_STATUS:
        payload = payload_of(close.code, close.reason.encode("utf-8"))
    return write_frame(FIN | CLOSE, payload, masked=masked)


def payload_of(code: int, reason: bytes) -> bytes:
    """What a close frame holds; a reason that is too long is cut between two characters."""
    cut = reason[:REASON_LIMIT].decode("utf-8", "ignore").encode("utf-8")
    return _SHORT.pack(code) + cut


class Walker:
    """One direction of a WebSocket, whose frames pass on unaltered; nothing is unmasked.

    `feed` gives what is to be sent. `messages` counts those whose last frame has begun, `pings`
    pings; `closed` is what the peer's close frame said, after which it is not listened to. Held at
    most: a head or a control frame, 131 bytes.
    """

    def __init__(self, *, masked: bool, faults: Faults) -> None:
        self.masked = masked
        self.faults = faults
        self.messages = self.pings = 0
        self.closed: Close | None = None
        self.refused: Close | None = None
        self.is_stopped = False
        self._stopping = False
        self._rest = b""
        self._skip = 0
        self._open = False

    def stop(self) -> bool:
        """Let nothing more pass than the frame that is on its way; whether none is."""
        self._stopping = True
        self.is_stopped = not self._skip
        return self.is_stopped

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Append what the peer sent; gives what goes on, in order. Raises FrameError."""
        if self.closed is not None or self.is_stopped:
            return
        at, data = self._resume(data)
        if self._stopping:
            self.is_stopped = not self._skip
            yield data[:at]
            return
        end = len(data)
        try:
            while at < end:
                head = read_head(data, at, self.faults, masked=self.masked)
                if head is None:
                    break
                first, length, key, start = head
                after = start + length
                if first & CONTROL:
                    if after > end:
                        break
                    if first & 0x0F == CLOSE:
                        self.closed = read_close(unmask(data[start:after], key))
                        at = after
                        break
                    self.pings += first & 0x0F == PING
                else:
                    self._follow(first)
                at = after
                if after > end:
                    self._skip, at = after - end, end
        except FrameError:
            if at:
                yield data[:at]
            raise
        if at:
            yield data if at == end else data[:at]
        self._rest = data[at:]

    def _resume(self, data: bytes) -> tuple[int, bytes]:
        """Where the next head begins, and the data it begins in."""
        if self._skip:
            at = min(self._skip, len(data))
            self._skip -= at
            return at, data
        if self._rest:
            data, self._rest = self._rest + data, b""
        return 0, data

    def _follow(self, first: int) -> None:
        """Take a data frame into account: fragments follow one another (RFC 6455, 5.4)."""
        if (first & 0x0F == CONTINUATION) is not self._open:
            what = "a message begins before the last has ended"
            raise FrameError(1002, what if self._open else "a continuation continues no message")
        self._open = first < FIN
        self.messages += first >= FIN
