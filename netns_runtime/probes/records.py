"""What the probe's maps and rings hold, as frozen values: bpf/records.h told in Python.

Pure: bytes in, values out, and back. A buffer of the wrong size raises struct.error, which is a bug
here or a stale pin, never the sandbox's doing.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final

from netns_runtime.owner import Owner

if TYPE_CHECKING:
    from collections.abc import Mapping

Address = IPv4Address | IPv6Address
Listed = tuple[Address, tuple[int, ...] | None]
"""A literal address that a policy lists, and its ports; None is any port."""

REASONS: Final = ("direct_tcp", "direct_udp", "direct_other", "reserved")
"""By number; a power of two of them, so that the program can mask the index for the verifier."""

FLAG_PROXY: Final = 1
FLAG_RESOLVER: Final = 2
FLAG_REDIRECT: Final = 4

SANDBOXES: Final = 1024
DETAILS: Final = 16384
DIALLING: Final = 4096
OWNERS: Final = 16384
LISTED: Final = 4096
RING_BYTES: Final = 65536
"""Power of two and a multiple of every page size; more than two bursts of EVENT_BURST."""
RINGS: Final = 8
"""Made when the set is; more are added as sandboxes need them, and stay."""
EVENT_RATE: Final = 100
EVENT_BURST: Final = 200

_SECOND: Final = 1_000_000_000
_MAPPED: Final = bytes(10) + b"\xff\xff"

COOKIE = struct.Struct("=Q")
NUMBER = struct.Struct("=I")
DESTINATION = struct.Struct("=Q16sQ")
DETAIL = struct.Struct("=QQQII16s")
SANDBOX = struct.Struct("=QIHHQQQ4QQQQ")
SLOT = struct.Struct("=QQQII")
EVENT = struct.Struct("=QQIIIIII32s16s")
FLOW = struct.Struct("=Q16sQ")
LISTED_KEY = struct.Struct("=Q16sQ")
OWNER = struct.Struct("=QQIIII16s")
DIAL = struct.Struct(f"={FLOW.size}s{OWNER.size}s")

ENTRIES: Final = {
    "slots": (NUMBER.size, SLOT.size, SANDBOXES),
    "listed": (LISTED_KEY.size, 1, LISTED),
    "lent": (NUMBER.size, COOKIE.size, SANDBOXES),
    "details": (DESTINATION.size, DETAIL.size, DETAILS),
    "owners": (FLOW.size, OWNER.size, OWNERS),
    "dialling": (COOKIE.size, DIAL.size, DIALLING),
}
"""Bytes of a key, bytes of a value, and how many at most, of the hash maps."""

PROTOCOLS: Final[Mapping[int, str]] = {1: "icmp", 6: "tcp", 17: "udp", 58: "icmpv6", 136: "udplite"}


def address_of(packed: bytes) -> Address:
    """The 16 bytes of a record; ::ffff:a.b.c.d is the IPv4 address."""
    return IPv4Address(packed[12:]) if packed[:12] == _MAPPED else IPv6Address(packed)


def packed_of(address: Address) -> bytes:
    """The other way round: 16 bytes for either family."""
    return _MAPPED + address.packed if address.version == 4 else address.packed


def text_of(comm: bytes) -> str:
    """A process's name as text that is safe to print: what is not printable is escaped."""
    text = comm.partition(b"\0")[0].decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@dataclass(frozen=True, slots=True)
class RefusedConnect:
    """One event of the ring. `time`: seconds since the epoch. Ids are the host's; `uid` is the
    initial user namespace's. `exe_inode` and `exe_device` as in `Owner`; `ppid` 0 means unknown.
    """

    time: float
    pid: int
    tid: int
    ppid: int
    uid: int
    comm: str
    address: Address
    port: int
    protocol: str
    reason: str
    exe_inode: int
    exe_device: int
    cookie: int


def _destination(data: bytes) -> tuple[int, Address, int, str, str]:
    """Cookie, address, port, protocol and reason of a `struct destination`."""
    cookie, address, kind = DESTINATION.unpack(data)
    number = kind >> 16 & 0xFF
    protocol = PROTOCOLS.get(number, str(number))
    return cookie, address_of(address), kind & 0xFFFF, protocol, REASONS[kind >> 24]


def event_of(data: bytes | memoryview) -> RefusedConnect:
    """Read one `struct event`."""
    when, inode, device, pid, tid, ppid, uid, _, destination, comm = EVENT.unpack_from(data)
    cookie, address, port, protocol, reason = _destination(destination)
    return RefusedConnect(
        time=_epoch(when),
        pid=pid,
        tid=tid,
        ppid=ppid,
        uid=uid,
        comm=text_of(comm),
        address=address,
        port=port,
        protocol=protocol,
        reason=reason,
        exe_inode=inode,
        exe_device=device,
        cookie=cookie,
    )


def _epoch(monotonic: int) -> float:
    return (time.time_ns() - time.monotonic_ns() + monotonic) / _SECOND


@dataclass(frozen=True, slots=True)
class Destination:
    """Refusals of one sandbox with the same destination, and who tried last (seconds, epoch)."""

    address: Address
    port: int
    protocol: str
    reason: str
    count: int
    last: float
    pid: int
    uid: int
    comm: str


def destination_of(key: bytes, value: bytes) -> Destination:
    """Read one entry of `details`."""
    _, address, port, protocol, reason = _destination(key)
    count, _, last, pid, uid, comm = DETAIL.unpack(value)
    return Destination(
        address=address,
        port=port,
        protocol=protocol,
        reason=reason,
        count=count,
        last=_epoch(last),
        pid=pid,
        uid=uid,
        comm=text_of(comm),
    )


def sandbox_value(
    cookie: int, flags: int, slot: int, ring: int, *, rate: int, burst: int, cpus: int
) -> bytes:
    """The value of a new sandbox for every CPU: its configuration, and nothing counted yet."""
    interval = _SECOND // rate
    # GCRA admits one event more than its tolerance, the one that finds it exactly used up.
    one = SANDBOX.pack(cookie, flags, slot, ring, interval, interval * (burst - 1), 0, *[0] * 7)
    return one * cpus


@dataclass(frozen=True, slots=True)
class Totals:
    """The exact counts of one sandbox, summed over CPUs.

    `refused` by reason; every refusal is told (`events`), withheld by the token bucket
    (`suppressed`) or lost to a full ring (`lost`). `details` is how many destinations were ever
    entered in the bounded table.
    """

    refused: Mapping[str, int]
    events: int
    lost: int
    details: int
    flags: int
    slot: int

    @property
    def total(self) -> int:
        """All refusals."""
        return sum(self.refused.values())

    @property
    def suppressed(self) -> int:
        """Refusals that the token bucket kept from the ring; counted like all others."""
        return self.total - self.events - self.lost


def totals_of(value: bytes) -> Totals:
    """Sum the per-CPU values of one sandbox."""
    rows = list(SANDBOX.iter_unpack(value))
    _, flags, slot = rows[0][:3]
    sums = [sum(column) for column in zip(*(row[7:] for row in rows), strict=True)]
    names = len(REASONS) - 1
    return Totals(
        refused=dict(zip(REASONS[:names], sums[:names], strict=True)),
        events=sums[4],
        lost=sums[5],
        details=sums[6],
        flags=flags,
        slot=slot,
    )


def flow_key(cookie: int, source_port: int, destination: Address, port: int) -> bytes:
    """The key of `owners`."""
    return FLOW.pack(cookie, packed_of(destination), port | source_port << 16)


def listed_key(cookie: int, address: Address, port: int) -> bytes:
    """The key of `listed`; port 0 is any."""
    return LISTED_KEY.pack(cookie, packed_of(address), port)


def owner_value(value: bytes) -> Owner:
    """Read one entry of `owners`; `exe` stays None, the kernel holds no path."""
    inode, _, device, pid, _, _, comm = OWNER.unpack(value)
    return Owner(pid=pid, comm=text_of(comm), exe_inode=inode, exe_device=device)
