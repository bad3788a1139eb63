"""HTTP/1.1: one request of a client, its upstream, and the response.

On the explicit port a request is in absolute form; inside a connection to one host it must name
that host. Every request is decided anew, whatever the one before was allowed, and then judged by
the rules for its path and given its secrets (`proxy.inspect`). `proxy.sending` has the way up,
`proxy.answering` the way down. `exchange` returns whether the client's connection can carry another
request; after a 101 the frames are `proxy.websocket`'s or the relay's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from netns_runtime.address import AddressError, parse_authority
from netns_runtime.audit import AuditError
from netns_runtime.proxy.admit import (
    Client,
    answer,
    begin,
    ended_by,
    hand_over,
    linger,
    malformed,
    record,
)
from netns_runtime.proxy.answering import Answering, UpstreamFailed
from netns_runtime.proxy.flow import Ended
from netns_runtime.proxy.identify import fault_of_host
from netns_runtime.proxy.inspect import Admitted, judge_request, shown_of, write_substituted
from netns_runtime.proxy.refuse import Refusal, response_of
from netns_runtime.proxy.sending import Sending, Unwritten
from netns_runtime.proxy.upgrade import upgrade_fields
from netns_runtime.proxy.upstream import Upstream, Upstreams, end
from netns_runtime.wire import ProtocolError
from netns_runtime.wire.forward import (
    DEFAULT_PORTS,
    AbsoluteTarget,
    request_headers,
    split_absolute,
    split_origin,
    wants_websocket,
)

if TYPE_CHECKING:
    from netns_runtime.address import HostPort
    from netns_runtime.proxy.flow import Flow
    from netns_runtime.proxy.sandbox import Sandbox
    from netns_runtime.wire.head import RequestHead

_IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"})


async def exchange(
    sandbox: Sandbox, client: Client, upstreams: Upstreams, head: RequestHead
) -> bool:
    """Serve one request whose head was read. Whether the client may send another."""
    if upstreams.kept is not None:
        # Who asks has taken our certificate, whatever becomes of what it asks for.
        upstreams.kept.flow.advice = None
    try:
        if client.target is None:
            absolute = split_absolute(head)
            target = parse_authority(absolute.authority, DEFAULT_PORTS[absolute.scheme])
        else:
            absolute = split_origin(head, is_tls=client.scheme == "https")
            target = client.target
    except ProtocolError as error:
        await malformed(sandbox, client, error)
        return False
    except AddressError as error:
        await malformed(sandbox, client, ProtocolError(f"the URL's host: {error}"))
        return False
    request = _Exchange(sandbox, client, head, absolute, target)
    try:
        return await request.run(upstreams)
    finally:
        request.sending.release()


class _Exchange:
    """One request on its way. `flow` and `admitted` are what the last decision made of it."""

    def __init__(
        self,
        sandbox: Sandbox,
        client: Client,
        head: RequestHead,
        absolute: AbsoluteTarget,
        target: HostPort,
    ) -> None:
        self.sandbox = sandbox
        self.client = client
        self.head = head
        self.absolute = absolute
        self.target = target
        self.sending = Sending(sandbox, client, head)
        self.is_websocket = wants_websocket(head)
        self.flow: Flow
        self.admitted: Admitted | None = None
        self.answering: Answering | None = None
        self.logged = False
        self.started = trio.current_time()

    async def run(self, upstreams: Upstreams) -> bool:
        """Serve it; again from the decision on where a kept upstream turns out to have gone."""
        sandbox = self.sandbox
        while True:
            refusal = self._decide()
            if refusal is not None:
                return await self.refuse(record(sandbox, self.flow, refusal) or refusal)
            assert self.admitted is not None
            try:
                await self.sending.prepare(self.admitted)
            except ProtocolError as error:
                return await self._give_up(_content_refusal(error))
            if self.flow.policy is not sandbox.config.policy:
                continue
            upstream = await self._upstream(upstreams)
            if isinstance(upstream, Refusal):
                return await self.refuse(upstream)
            upstreams.may_be_cut(upstream)
            keep = await self.carry(upstreams, upstream, self.admitted)
            if keep is not None:
                return keep

    def _decide(self) -> Refusal | None:
        """Decide about the target, then about the request. Waits for nothing."""
        sandbox, client = self.sandbox, self.client
        self.flow, refusal = begin(sandbox, client, self.target, client.scheme)
        if refusal is None and client.target is not None:
            refusal = fault_of_host(self.flow, self.head, self.absolute)
            if refusal is not None and sandbox.config.report and self.head.method != "CONNECT":
                self.flow.noted, refusal = refusal, None
        return refusal or self._judge()

    def _judge(self) -> Refusal | None:
        flow, target = self.flow, self.target
        if self.admitted is not None and flow.noted is self.admitted.noted:
            flow.noted = None  # what an earlier policy said of this request
        authority = str(target)
        if target.port == DEFAULT_PORTS[self.absolute.scheme]:
            authority = authority.rpartition(":")[0]
        judged = judge_request(
            *(self.sandbox, flow, self.head.method, self.absolute.path),
            request_headers(self.head, authority.encode("ascii")),
            is_websocket=self.is_websocket,
            has_content=self.head.has_body,
        )
        if isinstance(judged, Refusal):
            return judged
        if judged.noted is not None and flow.noted is None:
            flow.noted = judged.noted
        if self.is_websocket:
            self.sending.add_upgrade(judged)
        self.admitted = judged
        return None

    async def _upstream(self, upstreams: Upstreams) -> Upstream | Refusal:
        """The kept connection or a new one; either way `flow.decided` is written."""
        flow = self.flow
        upstream = upstreams.take(self.target)
        if upstream is not None:
            flow.address, flow.id = upstream.flow.address, upstream.flow.id
            flow.sockets = self.client.sock, upstream.sock
            flow.started, upstream.flow = upstream.flow.started, flow
            self.sandbox.flows[flow.id] = flow
            unrecorded = record(self.sandbox, flow, None)
            if unrecorded is not None:
                end(self.sandbox, upstream, ended_by(unrecorded))
            return unrecorded or upstream
        policy = flow.policy
        opened = await upstreams.open(self.sandbox, self.client, flow)
        if isinstance(opened, Refusal) or flow.policy is policy:
            return opened
        # The policy was swapped meanwhile: the host is allowed still, the request may not be.
        refusal = self._judge()
        if refusal is not None:
            end(self.sandbox, opened, ended_by(refusal))
        return refusal or opened

    def log(self, status: int, refusal: Refusal | None = None) -> None:
        """Write `http.request`, once."""
        if self.logged:
            return
        self.logged = True
        if refusal is None:
            self.sandbox.tallies.took("response", trio.current_time() - self.started)
        flow, admitted, noted = self.flow, self.admitted, self.flow.noted
        fields = flow.fields()
        fields |= {
            "method": self.head.method,
            "path": admitted.shown if admitted else shown_of(self.sandbox, self.absolute.path),
            "status": status,
            "action": "allow",
            "rule": admitted.rule if admitted else flow.decision.rule,
            "said_by": "upstream",
        }
        if self.is_websocket:
            said = self.answering if refusal is None else None
            heard, phrase = (said.heard, said.phrase) if said is not None else ([], b"")
            fields |= upgrade_fields(self.head, status, heard, phrase)
        if refusal is not None:
            fields |= {"said_by": refusal.said_by, "reason": refusal.reason}
            if refusal.said_by == "policy":
                fields |= {"action": "refuse", "rule": refusal.rule}
            fields |= {"detail": refusal.detail, "remedy": refusal.remedy or None}
        elif noted is not None:
            fields |= {"reason": noted.reason, "detail": f"would be refused: {noted.detail}"}
            fields["remedy"] = noted.remedy or None
        try:
            self.sandbox.audit.write("http.request", **fields)
        except AuditError as error:
            self.sandbox.report(f"flow {flow.id}: {error}")

    async def refuse(self, refusal: Refusal) -> bool:
        """Answer in place of upstream. The connection stays open where nothing is in the way."""
        self.log(refusal.status, refusal)
        await self.sending.take_what_came()
        keep = (
            self.head.version == (1, 1)
            and self.sending.is_read
            and b"close" not in self.head.words(b"connection")
            and refusal.status < 500
        )
        if keep:
            await self.client.peer.send(response_of(refusal, self.head, keep_alive=True))
            return True
        await answer(self.client, refusal, self.head)
        return False

    async def carry(
        self, upstreams: Upstreams, upstream: Upstream, admitted: Admitted
    ) -> bool | None:
        """Send the request, bring back the response. None where it is to be tried again."""
        sandbox, flow = self.sandbox, self.flow
        refusal: Refusal | None = None
        went: Ended | None = None
        owned = True
        upstream.fresh = upstream.bytes_in
        self.answering = answering = Answering(
            *(self.client, self.sending, upstream, admitted.bound, self.log),
            is_upgrade=self.is_websocket,
        )
        try:
            with trio.CancelScope() as upstream.scope:
                switched = await self._both_ways(upstream, admitted, answering)
                if switched and admitted.asked is not None:
                    flow.upgrade = admitted.asked, admitted.websocket
                if switched and not self._is_relayed(admitted):
                    went = await self._talk(upstream, admitted, answering)
            if upstream.ended is not None or went is not None:
                pass
            elif switched:
                owned = False
                flow.protocol = "websocket"
                hand_over(
                    *(sandbox, self.client, flow, upstream.sock),
                    to_client=answering.rest(),
                    counted=(upstream.bytes_in, upstream.bytes_out),
                )
                return False
            elif self.sending.is_sent and answering.is_reusable:
                upstream.used = True
                upstreams.keep(upstream)
                owned = False
        except* UpstreamFailed as group:
            refusal = self._failure_of(_first(group))
        except* Unwritten as group:
            failed = _first(group)
            refusal = failed.refusal if isinstance(failed, Unwritten) else None
        except* ProtocolError as group:
            refusal = _content_refusal(_first(group))
        except* OSError as group:
            what = str(_first(group))
            went = Ended(reason="connection_terminated", said_by="sandbox", detail=what)
        finally:
            answering.release()
            upstream.scope = None
            if owned:
                end(sandbox, upstream, upstream.ended or _end_of(refusal, went))
        if upstream.ended is not None:
            refusal = Refusal("http_request_denied", upstream.ended.detail or "")
        elif went is not None:
            return False
        if refusal is not None:
            if self._may_repeat(upstream, refusal):
                return None
            return await self._give_up(refusal, has_begun=answering.has_begun)
        if not self.sending.is_read:
            await linger(self.client)
            return False
        if answering.closes:
            await self.client.peer.end()
        return not answering.closes

    async def _both_ways(
        self, upstream: Upstream, admitted: Admitted, answering: Answering
    ) -> bool:
        """Both directions of one exchange. True once upstream left HTTP."""
        sandbox, flow, sending = self.sandbox, self.flow, self.sending
        unwritten = write_substituted(sandbox, flow, admitted)
        if unwritten is not None:
            raise Unwritten(unwritten)
        await sending.send_head(flow, admitted, upstream)
        sending.release()
        if sending.is_read:
            return await answering.bring()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sending.stream, flow, admitted, upstream)
            switched = await answering.bring()
            nursery.cancel_scope.cancel()
        return switched

    def _is_relayed(self, admitted: Admitted) -> bool:
        """Whether nobody need look at a WebSocket's frames, nor decrypt them."""
        return self.client.scheme == "http" and admitted.websocket is None and not admitted.bound

    async def _talk(self, upstream: Upstream, admitted: Admitted, answering: Answering) -> Ended:
        """A WebSocket whose frames are looked at, to its end."""
        from netns_runtime.proxy.websocket import carry_websocket

        self.flow.protocol = "websocket"
        went = await carry_websocket(
            *(self.sandbox, self.client.peer, upstream.peer, self.flow),
            response_headers=answering.switched_headers,
            rules=admitted.websocket,
            bound=admitted.bound,
            kept=admitted.kept,
            to_upstream=self.client.reader.rest(),
            to_client=answering.rest(),
        )
        upstream.bytes_in += went.bytes_in
        upstream.bytes_out += went.bytes_out
        return went

    def _may_repeat(self, upstream: Upstream, refusal: Refusal) -> bool:
        """Whether a kept connection ended just as it was used again (RFC 9112, 9.3.1)."""
        return (
            refusal.reason == "connection_terminated"
            and upstream.used
            and upstream.bytes_in == upstream.fresh
            and not self.head.has_body
            and self.head.method in _IDEMPOTENT
        )

    def _failure_of(self, error: BaseException) -> Refusal:
        reason = error.reason if isinstance(error, UpstreamFailed) else "http_protocol_error"
        return Refusal(
            *(reason, f"{self.target.host}: {error}", ""),
            *(self.target.host, self.target.port),
            address=self.flow.address,
        )

    async def _give_up(self, refusal: Refusal, *, has_begun: bool = False) -> bool:
        self.log(refusal.status, refusal)
        if not has_begun:
            await answer(self.client, refusal, self.head, unread=True)
        else:
            # The response has begun: a reset says that this was not its end.
            self.client.peer.abort()
        return False


def _end_of(refusal: Refusal | None, went: Ended | None) -> Ended:
    return ended_by(refusal) if refusal else went or Ended()


def _content_refusal(error: BaseException) -> Refusal:
    return Refusal("http_request_error", f"the request's content: {error}")


def _first(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group
