"""Serves a terminated flow over HTTP/2: the client's connection, and one to upstream.

`serve_http2` runs two readers and two writers. A reader hands what came, a turn of whole frames at
a time, to `Streams`; a writer sends what gathered in a `Side`, all at once. SETTINGS, PING and
windows are each side's own business, streams and their resets cross, GOAWAY makes both sides finish
what is open and then end. It ends when either side does, when nothing was asked for a while, when a
peer sends what nobody serves (GOAWAY with the reason, and `flow.closed` says so), and when policy
cuts the flow; what is then in the way out has LINGER seconds. `refuse_http2` answers for an
upstream that could not be reached.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import trio
from h2.errors import ErrorCodes

from netns_runtime.proxy.admit import LINGER, LINGER_BYTES
from netns_runtime.proxy.flow import Ended
from netns_runtime.proxy.http2_limits import GoAway, TooMuch, name_of
from netns_runtime.proxy.http2_side import Side
from netns_runtime.proxy.http2_streams import Streams
from netns_runtime.proxy.refuse import Refusal
from netns_runtime.proxy.tls import TlsPeer
from netns_runtime.proxy.upstream import Upstream, end

if TYPE_CHECKING:
    from netns_runtime.proxy.flow import Flow
    from netns_runtime.proxy.peer import Peer
    from netns_runtime.proxy.sandbox import Sandbox

STALL: Final = 900.0
"""Seconds that what is held may wait for a window to open before its connection ends."""


async def serve_http2(
    sandbox: Sandbox,
    flow: Flow,
    down: TlsPeer | Peer,
    up: TlsPeer | Peer,
    counted: Upstream,
) -> None:
    """Serve the connection to its end, and end `counted` with it."""
    serving = _Serving(sandbox, flow, down, up, counted)
    try:
        await serving.run()
    finally:
        flow.cut = flow.progress = None
        end(sandbox, counted, serving.ended)


async def refuse_http2(
    sandbox: Sandbox, flow: Flow, down: TlsPeer | Peer, refusal: Refusal
) -> None:
    """Answer the client's first requests with `refusal`, and end. The flow has ended already."""
    await _Serving(sandbox, flow, down, None, None, refusal).run()


class _Serving:
    """`ended` is how the flow ended, once it has."""

    def __init__(
        self,
        sandbox: Sandbox,
        flow: Flow,
        down: TlsPeer | Peer,
        up: TlsPeer | Peer | None,
        counted: Upstream | None,
        failed: Refusal | None = None,
    ) -> None:
        now = trio.current_time()
        self.sandbox, self.flow, self.counted = sandbox, flow, counted
        self.down = Side(down, now, is_client=True)
        self.up = Side(up, now, is_client=False) if up is not None else None
        self.streams = Streams(sandbox, flow, self.down, self.up, failed)
        self.ended = Ended()
        self._is_over = self._is_up_lost = self._has_heard = False
        self._reading = trio.CancelScope()
        self._writing = trio.CancelScope()
        self._wake = {side: trio.Event() for side in (self.down, self.up) if side is not None}
        self._drained = trio.Event()
        self._idle_since = now

    async def run(self) -> None:
        """Serve to the end."""
        if self.counted is not None:
            self.flow.cut = self._cut
            self.flow.progress = self._progress
        if self.flow.cut_short is not None:
            self._cut(self.flow.cut_short)
        try:
            with self._writing:
                async with trio.open_nursery() as nursery:
                    for side in self._wake:
                        nursery.start_soon(self._write, side)
                    with self._reading:
                        await self._read_both()
                    self._finish(Ended())
            await self._farewell()
        finally:
            for side in self._wake:
                side.close()

    async def _read_both(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch)
            if self.up is not None:
                nursery.start_soon(self._read, self.up)
            await self._read(self.down)
            if not self._is_over:
                await trio.sleep_forever()

    async def _read(self, side: Side) -> None:
        """What one side says, until its end or ours."""
        frames, is_client = side.frames, side.is_client
        act = self.streams.from_client if is_client else self.streams.from_upstream
        while True:
            await self._room()
            try:
                data = await side.peer.receive()
            except OSError as error:
                self._lost(side, error.strerror or str(error))
                return
            if not data:
                self._lost(side, None)
                return
            if is_client:
                self._hear()
            elif self.counted is not None:
                self.counted.bytes_in += len(data)
            side.budget.refill(trio.current_time())
            frames.feed(data)
            try:
                part = frames.next()
                while part is not None:
                    if isinstance(part, GoAway):
                        self._goes(side, part)
                    else:
                        act(side.take(part))
                    self._settle()
                    part = frames.next()
                    if part is not None:
                        await trio.lowlevel.checkpoint()
                        await self._room()
            except TooMuch as error:
                self._broke(side, error)
                return

    async def _room(self) -> None:
        """Until neither side is owed too much."""
        while any(side.is_full and not side.is_dead for side in self._wake):
            await self._drained.wait()

    async def _write(self, side: Side) -> None:
        """Send what gathers, until we are done and nothing is left."""
        while True:
            while not side.out:
                if self._is_over:
                    return
                self._wake[side] = trio.Event()
                await self._wake[side].wait()
            data = side.take_out()
            try:
                await side.peer.send(data)
            except OSError as error:
                side.is_dead = True
                side.out.clear()
                side.sent()
                self._let_read()
                self._lost(side, error.strerror or str(error))
                return
            side.sent()
            if side is self.up and self.counted is not None:
                self.counted.bytes_out += len(data)
            self._let_read()
            if not self._is_over:
                self._settle()

    def _let_read(self) -> None:
        if self._drained.statistics().tasks_waiting:
            self._drained.set()
            self._drained = trio.Event()

    def _settle(self) -> None:
        """Move what can move, and have it sent."""
        streams, down, up = self.streams, self.down, self.up
        streams.start_waiting()
        if up is not None:
            up.pump()
        down.pump()
        if streams.failed is not None and streams.has_begun:
            self._drain(ErrorCodes.NO_ERROR)
        if up is not None:
            up.replenish()
            if up.collect():
                self._wake[up].set()
        down.replenish()
        if down.collect():
            self._wake[down].set()
        if streams.streams:
            self._idle_since = -1.0
        elif streams.is_draining:
            self._finish(self.ended)
        elif self._idle_since < 0:
            self._idle_since = trio.current_time()

    def _hear(self) -> None:
        if not self._has_heard:
            self._has_heard = True
            self.flow.advice = None

    def _drain(self, code: int) -> None:
        self.streams.drain()
        self.down.say_goaway(code)

    def _goes(self, side: Side, goaway: GoAway) -> None:
        """A side takes no more streams: nor does the other."""
        if side is self.down:
            self.streams.drain()
            if self.up is not None:
                self.up.say_goaway(goaway.code)
        else:
            self.streams.upstream_goes(goaway)
            self.down.say_goaway(goaway.code)
            if goaway.code:
                detail = f"upstream said GOAWAY {goaway.text}"
                self.ended = Ended(
                    reason="connection_terminated", said_by="upstream", detail=detail
                )

    def _lost(self, side: Side, error: str | None) -> None:
        """A side's connection ended."""
        if self._is_over:
            return
        if side is self.down:
            self._client_lost(error)
            return
        streams = self.streams
        if self._is_up_lost:
            return
        self._is_up_lost = True
        if streams.by_up or error:
            what = error or "closed without a response"
            if self.ended.reason is None:
                self.ended = Ended(reason="connection_terminated", said_by="upstream", detail=what)
            what = self.ended.detail or what
        else:
            what = "closed"
        streams.upstream_lost(streams.gone(what))
        self._upstream_over()

    def _client_lost(self, error: str | None) -> None:
        if not self._has_heard:
            # Where there is advice for a client that distrusts us, `flow.closed` has it.
            ended = Ended(reason="client_tls_error", said_by="sandbox") if error else Ended()
        elif error or self.streams.streams:
            what = error or "the client closed with streams open"
            ended = Ended(reason="connection_terminated", said_by="sandbox", detail=what)
        else:
            ended = self.ended
        self.down.is_dead = True
        self.streams.client_lost("the client's connection ended")
        self._finish(ended)

    def _upstream_over(self) -> None:
        assert self.up is not None
        self._is_up_lost = self.up.is_dead = True
        self.up.ready.clear()
        # What can still be said goes first: there are clients that hear nothing after a GOAWAY.
        self._settle()
        if not self._is_over:
            self.down.say_goaway(ErrorCodes.NO_ERROR)
            self._settle()

    def _broke(self, side: Side, error: TooMuch) -> None:
        """A side sent what nobody serves."""
        code = name_of(error.code)
        if not side.is_dead:
            side.said_goaway = False
            side.say_goaway(error.code)
        side.is_dead = True
        side.collect()
        self._wake[side].set()
        detail = f"HTTP/2: {error} (GOAWAY {code})"
        if side is self.down:
            ended = Ended(
                reason="http_request_error", said_by="proxy", detail=detail, action="refuse"
            )
            self.streams.client_lost(detail)
            self._finish(ended)
            return
        self.ended = Ended(reason="http_protocol_error", said_by="upstream", detail=detail)
        self.streams.upstream_lost(self.streams.failure("http_protocol_error", detail))
        self._upstream_over()

    def _cut(self, ended: Ended) -> None:
        """Policy ends the flow: what is not answered is refused, the rest is reset."""
        target = self.flow.target
        self.streams.cut(
            Refusal(
                *("http_request_denied", ended.detail or "", ended.remedy or ""),
                *(target.host, target.port),
            )
        )
        self.ended = ended
        if not self._is_over:
            self._settle()
        self._finish(ended)

    def _finish(self, ended: Ended) -> None:
        """Say the last words, and stop."""
        if self._is_over:
            return
        self._is_over = True
        self.ended = ended
        for side in self._wake:
            if not side.is_dead:
                side.say_goaway(ErrorCodes.NO_ERROR)
            side.collect()
            self._wake[side].set()
        self._reading.cancel()
        self._writing.deadline = trio.current_time() + LINGER

    async def _farewell(self) -> None:
        """End both connections; take what the client still sends, so that no reset overtakes."""
        with trio.move_on_after(LINGER):
            if self.up is not None and isinstance(self.up.peer, TlsPeer):
                self.up.peer.finish()
            try:
                await self.down.peer.end()
                taken = 0
                while taken < LINGER_BYTES:
                    data = await self.down.peer.receive()
                    if not data:
                        return
                    taken += len(data)
            except OSError:
                return

    async def _watch(self) -> None:
        """End a connection on which nothing is asked, or that holds what nobody takes."""
        sandbox = self.sandbox
        await trio.sleep(sandbox.deadline("head"))
        if not self._has_heard or (self.streams.failed and not self.streams.streams):
            detail = "no request came in time"
            self._finish(Ended(reason="connection_timeout", said_by="sandbox", detail=detail))
        keepalive = sandbox.deadline("keepalive")
        stall = sandbox.config.timeouts.get("stall", STALL)
        moved, moved_at = -1, 0.0
        while True:
            now = trio.current_time()
            sides = list(self._wake)
            total = sum(side.moved for side in sides)
            if total != moved or not any(side.held or side.out_size for side in sides):
                moved, moved_at = total, now
            elif now - moved_at >= stall:
                self._stalled()
            idle = self._idle_since
            if 0 <= idle <= now - keepalive:
                self._drain(ErrorCodes.NO_ERROR)
                self._settle()
            await trio.sleep(min(keepalive, stall))

    def _stalled(self) -> None:
        detail = "HTTP/2: what is held for a side was not taken in time"
        is_client = self.up is None or bool(self.up.held or self.down.out_size)
        side = self.down if is_client or self.up is None else self.up
        code = ErrorCodes.ENHANCE_YOUR_CALM
        detail += f" (GOAWAY {code.name})"
        self.streams.client_lost(detail)
        side.said_goaway = False
        side.say_goaway(code)
        said_by = "sandbox" if side is self.down else "upstream"
        self._finish(Ended(reason="connection_timeout", said_by=said_by, detail=detail))

    def _progress(self) -> tuple[tuple[str, Any], ...]:
        assert self.counted is not None
        return ("bytes_in", self.counted.bytes_in), ("bytes_out", self.counted.bytes_out)
