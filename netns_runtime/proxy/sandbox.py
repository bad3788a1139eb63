"""One sandbox as everything in proxy/ takes it: a value that holds its policy, audit and sources.

A process may serve many. Whatever reaches outside (the owner table, the supervisor's answers, the
resolver) is given at birth, so that tests give stand-ins.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field, replace
from itertools import count
from typing import TYPE_CHECKING, Any, Protocol

import trio

from netns_runtime.audit import AuditError
from netns_runtime.proxy.tallies import Tallies

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Iterator
    from ipaddress import IPv4Address, IPv6Address

    from netns_runtime.audit import AuditLog
    from netns_runtime.config import ProxyConfig
    from netns_runtime.owner import Owner
    from netns_runtime.proxy.ca import Authority
    from netns_runtime.proxy.flow import Ended, Flow
    from netns_runtime.proxy.relay import Relay
    from netns_runtime.proxy.resolve import Resolver
    from netns_runtime.proxy.tap import Tap

    IPAddress = IPv4Address | IPv6Address

DEADLINES = {
    "head": 30.0,
    "keepalive": 300.0,
    "connect": 30.0,
    "dns": 10.0,
    "exe": 0.25,
    "identify": 0.5,
    "refuse": 0.3,
    "hold": 0.5,
    "tls": 30.0,
}
"""Seconds; `ProxyConfig.timeouts` overrides by name. An open tunnel has no deadline.

identify: for a redirected client's first bytes before it is dialled without them. refuse: for those
of one that is refused, to answer in kind. hold: for bytes that may become an HTTP request. tls: for
upstream's handshake, and for a client's once it has begun.
"""

GATHERED_LIMIT = 64 * 1024 * 1024
EXE_TTL = 60.0
EXE_NAMES = 1024


class OwnerSource(Protocol):
    """Who sent the SYN from this address and port of the sandbox."""

    def owner_of(self, ip: str, port: int, *destination: Any) -> Owner | None:
        """None where the kernel recorded nobody. `destination` is an address and a port, and the
        explicit proxy's where it is not given."""


class NameSource(Protocol):
    """The names of the sandbox and their virtual addresses (`proxy.names.VirtualNames`)."""

    def name_of(self, address: IPAddress, /) -> str | None:
        """None where it stands for nobody."""

    def address_of(self, name: str, rule_key: str, /) -> object | None:
        """None where a wildcard's names are used up."""


class ExeSource(Protocol):
    """Asks the supervisor, which may read /proc, for an executable's path."""

    def __call__(self, pid: int, inode: int, device: int) -> Awaitable[str | None]:
        """None where it cannot be known any more."""


@dataclass(slots=True, eq=False)
class Sandbox:
    """`report` takes one line about a bug of ours; `connections` counts what clients hold open,
    `refusing` those that are only waited for to be refused in kind. `nursery` is `serve`'s.
    `gathered` counts the octets of content that is held until its new length is known.
    `authority` and `upstream_context` are None where nothing can be terminated. `tap` is for who
    captures packets."""

    config: ProxyConfig
    audit: AuditLog
    resolver: Resolver
    relay: Relay
    owners: OwnerSource | None = None
    exe_of: ExeSource | None = None
    report: Callable[[str], None] = lambda line: None
    names: NameSource | None = None
    authority: Authority | None = None
    upstream_context: ssl.SSLContext | None = None
    tap: Tap | None = None
    nursery: trio.Nursery | None = None
    connections: int = 0
    refusing: int = 0
    gathered: int = 0
    tallies: Tallies = field(default_factory=Tallies)
    flows: dict[int, Flow] = field(default_factory=dict)
    ids: Iterator[int] = field(default_factory=lambda: count(1))
    _exes: OrderedDict[tuple[int, int], tuple[float, str]] = field(default_factory=OrderedDict)

    def deadline(self, name: str) -> float:
        """Seconds that the step `name` may take."""
        return self.config.timeouts.get(name, DEADLINES[name])

    async def owner_of(self, ip: str, port: int, *destination: Any) -> Owner | None:
        """The process behind a client's address, its executable named where that is known in time.

        A path is remembered for EXE_TTL seconds only: an inode's number can be used again.
        """
        if self.owners is None:
            return None
        owner = self.owners.owner_of(ip, port, *destination)
        if owner is None or owner.exe is not None or not owner.exe_inode or self.exe_of is None:
            return owner
        key = (owner.exe_device, owner.exe_inode)
        known = self._exes.get(key)
        if known is not None and known[0] > trio.current_time():
            return replace(owner, exe=known[1])
        path = None
        with trio.move_on_after(self.deadline("exe")):
            path = await self.exe_of(owner.pid, owner.exe_inode, owner.exe_device)
        if path is None:
            return owner
        self._exes[key] = (trio.current_time() + EXE_TTL, path)
        while len(self._exes) > EXE_NAMES:
            self._exes.popitem(last=False)
        return replace(owner, exe=path)

    def context_to_client(self, host: str, alpn: str | None) -> ssl.SSLContext:
        """What to greet a client with as `host`, for the handshake that begins now."""
        assert self.authority is not None
        logging = self.tap and self.tap.server_context(self.authority, host, alpn)
        return logging or self.authority.context_for(host, alpn)

    def context_to_upstream(self) -> ssl.SSLContext:
        """What to dial upstreams with, for the handshake that begins now."""
        assert self.upstream_context is not None
        return (self.tap and self.tap.client_context()) or self.upstream_context

    def start(self, task: Callable[..., Awaitable[object]], *arguments: object) -> None:
        """Run a task as long as the sandbox is served."""
        assert self.nursery is not None
        self.nursery.start_soon(task, *arguments)

    def reserve(self, octets: int) -> bool:
        """Whether content of that length may be held now; who holds it gives it back."""
        if self.gathered + octets > GATHERED_LIMIT:
            return False
        self.gathered += octets
        return True

    def close_flow(self, flow: Flow, ended: Ended) -> None:
        """Write `flow.closed`. A line that cannot be written any more is reported, once a flow."""
        self.flows.pop(flow.id, None)
        try:
            self.audit.write("flow.closed", **flow.closed(trio.current_time(), ended))
        except AuditError as error:
            self.report(f"flow {flow.id}: {error}")
