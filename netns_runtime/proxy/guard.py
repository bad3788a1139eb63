"""Stands before a tunnel's way up until it is known what the client speaks.

The first bytes of a client, whenever they come, are judged before one of them goes upstream: TLS by
its server name, HTTP/1 by handing the connection to `proxy.requests`, anything else passes. Text
that may yet become a request is held for a moment and then let go, still watched: a request that
begins that slowly ends the flow. A guard costs no task while it waits; it ends by PASS, or by
`take`, after which a task of its own ends the connection in the client's language.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from netns_runtime.proxy.admit import alert, ended_by, looked_after, reset
from netns_runtime.proxy.identify import fault, fault_of_first, is_raw
from netns_runtime.proxy.peer import Peer
from netns_runtime.proxy.requests import serve_requests
from netns_runtime.proxy.tunnel import Tunnel, Verdict
from netns_runtime.proxy.upstream import Upstream, Upstreams, end
from netns_runtime.wire import NEED_DATA, ProtocolError
from netns_runtime.wire.clienthello import HANDSHAKE, ClientHello
from netns_runtime.wire.sniff import Kind, Patience, Sniffer

if TYPE_CHECKING:
    from netns_runtime.proxy.admit import Client
    from netns_runtime.proxy.flow import Flow
    from netns_runtime.proxy.refuse import Refusal
    from netns_runtime.proxy.sandbox import Sandbox

HELD: Final = 65_536


class Guard:
    """The guard of one flow. After TAKE, `refusal` says why, or is None for HTTP/1."""

    __slots__ = (
        *("_held", "_is_let_go", "_is_terminated", "_sniffer", "_was_late", "client", "first"),
        *("flow", "refusal", "sandbox"),
    )

    def __init__(
        self, sandbox: Sandbox, client: Client, flow: Flow, *, is_terminated: bool = False
    ) -> None:
        self.sandbox = sandbox
        self.client = client
        self.flow = flow
        self.first: ClientHello | Kind | None = None
        self.refusal: Refusal | None = None
        self._sniffer = Sniffer()
        self._is_terminated = is_terminated
        self._held = b""
        self._is_let_go = False
        self._was_late = False

    @property
    def is_tls(self) -> bool:
        """Whether the client speaks TLS, as far as it has spoken."""
        begun = self.first is None and self._held[:1] == bytes((HANDSHAKE,))
        return begun or isinstance(self.first, ClientHello)

    @property
    def holds(self) -> bool:
        """Whether it holds bytes."""
        return bool(self._held)

    def feed(self, data: bytes) -> Verdict:
        """Judge what the client sent."""
        self._held = self._held + data if self._held else data
        try:
            first = self._sniffer.feed(data)
        except ProtocolError as error:
            return self._refused(fault(self.flow, "client_tls_error", str(error)))
        if first is not NEED_DATA:
            return self._judged(first)
        if self._is_let_go or self._sniffer.patience is Patience.NONE or len(self._held) > HELD:
            self._is_let_go = True
            return Verdict.WATCH
        return Verdict.HOLD

    def end(self) -> Verdict:
        """What is not whole yet will never be."""
        return Verdict.PASS

    def late(self) -> Verdict:
        """A moment has passed, or for TLS the deadline of a head."""
        if self._sniffer.patience is not Patience.DEADLINE:
            self._is_let_go = True
            return Verdict.WATCH
        if not self._was_late:
            self._was_late = True
            return Verdict.HOLD
        return self._refused(
            fault(self.flow, "client_tls_error", "the ClientHello did not come in time")
        )

    def patience(self) -> float:
        """Seconds that what is held may wait."""
        return self.sandbox.deadline("head" if self._was_late else "hold")

    def held(self) -> bytes:
        """Give up what is held."""
        data, self._held = self._held, b""
        return data

    def _judged(self, first: ClientHello | Kind) -> Verdict:
        self.first = first
        flow = self.flow
        if flow.entry == "redirected" and isinstance(first, ClientHello):
            flow.protocol = "tls"
        refusal = fault_of_first(flow, first, is_terminated=self._is_terminated)
        if first is Kind.HTTP1 and not is_raw(flow.decision.endpoint):
            if not self._is_let_go:
                return Verdict.TAKE
            why = f"the request line to {flow.target} came in pieces, too slowly to be checked"
            refusal = fault(flow, "http_unverifiable", why)
        return Verdict.PASS if refusal is None else self._refused(refusal)

    def _refused(self, refusal: Refusal) -> Verdict:
        if self.sandbox.config.report:
            self.flow.noted = refusal
            return Verdict.PASS
        self.refusal = refusal
        return Verdict.TAKE

    def take(self, tunnel: Tunnel) -> None:
        """Take the connection back from the relay, and upstream's with it."""
        upstream = Upstream(self.flow, tunnel.upstream, Peer(tunnel.upstream))
        upstream.bytes_in, upstream.bytes_out = max(tunnel.bytes_in, 0), tunnel.bytes_out
        is_behind = tunnel.down.pending is not None
        if self.refusal is None and (upstream.bytes_in or is_behind or tunnel.down.ended):
            why = f"{self.flow.target} spoke before its client, who then spoke HTTP"
            self.refusal = fault(self.flow, "http_unverifiable", why)
        upstreams = Upstreams(self.sandbox)
        if self.refusal is not None:
            end(self.sandbox, upstream, ended_by(self.refusal))
        else:
            upstreams.keep(upstream)

        async def serve(sandbox: Sandbox, client: Client) -> None:
            if self.refusal is None:
                client.reader.feed(self.held())
                await serve_requests(sandbox, client, upstreams)
            elif self.is_tls and not is_behind:
                await alert(client)
            else:
                reset(client)

        self.sandbox.start(looked_after, self.sandbox, self.client.again(), serve)
