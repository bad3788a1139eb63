"""One sandbox that is set up, as values; the ExitStack that made it closes what is in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from netns_runtime import state
    from netns_runtime.audit import AuditLog
    from netns_runtime.control import ControlSocket
    from netns_runtime.feed import Feed
    from netns_runtime.gateway import Gateway
    from netns_runtime.namespace.cgroup import Cgroups
    from netns_runtime.namespace.enter_launch import Child
    from netns_runtime.probes.probe import Registration
    from netns_runtime.proxyprocess import ProxyProcess


@dataclass(frozen=True, slots=True)
class Guard:
    """Which of the two counts: `mode` is bpf or nft, `lost` says what is lost without the probe."""

    mode: str
    registration: Registration | None
    lost: str = ""
    pins: str = ""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """What a running sandbox consists of, as its supervisor holds it."""

    claim: state.Claim
    control: ControlSocket
    record: state.Record
    audit: AuditLog
    proxy: ProxyProcess
    child: Child
    guard: Guard
    cgroups: Cgroups
    sandbox_fd: int
    gateway: Gateway
    feed: Feed
    started: float
    has_authority: bool = False
