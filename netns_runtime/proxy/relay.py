"""Moves the bytes of every tunnel, all of them in one trio task.

A `Relay` owns the two sockets of each tunnel from `add` to its `closed` callback, which it calls
exactly once, with both sockets closed. A tunnel ends when both directions have ended, when one
side fails (the other is then reset, so that a cut never looks like an end), or at `close_all`.
It is never ended for being quiet.

Theory of operation. Two trio tasks for each tunnel cost 40 microseconds for each readiness and
some kilobytes while idle; squid and HAProxy pay neither. So the relay has an epoll of its own, edge
triggered, in which a socket is registered once, and one task that waits until that epoll itself is
readable. All tunnels read into one scratch buffer, because one task reads at a time: an idle tunnel
holds no buffer. What its reader does not take at once is copied (`Way.pending`) and nothing more
is read from the other side until that is gone, so a tunnel holds at most CHUNK each way, and
SMALL_CHUNK once all of them together hold HELD_LIMIT. Bulk does not pass through Python: after
BULK_READS full reads in a row a way moves its bytes by splice(2) through a pipe, of which there is
one for all ways too, unless a slow reader keeps it filled.

Edge triggered means that every edge must be followed until EAGAIN. Two things stand in for it: a
way that used up its turn is queued in `_again`; and a short read has emptied the socket (epoll(7)),
unless the edge also told of an end, an error or urgent data.

A tunnel may come with a guard: until it has said PASS, no byte of the client goes upstream but
those it lets go, while upstream's go to the client. What a guard takes over (TAKE) leaves the relay
with both sockets open; undecided bytes wait in the guard, and `_ask_again` asks it again when
they have waited long enough.
"""

from __future__ import annotations

import os
import select
import socket
from collections import deque
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

import trio

from netns_runtime.proxy.flow import Ended
from netns_runtime.proxy.peer import RESET
from netns_runtime.proxy.pipe import PIPE_SIZE, SPLICE, Pipes
from netns_runtime.proxy.tunnel import Guard, Tunnel, Verdict, Waiting, Way

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CHUNK: Final = 256 * 1024
SMALL_CHUNK: Final = 16 * 1024
HELD_LIMIT: Final = 64 * 1024 * 1024
BULK_READS: Final = 4
TURN: Final = 16
ROUNDS: Final = 4

_EDGES: Final = (
    select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLPRI | select.EPOLLET
)
_READ: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_UNSURE: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR | select.EPOLLPRI
_WRITE: Final = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR


class Relay:
    """The engine. `run` serves until cancelled; `crashed` is told of bugs, one line each."""

    def __init__(self, *, splice: bool = True, crashed: Callable[[BaseException], None]) -> None:
        self._epoll = select.epoll()
        self._sides: dict[int, tuple[Way, Way]] = {}
        self._again: deque[tuple[Way, int]] = deque()
        self._scratch = memoryview(bytearray(CHUNK))
        self._held = 0
        self._splice = splice
        self._pipes = Pipes()
        self._crashed = crashed
        self._waiting = Waiting()

    def __len__(self) -> int:
        return len(self._sides) // 2

    @property
    def held(self) -> int:
        """Bytes held for slow readers by all tunnels, pipes apart."""
        return self._held

    def tunnels(self) -> Iterator[Tunnel]:
        """The tunnels that are open."""
        return (reads.tunnel for fd, (reads, _) in self._sides.items() if reads is reads.tunnel.up)

    def add(
        self,
        client: socket.socket,
        upstream: socket.socket,
        closed: Callable[[Ended], None],
        *,
        to_upstream: bytes = b"",
        to_client: bytes = b"",
        guard: Guard | None = None,
    ) -> Tunnel:
        """Take over two connected, non-blocking sockets.

        What is given for either side goes first. `to_client` is our own words and not counted.
        With a guard, `to_upstream` is judged by it as if the client had sent it now.
        """
        tunnel = Tunnel(client, upstream, closed)
        up, down = tunnel.up, tunnel.down
        client_fd, upstream_fd = client.fileno(), upstream.fileno()
        self._sides[client_fd] = (up, down)
        self._sides[upstream_fd] = (down, up)
        try:
            self._epoll.register(client_fd, _EDGES)
            self._epoll.register(upstream_fd, _EDGES)
        except OSError as error:  # fs.epoll.max_user_watches
            self._end(tunnel, "proxy_internal_error", "proxy", error.strerror)
            return tunnel
        if to_client:
            self._hold(down, to_client)
            down.moved = -len(to_client)
            self._follow(down, 0, read=False)
        up.guard = guard
        if guard is not None and (to_upstream or guard.holds) and tunnel.closed:
            self._judged(up, partial(guard.feed, to_upstream))
        elif to_upstream and tunnel.closed:
            self._hold(up, to_upstream)
            self._follow(up, 0, read=False)
        return tunnel

    def cut(self, tunnel: Tunnel, ended: Ended) -> None:
        """End one tunnel by a reset of both sides, so that the cut does not look like an end."""
        for sock in (tunnel.client, tunnel.upstream):
            if tunnel.closed:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        closed = tunnel.closed
        if closed is not None:
            up, down = tunnel.bytes_out, max(tunnel.bytes_in, 0)
            tunnel.closed = lambda _: closed(replace(ended, bytes_out=up, bytes_in=down))
            self._end(tunnel, None, None, None)

    async def run(self) -> None:
        """Serve until cancelled; the sockets of open tunnels stay as they are."""
        fd = self._epoll.fileno()
        while True:
            if self._again:
                await trio.lowlevel.checkpoint()
            elif self._waiting:
                with trio.move_on_at(self._waiting.first):
                    await trio.lowlevel.wait_readable(fd)
                self._ask_again()
            else:
                await trio.lowlevel.wait_readable(fd)
            for _ in range(ROUNDS):
                if not self.turn():
                    break

    def turn(self) -> bool:
        """Follow every edge there is now. Whether there was any."""
        again = self._again
        queued = [again.popleft() for _ in range(len(again))]
        events = self._epoll.poll(0, 512)
        sides = self._sides
        for fd, mask in events:
            pair = sides.get(fd)
            if pair is None:
                continue
            reads, writes = pair
            if mask & _READ:
                self._follow(reads, mask)
            if mask & _WRITE and (writes.pending is not None or writes.pipe is not None):
                self._follow(writes, 0)
        for way, mask in queued:
            if way.tunnel.closed:
                self._follow(way, mask)
        return bool(events or queued)

    def close_all(self, reason: str | None, said_by: str | None, detail: str | None) -> None:
        """End every tunnel."""
        for tunnel in list(self.tunnels()):
            self._end(tunnel, reason, said_by, detail)

    def close(self) -> None:
        """Close the relay's own descriptors; no tunnel may be open."""
        self._pipes.close()
        self._epoll.close()

    def _follow(self, way: Way, mask: int, *, read: bool = True) -> None:
        """Move what can be moved one way. The one seam where a socket's failure ends a tunnel."""
        try:
            self._move(way, mask, read)
        except Exception as error:
            self._blame(way, error)

    def _blame(self, way: Way, error: Exception) -> None:
        if isinstance(error, OSError):
            self._fail(way.tunnel, way.dst if hasattr(error, "at_dst") else way.src, error)
        else:
            self._crashed(error)
            self._fail(way.tunnel, way.tunnel.client, error)

    def _move(self, way: Way, mask: int, read: bool) -> None:
        if way.guard is not None:
            self._sift(way, way.guard, read)
            return
        if way.pipe is not None:
            if not way.drain(way.pipe):
                return
            self._leave_pipe(way)
            mask = _UNSURE
        if way.pending is not None:
            if not self._flush(way):
                return
            mask = _UNSURE
        if way.ended or not read:
            return
        unsure = mask & _UNSURE
        scratch = self._scratch
        size = CHUNK if self._held < HELD_LIMIT else SMALL_CHUNK
        recv_into, send = way.src.recv_into, way.dst.send
        for _ in range(TURN):
            if way.streak >= BULK_READS and self._splice:
                if self._pump(way):
                    return
                way.streak = 0
            try:
                got = recv_into(scratch, size)
            except BlockingIOError:
                way.streak = 0
                return
            if not got:
                way.ended = True
                self._finish_way(way)
                return
            try:
                sent = send(scratch[:got])
            except BlockingIOError:
                sent = 0
            except OSError as error:
                error.at_dst = True  # type: ignore[attr-defined]
                raise
            way.moved += sent
            if sent < got:
                self._hold(way, bytes(scratch[sent:got]))
                # The edge may have come between send and here; it is in epoll, so it is not lost.
                return
            if got < size:
                way.streak = 0
                if not unsure:
                    return
            else:
                way.streak += 1
        self._again.append((way, _UNSURE))

    def _sift(self, way: Way, guard: Guard, read: bool) -> None:
        """Read what the client sends for its guard to judge, and do as the guard says."""
        if (way.pending is not None and not self._flush(way)) or not read:
            return
        for _ in range(TURN):
            if way.guard is not guard or way.pending is not None:
                break
            try:
                data = way.src.recv(SMALL_CHUNK)
            except BlockingIOError:
                return
            self._obey(way, guard, guard.feed(data) if data else guard.end())
            if not way.tunnel.closed:
                return
        else:
            self._again.append((way, _UNSURE))
        if way.guard is None:
            self._move(way, _UNSURE, read)

    def _obey(self, way: Way, guard: Guard, verdict: Verdict) -> None:
        if verdict is Verdict.HOLD:
            self._waiting.add(trio.current_time() + guard.patience(), way)
        elif verdict is Verdict.TAKE:
            tunnel = way.tunnel
            self._forget(tunnel)
            guard.take(tunnel)
        else:
            if verdict is Verdict.PASS:
                way.guard = None
            if data := guard.held():
                self._hold(way, data)
                self._flush(way)

    def _judged(self, way: Way, ask: Callable[[], Verdict]) -> None:
        """Do as a guard says outside of a turn."""
        guard = way.guard
        assert guard is not None
        try:
            self._obey(way, guard, ask())
        except Exception as error:
            self._blame(way, error)

    def _ask_again(self) -> None:
        """Ask the guards whose bytes have waited long enough."""
        for way in self._waiting.due(trio.current_time()):
            if way.guard is not None and way.tunnel.closed:
                self._judged(way, way.guard.late)

    def _pump(self, way: Way) -> bool:
        """Move bulk by splice. False where no pipe is to be had."""
        pipe = self._pipes.take()
        if pipe is None:
            return False
        way.pipe = pipe
        src, into = way.src.fileno(), pipe.into
        for _ in range(TURN):
            try:
                got = os.splice(src, into, PIPE_SIZE, flags=SPLICE)
            except BlockingIOError:
                way.streak = 0
                self._leave_pipe(way)
                return True
            if not got:
                self._leave_pipe(way)
                way.ended = True
                self._finish_way(way)
                return True
            pipe.held += got
            if not way.drain(pipe):
                return True
            if got < SMALL_CHUNK:
                way.streak = 0
                break
        self._leave_pipe(way)
        self._again.append((way, _UNSURE))
        return True

    def _leave_pipe(self, way: Way) -> None:
        pipe, way.pipe = way.pipe, None
        if pipe is not None:
            self._pipes.give_back(pipe)

    def _hold(self, way: Way, data: bytes) -> None:
        way.pending = memoryview(data)
        self._held += len(data)

    def _flush(self, way: Way) -> bool:
        """Send what is pending. False where the reader is full."""
        pending = way.pending
        assert pending is not None
        try:
            sent = way.dst.send(pending)
        except BlockingIOError:
            return False
        except OSError as error:
            error.at_dst = True  # type: ignore[attr-defined]
            raise
        way.moved += sent
        self._held -= sent
        if sent < len(pending):
            way.pending = pending[sent:]
            return False
        way.pending = None
        return True

    def _finish_way(self, way: Way) -> None:
        tunnel = way.tunnel
        if tunnel.up.ended and tunnel.down.ended:
            self._end(tunnel, None, None, None)
            return
        try:
            way.dst.shutdown(socket.SHUT_WR)
        except OSError as error:
            error.at_dst = True  # type: ignore[attr-defined]
            raise

    def _forget(self, tunnel: Tunnel) -> None:
        """Let go of a tunnel whose sockets another takes, with what is pending for the client."""
        tunnel.closed = None
        for way in (tunnel.up, tunnel.down):
            fd = way.src.fileno()
            del self._sides[fd]
            self._epoll.unregister(fd)
            if way.pending is not None:
                self._held -= len(way.pending)
            self._leave_pipe(way)

    def _fail(self, tunnel: Tunnel, blamed: socket.socket, error: Exception) -> None:
        reason, said_by, text = tunnel.blame(blamed, error)
        for sock in (tunnel.client, tunnel.upstream):
            if sock is not blamed or said_by == "proxy":
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._end(tunnel, reason, said_by, text)

    def _end(
        self, tunnel: Tunnel, reason: str | None, said_by: str | None, detail: str | None
    ) -> None:
        closed, tunnel.closed = tunnel.closed, None
        if closed is None:
            return
        for way in (tunnel.up, tunnel.down):
            self._sides.pop(way.src.fileno(), None)
            if way.pending is not None:
                self._held -= len(way.pending)
                way.pending = None
            self._leave_pipe(way)
            way.src.close()
        closed(Ended(tunnel.up.moved, max(tunnel.down.moved, 0), reason, said_by, detail))
