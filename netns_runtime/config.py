"""What the supervisor tells the proxy process about its sandbox: one frozen value.

It crosses from root to the unprivileged proxy over their control socket, pickled by the supervisor
and with the descriptors beside it; nothing is ever unpickled in the other direction.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

    from netns_runtime.policy import Policy
    from netns_runtime.policy.rules import Rule
    from netns_runtime.secret import Secret


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one sandbox. `flows`: open at once. `pids`, `memory` (bytes): None is no limit."""

    flows: int = 10_000
    names: int = 1_000
    pids: int | None = None
    memory: int | None = None


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """One sandbox as the proxy sees it.

    `resolver` is the DNS server to ask in the uplink, or None for the host's own resolver; with
    `--uplink` the host's daemons are never asked, so `use_system_resolver` is False and
    `nameservers` (address, port) hold what to ask instead. `own_addresses` are the uplink's own,
    which screening refuses. `descriptors` names the order of the file descriptors that came along:
    "explicit", "transparent" (listening sockets in the gateway), "dns_udp", "dns_tcp", "audit",
    "owners" (BPF map, read-only). `upstream_ca` is a PEM bundle of roots beside the system's.
    `secrets_token` opens the secrets' endpoint, empty where there is none, and `readers` say, by
    secret, which executables may read it there.
    """

    sandbox: str
    policy: Policy
    cookie: int
    report: bool = False
    redirect: bool = True
    limits: Limits = field(default_factory=Limits)
    use_system_resolver: bool = True
    nameservers: tuple[tuple[str, int], ...] = ()
    own_addresses: frozenset[IPv4Address | IPv6Address] = frozenset()
    descriptors: tuple[str, ...] = ()
    verbose: bool = False
    audit_format: str = "json"
    inspect: bool = False
    secrets: tuple[Secret, ...] = ()
    secrets_token: str = field(default="", repr=False)
    readers: tuple[tuple[str, Rule], ...] = ()
    upstream_ca: bytes | None = None
    timeouts: dict[str, float] = field(default_factory=dict[str, Any])
