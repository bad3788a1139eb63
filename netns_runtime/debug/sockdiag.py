"""What the kernel knows of a TCP socket: TCP_INFO by way of sock_diag(7), asked by its two ends.

`request_of` and `info_of` are pure; `ask` sends one exact question for each pair of ends from the
calling thread's network namespace, so it costs what the flows do and not the machine's sockets. One
that has gone is None. Raises OSError where the kernel has no tcp_diag.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Ends = Sequence[Any]

NETLINK_SOCK_DIAG: Final = 4
SOCK_DIAG_BY_FAMILY: Final = 20
NLM_F_REQUEST: Final = 1
NLMSG_ERROR: Final = 2
ENOENT: Final = 2
INET_DIAG_INFO: Final = 2
LISTEN: Final = 10
ALL_STATES: Final = 0xFFF
STATES: Final = (
    *("", "established", "syn-sent", "syn-recv", "fin-wait-1", "fin-wait-2", "time-wait"),
    *("closed", "close-wait", "last-ack", "listen", "closing"),
)
_NLMSGHDR: Final = struct.Struct("=IHHII")
_REQUEST: Final = struct.Struct("=BBBBI")
# struct inet_diag_sockid: ports and addresses in network order, no cookie known.
_SOCKID: Final = struct.Struct("=2s2s16s16sIII")
_NO_COOKIE: Final = 0xFFFFFFFF
# struct inet_diag_msg: its head, and what follows the sockid.
_HEAD: Final = struct.Struct("=BBBB")
_QUEUES: Final = struct.Struct("=IIIII")
_ATTRIBUTE: Final = struct.Struct("=HH")
# struct tcp_info (linux/tcp.h): eight octets, then 32-bit words, 64-bit ones from offset 104.
_WORDS: Final = {
    "send_mss": 16,
    "unacked": 24,
    "lost": 32,
    "pmtu": 60,
    "rtt": 68,
    "rttvar": 72,
    "congestion_window": 80,
    "retransmits": 100,
    "min_rtt": 148,
}
_LONGS: Final = {"delivery_rate": 160}
_MICROSECONDS: Final = ("rtt", "rttvar", "min_rtt")
# tcpi_min_rtt of a connection that has measured none.
_UNKNOWN_RTT: Final = 0xFFFFFFFF


@dataclass(frozen=True, slots=True)
class TcpInfo:
    """One socket. Times in milliseconds, queues in bytes, `delivery_rate` in bytes per second.

    `retransmits` are segments sent again since the beginning; None: this kernel does not say.
    """

    state: str
    rtt_ms: float | None = None
    rttvar_ms: float | None = None
    min_rtt_ms: float | None = None
    retransmits: int | None = None
    lost: int | None = None
    unacked: int | None = None
    congestion_window: int | None = None
    send_mss: int | None = None
    pmtu: int | None = None
    delivery_rate: int | None = None
    send_queue: int = 0
    receive_queue: int = 0


def request_of(ends: Ends, number: int) -> bytes:
    """The question about one socket: `ends` are own address, own port, peer's address and port."""
    own, own_port, peer, peer_port = ends
    family = socket.AF_INET6 if ":" in own else socket.AF_INET
    body = _REQUEST.pack(
        family, socket.IPPROTO_TCP, 1 << (INET_DIAG_INFO - 1), 0, ALL_STATES
    ) + _SOCKID.pack(
        int(own_port).to_bytes(2, "big"),
        int(peer_port).to_bytes(2, "big"),
        socket.inet_pton(family, own).ljust(16, b"\0"),
        socket.inet_pton(family, peer).ljust(16, b"\0"),
        *(0, _NO_COOKIE, _NO_COOKIE),
    )
    size = _NLMSGHDR.size + len(body)
    return _NLMSGHDR.pack(size, SOCK_DIAG_BY_FAMILY, NLM_F_REQUEST, number, 0) + body


def info_of(data: bytes) -> TcpInfo | None:
    """The kernel's answer; None where there is no such connection. Raises OSError for others."""
    if len(data) < _NLMSGHDR.size:
        return None
    size, kind, _, _, _ = _NLMSGHDR.unpack_from(data)
    at = _NLMSGHDR.size
    if kind == NLMSG_ERROR:
        (code,) = struct.unpack_from("=i", data, at)
        if code in (0, -ENOENT):
            return None
        raise OSError(-code, "sock_diag")
    if kind != SOCK_DIAG_BY_FAMILY:
        return None
    _, state, _, _ = _HEAD.unpack_from(data, at)
    if state == LISTEN or state >= len(STATES):
        # No such connection: the kernel gave the listener that would take one.
        return None
    at += _HEAD.size + _SOCKID.size
    _, receive_queue, send_queue, _, _ = _QUEUES.unpack_from(data, at)
    at += _QUEUES.size
    info = _attribute(data[:size], at, INET_DIAG_INFO)
    return TcpInfo(
        STATES[state],
        send_queue=send_queue,
        receive_queue=receive_queue,
        **_words_of(info),
    )


def _attribute(data: bytes, at: int, wanted: int) -> bytes:
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            break
        if kind == wanted:
            return data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    return b""


def _words_of(info: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, offset in _WORDS.items():
        if offset + 4 <= len(info):
            value: int = struct.unpack_from("=I", info, offset)[0]
            if name not in _MICROSECONDS:
                found[name] = value
            elif value not in (0, _UNKNOWN_RTT):
                found[f"{name}_ms"] = value / 1000
    for name, offset in _LONGS.items():
        if offset + 8 <= len(info):
            found[name] = struct.unpack_from("=Q", info, offset)[0]
    return found


def ask(sockets: Iterable[Ends | None]) -> list[TcpInfo | None]:
    """One answer for each; None for None. Run it in the sockets' namespace (netns.run_in)."""
    found: list[TcpInfo | None] = []
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, NETLINK_SOCK_DIAG
    ) as diag:
        diag.settimeout(1.0)
        for number, ends in enumerate(sockets, 1):
            if ends is None:
                found.append(None)
                continue
            diag.send(request_of(ends, number))
            found.append(info_of(diag.recv(65536)))
    return found
