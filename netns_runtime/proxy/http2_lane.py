"""One direction of one stream: what came from one side and is to go to the other.

A `Lane` keeps what came as it came and has it rewritten only when there is room for the result, so
that what a coding expands to never waits here. It ends with END_STREAM, after trailers if there are
any; `drop` ends it early and gives its bytes' credit back. It waits for nothing itself.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Protocol

from netns_runtime.proxy.http2_side import STREAM_MOST, STREAM_WINDOW, Turn
from netns_runtime.wire import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from netns_runtime.proxy.http2_side import Side
    from netns_runtime.wire.forward import Headers


class Rewriter(Protocol):
    """`wire.rewrite.BodyRewriter` and `wire.response.ResponseMasker`."""

    def pieces(self, data: bytes, /) -> Iterator[bytes]: ...

    def finish(self) -> bytes: ...


class Lane:
    """From `source`, where the stream is `source_id`, to `sink`, where it is `sink_id` once open.

    `written` is called before rewritten content goes on and says whether it may; `failed` where the
    content cannot be rewritten; `finished` once END_STREAM is on its way. `has_ended`: all of it
    came. `is_done`: nothing goes on any more.
    """

    __slots__ = (
        *("_pending", "_pieces", "_raw", "_size", "failed", "finished", "has_ended", "is_done"),
        *("is_queued", "owed", "rewriter", "sink", "sink_id", "source", "source_id", "target"),
        *("_moved", "_tail_taken", "trailers", "window", "written"),
    )

    def __init__(
        self,
        source: Side,
        source_id: int,
        sink: Side,
        finished: Callable[[], None],
        failed: Callable[[ProtocolError], None],
    ) -> None:
        self.source, self.source_id = source, source_id
        self.sink, self.sink_id = sink, 0
        self.finished, self.failed = finished, failed
        self.written: Callable[[], bool] | None = None
        self.rewriter: Rewriter | None = None
        self.trailers: Headers | None = None
        self.has_ended = self.is_done = self.is_queued = False
        self.owed = 0
        self.window = self.target = STREAM_WINDOW
        self._raw: deque[bytes] = deque()
        self._size = 0
        self._pieces: Iterator[bytes] | None = None
        self._pending = memoryview(b"")
        self._tail_taken = False
        self._moved = 0

    def receive(self, data: bytes, flow_length: int) -> None:
        """Take what came; `flow_length` counts its padding too."""
        self.window -= flow_length
        if self.is_done:
            return
        if data:
            self._raw.append(data)
            self._size += len(data)
            self.owed += len(data)
            self.source.held += len(data)

    def put(self, data: bytes) -> None:
        """Take content of our own, which is the last."""
        self._raw.append(data)
        self._size += len(data)
        self.has_ended = True

    def end(self, trailers: Headers | None = None) -> None:
        """No more comes."""
        self.has_ended = True
        self.trailers = trailers or None

    def drop(self) -> None:
        """Let go of what is held."""
        self.is_done = True
        self._raw.clear()
        self._pending, self._pieces = memoryview(b""), None
        self._give_back(self.owed)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is held."""
        return not (self._raw or self._pending or self._pieces)

    def wanted(self, size: int) -> int:
        """What the source's window of this stream is to grow by, now that `size` bytes went on."""
        if self.has_ended or self.is_done:
            return 0
        self._moved += size
        if self._moved >= 2 * self.target and self.target < STREAM_MOST:
            self.target = min(2 * self.target, STREAM_MOST)
            self._moved = 0
        want = self.target - self.owed - self.window
        return want if want >= self.target // 2 else 0

    def send(self) -> Turn:
        """Send one frame to the sink, if there is something to send and room."""
        if self.is_done or not self.sink_id:
            return Turn.DONE
        sink = self.sink
        room = sink.room_for(self.sink_id)
        if room < 0:
            return Turn.DONE
        if room == 0 and not self.is_empty:
            return self._shut()
        try:
            data = self._take(room)
        except ProtocolError as error:
            self.failed(error)
            return Turn.DONE
        if self.rewriter is not None and self.written is not None and not self.written():
            return Turn.DONE
        is_last = self.has_ended and self.is_empty and self._tail_taken
        if is_last and self.trailers is not None:
            sent = not data or sink.send_data(self.sink_id, data, end=False)
            sent = sent and sink.send_headers(self.sink_id, self.trailers, end=True)
        elif data or is_last:
            sent = sink.send_data(self.sink_id, data, end=is_last)
        else:
            self._settle(0)
            return Turn.DONE if self.is_empty else self._shut()
        if not sent:
            return Turn.DONE
        if is_last:
            self.is_done = True
        self._settle(len(data))
        if is_last:
            self.finished()
            return Turn.DONE
        return Turn.AGAIN

    def _shut(self) -> Turn:
        return Turn.STARVED if self.sink.h2.outbound_flow_control_window <= 0 else Turn.DONE

    def _settle(self, size: int) -> None:
        owed = self.owed
        self._give_back(owed if self.is_empty else min(owed, size))

    def _give_back(self, size: int) -> None:
        if size:
            self.owed -= size
            self.source.give_back(self, size)

    def _take(self, room: int) -> bytes | memoryview:
        """At most `room` bytes of what is to go on. Raises ProtocolError."""
        if self.rewriter is None:
            data = self._take_raw(room)
            self._tail_taken = self.has_ended and not self._raw and not self._pending
            return data
        while not self._pending:
            if self._pieces is not None:
                piece = next(self._pieces, None)
                if piece is None:
                    self._pieces = None
                else:
                    self._pending = memoryview(piece)
            elif self._raw:
                self._pieces = iter(self.rewriter.pieces(self._raw.popleft()))
            elif self.has_ended and not self._tail_taken:
                self._pending = memoryview(self.rewriter.finish())
                self._tail_taken = True
            else:
                return b""
        data, self._pending = self._pending[:room], self._pending[room:]
        if self.has_ended and self.is_empty and not self._tail_taken:
            self._pending = memoryview(self.rewriter.finish())
            self._tail_taken = True
        return data

    def _take_raw(self, room: int) -> bytes | memoryview:
        pending, raw = self._pending, self._raw
        if not pending:
            if not raw:
                return b""
            if len(raw) > 1 and self._size <= room:
                whole = b"".join(raw)
                raw.clear()
                self._size = 0
                return whole
            first = raw.popleft()
            if len(first) <= room:
                self._size -= len(first)
                return first
            pending = memoryview(first)
        data, self._pending = pending[:room], pending[room:]
        self._size -= len(data)
        return data
