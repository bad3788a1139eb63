"""What the kernel refused, from both of its counters, as audit lines.

The probe's ring buffer names the process and its totals are exact; the gateway's nft counters count
what reached the gateway, which is everything when there is no probe and nothing but odd protocols
when there is one. No connect is in both, so the sum is the number of refused connects.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final

from netns_runtime import layout
from netns_runtime.audit import AuditError
from netns_runtime.counts import destination_fields, gateway_destinations, tally
from netns_runtime.firewall.ruleset import REASONS
from netns_runtime.processes import executable_named, executable_of
from netns_runtime.screening import screen

if TYPE_CHECKING:
    from collections.abc import Callable
    from ipaddress import IPv4Address, IPv6Address

    from netns_runtime.audit import AuditLog
    from netns_runtime.firewall.nft import Counters
    from netns_runtime.probes.probe import Registration
    from netns_runtime.probes.records import RefusedConnect

DESTINATIONS_TOLD: Final = 1000
RULE: Final = "default: nothing leaves the sandbox but through the proxy"
_BY_PROXY: Final = (
    f"connect through the proxy at http://{layout.GATEWAY_IPV4}:{layout.PROXY_PORT} "
    "(http_proxy and https_proxy name it)"
)
_TO_TCP: Final = "UDP is not carried: use TCP (HTTP/2 or 1.1 in place of HTTP/3)"
_TO_RESOLVER: Final = f"ask the resolver at {layout.GATEWAY_IPV4} (/etc/resolv.conf names it)"


def remedy_of(
    address: IPv4Address | IPv6Address | None, port: int, protocol: str, *, redirect: bool
) -> str:
    """What would carry this refused connect. `address` None is one that nobody noted."""
    if port == layout.DNS_PORT and protocol in ("tcp", "udp"):
        return _TO_RESOLVER
    if protocol == "udp":
        return _TO_TCP
    if protocol != "tcp" or address is None:
        return _BY_PROXY
    if address in layout.VIRTUAL_IPV4 or address in layout.VIRTUAL_IPV6:
        return f"--redirect on carries clients that ignore the proxy; or {_BY_PROXY}"
    if address == layout.GATEWAY_IPV4 or not redirect:
        return _BY_PROXY
    target = f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
    if screen(address) is None:
        return f"--allow {target}, or connect to its name"
    return f"a policy endpoint with host {address}, port {port} and allowed_ips [{address}]"


class Refusals:
    """Counts and events of one sandbox. `read_nft` reads the gateway's counters, or raises."""

    def __init__(
        self,
        audit: AuditLog,
        registration: Registration | None,
        read_nft: Callable[[], Counters],
        complain: Callable[[str], None],
        *,
        redirect: bool = True,
    ) -> None:
        self._audit = audit
        self._registration = registration
        self._read_nft = read_nft
        self._complain = complain
        self._redirect = redirect
        self._names: dict[str, str] = {}
        self._nft: Counters | None = None
        self._executables: dict[tuple[int, int], str] = {}
        self._complained = False

    def executable(self, pid: int, inode: int, device: int, comm: str = "") -> str | None:
        """The path of an executable, remembered by inode, because a process may be gone soon."""
        known = self._executables.get((device, inode)) if inode else None
        if known is not None:
            return known
        path = executable_of(pid, inode) or executable_named(comm, inode, device)
        if path is not None and inode and len(self._executables) < 4096:
            self._executables[device, inode] = path
        return path

    def learn_name(self, address: str, name: str) -> None:
        """Remember which name a virtual address stands for; the pool bounds how many there are.

        The IPv6 address of a name is the IPv4 one in the last four bytes of our /64.
        """
        ipv4 = ip_address(address)
        self._names[str(ipv4)] = name
        if ipv4.version == 4:
            self._names[str(layout.VIRTUAL_IPV6.network_address + int(ipv4))] = name

    def drain(self, catch_up: Callable[[], None] | None = None) -> None:
        """Write an audit line for each event in the ring.

        `catch_up` takes in what the proxy has said: a name is told before its address is answered,
        so after reading events it is there for every one of them.
        """
        if self._registration is None:
            return
        while events := self._registration.read_events():
            if catch_up is not None:
                catch_up()
            for event in events:
                self._write_event(event)

    def _write_event(self, event: RefusedConnect) -> None:
        self._write(
            pid=event.pid,
            comm=event.comm,
            exe=self.executable(event.pid, event.exe_inode, event.exe_device, event.comm),
            uid=event.uid,
            ppid=event.ppid or None,
            to=event.address,
            port=event.port,
            protocol=event.protocol,
            reason=event.reason,
            counted_by="bpf",
        )

    def poll_nft(self) -> None:
        """Write an audit line for each destination that nft refused since the last look."""
        counters = self._read_nft()
        before = self._nft
        self._nft = counters
        told = dict.fromkeys(REASONS.values(), 0)
        for key, count in counters.destinations.items():
            new = count - (before.destinations.get(key, 0) if before else 0)
            if new <= 0:
                continue
            address, protocol, port = key
            reason = f"direct_{protocol}"
            told[reason] = told.get(reason, 0) + new
            self._write(
                to=address,
                port=port,
                protocol=protocol,
                reason=reason,
                count=new,
                counted_by="nft",
            )
        for counter, reason in REASONS.items():
            new = counters.packets[counter] - (before.packets[counter] if before else 0)
            if new > told[reason]:
                self._write(reason=reason, count=new - told[reason], counted_by="nft")

    def _write(
        self,
        *,
        to: IPv4Address | IPv6Address | None = None,
        port: int | None = None,
        protocol: str | None = None,
        **fields: Any,
    ) -> None:
        remedy = remedy_of(to, port or 0, protocol or "", redirect=self._redirect)
        try:
            self._audit.write(
                "connect.refused",
                entry="direct",
                action="refuse",
                said_by="sandbox",
                rule=RULE,
                address=str(to) if to is not None else None,
                host=self._names.get(str(to)),
                port=port,
                protocol=protocol,
                remedy=remedy,
                **fields,
            )
        except AuditError as error:
            if not self._complained:
                self._complained = True
                self._complain(str(error))

    def situation(self) -> dict[str, Any]:
        """Counts as they are now, for who asks: `totals`, nft's `packets`, and `destinations`, the
        most frequent first, with the name that a virtual address stands for."""
        self.poll_nft()
        counters = self._nft
        found: list[dict[str, Any]] = []
        if self._registration is not None:
            found += [destination_fields(entry) for entry in self._registration.destinations()]
        if counters is not None:
            found += gateway_destinations(counters)
        found.sort(key=lambda entry: -int(entry["count"]))
        for entry in found[:DESTINATIONS_TOLD]:
            if entry["address"] in self._names:
                entry["host"] = self._names[entry["address"]]
        return {
            "totals": self.totals(),
            "packets": counters.packets if counters is not None else {},
            "destinations": found[:DESTINATIONS_TOLD],
        }

    def totals(self) -> dict[str, int]:
        """Every count until now as audit fields (counts.tally)."""
        probe = self._registration.totals() if self._registration is not None else None
        return tally(probe, self._nft)
