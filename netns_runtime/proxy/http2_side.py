"""One side of a terminated HTTP/2 connection: its h2 state, its windows, and what it is still owed.

A `Side` never waits. What it has to say gathers in `out` until a writer takes it; what streams have
for it waits in their lanes, and `pump` moves it while the windows and OUT_HIGH leave room, a frame
of each lane in turn. A peer's credit is given back as the other side takes its bytes, so `held`,
what lies between both, is never more than the window that was granted.

Windows. A connection starts with WINDOW and may grow to WINDOW_MOST as long as the process's pool
(`Grants`) lasts; a stream starts with the protocol's 65,535 and doubles while its bytes flow, so a
stream that nobody reads holds 64 KiB and does not stop the others. All that is held for one
connection is therefore at most 2 x WINDOW and what it got from the pool, 2 x OUT_HIGH and one turn
of frames, and the header lists of the streams that wait (64 KiB each).
"""

from __future__ import annotations

import enum
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import H2Error, NoSuchStreamError, StreamClosedError
from h2.settings import SettingCodes, Settings
from hpack import Encoder

from netns_runtime.proxy.http2_limits import BLOCK_LIMIT, Budget, FrameReader, TooMuch, goaway

if TYPE_CHECKING:
    from h2.events import Event as H2Event

    from netns_runtime.proxy.http2_lane import Lane
    from netns_runtime.proxy.peer import Peer
    from netns_runtime.proxy.tls import TlsPeer
    from netns_runtime.wire.forward import Headers

STREAMS: Final = 100
"""SETTINGS_MAX_CONCURRENT_STREAMS of a client; further ones are refused, and h2 counts to more,
since a client may have sent them before it knew."""
_STREAMS_COUNTED: Final = 1_000
WINDOW: Final = 256 * 1024
WINDOW_MOST: Final = 4 << 20
STREAM_WINDOW: Final = 65_535
STREAM_MOST: Final = 1 << 20
OUT_HIGH: Final = 128 * 1024
OUT_FULL: Final = 512 * 1024
"""Beyond this nothing is read that could make it more."""
POOL: Final = 128 << 20
# A peer may allow a table of any size, and our encoder would fill it.
_TABLE: Final = 4_096


class Grants:
    """What connections may have beyond WINDOW, in all."""

    def __init__(self, left: int = POOL) -> None:
        self.left = left

    def take(self, size: int) -> bool:
        """Whether there was as much."""
        if size > self.left:
            return False
        self.left -= size
        return True


GRANTS: Final = Grants()


class Turn(enum.Enum):
    """After a lane's turn: there is more, there is not, or the connection's window is shut."""

    AGAIN = enum.auto()
    DONE = enum.auto()
    STARVED = enum.auto()


class _Encoder(Encoder):
    """Without Huffman's code, which saves a fifth of a header and costs Python 1 ms a kilobyte."""

    def encode(self, headers: Any, huffman: bool = False) -> bytes:
        return super().encode(headers, huffman)


class _Connection(H2Connection):
    # Which streams ended and how, for frames that come late; 65,536 of them would be megabytes.
    MAX_CLOSED_STREAMS = 1_024


class Side:
    """`is_client`: what it speaks to is the client. `out_size` counts what is being sent, too."""

    __slots__ = (
        *("_queued", "_sending", "_starved", "_taken", "_window", "budget", "frames"),
        *(
            "granted",
            "h2",
            "held",
            "is_client",
            "is_dead",
            "moved",
            "out",
            "out_size",
            "peer",
            "ready",
            "said_goaway",
        ),
    )

    def __init__(self, peer: Peer | TlsPeer, now: float, *, is_client: bool) -> None:
        self.peer = peer
        self.is_client = is_client
        self.budget = Budget(now)
        self.frames = FrameReader(self.budget, is_server=is_client)
        config = H2Configuration(
            client_side=not is_client,
            header_encoding=None,
            validate_inbound_headers=False,
            validate_outbound_headers=False,
            normalize_inbound_headers=False,
            normalize_outbound_headers=False,
        )
        self.h2 = _Connection(config)
        self.h2.encoder = _Encoder()
        self.ready: deque[Lane] = deque()
        self._starved: list[Lane] = []
        self.out: list[bytes] = []
        self.out_size = self._queued = self._sending = 0
        self.held = 0
        self.moved = 0
        self.granted = 0
        self.is_dead = self.said_goaway = False
        self._window = WINDOW
        self._taken = 0
        self._begin()

    def _begin(self) -> None:
        values: dict[SettingCodes, int] = {SettingCodes.MAX_HEADER_LIST_SIZE: BLOCK_LIMIT}
        if self.is_client:
            values[SettingCodes.MAX_CONCURRENT_STREAMS] = STREAMS
        else:
            values[SettingCodes.ENABLE_PUSH] = 0
        self.h2.local_settings = Settings(client=not self.is_client, initial_values=values)
        self.h2.initiate_connection()
        if self.is_client:
            values[SettingCodes.MAX_CONCURRENT_STREAMS] = _STREAMS_COUNTED
            self.h2.local_settings = Settings(client=False, initial_values=values)
        self.h2.increment_flow_control_window(WINDOW - self.h2.inbound_flow_control_window)
        self.collect()

    def take(self, frames: bytes) -> list[H2Event]:
        """Whole frames to events. Raises TooMuch; GOAWAY is then in the way out."""
        try:
            events = self.h2.receive_data(frames)
        except H2Error as error:
            self.is_dead = self.said_goaway = True
            code = getattr(error, "error_code", ErrorCodes.PROTOCOL_ERROR)
            raise TooMuch(str(error) or type(error).__name__, code) from error
        return events

    def settings_changed(self) -> None:
        """Hold our encoder's table to what it needs, and try every lane anew."""
        encoder = self.h2.encoder
        if encoder.header_table_size > _TABLE:
            encoder.header_table_size = _TABLE

    def send_headers(self, number: int, headers: Headers, *, end: bool) -> bool:
        """False where the stream, or the connection, is closed."""
        if self.is_dead:
            return False
        try:
            self.h2.send_headers(number, headers, end_stream=end)
        except H2Error:
            return False
        self.out_size += 64  # about: `collect` counts
        return True

    def send_data(self, number: int, data: bytes | memoryview, *, end: bool) -> bool:
        """`data` fits the windows. False where the stream, or the connection, is closed."""
        if self.is_dead:
            return False
        try:
            self.h2.send_data(number, data, end_stream=end)
        except (H2Error, KeyError):
            return False
        size = len(data)
        self.out_size += size
        self.moved += size
        self.budget.earn(4 + (size >> 9))
        return True

    def reset(self, number: int, code: int) -> None:
        """Send RST_STREAM, where the stream is open."""
        if self.is_dead:
            return
        try:
            self.h2.reset_stream(number, code)
        except H2Error:
            return

    def say_goaway(self, code: int) -> None:
        """Tell the peer, once, that no further stream will be served; those open go on."""
        if self.said_goaway:
            return
        self.said_goaway = True
        data = goaway(self.h2.highest_inbound_stream_id, code)
        self.collect()
        self.out.append(data)
        self._queued += len(data)

    def room_for(self, number: int) -> int:
        """Bytes that the stream may be sent at once; -1 where it is closed."""
        connection = self.h2
        try:
            window = connection.local_flow_control_window(number)
        except (NoSuchStreamError, StreamClosedError):
            return -1
        return min(window, connection.max_outbound_frame_size, 65_536)

    def queue(self, lane: Lane) -> None:
        """Have `pump` look at the lane."""
        if not lane.is_queued:
            lane.is_queued = True
            self.ready.append(lane)

    def opened(self) -> None:
        """The connection's window opened."""
        self.ready.extend(self._starved)
        self._starved.clear()

    def pump(self) -> None:
        """Move what lanes have ready."""
        ready = self.ready
        while ready and self.out_size < OUT_HIGH:
            lane = ready.popleft()
            turn = lane.send()
            if turn is Turn.AGAIN:
                ready.append(lane)
            elif turn is Turn.STARVED:
                self._starved.append(lane)
            else:
                lane.is_queued = False

    def give_back(self, lane: Lane, size: int) -> None:
        """The other side took `size` bytes of the lane's stream."""
        self.held -= size
        self._taken += size
        want = lane.wanted(size)
        if want and not self.is_dead:
            try:
                self.h2.increment_flow_control_window(want, lane.source_id)
            except (H2Error, KeyError):
                return
            lane.window += want

    def replenish(self) -> None:
        """Give the connection's credit back, and let its window grow while bytes flow."""
        if self.is_dead:
            return
        if self._taken >= 2 * self._window < 2 * WINDOW_MOST and GRANTS.take(self._window):
            self.granted += self._window
            self._window *= 2
            self._taken = 0
        window = self.h2.inbound_flow_control_window
        want = self._window - self.held - window
        if want >= self._window // 2 or (window < self._window // 4 and want >= 4_096):
            self.h2.increment_flow_control_window(want)

    def collect(self) -> bool:
        """Gather what h2 has to say. Whether there is anything to send."""
        data = self.h2.data_to_send()
        if data:
            self.out.append(data)
            self._queued += len(data)
        self.out_size = self._queued + self._sending
        return bool(self.out)

    def take_out(self) -> bytes:
        """What is to be sent; `sent` follows."""
        data = self.out[0] if len(self.out) == 1 else b"".join(self.out)
        self.out.clear()
        self._queued, self._sending = 0, len(data)
        return data

    def sent(self) -> None:
        """What `take_out` gave is on its way."""
        self.moved += self._sending
        self._sending = 0
        self.out_size = self._queued

    @property
    def is_full(self) -> bool:
        """Whether more must not be made for it."""
        return self.out_size >= OUT_FULL

    def close(self) -> None:
        """Give back what the pool gave."""
        GRANTS.left += self.granted
        self.granted = 0
