"""HTTP/1.1: one request of a client, its upstream, and the response.

On the explicit port a request is in absolute form; inside a connection to one host it must name
that host. Every request is decided anew, whatever the one before was allowed. h11 frames both
sides, so nothing passes that it did not understand; hop-by-hop headers end here. An upstream
connection is kept for the next request to the same target. `exchange` returns whether the client's
connection can carry another request; a WebSocket's 101 gives both sockets to the relay.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

import h11
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
    open_flow,
    record,
)
from netns_runtime.proxy.flow import Ended
from netns_runtime.proxy.identify import fault_of_host
from netns_runtime.proxy.peer import RESET, Peer
from netns_runtime.proxy.refuse import Refusal, response_of
from netns_runtime.proxy.upstream import Upstream, Upstreams, end
from netns_runtime.wire import ProtocolError
from netns_runtime.wire.forward import (
    DEFAULT_PORTS,
    AbsoluteTarget,
    end_to_end,
    request_headers,
    split_absolute,
    split_origin,
)
from netns_runtime.wire.head import HEAD_LIMIT

if TYPE_CHECKING:
    from netns_runtime.proxy.flow import Flow
    from netns_runtime.proxy.sandbox import Sandbox
    from netns_runtime.wire.head import RequestHead

_IDEMPOTENT: Final = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE", "TRACE"})


class _UpstreamFailed(Exception):
    """Upstream ended or broke HTTP."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


async def exchange(
    sandbox: Sandbox, client: Client, upstreams: Upstreams, head: RequestHead
) -> bool:
    """Serve one request whose head was read. Whether the client may send another."""
    try:
        if client.target is None:
            absolute = split_absolute(head)
            target = parse_authority(absolute.authority, DEFAULT_PORTS[absolute.scheme])
        else:
            absolute, target = split_origin(head), client.target
    except ProtocolError as error:
        await malformed(sandbox, client, error)
        return False
    except AddressError as error:
        await malformed(sandbox, client, ProtocolError(f"the URL's host: {error}"))
        return False
    while True:
        flow, refusal = begin(sandbox, client, target, "http")
        request = _Request(sandbox, client, head, absolute, flow)
        if refusal is None and client.target is not None:
            refusal = fault_of_host(flow, head, absolute)
            if refusal is not None and sandbox.config.report and head.method != "CONNECT":
                flow.noted, refusal = refusal, None
        if refusal is not None:
            return await request.refuse(record(sandbox, flow, refusal) or refusal)
        upstream = upstreams.take(target)
        if upstream is not None:
            flow.address, flow.id = upstream.flow.address, upstream.flow.id
            flow.started, upstream.flow = upstream.flow.started, flow
            sandbox.flows[flow.id] = flow
            unrecorded = record(sandbox, flow, None)
            if unrecorded is not None:
                end(sandbox, upstream, ended_by(unrecorded))
                return await request.refuse(unrecorded)
        else:
            opened = await open_flow(sandbox, client, flow)
            if isinstance(opened, Refusal):
                return await request.refuse(opened)
            upstream = Upstream(flow, opened.sock, Peer(opened.sock))
        upstreams.may_be_cut(upstream)
        keep = await request.carry(upstreams, upstream)
        if not request.stale:
            return keep


class _Request:
    """One request on its way; h11 holds the state of both sides."""

    def __init__(
        self,
        sandbox: Sandbox,
        client: Client,
        head: RequestHead,
        absolute: AbsoluteTarget,
        flow: Flow,
    ) -> None:
        self.sandbox = sandbox
        self.client = client
        self.head = head
        self.absolute = absolute
        self.flow = flow
        self.down = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_LIMIT)
        self.up = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEAD_LIMIT)
        self.answered = False
        self.logged = False
        self.stale = False

    def log(self, status: int, refusal: Refusal | None = None) -> None:
        """Write `http.request`, once."""
        if self.logged:
            return
        self.logged = True
        fields = self.flow.fields()
        fields |= {
            "method": self.head.method,
            "path": self.absolute.shown_path,
            "status": status,
            "action": "refuse" if refusal and refusal.said_by == "policy" else "allow",
            "rule": self.flow.decision.rule,
            "said_by": refusal.said_by if refusal else "upstream",
            "reason": refusal.reason if refusal else None,
        }
        try:
            self.sandbox.audit.write("http.request", **fields)
        except AuditError as error:
            self.sandbox.report(f"flow {self.flow.id}: {error}")

    async def refuse(self, refusal: Refusal) -> bool:
        """Answer in place of upstream. The connection stays open where nothing is in the way."""
        self.log(refusal.status, refusal)
        keep = (
            self.head.version == (1, 1)
            and not self.head.has_body
            and b"close" not in self.head.words(b"connection")
            and refusal.status < 500
        )
        if keep:
            await self.client.peer.send(response_of(refusal, self.head, keep_alive=True))
            return True
        await answer(self.client, refusal, self.head)
        return False

    async def carry(self, upstreams: Upstreams, upstream: Upstream) -> bool:
        """Send the request, bring back the response. Sets `stale` where it may be tried again."""
        sandbox = self.sandbox
        refusal: Refusal | None = None
        went: Ended | None = None
        owned = True
        upstream.fresh = upstream.bytes_in
        try:
            self.down.receive_data(self.head.raw + self.client.reader.rest())
            self.down.next_event()
            with trio.CancelScope() as upstream.scope:
                await self._send_head(upstream)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._request_up, upstream)
                    switched = await self._response_down(upstream)
                    nursery.cancel_scope.cancel()
            if upstream.ended is not None:
                pass
            elif switched:
                owned = False
                self._switch(upstream)
                return False
            elif self._reusable(self.up):
                upstream.used = True
                upstreams.keep(upstream)
                owned = False
        except* (_UpstreamFailed, h11.LocalProtocolError) as group:
            refusal = self._failure_of(_first(group))
        except* (h11.RemoteProtocolError, ProtocolError) as group:
            refusal = Refusal("http_request_error", f"the request's content: {_first(group)}")
        except* OSError as group:
            what = str(_first(group))
            went = Ended(reason="connection_terminated", said_by="sandbox", detail=what)
        finally:
            upstream.scope = None
            if owned and upstream.ended is not None:
                end(sandbox, upstream, upstream.ended)
            elif owned:
                end(sandbox, upstream, ended_by(refusal) if refusal else went or Ended())
        if upstream.ended is not None:
            why = upstream.ended.detail or ""
            return await self._give_up(Refusal("http_request_denied", why))
        if went is not None:
            return False
        if refusal is not None:
            if self._may_repeat(upstream, refusal):
                self.stale = True
                self.client.reader.feed(self.down.trailing_data[0])
                return True
            return await self._give_up(refusal)
        if not self._reusable(self.down):
            if self.down.their_state is h11.SEND_BODY:
                await linger(self.client)
            return False
        self.client.reader.feed(self.down.trailing_data[0])
        return True

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
        reason = error.reason if isinstance(error, _UpstreamFailed) else "http_protocol_error"
        target = self.flow.target
        return Refusal(
            reason,
            f"{target.host}: {error}",
            host=target.host,
            port=target.port,
            address=self.flow.address,
        )

    async def _give_up(self, refusal: Refusal) -> bool:
        self.log(refusal.status, refusal)
        if not self.answered:
            await answer(self.client, refusal, self.head, unread=True)
        else:
            # The response has begun: a reset says that this was not its end.
            self.client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        return False

    @staticmethod
    def _reusable(side: h11.Connection) -> bool:
        return side.our_state is h11.DONE and side.their_state is h11.DONE

    async def _send_head(self, upstream: Upstream) -> None:
        authority = str(self.flow.target)
        if self.flow.target.port == DEFAULT_PORTS[self.absolute.scheme]:
            authority = authority.rpartition(":")[0]
        request = h11.Request(
            method=self.head.method,
            target=self.absolute.path,
            headers=request_headers(self.head, authority.encode("ascii")),
        )
        await self._up(upstream, request)

    async def _up(self, upstream: Upstream, event: h11.Event) -> None:
        data = self.up.send(event)
        if data:
            try:
                await upstream.peer.send(data)
            except OSError as error:
                # It may have answered already (413); the response's side will tell.
                self.up.send_failed()
                if self.up.their_state is h11.ERROR:
                    raise _UpstreamFailed("connection_terminated", str(error.strerror)) from error
                return
            upstream.bytes_out += len(data)

    async def _request_up(self, upstream: Upstream) -> None:
        """The client's content, as it comes."""
        while True:
            event = self.down.next_event()
            if event is h11.NEED_DATA:
                data = await self.client.peer.receive()
                self.down.receive_data(data)
                continue
            if isinstance(event, h11.Data):
                if self.up.our_state is h11.ERROR:
                    return
                await self._up(upstream, h11.Data(data=event.data))
                continue
            if isinstance(event, h11.EndOfMessage):
                if self.up.our_state is not h11.ERROR:
                    trailers = end_to_end(event.headers.raw_items())
                    await self._up(upstream, h11.EndOfMessage(headers=trailers))
                return
            return

    async def _response_down(self, upstream: Upstream) -> bool:
        """The response, as it comes. True once upstream switched to another protocol."""
        peer, target = upstream.peer, self.flow.target
        while True:
            try:
                event = self.up.next_event()
            except h11.RemoteProtocolError as error:
                reason = "http_response_incomplete" if self.answered else "http_protocol_error"
                raise _UpstreamFailed(reason, str(error)) from error
            if event is h11.NEED_DATA:
                try:
                    data = await peer.receive()
                except OSError as error:
                    raise _UpstreamFailed("connection_terminated", str(error.strerror)) from error
                begun = upstream.bytes_in > upstream.fresh
                if not begun and not b"HTTP/".startswith(data[:5]):
                    raise _UpstreamFailed("http_protocol_error", f"{target} does not speak HTTP")
                if not data and not self.answered:
                    reason = "http_protocol_error" if begun else "connection_terminated"
                    raise _UpstreamFailed(reason, f"{target} closed without a response")
                upstream.bytes_in += len(data)
                self.up.receive_data(data)
            elif isinstance(event, h11.InformationalResponse):
                if event.status_code == 101:
                    await self._informational(event)
                    return True
                if self.head.version == (1, 1):
                    await self._informational(event)
            elif isinstance(event, h11.Response):
                self.answered = True
                self.log(event.status_code)
                await self._down(self._response_of(event))
            elif isinstance(event, h11.Data):
                await self._down(h11.Data(data=event.data))
            elif isinstance(event, h11.EndOfMessage):
                await self._down(h11.EndOfMessage(headers=end_to_end(event.headers.raw_items())))
                return False
            else:
                raise _UpstreamFailed("http_response_incomplete", "upstream closed early")

    def _response_of(self, event: h11.Response) -> h11.Response:
        headers = end_to_end(event.headers.raw_items())
        if self.down.their_state is h11.SEND_BODY:
            headers.append((b"Connection", b"close"))
        return h11.Response(status_code=event.status_code, headers=headers, reason=event.reason)

    async def _informational(self, event: h11.InformationalResponse) -> None:
        headers = end_to_end(event.headers.raw_items())
        if event.status_code == 101:
            self.log(101)
            self.answered = True
            headers += ((b"Connection", b"Upgrade"), (b"Upgrade", b"websocket"))
        await self._down(
            h11.InformationalResponse(
                status_code=event.status_code, headers=headers, reason=event.reason
            )
        )

    async def _down(self, event: h11.Event) -> None:
        data = self.down.send(event)
        if data:
            await self.client.peer.send(data)

    def _switch(self, upstream: Upstream) -> None:
        """Both sides left HTTP: what they hold unread goes first, the relay carries the rest."""
        flow = self.flow
        flow.protocol = "websocket"
        hand_over(
            self.sandbox,
            self.client,
            flow,
            upstream.sock,
            to_client=self.up.trailing_data[0],
            to_upstream=self.down.trailing_data[0],
            counted=(upstream.bytes_in, upstream.bytes_out),
        )


def _first(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group
