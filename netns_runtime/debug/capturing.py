"""A capture at work: rings and sockets in, blocks of a file out, in the order of time.

`Capturing` opens everything it needs and takes nothing back half-way: what cannot be had is one
NetnsError before the first packet. `run` returns a `Summary` when the sandbox, a limit or a person
ends it. Nothing here touches the sandbox: it is looked at from the kernel's side.

Theory of operation. A packet is worth little without its owner and its keys, and both are told
after it was sent: the proxy decides after it was dialled, and a handshake's keys exist once the
ClientHello has come. So packets wait HOLD before they are written, in a list that is sorted when it
is. Each turn takes the clock first, then everything that was told, then the packets, and writes
those older than that clock by HOLD: what was told before a packet was sent is therefore always
known when the packet is written. Past HELD bytes nothing waits.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import select
import signal
import socket
import time
from collections import deque
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import netns_runtime
from netns_runtime.debug import live, pcapng
from netns_runtime.debug.capturedials import Dials
from netns_runtime.debug.captureevents import journal_of
from netns_runtime.debug.capturefile import open_capture
from netns_runtime.debug.capturering import Captured, Ring
from netns_runtime.debug.capturesummary import Summary
from netns_runtime.debug.capturewho import Who, ends_of, owners_of
from netns_runtime.debug.text import shown
from netns_runtime.errors import StepError
from netns_runtime.namespace import netns

if TYPE_CHECKING:
    from types import TracebackType

    from netns_runtime.debug.capture import Order
    from netns_runtime.debug.capturewho import Ends
    from netns_runtime.state import Record

HOLD: Final = 300_000_000
HELD: Final = 64 << 20
TURN: Final = 0.05
FLOOD: Final = 20_000
"""Messages taken in one turn."""
LONGEST: Final = 1 << 16
"""Bytes of a message; a longer one makes no sense any more, and is none of ours."""
_NONSENSE: Final = (
    *(ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError),
)
_LOOPBACK: Final = "lo"
_ETHERNET_HEADER: Final = 14


class _Held(NamedTuple):
    """A packet on its way to the file with the interface that it came by, or a block that has no
    packet."""

    when: int
    captured: Captured | None = None
    interface: int = 0
    ends: Ends | None = None
    block: bytes | None = None


class Capturing:
    """A context manager; leaving it closes everything, and the file is whole."""

    def __init__(self, record: Record, order: Order) -> None:
        self.summary = Summary(record.name, order.file, with_secrets=order.secrets)
        self._order = order
        self._stack = contextlib.ExitStack()
        self._held: list[_Held] = []
        self._held_bytes = 0
        self._dials = Dials()
        self._links: list[tuple[Ring, int, str]] = []
        self._taken: dict[int, int] = {}
        self._is_interrupted = False
        self._refused_flows: deque[int | None] = deque(maxlen=256)
        self._begun = time.time_ns()
        with contextlib.ExitStack() as stack:
            self._open(record, order, stack)
            self._stack = stack.pop_all()

    def _open(self, record: Record, order: Order, stack: contextlib.ExitStack) -> None:
        try:
            inside = os.open(record.sandbox_ns, os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, inside)
            uplink = os.open(f"/proc/{record.proxy}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            stack.callback(os.close, uplink)
        except OSError as error:
            raise StepError(
                f"sandbox {record.name} has gone", remedy="see netns-debug list"
            ) from error
        owners = owners_of(record)
        if owners is not None:
            stack.callback(os.close, owners.fd)
        self._who = Who(record, inside, owners)
        for name in _names(inside):
            ring = netns.run_in(inside, partial(Ring, name))
            stack.callback(ring.close)
            self._links.append((ring, pcapng.ETHERNET, name))
        if order.secrets:
            ring = netns.run_in(uplink, partial(Ring, cooked=True))
            stack.callback(ring.close)
            self._links.append((ring, pcapng.RAW, "upstream"))
        # Rings first: what the proxy tells from now on is about packets that we have.
        self._events = stack.enter_context(live.follow(record.name))
        self._proxy = stack.enter_context(_ask_proxy(record.name, secrets=order.secrets))
        self._began(self._proxy)
        for sock in (self._events, self._proxy):
            sock.setblocking(False)
        reads_all = order.secrets and record.uid == 0
        self._file = open_capture(order.file, unseen_by=record.pid if reads_all else None)
        stack.callback(self._file.close)
        self._file.write([_section(record), *self._interfaces(record)])

    def _interfaces(self, record: Record) -> list[bytes]:
        inside = f"sandbox {record.name}"
        return [
            pcapng.interface(link, name, "the proxy" if link == pcapng.RAW else inside)
            for _, link, name in self._links
        ]

    def _began(self, proxy: socket.socket) -> None:
        """The proxy's first words, or why it has none."""
        told = _answer_of(proxy)
        self.summary.open_before = int(told.get("open", 0))
        self.summary.has_authority = told.get("terminates") is True
        if self._order.secrets and told.get("terminates") and not told.get("upstream"):
            raise StepError(
                "the proxy cannot read the system's roots again, so upstream's keys cannot be had",
                remedy="capture without --with-secrets",
            )

    def __enter__(self) -> Capturing:
        for number in _SIGNALS:
            self._stack.callback(signal.signal, number, signal.signal(number, self._interrupt))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def run(self) -> Summary:
        """Capture to the end."""
        summary, order = self.summary, self._order
        limit = None if order.seconds is None else time.monotonic() + order.seconds
        poll = select.poll()
        poll.register(self._proxy, select.POLLIN)
        poll.register(self._events, select.POLLIN)
        for ring, _, _ in self._links:
            poll.register(ring, select.POLLIN)
        while not summary.ended_by:
            poll.poll(TURN * 1000)
            now = time.time_ns()
            is_over = not self._hear()
            self._take()
            self._write(now - HOLD)
            summary.ended_by = self._end(limit, is_over=is_over)
        self._finish()
        return summary

    def _end(self, limit: float | None, *, is_over: bool) -> str:
        """Why it ends now; empty where it goes on."""
        order = self._order
        if order.packets is not None and self.summary.packets >= order.packets:
            return "as many as were asked for"
        if is_over:
            return "ended with the sandbox"
        if limit is not None and time.monotonic() >= limit:
            return f"after {order.seconds:g} s"
        return "interrupted" if self._is_interrupted else ""

    def _interrupt(self, *_: object) -> None:
        self._is_interrupted = True

    def _finish(self) -> None:
        """What is still held, and the counts. A little patience: the last block of a ring."""
        deadline = time.monotonic() + 2 * TURN
        while time.monotonic() < deadline:
            self._hear()
            self._take()
            time.sleep(TURN / 5)
        ended = time.time_ns()
        self._write(ended)
        counts = [ring.statistics() for ring, _, _ in self._links]
        self.summary.dropped = sum(dropped for _, dropped in counts)
        self._file.write(
            [
                pcapng.statistics(number, self._begun, ended, received, dropped)
                for number, (received, dropped) in enumerate(counts)
            ]
        )
        self.summary.bytes = self._file.written

    def _hear(self) -> bool:
        """Take what was told. Whether the sandbox still runs."""
        is_running = True
        blocks: list[bytes] = []
        for sock, take in ((self._proxy, self._from_proxy), (self._events, self._from_feed)):
            for _ in range(FLOOD):
                try:
                    data = sock.recv(LONGEST)
                except BlockingIOError:
                    break
                except OSError:
                    data = b""
                if not data:
                    is_running = False
                    break
                with contextlib.suppress(*_NONSENSE):
                    blocks += take(json.loads(data))
        if blocks:
            self._file.write(blocks)
        return is_running

    def _from_proxy(self, message: dict[str, Any]) -> list[bytes]:
        self.summary.lost += int(message.get("lost", 0))
        if "keys" in message:
            lines = _keys_of(str(message["keys"]))
            self.summary.keys += lines.count("\n")
            return [pcapng.secrets(lines)] if lines else []
        self._dials.told(message)
        if "client" in message or "asked" in message:
            self._who.told(message)
        return []

    def _from_feed(self, message: dict[str, Any]) -> list[bytes]:
        self.summary.events_lost += int(message.get("lost", 0))
        event = message.get("event")
        if not isinstance(event, dict):
            return []
        self._who.told_event(event)
        entry = journal_of(event)
        if entry is None or not self._is_news(event):
            return []
        self.summary.refused += 1
        # What claims to be of the future would wait for it.
        when = min(int(entry["__REALTIME_TIMESTAMP"]) * 1000, time.time_ns())
        self._held.append(_Held(when, block=pcapng.journal(entry)))
        return []

    def _is_news(self, event: dict[str, Any]) -> bool:
        """Not so where a flow's decision said it already, and its request says it again."""
        number = event.get("flow")
        if event.get("event") == "flow.decided":
            self._refused_flows.append(number)
            return True
        return number is None or number not in self._refused_flows

    def _take(self) -> None:
        for number, (ring, link, name) in enumerate(self._links):
            start = 0 if link == pcapng.RAW else _ETHERNET_HEADER
            for captured in ring.read():
                ends = ends_of(captured.data, start)
                if link == pcapng.RAW:
                    if ends is None:
                        continue
                elif ends is not None:
                    self._who.see(ends, captured.when, is_loopback=name == _LOOPBACK)
                self._held.append(_Held(captured.when, captured, number, ends))
                self._held_bytes += len(captured.data)

    def _write(self, until: int) -> None:
        """Write the packets that are older than that, or all where there are too many."""
        if not self._held:
            return
        self._held.sort(key=_WHEN)
        if self._held_bytes > HELD:
            until = self._held[-1].when
        count = 0
        blocks: list[bytes] = []
        most = self._order.packets
        for held in self._held:
            if held.when > until or (most is not None and self.summary.packets >= most):
                break
            count += 1
            if held.captured is None:
                blocks.append(held.block or b"")
                continue
            self._held_bytes -= len(held.captured.data)
            block = self._block_of(held.captured, held.interface, held.ends)
            if block is not None:
                self.summary.packets += 1
                blocks.append(block)
        del self._held[:count]
        if blocks:
            self._file.write(blocks)

    def _block_of(self, captured: Captured, interface: int, ends: Ends | None) -> bytes | None:
        _, link, name = self._links[interface]
        if link == pcapng.RAW:
            found = self._dials.remark(ends, captured.when, captured.link) if ends else None
            if found is None:
                return None
            self.summary.upstream_packets += 1
            text = found
        elif ends is None:
            text = ""
        else:
            is_loopback = name == _LOOPBACK
            text = self._who.remark(ends, captured.when, captured.data, is_loopback=is_loopback)
        return pcapng.packet(
            interface,
            captured.when,
            captured.data,
            captured.length,
            _comment(text),
            captured.flags,
        )


_WHEN: Final = attrgetter("when")
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_COMMENTS: Final[dict[str, bytes]] = {}


def _comment(text: str) -> bytes:
    found = _COMMENTS.get(text)
    if found is None:
        if len(_COMMENTS) > 4096:
            _COMMENTS.clear()
        found = _COMMENTS[text] = pcapng.comment(text)
    return found


def _names(inside: int) -> list[str]:
    return netns.run_in(inside, lambda: sorted(name for _, name in socket.if_nameindex()))


def _section(record: Record) -> bytes:
    return pcapng.section(
        hardware=platform.machine(),
        system=f"{platform.system()} {platform.release()}",
        application=f"netns-debug {netns_runtime.__version__}",
        remark=f"sandbox {record.name}",
    )


def _ask_proxy(name: str, *, secrets: bool) -> socket.socket:
    """A socket that the proxy talks to by way of the supervisor, which lends it on."""
    return live.asked(name, {"command": "capture", "secrets": secrets})


def _answer_of(proxy: socket.socket) -> dict[str, Any]:
    try:
        data = proxy.recv(LONGEST)
        told = json.loads(data or b'{"error": "the proxy has gone"}')
    except (OSError, ValueError) as error:
        raise StepError("the proxy does not answer", remedy="see netns-debug doctor") from error
    if not isinstance(told, dict) or "error" in told:
        raise StepError(f"capture: {shown(told.get('error', 'no answer'))}")
    return told


def _keys_of(text: str) -> str:
    """Whole lines of letters, digits and underscores, as the key log format has them."""
    lines = (line.split() for line in text.splitlines())
    return "".join(
        " ".join(words) + "\n"
        for words in lines
        if len(words) == 3 and all(word.replace("_", "").isalnum() for word in words)
    )
