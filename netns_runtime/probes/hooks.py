"""The hooks there are, and the text that bpf/ compiles from: one table, no effects but reading it.

`source_text` raises ProbeUnavailable when the sources are not installed beside the package.
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from netns_runtime import layout
from netns_runtime.probes import records
from netns_runtime.probes.unavailable import ProbeUnavailable

CGROUP_SOCK_ADDR: Final = 18
CGROUP_SKB: Final = 8


@dataclass(frozen=True, slots=True)
class Hook:
    """One program of ours: BPF_PROG_TYPE_*, BPF_CGROUP_* at load and at attach."""

    name: str
    program: str
    kind: int
    attach_type: int


HOOKS: Final = (
    Hook("connect4", "refuse_connect4", CGROUP_SOCK_ADDR, 10),
    Hook("connect6", "refuse_connect6", CGROUP_SOCK_ADDR, 11),
    Hook("sendmsg4", "refuse_send4", CGROUP_SOCK_ADDR, 14),
    Hook("sendmsg6", "refuse_send6", CGROUP_SOCK_ADDR, 15),
    Hook("egress", "own_flow", CGROUP_SKB, 1),
)

FILES: Final = ("records.h", "where.c", "who.c", "refused.c", "owner.c", "hooks.c")
_PACKAGE: Final = Path(__file__).resolve().parents[1]


def source_directory() -> Path:
    """bpf/ inside the installed package, or beside it in a checkout."""
    for place in (_PACKAGE / "bpf", _PACKAGE.parent / "bpf"):
        if (place / FILES[0]).is_file():
            return place
    raise ProbeUnavailable(
        "the sources of the probe are missing", remedy="install the package anew"
    )


def _words(packed: bytes) -> tuple[int, ...]:
    return struct.unpack(f"!{len(packed) // 4}I", packed)


def defines() -> dict[str, int]:
    """Everything bpf/ takes from layout.py and records.py, so that each number is written once."""
    values = {
        "SANDBOXES": records.SANDBOXES,
        "DETAILS": records.DETAILS,
        "DIALLING": records.DIALLING,
        "OWNERS": records.OWNERS,
        "LISTED": records.LISTED,
        "RING_BYTES": records.RING_BYTES,
        "REASONS": len(records.REASONS),
        "REASON_TCP": records.REASONS.index("direct_tcp"),
        "REASON_UDP": records.REASONS.index("direct_udp"),
        "REASON_OTHER": records.REASONS.index("direct_other"),
        "FLAG_PROXY": records.FLAG_PROXY,
        "FLAG_RESOLVER": records.FLAG_RESOLVER,
        "FLAG_REDIRECT": records.FLAG_REDIRECT,
        "SANDBOX_IPV4": int(layout.SANDBOX_IPV4),
        "GATEWAY_IPV4": int(layout.GATEWAY_IPV4),
        "VIRTUAL_IPV4": int(layout.VIRTUAL_IPV4.network_address),
        "VIRTUAL_IPV4_MASK": int(layout.VIRTUAL_IPV4.netmask),
        "PROXY_PORT": layout.PROXY_PORT,
        "DNS_PORT": layout.DNS_PORT,
        "IPPROTO_TCP": socket.IPPROTO_TCP,
        "IPPROTO_UDP": socket.IPPROTO_UDP,
        "IPPROTO_MPTCP": 262,
        "ECONNREFUSED": errno.ECONNREFUSED,
    }
    for number, word in enumerate(_words(layout.SANDBOX_IPV6.packed)):
        values[f"SANDBOX_IPV6_{number}"] = word
    # A /64 is the first two words.
    for number, word in enumerate(_words(layout.VIRTUAL_IPV6.network_address.packed)[:2]):
        values[f"VIRTUAL_IPV6_{number}"] = word
    return values


def source_text(directory: Path | None = None) -> str:
    """The whole program: the defines, then every file with a #line of its own."""
    place = directory or source_directory()
    parts = [f"#define {name} {value:#x}" for name, value in defines().items()]
    for name in FILES:
        parts += [f'#line 1 "bpf/{name}"', (place / name).read_text(encoding="utf-8")]
    return "\n".join(parts)
