"""Loads bpf/trace.c and bpf/sends.c, for `netns-debug trace --kernel` and `--stacks` alone.

Raw tracepoints of the running kernel, and a kprobe where one of them is missing, never pinned:
closing a `Tracing` takes them away. What a kernel lacks is told in `lacks`, and the rest goes on.
Raises ProbeUnavailable where nothing can be had at all.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Final

from netns_runtime import layout
from netns_runtime.probes import syscall
from netns_runtime.probes.btf import VMLINUX, enumerators_of, offsets_of
from netns_runtime.probes.hooks import source_directory
from netns_runtime.probes.kprobe import ARGUMENTS, has_kprobes, open_kprobe
from netns_runtime.probes.kprobe import KIND as KPROBE
from netns_runtime.probes.ring import RingReader
from netns_runtime.probes.seen import seen_of
from netns_runtime.probes.unavailable import ProbeUnavailable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from netns_runtime.probes.seen import Seen

FILES: Final = ("trace.c", "sends.c")
RING_PAGES: Final = 256
PACKETS: Final[Mapping[str, str]] = {
    "kfree_skb": "saw_drop",
    "inet_sock_set_state": "saw_state",
    "tcp_send_reset": "saw_sent_reset",
    "tcp_receive_reset": "saw_got_reset",
    "tcp_retransmit_skb": "saw_retransmit",
}
STACKS: Final[Mapping[str, str]] = {"sys_exit": "saw_exit"}
"""Raw tracepoint to the program that takes it."""
_REMEDY: Final = "what it tells is left out; a newer kernel, with CONFIG_BPF_EVENTS, has it"
SENT: Final = ("sock_send_length", "saw_sent")
LEAVING: Final = ("net_dev_queue", "saw_leave")
SENDING: Final = ("security_socket_sendmsg", "saw_sending")
WAYS: Final = ("tracepoint", "kprobe")
"""How a send is seen that no hook sees, the first that there is: SENT and LEAVING, or SENDING."""
NEITHER: Final = (
    "tracepoint sock_send_length (Linux 6.3), nor kprobes in its place: packets that no hook sees "
    "are counted without a process"
)

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
SENDS: Final = {
    "AT_SOCK_PROTOCOL": ("sock", "sk_protocol"),
    "AT_SOCK_TYPE": ("sock", "sk_type"),
    "AT_SOCKET_SK": ("socket", "sk"),
    "AT_MSG_NAME": ("msghdr", "msg_name"),
}
"""Macro of bpf/ to (structure, field); without SENDS it is only unknown who sends."""


def drop_reasons() -> dict[int, str]:
    """The running kernel's names of `enum skb_drop_reason`, without their prefix."""
    try:
        found = enumerators_of(VMLINUX.read_bytes(), "skb_drop_reason")
    except (OSError, ValueError):
        return {}
    return {number: name.removeprefix("SKB_DROP_REASON_") for name, number in found.items()}


class Tracing:
    """Programs attached to the running kernel, for as long as this is open."""

    def __init__(
        self,
        cookies: Mapping[int, int],
        cgroup: int,
        wanted: Mapping[str, str],
        ways: Sequence[str] = WAYS,
    ) -> None:
        """`cookies`: netns cookie to place (1 sandbox, 2 gateway); `cgroup`: its id, for stacks.

        With PACKETS among `wanted`, sends are seen in one of these `ways`, or `lacks` says so.
        """
        from netns_runtime.probes import load

        self.lacks: list[str] = []
        self.way: str | None = None
        self._links: list[int] = []
        self._maps: dict[str, int] = {}
        self.reasons: dict[int, str] = {}
        flags = [f"-DRING_PAGES={RING_PAGES}"]
        kinds = dict.fromkeys(wanted.values(), syscall.RAW_TRACEPOINT)
        if "kfree_skb" in wanted:
            offsets = self._offsets()
            flags += [f"-D{name}={offset}" for name, offset in offsets.items()]
            ways = [way for way in ways if _can(way, offsets)]
            kinds |= _programs_of(ways)
            self.reasons = drop_reasons()
        else:
            ways = ()
        place = source_directory()
        source = "".join((place / name).read_text(encoding="ascii") for name in FILES)
        maps = ("traced", "cgroup", "missed", "kernel_ring")
        self._maps, programs = load.load_tracing(source, flags, layout.CACHE_DIR, maps, kinds)
        for cookie, number in cookies.items():
            syscall.update(
                self._maps["traced"], struct.pack("=Q", cookie), struct.pack("=I", number)
            )
        syscall.update(self._maps["cgroup"], struct.pack("=I", 0), struct.pack("=Q", cgroup))
        self.ring = RingReader(os.dup(self._maps["kernel_ring"]), RING_PAGES * 4096)
        for point, program in wanted.items():
            try:
                self._links.append(syscall.open_raw_tracepoint(point, programs[program]))
            except OSError as error:
                why = os.strerror(error.errno or 0)
                self.lacks.append(f"tracepoint {point} ({why}): {_REMEDY}")
        self.way = next((way for way in ways if self._see_sends(way, programs)), None)
        if self.reasons and self.way is None:
            self.lacks.append(NEITHER)
        for fd in programs.values():
            os.close(fd)
        if not self._links:
            self.close()
            raise ProbeUnavailable(
                f"the kernel has none of the tracepoints {', '.join(wanted)}",
                remedy="boot a kernel with CONFIG_TRACEPOINTS and CONFIG_BPF_EVENTS",
            )

    def _offsets(self) -> dict[str, int]:
        arguments = ARGUMENTS[os.uname().machine] if has_kprobes() else ()
        places = dict(zip(("AT_FIRST_ARGUMENT", "AT_SECOND_ARGUMENT"), arguments, strict=False))
        fields = {**FIELDS, **SENDS, **{name: field for name, (field, _) in places.items()}}
        try:
            found = offsets_of(VMLINUX.read_bytes(), fields)
        except (OSError, ValueError):
            found = {}
        found |= {name: found[name] + more for name, (_, more) in places.items() if name in found}
        if not FIELDS.keys() <= found.keys():
            missing = ", ".join(".".join(FIELDS[name]) for name in FIELDS if name not in found)
            raise ProbeUnavailable(
                f"the kernel does not say where {missing} lies", remedy="boot one with BTF"
            )
        return found

    def _see_sends(self, way: str, programs: Mapping[str, int]) -> bool:
        found: list[int] = []
        try:
            if way == "kprobe":
                point, program = SENDING
                found.append(open_kprobe(point, programs[program]))
            else:
                for point, program in (SENT, LEAVING):
                    found.append(syscall.open_raw_tracepoint(point, programs[program]))
        except OSError:
            for fd in found:
                os.close(fd)
            return False
        self._links += found
        return True

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
        for fd in (*self._links, *self._maps.values()):
            os.close(fd)
        self._links, self._maps = [], {}
        if hasattr(self, "ring"):
            self.ring.close()


def _can(way: str, offsets: Mapping[str, int]) -> bool:
    """Whether sends.c has that way's programs with these offsets."""
    is_there = SENDS.keys() <= offsets.keys()
    return is_there and (way != "kprobe" or "AT_FIRST_ARGUMENT" in offsets)


def _programs_of(ways: Sequence[str]) -> dict[str, int]:
    kinds: dict[str, int] = {}
    if "tracepoint" in ways:
        kinds |= dict.fromkeys((SENT[1], LEAVING[1]), syscall.RAW_TRACEPOINT)
    if "kprobe" in ways:
        kinds[SENDING[1]] = KPROBE
    return kinds
