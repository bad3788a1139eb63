"""What the kernel does with a sandbox's packets and calls, for `netns-debug trace`.

Three sources: raw tracepoints (drops with reason and function, TCP states, resets, and who sends
what no hook sees), the end of refused system calls with their stacks, and nft's own trace of the
gateway's rules. Each is there or is told to be missing, in one line; all of it goes with the
iterator. Nothing is decided by it: the gateway gets one table more that marks packets for tracing,
at most 50 a second.
"""

from __future__ import annotations

import bisect
import contextlib
import os
import queue
import re
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from netns_runtime import layout
from netns_runtime.debug.text import named, shown
from netns_runtime.debug.usersymbols import UserSymbols
from netns_runtime.errors import NetnsError, StepError
from netns_runtime.namespace import netns

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from netns_runtime.debug.text import Page
    from netns_runtime.probes.seen import Seen
    from netns_runtime.probes.tracing import Tracing
    from netns_runtime.state import Record

AT_ONCE: Final = 200
"""Lines shown of one look (0.2 s); what is more is told as a number."""
LOOK: Final = 0.02
WAITING: Final = 10 * AT_ONCE
"""Lines kept while the reader of our output is slow; what is more is told as a number."""
TABLE: Final = "inet netns_runtime_trace"
RULES: Final = f"""
table {TABLE} {{
  chain marks {{
    type filter hook prerouting priority -350; policy accept;
    iifname "gw0" limit rate 50/second burst 50 packets meta nftrace set 1
  }}
}}
"""
UNSEEN: Final = "no hook sees it; the gateway refuses and counts it"
Line = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Symbols:
    """The kernel's functions by address (/proc/kallsyms)."""

    addresses: list[int]
    names: list[str]

    def name_of(self, address: int) -> str:
        """`function+0x1f`, or the address where kallsyms says nothing (kptr_restrict)."""
        place = bisect.bisect_right(self.addresses, address) - 1
        if place < 0 or not address:
            return hex(address)
        return f"{self.names[place]}+{address - self.addresses[place]:#x}"


def kernel_symbols(path: str = "/proc/kallsyms") -> Symbols:
    """Read them once; empty where they may not be read."""
    found: list[tuple[int, str]] = []
    with contextlib.suppress(OSError), open(path, encoding="ascii", errors="replace") as file:
        for line in file:
            address, kind, name = line.split()[:3]
            if kind in "tTwW" and address.strip("0"):
                found.append((int(address, 16), name))
    found.sort()
    return Symbols([address for address, _ in found], [name for _, name in found])


def follow(record: Record, *, packets: bool, stacks: bool) -> Iterator[Line | None]:
    """Lines as they come; None says that there is none at the moment. Raises NetnsError at once
    where nothing can be had."""
    from netns_runtime.probes.tracing import PACKETS, STACKS, Tracing

    gateway = _open(record.gateway_ns, record.name)
    try:
        cookies = {record.cookie: 1, netns.cookie_of(gateway): 2}
        wanted = {**(PACKETS if packets else {}), **(STACKS if stacks else {})}
        tracing = Tracing(cookies, os.stat(record.cgroup).st_ino, wanted)
    except OSError as error:
        os.close(gateway)
        raise StepError(f"sandbox {record.name} has gone", remedy="see netns-debug list") from error
    except NetnsError:
        os.close(gateway)
        raise
    rules = _Rules(gateway) if packets else None
    return _lines(tracing, rules, gateway)


def _open(path: str, name: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise StepError(f"sandbox {name} has gone", remedy="see netns-debug list") from error


def _lines(tracing: Tracing, rules: _Rules | None, gateway: int) -> Iterator[Line | None]:
    symbols = kernel_symbols()
    waiting = Waiting()
    ended = threading.Event()
    # A process may be gone in milliseconds, and with it what its addresses mean.
    reader = threading.Thread(
        target=_read, args=(tracing, symbols, waiting.put, ended), daemon=True, name="kernel"
    )
    reader.start()
    for lack in (*tracing.lacks, *(rules.lacks if rules is not None else ())):
        yield {"kernel": {"kind": "missing", "reason": f"this kernel has no {lack}"}}
    missed = 0
    try:
        while True:
            number, left = 0, waiting.dropped()
            for line in waiting.taken():
                number += 1
                left += number > AT_ONCE
                if number <= AT_ONCE:
                    yield line
            for text in rules.read() if rules is not None else ():
                number += 1
                left += number > AT_ONCE
                if number <= AT_ONCE:
                    yield {"nft": {"text": text}}
            lost = tracing.missed()
            if left or lost > missed:
                reason = f"{left + lost - missed} more were not shown"
                missed = lost
                yield {"kernel": {"kind": "more", "reason": reason}}
            yield None
    finally:
        ended.set()
        reader.join(2)
        tracing.close()
        if rules is not None:
            rules.close()
        os.close(gateway)


class Waiting:
    """Lines between the thread that reads the kernel and the one that prints."""

    def __init__(self) -> None:
        self._lines: queue.SimpleQueue[Line] = queue.SimpleQueue()
        self._dropped = self._told = 0

    def put(self, line: Line) -> None:
        """Keep a line, or count it where WAITING are kept already."""
        if self._lines.qsize() < WAITING:
            self._lines.put(line)
        else:
            self._dropped += 1

    def taken(self) -> Iterator[Line]:
        """What is there now."""
        for _ in range(self._lines.qsize()):
            yield self._lines.get()

    def dropped(self) -> int:
        """How many were counted only, since the last call."""
        count = self._dropped
        number, self._told = count - self._told, count
        return number


def _read(
    tracing: Tracing, symbols: Symbols, put: Callable[[Line], None], ended: threading.Event
) -> None:
    users = UserSymbols()
    while not ended.is_set():
        for seen in tracing.read():
            if seen.kind != "send" or is_refused_later(seen):
                put({"kernel": fields_of(seen, symbols, users)})
        ended.wait(LOOK)


def is_refused_later(seen: Seen) -> bool:
    """Whether a send goes to the gateway, and not to what it serves: the resolver."""
    address = getattr(seen.address, "ipv4_mapped", None) or seen.address
    if address is None:
        return True
    if address == layout.GATEWAY_IPV4 and (seen.protocol, seen.port) == ("udp", layout.DNS_PORT):
        return False
    is_own = address in (layout.SANDBOX_IPV4, layout.SANDBOX_IPV6) or address.is_unspecified
    return not (is_own or address.is_loopback or address.is_multicast)


def fields_of(seen: Seen, symbols: Symbols, users: UserSymbols) -> dict[str, Any]:
    """One event for --json."""
    seconds, rest = divmod(seen.time, 1)
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    fields: dict[str, Any] = {
        "time": f"{stamp}.{int(rest * 1e6):06}Z",
        "kind": seen.kind,
        "place": seen.place,
        "reason": seen.reason,
        "pid": seen.pid,
        "comm": seen.comm,
        "protocol": seen.protocol,
        "source": seen.source,
        "destination": seen.destination,
    }
    if seen.location:
        fields["function"] = symbols.name_of(seen.location)
    if seen.kind == "stack":
        fields["kernel_stack"] = [symbols.name_of(address) for address in seen.kernel]
        fields["user_stack"] = [users.name_of(seen.pid, a) for a in seen.user if a]
    return {key: value for key, value in fields.items() if value != ""}


class _Rules:
    """nft's trace of the gateway: marks packets, and reads what rules they meet."""

    def __init__(self, gateway: int) -> None:
        self.lacks: list[str] = []
        self._gateway = gateway
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""
        try:
            self._nft("-f", "-", given=RULES)
            self._process = netns.run_in(gateway, _monitor)
            if self._process.stdout is not None:
                os.set_blocking(self._process.stdout.fileno(), False)
        except (OSError, subprocess.SubprocessError) as error:
            self.lacks.append(f"nft trace ({error}): install nftables")

    def _nft(self, *words: str, given: str = "") -> None:
        netns.run_in(
            self._gateway,
            lambda: subprocess.run(
                ["nft", *words], input=given.encode(), check=True, capture_output=True, timeout=10
            ),
        )

    def read(self) -> list[str]:
        """Lines since the last call; never waits."""
        if self._process is None or self._process.stdout is None:
            return []
        with contextlib.suppress(BlockingIOError):
            while data := os.read(self._process.stdout.fileno(), 1 << 16):
                self._rest += data
        *lines, self._rest = self._rest.split(b"\n")
        told = (line.decode("utf-8", "replace").strip() for line in lines)
        ours = f" {TABLE} "
        return [line for line in told if line.startswith("trace ") and ours not in line]

    def close(self) -> None:
        """Unmark and end; the sandbox may have gone already."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            self._nft("delete", "table", *TABLE.split())


def _monitor() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["nft", "monitor", "trace"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )


def text_of(line: Line, page: Page) -> str:
    """A line for a person."""
    if "nft" in line:
        text = shown(_nft_text(line["nft"]["text"]))
        return page.paint(
            page.paragraph(text, indent=" " * 13 + "nft     ", hanging=" " * 21), "dim"
        )
    fields = line["kernel"]
    clock = shown(str(fields.get("time", ""))[11:23].ljust(12))
    kind = fields["kind"]
    if kind == "stack":
        return _stack_text(clock, fields, page)
    if kind == "send":
        return _send_text(clock, fields, page)
    words = [shown(fields.get("reason", ""))]
    if "function" in fields:
        words.append(f"in {shown(fields['function'])}")
    ends = [shown(fields[key]) for key in ("source", "destination") if key in fields]
    if ends:
        words.append(f"{shown(fields.get('protocol', ''))} {' -> '.join(ends)}")
    if "place" in fields:
        words.append(f"({shown(fields['place'])})")
    lead = f"{clock} kernel  "
    text = page.paragraph(f"{kind} {' '.join(words)}", indent=lead, hanging=" " * 21)
    return page.paint(text, "yellow") if kind == "drop" else text


def _send_text(clock: str, fields: dict[str, Any], page: Page) -> str:
    who = f"{named(fields['comm'])} (pid {fields['pid']})"
    what = f"{shown(fields.get('protocol', ''))} {shown(fields['reason'])}".strip()
    where = shown(fields.get("destination", "somewhere"))
    text = f"send by {who}, {what} -> {where}: {UNSEEN}"
    return page.paint(page.paragraph(text, indent=f"{clock} kernel  ", hanging=" " * 21), "yellow")


# What of a packet a person needs; --json has the whole line.
_PACKET: Final = re.compile(
    r"(id \S+ inet netns_runtime \S+) packet: .*? ip6? saddr (\S+) ip6? daddr (\S+)"
    r".*?(?:(tcp|udp) sport (\S+) \w+ dport (\S+)(?: tcp flags == (.+?) tcp window)?.*)?$"
)


def _nft_text(text: str) -> str:
    found = _PACKET.match(text.removeprefix("trace "))
    if found is None:
        return text.removeprefix("trace ")
    chain, source, destination, protocol, sport, dport, flags = found.groups()
    if protocol is None:
        return f"{chain} packet {source} -> {destination}"
    return f"{chain} {protocol} {source}:{sport} -> {destination}:{dport} {flags or ''}".rstrip()


def _stack_text(clock: str, fields: dict[str, Any], page: Page) -> str:
    who = f"{named(fields['comm'])} (pid {fields['pid']})"
    lines = [f"{clock} kernel  stack of {who}, whose connect was refused, called from"]
    for key, mark in (("user_stack", "user  "), ("kernel_stack", "kernel")):
        frames = fields.get(key) or ["unknown: the binary keeps no frame pointers"]
        lines += [
            page.paint(f"{'':13}{mark if not number else '':6}  {shown(frame, 200)}", "dim")
            for number, frame in enumerate(frames)
        ]
    return "\n".join(lines)
