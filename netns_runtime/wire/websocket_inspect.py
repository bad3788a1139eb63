"""One direction of a WebSocket whose messages are looked into, and altered where need be.

An `Inspector` does what a `Walker` does, and shows an `Examiner` the text of each message that
concerns it. A message that comes back as it was goes on in the very bytes it came in, fragments and
compression included; an altered one goes on as one frame, and one longer than the examiner's limit
as frames of ours while it arrives. Control frames pass at once, between fragments too. It ends by a
close frame (`closed`), by a message that may not pass (`refused`: neither it nor anything after it
goes on), or by a FrameError.

Held at most: twice the examiner's limit and HELD_SLACK for the message at hand (its text and the
bytes it came in), PIECE of inflated text, BATCH of what is to be sent, and zlib's windows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol

from netns_runtime.wire.websocket import (
    CLOSE,
    CONTROL,
    FIN,
    PING,
    RSV1,
    Close,
    Faults,
    FrameError,
    Walker,
    read_close,
    read_head,
    unmask,
    write_frame,
)
from netns_runtime.wire.websocket_deflate import Codec, Inflater, Window

if TYPE_CHECKING:
    from collections.abc import Iterator

INFLATED_LIMIT: Final = 64 << 20
"""Bytes that one compressed message may become. Discord's largest are a few MiB."""
HELD_SLACK: Final = 65_536
BATCH: Final = 65_536
# Deflate expands 1032 times at the very most: what is shorter needs no bound while it is inflated.
_HARMLESS: Final = 1_000


class Stream(Protocol):
    """A long message's text as it goes by."""

    def feed(self, data: bytes, /) -> bytes:
        """What may go on of it."""

    def finish(self) -> bytes:
        """What was held back."""


class Examiner(Protocol):
    """`opcodes` are the kinds of message it wants to see, `limit` the bytes it wants at once."""

    opcodes: frozenset[int]
    limit: int

    def whole(self, opcode: int, data: bytes, /) -> bytes | Close:
        """What becomes of a message: `data` itself, other text, or nothing, with the reason."""

    def control(self, opcode: int, payload: bytes, /) -> bytes:
        """What becomes of a control frame: `payload` itself, or another that fits one."""

    def stream(self, opcode: int, /) -> Stream | Close:
        """For a message longer than `limit`: what it goes through, or why it may not pass."""


class Unaltered:
    """The stream that changes nothing."""

    def feed(self, data: bytes) -> bytes:
        return data

    def finish(self) -> bytes:
        return b""


UNALTERED: Final = Unaltered()


class Inspector(Walker):
    """`codec` is that of permessage-deflate for this direction, None where it is not negotiated."""

    def __init__(
        self, *, masked: bool, faults: Faults, codec: Codec | None, examiner: Examiner
    ) -> None:
        super().__init__(masked=masked, faults=faults)
        self._examiner = examiner
        self._inflater = Inflater(codec) if codec else None
        self._window = Window(codec) if codec else None
        self._follows_context = codec is not None and not codec.resets
        self._out: list[bytes] = []
        self._out_size = 0
        self._left = -1  # of the frame that is being looked into; -1: none is
        self._is_last = False
        self._key = b""
        self._opcode = 0
        self._deflated = False
        self._looks = False
        self._raw = bytearray()
        self._text = bytearray()
        self._size = 0
        self._stream: Stream | None = None
        self._begun = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """As a Walker's; an empty piece is a chance to let others run."""
        if self.closed is not None or self.refused is not None or self.is_stopped:
            return
        at, data = self._resume(data)
        if self._stopping:
            self.is_stopped = not self._skip
            yield data[:at]
            return
        try:
            yield from self._frames(data, at)
        except FrameError:
            if self._out:
                yield self._flush()
            raise
        if self._out:
            yield self._flush()

    def _frames(self, data: bytes, at: int) -> Iterator[bytes]:
        """`first_kept` is where the run of frames began that go on as they came."""
        first_kept, end = 0, len(data)
        try:
            while True:
                if self._left >= 0:
                    part = data[at : at + self._left]
                    at += len(part)
                    first_kept = at
                    yield from self._part(part)
                    if self.refused is not None or self._left >= 0:
                        break
                if at >= end:
                    break
                head = read_head(data, at, self.faults, masked=self.masked)
                if head is None:
                    break
                first, length, key, start = head
                after = start + length
                if first & CONTROL:
                    if after > end:
                        break
                    payload = unmask(data[start:after], key)
                    told = self._examiner.control(first & 0x0F, payload)
                    closed = read_close(told) if first & 0x0F == CLOSE else None
                    if told is not payload:
                        self._keep(data[first_kept:at])
                        self._keep(write_frame(first, told, masked=self.masked))
                        first_kept = after
                    at = after
                    if closed is not None:
                        self.closed = closed
                        break
                    self.pings += first & 0x0F == PING
                    continue
                self._follow(first)
                if first & 0x0F:
                    self._begin(first)
                    if self._looks and first & FIN and after <= end and self._is_small(length):
                        text = self._text_of(unmask(data[start:after], key))
                        result = self._examine(text)
                        if result is text and self._may_pass():
                            self._passed(len(text), altered=False)
                        else:
                            self._keep(data[first_kept:at])
                            first_kept = after
                            self._conclude(text, result)
                            if self.refused is not None:
                                break
                            if self._out_size > BATCH:
                                yield self._flush()
                        at = after
                        continue
                if not self._looks:
                    at = after
                    if after > end:
                        self._skip, at = after - end, end
                        break
                    continue
                self._keep(data[first_kept:at])
                if self._stream is None:
                    self._raw += data[at:start]
                self._left, self._key, self._is_last = length, key, first >= FIN
                at = first_kept = start
        finally:
            self._keep(data[first_kept:at])
        self._rest = data[at:] if self.refused is None and self.closed is None else b""

    def _begin(self, first: int) -> None:
        """A message begins. One that is none of the examiner's is looked into all the same where
        those after it may point back into it."""
        self._opcode = first & 0x0F
        self._deflated = bool(first & RSV1)
        concerns = self._opcode in self._examiner.opcodes
        self._looks = concerns or (self._deflated and self._follows_context)
        self._begun = False
        self._size = 0

    def _is_small(self, length: int) -> bool:
        return length <= (_HARMLESS if self._deflated else self._examiner.limit)

    def _text_of(self, payload: bytes) -> bytes:
        if not self._deflated:
            return payload
        assert self._inflater is not None
        return b"".join(self._inflater.pieces(payload, is_last=True))

    def _part(self, part: bytes) -> Iterator[bytes]:
        """The next part of the payload of a frame that is looked into."""
        self._left -= len(part)
        if not part and self._left:
            return
        if self._stream is None:
            self._raw += part
        payload = unmask(part, self._key)
        turn = len(part) % 4
        self._key = self._key[turn:] + self._key[:turn]
        ended = not self._left and self._is_last
        if not self._deflated:
            self._take(payload)
        else:
            assert self._inflater is not None
            for piece in self._inflater.pieces(payload, is_last=ended):
                self._size += len(piece)
                if self._size > INFLATED_LIMIT:
                    raise FrameError(1009, "a compressed message becomes longer than 64 MiB")
                self._take(piece)
                if self.refused is not None:
                    return
                yield self._flush()
        if not self._left:
            self._left = -1
        if ended and self.refused is None:
            self._end()
        if self._out_size > BATCH:
            yield self._flush()

    def _take(self, text: bytes) -> None:
        if self._stream is not None:
            self._write(self._stream.feed(text))
            return
        self._text += text
        limit = self._examiner.limit
        if len(self._text) <= limit and len(self._raw) <= limit + HELD_SLACK:
            return
        stream: Stream | Close = UNALTERED
        if self._opcode in self._examiner.opcodes:
            stream = self._examiner.stream(self._opcode)
        if isinstance(stream, Close):
            self.refused = stream
            self.messages -= self._is_last
            return
        self._stream = stream
        text = bytes(self._text)
        self._forget()
        self._write(stream.feed(text))

    def _end(self) -> None:
        """The message at hand is whole."""
        if self._stream is not None:
            self._write(self._stream.finish(), is_last=True)
            self._passed(self._size, altered=self._stream is not UNALTERED)
            self._stream = None
            return
        text, raw = bytes(self._text), bytes(self._raw)
        self._forget()
        result = self._examine(text)
        if result is text and self._may_pass():
            self._keep(raw)
            self._passed(len(text), altered=False)
        else:
            self._conclude(text, result)

    def _examine(self, text: bytes) -> bytes | Close:
        if self._opcode not in self._examiner.opcodes:
            return text
        return self._examiner.whole(self._opcode, text)

    def _conclude(self, text: bytes, result: bytes | Close) -> None:
        """A message that does not go on in the bytes it came in."""
        if isinstance(result, Close):
            self.refused = result
            self.messages -= 1
            return
        self._write(result, is_last=True)
        self._passed(len(text), altered=result is not text)

    def _may_pass(self) -> bool:
        return not self._deflated or self._window is None or self._window.is_in_step

    def _passed(self, size: int, *, altered: bool) -> None:
        if self._deflated and self._window is not None:
            self._window.passed(size, altered=altered)

    def _write(self, text: bytes, *, is_last: bool = False) -> None:
        """One frame of the message at hand, or none while there is nothing for it to hold."""
        deflates = self._deflated and self._window is not None and self._window.can_deflate
        if deflates:
            assert self._window is not None
            text = self._window.deflate(text, is_last=is_last)
        if not text and not is_last:
            return
        first = 0 if self._begun else self._opcode | (RSV1 if deflates else 0)
        self._begun = True
        self._keep(write_frame(first | (FIN if is_last else 0), text, masked=self.masked))

    def _forget(self) -> None:
        self._text = bytearray()
        self._raw = bytearray()

    def _keep(self, data: bytes) -> None:
        if data:
            self._out.append(data)
            self._out_size += len(data)

    def _flush(self) -> bytes:
        out = self._out[0] if len(self._out) == 1 else b"".join(self._out)
        self._out.clear()
        self._out_size = 0
        return out
