"""Whose a packet is: what the proxy, the probe and /proc say, as the comment of each packet.

`ends_of` reads addresses and ports out of a packet; a `Who` is told what the proxy says of flows,
looks up what it does not say, and gives `remark` for a packet of the sandbox. What is not known is
said to be unknown, never guessed. Names and paths are the sandbox's: they go through `shown`.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from netns_runtime import layout
from netns_runtime.debug.text import named, shown, where_of, who_of
from netns_runtime.errors import NetnsError
from netns_runtime.namespace import netns
from netns_runtime.processes import (
    executable_named,
    executable_of,
    holder_of,
    members_of,
    sockets_at,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from netns_runtime.probes.owners import OwnerTable
    from netns_runtime.state import Record

TCP: Final = 6
UDP: Final = 17
SYN, ACK = 0x02, 0x10
CONNECTIONS: Final = 65_536
LOOKUPS: Final = 50
"""Looks into /proc for each second of packets; past that a loopback packet's owner is unknown."""
LOOKING: Final = 0.2
"""Seconds that these may take together: the sandbox chooses how much there is to look through."""
FRESH: Final = 1_000_000_000
"""Nanoseconds for which a port without a connection is taken to be whose it was."""
AHEAD: Final = 250_000_000
"""Nanoseconds after a request's packet within which its flow is decided, as a rule."""
SOON: Final = 2_000_000_000
"""Nanoseconds between a question's packet and the proxy's word of who asked, at the most."""
_FLOWS: Final = 64
"""Flows kept of one connection; of all, as many as CONNECTIONS."""
_LONGEST_NAME: Final = 255
_NAMES: Final = {TCP: "tcp", UDP: "udp"}
_SANDBOX: Final = frozenset({layout.SANDBOX_IPV4.packed, layout.SANDBOX_IPV6.packed})
_DNS: Final = frozenset({layout.GATEWAY_IPV4.packed, layout.GATEWAY_IPV6.packed})
_METHODS: Final = (b"GET ", b"POST", b"CONN", b"HEAD", b"PUT ", b"DELE", b"OPTI", b"PATC", b"TRAC")

Address = bytes


class Ends(NamedTuple):
    """A packet's protocol, addresses (packed), ports, TCP flags and sequence number, and where its
    content begins. A tuple, since one is made for every packet of a flood."""

    protocol: int
    source: Address
    source_port: int
    destination: Address
    destination_port: int
    flags: int = 0
    sequence: int = 0
    content: int = 0

    @property
    def is_syn(self) -> bool:
        """Whether it begins a connection, seen from who begins it."""
        return self.flags & (SYN | ACK) == SYN


def ends_of(data: bytes, start: int) -> Ends | None:
    """Read the packet whose IP header is at `start`; None for what has no ports."""
    size = len(data)
    if size < start + 20:
        return None
    version = data[start] >> 4
    if version == 4:
        at = start + (data[start] & 15) * 4
        protocol = data[start + 9]
        if int.from_bytes(data[start + 6 : start + 8], "big") & 0x1FFF:
            return None
        source, destination = data[start + 12 : start + 16], data[start + 16 : start + 20]
    elif version == 6 and size >= start + 40:
        at = start + 40
        protocol = data[start + 6]
        source, destination = data[start + 8 : start + 24], data[start + 24 : start + 40]
    else:
        return None
    if protocol not in _NAMES or size < at + (20 if protocol == TCP else 8):
        return None
    ports = int.from_bytes(data[at : at + 2], "big"), int.from_bytes(data[at + 2 : at + 4], "big")
    if protocol == UDP:
        return Ends(protocol, source, ports[0], destination, ports[1], content=at + 8)
    sequence = int.from_bytes(data[at + 4 : at + 8], "big")
    content = at + (data[at + 12] >> 4) * 4
    return Ends(protocol, source, ports[0], destination, ports[1], data[at + 13], sequence, content)


def packed(address: str) -> Address:
    """An address's bytes; of an IPv4 address in IPv6's clothes, the IPv4 ones."""
    found = ip_address(address.partition("%")[0])
    mapped = getattr(found, "ipv4_mapped", None)
    return bytes((mapped or found).packed)


def asked_name(data: bytes, at: int) -> str:
    """The name in the first question of a DNS message; empty where there is none."""
    labels: list[str] = []
    at += 12
    end = min(len(data), at + _LONGEST_NAME)
    while at < end and 0 < (size := data[at]) < 64:
        labels.append(data[at + 1 : at + 1 + size].decode("ascii", "backslashreplace").lower())
        at += 1 + size
    return shown(".".join(labels), 253)


# Protocol, address and port of a socket inside.
_Place = tuple[int, "Address", int]


def _places_of(ends: Ends) -> tuple[_Place, _Place]:
    return (
        (ends.protocol, ends.source, ends.source_port),
        (ends.protocol, ends.destination, ends.destination_port),
    )


# A connection from inside: own port, peer's address and port.
Connection = tuple[int, Address, int]


@dataclass(slots=True)
class _Known:
    """What is known of one connection: its owner's fields, and its flows in order of time."""

    owner: dict[str, Any] = field(default_factory=dict)
    flows: list[dict[str, Any]] = field(default_factory=list)
    texts: dict[int, str] = field(default_factory=dict)


class Who:
    """`owners` is the probe's table, None without the probe."""

    def __init__(self, record: Record, sandbox_fd: int, owners: OwnerTable | None) -> None:
        self._cgroup = Path(record.cgroup)
        self._fd = sandbox_fd
        self._owners = owners
        self._known: OrderedDict[Connection, _Known] = OrderedDict()
        self._flows = 0
        self._local: dict[_Place, tuple[int, str]] = {}
        self._budget = LOOKUPS
        self._patience = LOOKING
        self._second = 0
        self._refused: dict[str, dict[str, Any]] = {}
        self._askers: dict[tuple[str, int], dict[str, Any]] = {}

    def told(self, flow: Mapping[str, Any]) -> None:
        """A message of the proxy's (proxy.tap): a flow with its client's ends, or who asked for a
        name. The proxy reads hostile bytes for a living: what makes no sense is left out."""
        try:
            flow = {**flow, "at": int(flow.get("at", 0))}
            if "asked" in flow:
                protocol, own = flow["asked"]
                self._told_asker(str(protocol), int(own), flow)
                return
            address, port, _, own = flow["client"]
            known = self._of((int(own), packed(str(address)), int(port)))
        except (KeyError, TypeError, ValueError, OverflowError):
            return
        known.texts.clear()
        if flow.get("opened") and not flow.get("before"):
            for earlier in known.flows:
                if earlier.get("flow") == flow.get("flow"):
                    earlier.update({**flow, "at": earlier["at"]})
            return
        known.flows.append(flow)
        self._flows += 1
        if len(known.flows) > _FLOWS:
            del known.flows[0]
            self._flows -= 1
        while self._flows > CONNECTIONS:
            self._flows -= len(self._known.popitem(last=False)[1].flows)

    def _told_asker(self, protocol: str, port: int, told: dict[str, Any]) -> None:
        if len(self._askers) >= CONNECTIONS:
            self._askers.clear()
        self._askers[protocol, port] = told

    def told_event(self, event: Mapping[str, Any]) -> None:
        """An audit event; those of refused names say why on the packets that asked."""
        if event.get("event") == "dns.refused" and "host" in event:
            if len(self._refused) >= CONNECTIONS:
                self._refused.clear()
            self._refused[str(event["host"])] = dict(event)

    def _of(self, connection: Connection) -> _Known:
        known = self._known.get(connection)
        if known is None:
            known = self._known[connection] = _Known()
            if len(self._known) > CONNECTIONS:
                self._flows -= len(self._known.popitem(last=False)[1].flows)
        return known

    def see(self, ends: Ends, when: int, *, is_loopback: bool) -> None:
        """Note a packet as it comes: who begins a connection may be gone in milliseconds."""
        if is_loopback:
            self._see_local(ends, when)
        elif ends.is_syn and ends.source in _SANDBOX:
            known = self._of((ends.source_port, ends.destination, ends.destination_port))
            # What was decided before is about an earlier connection with the same ends.
            before = len(known.flows)
            known.flows = [flow for flow in known.flows if flow.get("at", 0) > when]
            self._flows -= before - len(known.flows)
            known.texts.clear()
            known.owner = self._owner_of(ends)

    def _owner_of(self, ends: Ends) -> dict[str, Any]:
        if self._owners is None:
            return {}
        try:
            found = self._owners.owner_of(
                "", ends.source_port, ip_address(ends.destination), ends.destination_port
            )
        except OSError:
            return {}
        if found is None:
            return {}
        exe = executable_of(found.pid, found.exe_inode) or executable_named(
            found.comm, found.exe_inode, found.exe_device
        )
        return {"pid": found.pid, "comm": found.comm, "exe": exe}

    def _see_local(self, ends: Ends, when: int) -> None:
        second = when // 1_000_000_000
        if second != self._second:
            self._second, self._budget, self._patience = second, LOOKUPS, LOOKING
            if len(self._local) > CONNECTIONS:
                self._local.clear()
        source, destination = _places_of(ends)
        if ends.is_syn:
            self._local.pop(source, None)
        for place in (source, destination):
            found = self._local.get(place)
            # Who listens, or has a port of UDP's, may be somebody else by now.
            is_new = ends.protocol != TCP or (ends.is_syn and place == destination)
            if found is not None and not (is_new and abs(when - found[0]) > FRESH):
                continue
            self._local.pop(place, None)
            if self._budget > 0 and self._patience > 0:
                begun = time.monotonic()
                self._local[place] = when, self._holder(place)
                self._budget -= 1
                self._patience -= time.monotonic() - begun

    def _holder(self, place: _Place) -> str:
        protocol, address, port = place
        try:
            inodes = netns.run_in(self._fd, lambda: sockets_at(_NAMES[protocol], port, address))
        except OSError:
            return ""
        found = holder_of(inodes, members_of(self._cgroup))
        return "" if found is None else _named(found.pid, found.comm, found.exe)

    def remark(self, ends: Ends, when: int, data: bytes, *, is_loopback: bool) -> str:
        """The comment of a packet of the sandbox's."""
        if is_loopback:
            found = (self._local.get(place, (0, "")) for place in _places_of(ends))
            one, other = (text or "unknown" for _, text in found)
            return f"{one} -> {other}, inside the sandbox"
        is_out = ends.source in _SANDBOX
        peer, port = (
            (ends.destination, ends.destination_port) if is_out else (ends.source, ends.source_port)
        )
        own = ends.source_port if is_out else ends.destination_port
        if port == layout.DNS_PORT and peer in _DNS:
            return self._dns_remark(ends, own, when, data)
        if ends.protocol != TCP:
            return f"{_NAMES[ends.protocol]} to {ip_address(peer)}:{port}"
        known = self._known.get((own, peer, port))
        if known is None:
            return ""
        begins = is_out and data[ends.content : ends.content + 4] in _METHODS
        number = _place_of(known.flows, when, begins_request=begins)
        text = known.texts.get(number)
        if text is None or number < 0:
            flow = known.flows[number] if number >= 0 else {}
            text = _text_of(flow, known.owner, ip_address(peer), port)
            if number >= 0:
                known.texts[number] = text
        return text

    def _dns_remark(self, ends: Ends, own: int, when: int, data: bytes) -> str:
        asker = self._askers.get((_NAMES[ends.protocol], own), {})
        if abs(asker.get("at", 0) - when) > SOON:
            asker = {}
        if ends.protocol == TCP:
            peer = ends.destination if ends.source_port == own else ends.source
            known = self._known.get((own, peer, layout.DNS_PORT))
            asker = known.owner if known is not None else asker
        who = f"{named_of(asker)} -> policy DNS"
        name = asked_name(data, ends.content + (2 if ends.protocol == TCP else 0))
        event = self._refused.get(name)
        if event is None:
            return f"{who}: {name}" if name else who
        why = shown(event.get("detail") or event.get("reason") or "", 300)
        return f"{who}: {name}, refused: {why}"


def _place_of(flows: list[dict[str, Any]], when: int, *, begins_request: bool) -> int:
    """Which of a connection's flows a packet belongs to; -1 where there is none yet."""
    if len(flows) < 2:
        return len(flows) - 1
    earlier = [n for n, flow in enumerate(flows) if flow.get("at", 0) <= when]
    number = earlier[-1] if earlier else 0
    if not (begins_request and earlier) or number + 1 == len(flows):
        return number
    is_next: bool = flows[number + 1].get("at", 0) - when < AHEAD
    return number + is_next


def _named(pid: object, comm: object, exe: object) -> str:
    path = f", {named(exe, 200)}" if exe else ""
    who = named(comm, 64) if comm else "a process"
    return f"{who} (pid {shown(pid, 12)}{path})"


def named_of(fields: Mapping[str, Any]) -> str:
    """`comm (pid N, path)` of an event or a flow, or "an unknown process"."""
    if "pid" not in fields:
        return who_of(fields)
    return _named(fields["pid"], fields.get("comm"), fields.get("exe"))


def _text_of(flow: Mapping[str, Any], owner: Mapping[str, Any], peer: object, port: int) -> str:
    who = named_of(flow if "pid" in flow else owner)
    if not flow:
        return f"{who} -> {peer}:{port}"
    words = [f"{who} -> {where_of(flow)}", shown(flow.get("entry", ""), 20)]
    words.append(f"flow {shown(flow.get('flow'), 20)}")
    if flow.get("action") == "refuse":
        words.append(f"refused: {shown(flow.get('detail') or flow.get('reason') or '', 300)}")
    else:
        words.append(f"allowed: {shown(flow.get('rule') or '', 300)}")
        words.append(_tls_text(flow))
    return ", ".join(word for word in words if word)


def _tls_text(flow: Mapping[str, Any]) -> str:
    if not flow.get("terminated"):
        return f"a tunnel, {shown(flow.get('unread', ''), 100)}: its bytes stay as they are"
    if flow.get("before"):
        return "began before the capture: no keys of its TLS"
    return "TLS ends in the proxy"


def owners_of(record: Record) -> OwnerTable | None:
    """The probe's table of owners; None without the probe. The caller closes its `fd`."""
    if not record.pins:
        return None
    from netns_runtime.probes.owners import OwnerTable
    from netns_runtime.probes.pins import open_set

    try:
        with open_set(Path(record.pins)) as probe:
            return OwnerTable(probe.owners_fd(), record.cookie)
    except (NetnsError, OSError):
        return None
