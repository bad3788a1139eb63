"""Upstream connections of absolute-form requests, kept from one request to the next.

A kept one is used again only for the same target, and only while it is quiet: one that ended, or
that sent a response nobody asked for, is closed. Closing writes the flow's last line.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from netns_runtime.proxy.flow import Ended

if TYPE_CHECKING:
    import trio

    from netns_runtime.address import HostPort
    from netns_runtime.proxy.flow import Flow
    from netns_runtime.proxy.peer import Peer
    from netns_runtime.proxy.sandbox import Sandbox


@dataclass(slots=True, eq=False)
class Upstream:
    """A connection to a target, kept from one request to the next.

    `scope` is that of the request it carries; `ended` says why that was cut.
    """

    flow: Flow
    sock: socket.socket
    peer: Peer
    bytes_out: int = 0
    bytes_in: int = 0
    used: bool = False
    fresh: int = 0
    scope: trio.CancelScope | None = None
    ended: Ended | None = None


@dataclass(slots=True, eq=False)
class Upstreams:
    """At most one upstream at a time for one client's connection."""

    sandbox: Sandbox
    kept: Upstream | None = field(default=None)

    def take(self, target: HostPort) -> Upstream | None:
        """The kept upstream, where it is the target's and has not ended meanwhile."""
        upstream = self.kept
        if upstream is None:
            return None
        if upstream.flow.target == target and _is_quiet(upstream.sock):
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


def _is_quiet(sock: socket.socket) -> bool:
    try:
        sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False  # its end, or a response that nobody asked for


def end(sandbox: Sandbox, upstream: Upstream, ended: Ended) -> None:
    """Close an upstream connection and write its flow's last line."""
    upstream.sock.close()
    total = replace(ended, bytes_in=upstream.bytes_in, bytes_out=upstream.bytes_out)
    sandbox.close_flow(upstream.flow, total)
