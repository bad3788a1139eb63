"""What bpf/trace.c sends, as frozen values, and how it is loaded: for `netns-debug trace` alone.

Raw tracepoints of the running kernel, never pinned: closing a `Tracing` takes them away. A kernel
that lacks one is told in `lacks`, and the others go on. Raises ProbeUnavailable where nothing can
be had at all.
"""

from __future__ import annotations

import os
import struct
import time
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final

from netns_runtime import layout
from netns_runtime.probes import syscall
from netns_runtime.probes.btf import VMLINUX, enumerators_of, offsets_of
from netns_runtime.probes.hooks import source_directory
from netns_runtime.probes.records import PROTOCOLS, text_of
from netns_runtime.probes.ring import RingReader
from netns_runtime.probes.unavailable import ProbeUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping

RING_PAGES: Final = 256
FRAMES: Final = 32
SEEN = struct.Struct("=QQIIIIHHHH16s16s16s")
STACK = struct.Struct(f"=II{FRAMES}Q{FRAMES}Q")

PACKETS: Final[Mapping[str, str]] = {
    "kfree_skb": "saw_drop",
    "inet_sock_set_state": "saw_state",
    "tcp_send_reset": "saw_sent_reset",
    "tcp_receive_reset": "saw_got_reset",
    "tcp_retransmit_skb": "saw_retransmit",
}
STACKS: Final[Mapping[str, str]] = {"sys_exit": "saw_exit"}
"""Raw tracepoint to the program that takes it."""

FIELDS: Final = {
    "AT_SKB_DEV": ("sk_buff", "dev"),
    "AT_SKB_SK": ("sk_buff", "sk"),
    "AT_SKB_HEAD": ("sk_buff", "head"),
    "AT_SKB_NETWORK": ("sk_buff", "network_header"),
    "AT_DEV_NET": ("net_device", "nd_net"),
    "AT_NET_COOKIE": ("net", "net_cookie"),
    "AT_SOCK_NET": ("sock_common", "skc_net"),
    "AT_SOCK_FAMILY": ("sock_common", "skc_family"),
    "AT_SOCK_NUM": ("sock_common", "skc_num"),
    "AT_SOCK_DPORT": ("sock_common", "skc_dport"),
    "AT_SOCK_SADDR": ("sock_common", "skc_rcv_saddr"),
    "AT_SOCK_DADDR": ("sock_common", "skc_daddr"),
    "AT_SOCK_SADDR6": ("sock_common", "skc_v6_rcv_saddr"),
    "AT_SOCK_DADDR6": ("sock_common", "skc_v6_daddr"),
}
KINDS: Final = {
    1: "drop",
    2: "state",
    3: "reset sent",
    4: "reset received",
    5: "stack",
    6: "retransmit",
}
PLACES: Final = {1: "sandbox", 2: "gateway"}
# include/net/tcp_states.h, which is part of the kernel's interface (ss, /proc/net/tcp).
STATES: Final = (
    *("?", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT"),
    *("CLOSE", "CLOSE_WAIT", "LAST_ACK", "LISTEN", "CLOSING", "NEW_SYN_RECV"),
)


@dataclass(frozen=True, slots=True)
class Seen:
    """One event. `time`: seconds since the epoch. `reason` is a drop's name or a state's change.

    `source` and `destination` are "ADDRESS:PORT" or "". `process` is who was running when it
    happened, which for a packet that came in is anybody. `kernel` and `user` are a stack's
    addresses, innermost first.
    """

    time: float
    kind: str
    place: str
    reason: str
    location: int
    pid: int
    comm: str
    protocol: str
    source: str
    destination: str
    kernel: tuple[int, ...] = ()
    user: tuple[int, ...] = ()


def seen_of(data: bytes, reasons: Mapping[int, str]) -> Seen:
    """Read one record."""
    when, location, kind, where, reason, pid, family, protocol, sport, dport, src, dst, comm = (
        SEEN.unpack_from(data)
    )
    kernel: tuple[int, ...] = ()
    user: tuple[int, ...] = ()
    if len(data) >= SEEN.size + STACK.size:
        kernel_bytes, user_bytes, *frames = STACK.unpack_from(data, SEEN.size)
        kernel = tuple(frames[: kernel_bytes // 8])
        user = tuple(frames[FRAMES : FRAMES + user_bytes // 8])
    name = KINDS.get(kind, str(kind))
    told = ""
    if name == "drop":
        told = reasons.get(reason, f"reason {reason}")
    elif name == "state":
        told = f"{_state(reason >> 16)} -> {_state(reason & 0xFFFF)}"
    return Seen(
        (time.time_ns() - time.monotonic_ns() + when) / 1e9,
        name,
        PLACES.get(where, "?"),
        told,
        location,
        pid,
        text_of(comm),
        PROTOCOLS.get(protocol, str(protocol)) if family else "",
        _end(family, src, sport),
        _end(family, dst, dport),
        kernel,
        user,
    )


def _state(number: int) -> str:
    return STATES[number] if number < len(STATES) else str(number)


def _end(family: int, address: bytes, port: int) -> str:
    if not family:
        return ""
    if family == 4:
        return f"{IPv4Address(address[:4])}:{port}"
    return f"[{IPv6Address(address)}]:{port}"


def drop_reasons() -> dict[int, str]:
    """The running kernel's names of `enum skb_drop_reason`, without their prefix."""
    try:
        found = enumerators_of(VMLINUX.read_bytes(), "skb_drop_reason")
    except (OSError, ValueError):
        return {}
    return {number: name.removeprefix("SKB_DROP_REASON_") for name, number in found.items()}


class Tracing:
    """Programs attached to raw tracepoints, for as long as this is open."""

    def __init__(self, cookies: Mapping[int, int], cgroup: int, wanted: Mapping[str, str]) -> None:
        """`cookies`: netns cookie to place (1 sandbox, 2 gateway); `cgroup`: its id, for stacks."""
        from netns_runtime.probes import load

        flags = [f"-DRING_PAGES={RING_PAGES}"]
        self.lacks: list[str] = []
        self._links: list[int] = []
        self.reasons: dict[int, str] = {}
        is_packets = "kfree_skb" in wanted
        if is_packets:
            flags += self._offsets()
            self.reasons = drop_reasons()
        source = (source_directory() / "trace.c").read_text(encoding="ascii")
        maps = ("traced", "cgroup", "missed", "kernel_ring")
        self._maps, programs = load.load_tracing(
            source, flags, layout.CACHE_DIR, maps, tuple(wanted.values())
        )
        for cookie, place in cookies.items():
            syscall.update(
                self._maps["traced"], struct.pack("=Q", cookie), struct.pack("=I", place)
            )
        syscall.update(self._maps["cgroup"], struct.pack("=I", 0), struct.pack("=Q", cgroup))
        self.ring = RingReader(os.dup(self._maps["kernel_ring"]), RING_PAGES * 4096)
        for point, program in wanted.items():
            try:
                self._links.append(syscall.open_raw_tracepoint(point, programs[program]))
            except OSError as error:
                self.lacks.append(f"{point} ({os.strerror(error.errno or 0)})")
        for fd in programs.values():
            os.close(fd)
        if not self._links:
            self.close()
            raise ProbeUnavailable(
                f"the kernel has none of the tracepoints {', '.join(wanted)}",
                remedy="boot a kernel with CONFIG_TRACEPOINTS and CONFIG_BPF_EVENTS",
            )

    def _offsets(self) -> list[str]:
        try:
            found = offsets_of(VMLINUX.read_bytes(), FIELDS)
        except (OSError, ValueError):
            found = {}
        if len(found) < len(FIELDS):
            missing = ", ".join(".".join(FIELDS[name]) for name in FIELDS if name not in found)
            raise ProbeUnavailable(
                f"the kernel does not say where {missing} lies", remedy="boot one with BTF"
            )
        return [f"-D{name}={offset}" for name, offset in found.items()]

    def read(self) -> list[Seen]:
        """What was seen since the last call; never waits."""
        return [seen_of(data, self.reasons) for data in self.ring.read()]

    def missed(self) -> int:
        """Events that the ring had no room for."""
        size = 8 * os.sysconf("SC_NPROCESSORS_CONF")
        value = syscall.lookup(self._maps["missed"], struct.pack("=I", 0), max(size, 8 * 256))
        usable = value[: len(value or b"") // 8 * 8] if value else b""
        return sum(count for (count,) in struct.iter_unpack("=Q", usable))

    def close(self) -> None:
        """Detach everything. Twice is once."""
        for fd in self._links:
            os.close(fd)
        self._links = []
        if hasattr(self, "ring"):
            self.ring.close()
