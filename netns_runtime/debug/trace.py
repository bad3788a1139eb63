"""`netns-debug trace [SANDBOX]`: what happens in a sandbox, as it happens.

Events come from the supervisor, which reads the kernel's ring and the proxy's audit anyway; exact
counts come from the kernel's maps, so that what no line told is told as a number. `--kernel` adds
what the kernel says of packets and `--stacks` where a refused connect was called from. It ends with
the sandbox, after `--for` seconds, or at an interrupt, always with the exact count.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from netns_runtime.cli.text import say
from netns_runtime.debug import live
from netns_runtime.debug.ancestry import Ancestry
from netns_runtime.debug.text import Page, shown
from netns_runtime.debug.traceline import ACTIONS, Wanted, lines_of, total_line
from netns_runtime.errors import NetnsError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from netns_runtime.state import Record

USAGE: Final = """\
usage: netns-debug trace [SANDBOX] [OPTIONS] [--json]

  --process NAME|PID  only what this process did; repeatable
  --host HOST         only this host, *.domain or address; repeatable
  --action ACTION     only refuse, fail, allow or close; repeatable
  --recent            begin with what is remembered (the last 1,000 events)
  --for SECONDS       end after so long
  --from AUDIT        show an audit file instead
  --stacks            where in the process, and in the kernel, a refused connect was called
  --kernel            dropped packets with the kernel's reason, TCP states and resets, nft rules,
                      and who sends what no hook sees (ping, raw sockets, UDP-Lite, …)

--json: one object a line: {"began": {...}}, {"event": {...}}, at the end {"totals": {...}}.
Events are limited to 100/s; what is more is counted, and told as a number. What it costs
(scripts/bench trace): a refused connect 1 to 2 %, and the same with --kernel, which costs every
packet of the machine half a microsecond; with --stacks a third, and every system call of the
machine 80 ns. Those two are for looking, not for leaving on.
"""
TICK: Final = 0.2
COUNT_EVERY: Final = 1.0


@dataclass(frozen=True, slots=True)
class Order:
    """The command line."""

    sandbox: str | None
    wanted: Wanted
    recent: bool = False
    seconds: float | None = None
    source: str | None = None
    stacks: bool = False
    kernel: bool = False


def parse(words: Sequence[str]) -> Order:
    """Read the command line. Raises UsageError."""
    given: dict[str, list[str]] = {}
    names: list[str] = []
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if name in ("--process", "--host", "--action", "--for", "--from"):
            found = value if equals else next(rest, None)
            if found is None:
                raise UsageError(f"{name} needs a value", remedy="see netns-debug trace --help")
            given.setdefault(name, []).append(found)
        elif word in ("--recent", "--stacks", "--kernel"):
            given[word] = []
        elif word.startswith("-"):
            raise UsageError(f"unknown option {shown(word)}", remedy="see netns-debug trace --help")
        else:
            names.append(word)
    if len(names) > 1:
        raise UsageError("trace takes one sandbox", remedy="run it once for each")
    strange = next((a for a in given.get("--action", ()) if a not in ACTIONS), None)
    if strange is not None:
        raise UsageError(f"--action {shown(strange)}", remedy=f"use one of {', '.join(ACTIONS)}")
    hosts = tuple(host.lower().removesuffix(".") for host in given.get("--host", ()))
    wanted = Wanted(tuple(given.get("--process", ())), hosts, tuple(given.get("--action", ())))
    return Order(
        names[0] if names else None,
        wanted,
        "--recent" in given,
        _seconds(given["--for"][-1]) if "--for" in given else None,
        given["--from"][-1] if "--from" in given else None,
        "--stacks" in given,
        "--kernel" in given,
    )


def _seconds(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = -1
    if not 0 < found < 1e9:
        raise UsageError(f"--for {shown(text)}", remedy="give seconds, as in --for 10")
    return found


def main(words: list[str], as_json: bool) -> int:
    """Trace until there is nothing more to trace."""
    order = parse(words)
    if order.source is not None:
        return _replay(order, as_json=as_json)
    if os.geteuid() != 0:
        raise UsageError("trace needs root", remedy="run sudo netns-debug trace …")
    record = live.chosen(order.sandbox)
    tracer = Tracer(record, order, as_json=as_json)
    try:
        tracer.run()
    except KeyboardInterrupt:
        # The interrupt is how a person ends it: the counts are what is still owed.
        tracer.finish()
    return 0


def _replay(order: Order, *, as_json: bool) -> int:
    from netns_runtime.debug.evidence import read_audit

    evidence = read_audit(order.source or "-")
    if order.sandbox is not None:
        evidence = evidence.only(order.sandbox)
    page = Page()
    for event in evidence.events:
        if order.wanted.has(event):
            say(json.dumps({"event": event}) if as_json else "\n".join(lines_of(event, (), page)))
    for note in evidence.notes:
        sys.stderr.write(f"netns-debug: {note}\n")
    return 0


class Tracer:
    """One trace. `told` counts refused connects that came as events, filtered or not."""

    def __init__(self, record: Record, order: Order, *, as_json: bool) -> None:
        self.record = record
        self.order = order
        self.as_json = as_json
        self.page = Page()
        self.ancestry = Ancestry(record.supervisor)
        self.told = self.unwanted = self.lost = 0
        self.base: dict[str, int] = {}
        self.last: dict[str, int] = {}
        self.is_finished = False
        self._said = -1
        self._explained = ""
        self._kernel_lines: Iterator[dict[str, Any] | None] = iter(())

    def run(self) -> None:
        """Show events until the sandbox, or the time, is over."""
        self._kernel_lines = self._kernel()
        # In this order no refused connect is told that is not counted as well.
        self.base = self.last = self._count()
        stream = live.subscribe(self.record.name, TICK)
        name = self.record.name
        began = json.dumps({"began": {"sandbox": name}}) if self.as_json else f"-- following {name}"
        say(began)
        if self.order.recent:
            for event in live.recent(self.record.name).events:
                self.show(event, is_old=True)
        end = None if self.order.seconds is None else time.monotonic() + self.order.seconds
        due = time.monotonic() + COUNT_EVERY
        look = 0.0
        for message in self._messages(stream):
            now = time.monotonic()
            self._take(message)
            if now >= look:
                look = now + TICK
                self._take_kernel()
            if now >= due:
                due = now + COUNT_EVERY
                self._tell_count()
            if end is not None and now >= end:
                break
        self.finish()

    def _messages(self, stream: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        yield {}
        yield from stream

    def _kernel(self) -> Iterator[dict[str, Any] | None]:
        """Lines of the kernel's, None for no more at the moment."""
        if not (self.order.kernel or self.order.stacks):
            return iter(())
        from netns_runtime.debug.kernel import follow

        return follow(self.record, packets=self.order.kernel, stacks=self.order.stacks)

    def _take_kernel(self) -> None:
        for line in self._kernel_lines:
            if line is None:
                break
            self._print(line)

    def _take(self, message: dict[str, Any]) -> None:
        self.lost += int(message.get("lost", 0))
        event = message.get("event")
        if event is None:
            return
        if event.get("event") == "sandbox.exited" and "count" in event:
            self.last = {**self.last, "count": int(event["count"])}
        self.show(event)

    def show(self, event: dict[str, Any], *, is_old: bool = False) -> None:
        """Print one event, if it is wanted."""
        is_connect = event.get("event") == "connect.refused" and not is_old
        count = int(event.get("count", 1)) if is_connect else 0
        self.told += count
        if not self.order.wanted.has(event):
            self.unwanted += count
            return
        ancestry = [] if is_old else self.ancestry.of(event)
        if self.as_json:
            say(json.dumps({"event": event, "ancestry": ancestry}))
            return
        lines = lines_of(event, ancestry, self.page)
        # What a loop runs into again needs no explanation again.
        keys = ("event", "pid", "host", "address", "port", "reason", "detail")
        key = " ".join(str(event.get(name)) for name in keys)
        if key == self._explained:
            lines = lines[:1]
        self._explained = key
        say("\n".join(lines))

    def _print(self, line: dict[str, Any]) -> None:
        if self.as_json:
            say(json.dumps(line))
        else:
            from netns_runtime.debug.kernel import text_of

            say(text_of(line, self.page))

    def _count(self) -> dict[str, int]:
        from netns_runtime.counts import totals_of

        try:
            return totals_of(self.record)
        except NetnsError:
            return self.last

    def _tell_count(self) -> None:
        self.last = self._count()
        refused = self.last.get("count", 0) - self.base.get("count", 0)
        if refused > self.told and refused != self._said and not self.as_json:
            self._said = refused
            say(self.page.paint(self._total_lines(), "yellow"))

    def _total_lines(self) -> str:
        return self.page.paragraph(f"-- {self._total()}", hanging="   ")

    def _total(self) -> str:
        text = total_line(self.last, self.base, self.told, self.unwanted)
        return text + (f"; {self.lost} events came too fast to be shown" if self.lost else "")

    def finish(self) -> None:
        """Say the exact count, once."""
        if self.is_finished:
            return
        self.is_finished = True
        self._take_kernel()
        close = getattr(self._kernel_lines, "close", None)
        if close is not None:
            close()
        ended = self.last.get("count", 0)
        found = self._count()
        if found.get("count", 0) > ended:
            self.last = found
        if not self.as_json:
            say(self.page.paint(self._total_lines(), "bold"))
            return
        refused = self.last.get("count", 0) - self.base.get("count", 0)
        totals = {
            "refused": refused,
            "told": self.told,
            "shown": self.told - self.unwanted,
            "not_told": max(0, refused - self.told),
            "events_lost": self.lost,
        }
        say(json.dumps({"totals": totals}))
