"""Upstream connections of one client's requests, kept from one to the next.

A kept one is used again only for the same target, and only while it is quiet: one that ended, or
that sent a response nobody asked for, is closed. A new one is opened by what `Upstreams` was given,
which for a terminated flow speaks TLS. Closing writes the flow's last line.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from netns_runtime.proxy.admit import open_flow
from netns_runtime.proxy.flow import Ended
from netns_runtime.proxy.peer import Peer
from netns_runtime.proxy.refuse import Refusal

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    import trio

    from netns_runtime.address import HostPort
    from netns_runtime.proxy.admit import Client
    from netns_runtime.proxy.flow import Flow
    from netns_runtime.proxy.sandbox import Sandbox
    from netns_runtime.proxy.tls import TlsPeer

    Opener = Callable[[Sandbox, Client, Flow], Awaitable["Upstream | Refusal"]]


@dataclass(slots=True, eq=False)
class Upstream:
    """A connection to a target. `peer` is what is spoken to, `sock` what is closed.

    `scope` is that of the request it carries; `ended` says why that was cut.
    `advice` (detail, remedy) is for `flow.closed`, where nothing else is said.
    """

    flow: Flow
    sock: socket.socket
    peer: Peer | TlsPeer
    bytes_out: int = 0
    bytes_in: int = 0
    used: bool = False
    fresh: int = 0
    scope: trio.CancelScope | None = None
    ended: Ended | None = None
    advice: tuple[str, str] | None = None

    def moved(self) -> tuple[tuple[str, Any], ...]:
        """The bytes so far, for listings of open flows."""
        return ("bytes_in", self.bytes_in), ("bytes_out", self.bytes_out)


async def open_plain(sandbox: Sandbox, client: Client, flow: Flow) -> Upstream | Refusal:
    """Dial, and speak to upstream as the client speaks to us."""
    outcome = await open_flow(sandbox, client, flow)
    if isinstance(outcome, Refusal):
        return outcome
    return Upstream(flow, outcome.sock, Peer(outcome.sock))


@dataclass(slots=True, eq=False)
class Upstreams:
    """At most one upstream at a time for one client's connection.

    `open` makes a new one for a flow that was decided; where it returns a Refusal the flow is over
    and the audit says why.
    """

    sandbox: Sandbox
    open: Opener = field(default=open_plain)
    kept: Upstream | None = field(default=None)

    def take(self, target: HostPort) -> Upstream | None:
        """The kept upstream, where it is the target's and has not ended meanwhile."""
        upstream = self.kept
        if upstream is None:
            return None
        if upstream.flow.target == target and upstream.peer.is_quiet():
            self.kept = None
            return upstream
        self.close()
        return None

    def keep(self, upstream: Upstream) -> None:
        """Keep an upstream for the next request."""
        self.kept = upstream
        self.may_be_cut(upstream)

    def may_be_cut(self, upstream: Upstream) -> None:
        """Let the upstream's flow be cut, whether it is kept or carries a request."""
        upstream.flow.cut = partial(self._cut, upstream)
        upstream.flow.progress = upstream.moved

    def _cut(self, upstream: Upstream, ended: Ended) -> None:
        if upstream.scope is not None:
            upstream.ended = ended
            upstream.scope.cancel()
        elif self.kept is upstream:
            self.kept = None
            end(self.sandbox, upstream, ended)

    def close(self) -> None:
        """End what is kept."""
        if self.kept is not None:
            end(self.sandbox, self.kept, Ended())
            self.kept = None


def end(sandbox: Sandbox, upstream: Upstream, ended: Ended) -> None:
    """Close an upstream connection and write its flow's last line."""
    upstream.sock.close()
    if upstream.advice is not None and ended.detail is None:
        ended = replace(ended, detail=upstream.advice[0], remedy=upstream.advice[1])
    total = replace(ended, bytes_in=upstream.bytes_in, bytes_out=upstream.bytes_out)
    sandbox.close_flow(upstream.flow, total)
