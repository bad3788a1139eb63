"""What bpf/trace.c and bpf/sends.c send, as frozen values.

Pure: bytes in, values out. A record of the wrong size raises struct.error, which is a bug here; a
number that this version does not know is told as a number.
"""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Final

from netns_runtime.probes.records import PROTOCOLS, text_of

if TYPE_CHECKING:
    from collections.abc import Mapping

FRAMES: Final = 32
SEEN = struct.Struct("=QQIIIIHHHH16s16s16s")
STACK = struct.Struct(f"=II{FRAMES}Q{FRAMES}Q")

KINDS: Final = {
    1: "drop",
    2: "state",
    3: "reset sent",
    4: "reset received",
    5: "stack",
    6: "retransmit",
    7: "send",
}
PLACES: Final = {1: "sandbox", 2: "gateway"}
# include/net/tcp_states.h, which is part of the kernel's interface (ss, /proc/net/tcp).
STATES: Final = (
    *("?", "ESTABLISHED", "SYN_SENT", "SYN_RECV", "FIN_WAIT1", "FIN_WAIT2", "TIME_WAIT"),
    *("CLOSE", "CLOSE_WAIT", "LAST_ACK", "LISTEN", "CLOSING", "NEW_SYN_RECV"),
)
SOCKETS: Final = {1: "stream", 2: "datagram", 3: "raw", 5: "seqpacket", 6: "dccp"}
_PACKET: Final = 17
_WITH_PORTS: Final = frozenset({6, 17, 33, 132, 136})


@dataclass(frozen=True, slots=True)
class Seen:
    """One event. `time`: seconds since the epoch. `reason`: a drop's name, a state's change or, of
    a send, the kind of socket.

    `source` and `destination` are "ADDRESS:PORT", an address where the protocol has no ports, or
    "". `pid` and `comm` are who was running when it happened, which for a packet that came in is
    anybody, and for a send the sender. `kernel` and `user` are a stack's addresses, innermost
    first. `address` and `port` are the destination as values.
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
    address: IPv4Address | IPv6Address | None = None
    port: int = 0


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
    elif name == "send":
        told = _socket(reason >> 16, reason & 0xFFFF)
    return Seen(
        (time.time_ns() - time.monotonic_ns() + when) / 1e9,
        name,
        PLACES.get(where, "?"),
        told,
        location,
        pid,
        text_of(comm),
        PROTOCOLS.get(protocol, str(protocol)) if protocol else "",
        _end(family, protocol, src, sport),
        _end(family, protocol, dst, dport),
        kernel,
        user,
        _address(family, dst),
        dport,
    )


def _state(number: int) -> str:
    return STATES[number] if number < len(STATES) else str(number)


def _socket(kind: int, family: int) -> str:
    return "packet socket" if family == _PACKET else f"{SOCKETS.get(kind, str(kind))} socket"


def _address(family: int, packed: bytes) -> IPv4Address | IPv6Address | None:
    if not family:
        return None
    return IPv4Address(packed[:4]) if family == 4 else IPv6Address(packed)


def _end(family: int, protocol: int, packed: bytes, port: int) -> str:
    address = _address(family, packed)
    if address is None:
        return ""
    if protocol not in _WITH_PORTS:
        return str(address)
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
