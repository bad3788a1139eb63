"""A tunnel as the relay has it: two sockets, two ways, and perhaps a guard before the way up.

Plain state; the relay alone changes it. A `Guard` judges a client's first bytes: until it says PASS
nothing of the client goes upstream but what it lets go.
"""

from __future__ import annotations

import enum
import errno
import os
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Protocol

from netns_runtime.proxy.pipe import SPLICE

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator

    from netns_runtime.proxy.flow import Ended
    from netns_runtime.proxy.pipe import Pipe


class Verdict(enum.Enum):
    """What a guard says: PASS: all of it, and it is done. WATCH: what it held may go, it goes on
    judging. HOLD: nothing yet. TAKE: the guard takes the tunnel over.
    """

    PASS = enum.auto()
    WATCH = enum.auto()
    HOLD = enum.auto()
    TAKE = enum.auto()


class Guard(Protocol):
    """Judges what the client of one tunnel sends first."""

    @property
    def holds(self) -> bool:
        """Whether it holds bytes already."""

    def feed(self, data: bytes) -> Verdict:
        """Judge `data`, which the guard holds from now on."""

    def end(self) -> Verdict:
        """The client sends no more: PASS or TAKE."""

    def late(self) -> Verdict:
        """What is held was held for `patience` seconds."""

    def patience(self) -> float:
        """Seconds that what is held may wait."""

    def held(self) -> bytes:
        """Give up what is held."""

    def take(self, tunnel: Tunnel) -> None:
        """Own the tunnel's sockets, both open and out of the relay. Must not block."""


class Way:
    """One direction of a tunnel."""

    __slots__ = (
        *("dst", "ended", "guard", "is_asked_later", "moved", "pending", "pipe", "src", "streak"),
        "tunnel",
    )

    def __init__(self, tunnel: Tunnel, src: socket.socket, dst: socket.socket) -> None:
        self.tunnel = tunnel
        self.src = src
        self.dst = dst
        self.pending: memoryview | None = None
        self.pipe: Pipe | None = None
        self.guard: Guard | None = None
        self.is_asked_later = False
        self.moved = 0
        self.streak = 0
        self.ended = False

    def drain(self, pipe: Pipe) -> bool:
        """Empty the pipe into the way's reader. False where the reader is full."""
        dst, out_of = self.dst.fileno(), pipe.out_of
        while pipe.held:
            try:
                sent = os.splice(out_of, dst, pipe.held, flags=SPLICE)
            except BlockingIOError:
                return False
            except OSError as error:
                error.at_dst = True  # type: ignore[attr-defined]
                raise
            pipe.held -= sent
            self.moved += sent
        return True


class Tunnel:
    """A client and an upstream whose bytes the relay moves."""

    __slots__ = ("client", "closed", "down", "up", "upstream")

    def __init__(
        self, client: socket.socket, upstream: socket.socket, closed: Callable[[Ended], None]
    ) -> None:
        self.client = client
        self.upstream = upstream
        self.closed: Callable[[Ended], None] | None = closed
        self.up = Way(self, client, upstream)
        self.down = Way(self, upstream, client)

    def blame(self, blamed: socket.socket, error: Exception) -> tuple[str, str, str]:
        """Reason, who said so and detail of a failure at one of the sockets, or of ours."""
        text = getattr(error, "strerror", None) or type(error).__name__
        if not isinstance(error, OSError):
            return "proxy_internal_error", "proxy", text
        timed_out = error.errno == errno.ETIMEDOUT
        reason = "connection_timeout" if timed_out else "connection_terminated"
        return reason, "upstream" if blamed is self.upstream else "sandbox", text

    @property
    def bytes_out(self) -> int:
        """Bytes taken from the client and given to upstream."""
        return self.up.moved

    @property
    def bytes_in(self) -> int:
        """Bytes taken from upstream and given to the client."""
        return self.down.moved

    @property
    def held(self) -> int:
        """Bytes read from one side that the other has not taken yet."""
        return sum(
            len(way.pending or b"") + (way.pipe.held if way.pipe else 0)
            for way in (self.up, self.down)
        )


class Waiting:
    """Ways whose guard is asked again at a time."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Way]] = []
        self._count = 0

    def __bool__(self) -> bool:
        return bool(self._heap)

    @property
    def first(self) -> float:
        """The next time."""
        return self._heap[0][0]

    def add(self, when: float, way: Way) -> None:
        """Remember a way, once."""
        if not way.is_asked_later:
            way.is_asked_later = True
            self._count += 1
            heappush(self._heap, (when, self._count, way))

    def due(self, now: float) -> Iterator[Way]:
        """Take out the ways whose time has come."""
        while self._heap and self._heap[0][0] <= now:
            _, _, way = heappop(self._heap)
            way.is_asked_later = False
            yield way
