"""Carries a WebSocket between a client and its upstream, from the 101 to its end.

`carry_websocket` passes frames both ways, looks into the messages that rules, slots or masking
concern (`websocket_examine`), and answers nothing in place of a peer: pings, pongs and closes are
the peers' own. It ends when both sides have, when one is cut off (the other is then cut off too),
or when a message is refused or the protocol broken: then each side is told by a close frame of
ours. While it is open nothing is timed; an end that the other side does not follow is waited for
GRACE seconds.

Theory of operation. Two tasks, each of which reads from one peer and alone writes to the other, so
that the frames of one direction stay whole and a slow reader stops its own sender. Whoever finds a
reason to close (`_close`) stops both ways between two frames, and each task then writes the close
frame to its own sink. A way that is in the middle of a frame first passes the rest of it on.
"""

from __future__ import annotations

from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import trio

from netns_runtime.audit import AuditError
from netns_runtime.proxy.flow import Ended
from netns_runtime.proxy.refuse import printable
from netns_runtime.proxy.websocket_examine import End, Incoming, Outgoing, has_slot, reason_of
from netns_runtime.wire import ProtocolError
from netns_runtime.wire.websocket import (
    ABNORMAL,
    FAULTS,
    Close,
    FrameError,
    Walker,
    write_close,
)
from netns_runtime.wire.websocket_deflate import FIELD, Extensions, extensions_of
from netns_runtime.wire.websocket_inspect import Inspector

if TYPE_CHECKING:
    from collections.abc import Mapping

    from netns_runtime.policy.requests import WebSocketRules
    from netns_runtime.proxy.flow import Flow
    from netns_runtime.proxy.peer import Peer
    from netns_runtime.proxy.sandbox import Sandbox
    from netns_runtime.proxy.tls import TlsPeer
    from netns_runtime.secret import Secret
    from netns_runtime.wire.forward import Headers

    AnyPeer = Peer | TlsPeer

GRACE: Final = 10.0
"""Seconds for the second end after the first, and for a close frame of ours to be taken."""
_BROKEN: Final = {"sandbox": "http_request_error", "upstream": "http_protocol_error"}


async def carry_websocket(
    sandbox: Sandbox,
    client_peer: AnyPeer,
    upstream_peer: AnyPeer,
    flow: Flow,
    *,
    response_headers: Headers,
    rules: WebSocketRules | None,
    bound: tuple[Secret, ...],
    kept: Mapping[str, str] = MappingProxyType({}),
    to_upstream: bytes,
    to_client: bytes,
) -> Ended:
    """Carry a WebSocket to its end; the peers' sockets stay open and are the caller's to close.

    `response_headers` are the 101's, by which extensions were negotiated. `to_upstream` and
    `to_client` have been received already. `kept` says by name why some of `bound` are not put in.
    Writes `ws.opened` and `ws.closed`. The bytes of what it
    returns are those of frames: sent to upstream, received from upstream.
    """
    carried = _WebSocket(sandbox, flow, response_headers, rules, bound, kept)
    carried.out.source = carried.back.sink = client_peer
    carried.back.source = carried.out.sink = upstream_peer
    carried.out.early, carried.back.early = to_upstream, to_client
    return await carried.run()


class _Direction:
    """`name` is whose words go this way; `source` says them, `sink` hears them."""

    __slots__ = (
        "early",
        "is_reading",
        "name",
        "pinged_at",
        "pings",
        "received",
        "scope",
        "sent",
        "sink",
        "source",
        "way",
    )

    source: AnyPeer
    sink: AnyPeer

    def __init__(self, name: str, way: Walker) -> None:
        self.name = name
        self.way = way
        self.early = b""
        self.received = 0
        self.pings = 0
        self.pinged_at = 0.0
        self.sent = 0
        self.is_reading = False
        self.scope = trio.CancelScope()


class _WebSocket:
    """One open WebSocket. `end` is the first reason for it to end; `verdict` is ours, if it was."""

    def __init__(
        self,
        sandbox: Sandbox,
        flow: Flow,
        response: Headers,
        rules: WebSocketRules | None,
        bound: tuple[Secret, ...],
        kept: Mapping[str, str],
    ) -> None:
        self.sandbox = sandbox
        self.flow = flow
        self.end: End | None = None
        self.verdict: End | None = None
        self.started = self.heard_at = trio.current_time()
        self.gap = 0.0
        self.idle: float | None = None
        self.outgoing: Outgoing | None = None
        self.response = response
        looks = rules is not None or any(has_slot(secret) for secret in bound)
        extensions, fault = Extensions(), None
        try:
            extensions = extensions_of(response)
        except ProtocolError as error:
            fault = str(error)
        if extensions.others:
            fault = f"upstream chose {', '.join(extensions.others)[:100]}, which cannot be opened"
        if fault is not None and (looks or bound):
            self.verdict = End(1002, "proxy", fault, _BROKEN["upstream"], upstream_code=1002)
        faults = FAULTS["any" if fault else "deflate" if extensions.client else "none"]
        out, back = Walker(masked=True, faults=faults), Walker(masked=False, faults=faults)
        if looks:
            self.outgoing = Outgoing(sandbox, flow, rules, bound, kept)
            out = Inspector(
                masked=True, faults=faults, codec=extensions.client, examiner=self.outgoing
            )
        if bound:
            back = Inspector(
                masked=False, faults=faults, codec=extensions.server, examiner=Incoming(bound)
            )
        self.out = _Direction("sandbox", out)
        self.back = _Direction("upstream", back)
        self.nursery: trio.Nursery

    async def run(self) -> Ended:
        self.flow.protocol = "websocket"
        self.flow.progress = self._progress
        self._write(
            "ws.opened", action="allow", rule=self.flow.decision.rule, detail=self._chosen()
        )
        try:
            async with trio.open_nursery() as self.nursery:
                if self.verdict is not None:
                    self._close(self.verdict)
                self.nursery.start_soon(self._carry, self.out, self.back)
                self.nursery.start_soon(self._carry, self.back, self.out)
        except BaseException:
            cut = self.flow.cut_short or Ended()
            detail = cut.detail or "cut: the policy changed, or the sandbox ended"
            self.end = self.end or End(ABNORMAL, cut.said_by or "policy", detail, cut.reason)
            raise
        finally:
            self._closed()
        return self._ended()

    async def _carry(self, one: _Direction, other: _Direction) -> None:
        with one.scope:
            await self._pass_on(one, other)
        verdict = self.verdict
        if verdict is None or not one.way.is_stopped or one.way.closed is not None:
            return
        is_back = one is self.back
        close = Close(verdict.code, reason_of(verdict)) if is_back else Close(verdict.upstream_code)
        with suppress(OSError):
            await one.sink.send(write_close(close, masked=one.way.masked))
            await one.sink.end()
            while await one.source.receive():
                pass

    async def _pass_on(self, one: _Direction, other: _Direction) -> None:
        """Until the source ends, the sink is gone, or the way is stopped."""
        way, source, send = one.way, one.source, one.sink.send
        data = one.early
        while not way.is_stopped:
            if data:
                one.received += len(data)
                try:
                    for piece in way.feed(data):
                        if piece:
                            one.sent += len(piece)
                            await send(piece)
                        else:
                            await trio.lowlevel.checkpoint()
                        if way.is_stopped:
                            return None
                except FrameError as error:
                    return self._close(self._broken(one, error))
                except OSError:
                    # What the sink said before it went is still to be read: its close code, say.
                    return self._wait_for_the_end()
                if way.pings != one.pings:
                    one.pings, one.pinged_at = way.pings, self.heard_at
                if way.refused is not None:
                    return self._close(self._refused(way.refused))
                if way.closed is not None:
                    self._fell_silent()
                    self.end = self.end or End(way.closed.code, one.name, way.closed.reason or None)
                    if other.way.closed is not None:
                        self._wait_for_the_end()
                if way.is_stopped:
                    return None
            one.is_reading = True
            try:
                data = await source.receive()
            except OSError as error:
                self._hear()
                return self._vanished(one, error)
            finally:
                one.is_reading = False
            self._hear()
            if not data:
                self._gone(one, "ended without a close frame")
                self._wait_for_the_end()
                with suppress(OSError):
                    await one.sink.end()
                return None
        return None

    def _close(self, verdict: End) -> None:
        """Close both ways between two frames, and say why."""
        if self.verdict is None:
            self.verdict = verdict
        self.end = self.end or verdict
        self._wait_for_the_end()
        for one in (self.out, self.back):
            if one.way.stop() and one.is_reading:
                one.scope.cancel()

    def _broken(self, one: _Direction, error: FrameError) -> End:
        detail = f"{'the sandbox' if one.name == 'sandbox' else 'upstream'} broke the protocol: "
        reason = _BROKEN[one.name]
        return End(error.code, "proxy", detail + str(error), reason, upstream_code=error.code)

    def _refused(self, close: Close) -> End:
        if self.outgoing is not None and self.outgoing.end is not None:
            return self.outgoing.end
        return End(close.code, "proxy", close.reason)

    def _gone(self, one: _Direction, how: str) -> None:
        if one.way.closed is None and self.end is None:
            self._fell_silent()
            reason = "connection_terminated"
            self.end = End(ABNORMAL, one.name, f"{one.name} {how}", reason)

    def _vanished(self, one: _Direction, error: OSError) -> None:
        """A cut must not look like an end to the other side."""
        self._gone(one, f"is gone: {error.strerror or error}")
        if one.way.closed is None:
            with suppress(OSError):
                one.sink.abort()
        self.nursery.cancel_scope.cancel()

    def _hear(self) -> None:
        """`gap` is how long nobody had said anything before this, an end included."""
        now = trio.current_time()
        self.gap, self.heard_at = now - self.heard_at, now

    def _fell_silent(self) -> None:
        if self.end is None:
            self.idle = self.gap

    def _wait_for_the_end(self) -> None:
        scope = self.nursery.cancel_scope
        scope.deadline = min(scope.deadline, trio.current_time() + GRACE)

    def _progress(self) -> tuple[tuple[str, Any], ...]:
        now = trio.current_time()
        told: list[tuple[str, Any]] = [
            ("bytes_in", self.back.received),
            ("bytes_out", self.out.sent),
            ("messages_in", self.back.way.messages),
            ("messages_out", self.out.way.messages),
            ("websocket", "open" if self.end is None else "closing"),
            ("quiet_ms", round((now - self.heard_at) * 1000)),
        ]
        last = max((self.out, self.back), key=lambda one: one.pinged_at)
        if last.pings:
            told += [
                ("ping_ms", round((now - last.pinged_at) * 1000)),
                ("ping_by", last.name),
                ("pings", self.out.pings + self.back.pings),
            ]
        return tuple(told)

    def _chosen(self) -> str | None:
        """The subprotocol and the extensions, for the audit."""
        wanted = (b"sec-websocket-protocol", FIELD)
        values = [value for name, value in self.response if name.lower() in wanted]
        return printable(b", ".join(values).decode("latin-1"))[:512] or None

    def _closed(self) -> None:
        end = self.end or End(ABNORMAL, "proxy", "nobody said why")
        outgoing = self.outgoing
        self._write(
            "ws.closed",
            code=end.code,
            said_by=end.said_by,
            detail=printable(end.detail)[:512] if end.detail else None,
            reason=end.reason,
            rule=end.rule,
            action=end.action,
            remedy=end.remedy,
            messages_in=self.back.way.messages,
            messages_out=self.out.way.messages,
            bytes_in=self.back.received,
            bytes_out=self.out.sent,
            duration_ms=round((trio.current_time() - self.started) * 1000, 3),
            idle_ms=None if self.idle is None else round(self.idle * 1000, 3),
            count=(outgoing.substituted or None) if outgoing else None,
            suppressed=(outgoing.suppressed or None) if outgoing else None,
        )

    def _ended(self) -> Ended:
        counted = Ended(self.out.sent, self.back.received)
        end = self.end
        if end is None or end.reason is None:
            return counted
        return Ended(
            *(counted.bytes_out, counted.bytes_in, end.reason, end.said_by),
            *(end.detail, end.action, end.remedy),
        )

    def _write(self, event: str, **fields: Any) -> None:
        try:
            self.sandbox.audit.write(event, **self.flow.fields(), **fields)
        except AuditError as error:
            self.sandbox.report(f"flow {self.flow.id}: {error}")
