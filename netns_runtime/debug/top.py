"""`netns-debug top [SANDBOX]`: the flows of one sandbox or of all, live, with what is refused.

Each tick asks every sandbox once; rates are differences of exact counts. Keys sort, reverse and
quit. `--once` prints one frame and needs no terminal. Ends with `q`, SIGINT or SIGTERM; a sandbox
that ends leaves the list, and the last one to go ends us.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import sys
import termios
import time
import tty
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NoReturn

from netns_runtime import state
from netns_runtime.cli.text import say_json
from netns_runtime.control import ask
from netns_runtime.counts import counts_of
from netns_runtime.debug import live
from netns_runtime.debug.flowlist import Row, Sample, rows_of, sample
from netns_runtime.debug.flows import seconds_of
from netns_runtime.debug.text import clock_of, shown
from netns_runtime.errors import NetnsError, UsageError
from netns_runtime.events import timestamp

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netns_runtime.debug.topframe import History
    from netns_runtime.state import Record

USAGE: Final = """\
usage: netns-debug top [SANDBOX] [--sort KEY] [--interval SECONDS] [--once] [--json]

The flows of one sandbox, or of all, with sparklines of refusals and traffic.
  --sort KEY          rate (default), bytes, age, rtt, retransmits, host, process
  --interval SECONDS  between two looks (default 1)
  --once              print one frame; --json prints the same as data
Keys: q quits, i reverses, r b a t x h p sort.
"""
_SORT_KEYS: Final = ("rate", "bytes", "age", "rtt", "retransmits", "host", "process")


@dataclass(slots=True)
class Options:
    """What the command line and, later, the keys say."""

    name: str | None = None
    sort: str = "rate"
    interval: float = 1.0
    once: bool = False
    reverse: bool = False


@dataclass(slots=True)
class _Moment:
    """What was seen of one sandbox."""

    sample: Sample
    refused: int
    bytes_out: int
    bytes_in: int


@dataclass(slots=True)
class _Watched:
    """The sandboxes looked at, and what was seen of them last."""

    name: str | None
    last: dict[int, _Moment] = field(default_factory=dict)

    def records(self) -> list[Record]:
        if self.name is None:
            return state.survey()[0]
        return [record for record in state.survey()[0] if record.name == self.name]


def main(words: list[str], as_json: bool) -> int:
    """Show the screen, or one frame of it."""
    options = parsed(words)
    options.once = options.once or as_json
    if os.geteuid() != 0:
        raise UsageError("needs root", remedy="run sudo netns-debug …")
    if options.name is not None:
        live.chosen(options.name)
    elif not state.survey()[0]:
        raise UsageError("no sandbox is running", remedy="start one with netns-run")
    if not options.once and not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError("top needs a terminal", remedy="or --once")
    from netns_runtime.debug.topframe import History

    watched, history = _Watched(options.name), History()
    look(watched)
    if options.once:
        time.sleep(options.interval)
        rows, note = look(watched, history)
        if as_json:
            tick = history.ticks[-1]
            rates = {"refused": tick.refused, "out": tick.bytes_out, "in": tick.bytes_in}
            say_json({"per_second": rates, "flows": _sorted(rows, options), "note": note})
        else:
            _print(watched, history, rows, options, note)
        return 0
    return _live(watched, history, options)


def parsed(words: list[str]) -> Options:
    """The command line. Raises UsageError."""
    options = Options()
    rest = iter(words)
    for word in rest:
        if word == "--once":
            options.once = True
        elif word == "--interval":
            options.interval = seconds_of(word, next(rest, ""), 0.1)
        elif word == "--sort":
            options.sort = next(rest, "")
            if options.sort not in _SORT_KEYS:
                raise UsageError(
                    f"--sort {options.sort}: no such key", remedy=f"use {', '.join(_SORT_KEYS)}"
                )
        elif word.startswith("-") or options.name is not None:
            raise UsageError(f"top takes no {word!r}", remedy="see netns-debug top --help")
        else:
            options.name = word
    return options


def look(watched: _Watched, history: History | None = None) -> tuple[list[Row], str]:
    """Ask every sandbox; its rows, what could not be had, and one tick for the history."""
    from netns_runtime.debug.topframe import Tick

    rows: list[Row] = []
    silent: list[str] = []
    seen: dict[int, _Moment] = {}
    tick = Tick(0, 0, 0)
    for record in watched.records():
        try:
            now = _moment_of(record)
        except (NetnsError, OSError):
            silent.append(record.name)
            continue
        seen[record.cookie] = now
        before = watched.last.get(record.cookie)
        own = rows_of(now.sample, before.sample if before else None)
        rows += [{"sandbox": record.name, **row} for row in own]
        if before is not None:
            seconds = max(0.001, now.sample.at - before.sample.at)
            tick.refused += (now.refused - before.refused) / seconds
            tick.bytes_out += (now.bytes_out - before.bytes_out) / seconds
            tick.bytes_in += (now.bytes_in - before.bytes_in) / seconds
    watched.last = seen
    if history is not None:
        history.ticks.append(tick)
    note = f"no answer from {', '.join(map(shown, silent))}" if silent else ""
    return rows, note


def _moment_of(record: Record) -> _Moment:
    told = ask(record.name, {"command": "tallies"}, 5.0).get("tallies", {})
    return _Moment(
        sample(record),
        counts_of(record)["totals"]["count"],
        int(told.get("bytes_out", 0)),
        int(told.get("bytes_in", 0)),
    )


def _sorted(rows: list[Row], options: Options) -> list[Row]:
    from netns_runtime.debug.topframe import ordered

    return ordered(rows, options.sort, reverse=options.reverse)


def _frame(
    watched: _Watched,
    history: History,
    rows: list[Row],
    options: Options,
    note: str,
    size: os.terminal_size,
) -> Any:
    from netns_runtime.debug.topframe import ASCII, BLOCKS, frame_of

    can_draw = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    what = options.name or f"{len(watched.last)} sandboxes"
    title = f"netns-debug top  {what}  {clock_of({'time': timestamp()})[:8]} UTC"
    title += f"  {len(rows)} flows, by {options.sort}{' reversed' if options.reverse else ''}"
    return frame_of(
        title=title,
        history=history,
        rows=_sorted(rows, options),
        key=options.sort,
        width=size.columns,
        height=None if options.once else size.lines,
        ramp=BLOCKS if can_draw else ASCII,
        note=note,
        keys=not options.once,
    )


def _print(
    watched: _Watched, history: History, rows: list[Row], options: Options, note: str
) -> None:
    from rich.console import Console

    is_terminal = sys.stdout.isatty()
    size = shutil.get_terminal_size((80, 24)) if is_terminal else os.terminal_size((80, 24))
    console = Console(
        width=size.columns, highlight=False, markup=False, emoji=False, force_terminal=is_terminal
    )
    console.print(_frame(watched, history, rows, options, note, size))


def _live(watched: _Watched, history: History, options: Options) -> int:
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False, markup=False, emoji=False)
    signal.signal(signal.SIGTERM, _end)
    rows, note = look(watched, history)
    try:
        with _keys(), Live(console=console, screen=True, auto_refresh=False) as screen:
            due = time.monotonic() + options.interval
            while True:
                size = os.terminal_size((console.width, console.height))
                screen.update(_frame(watched, history, rows, options, note, size), refresh=True)
                ready, _, _ = select.select([0], [], [], max(0.0, due - time.monotonic()))
                if ready and not _obey(os.read(0, 64), options):
                    return 0
                if time.monotonic() >= due:
                    due = time.monotonic() + options.interval
                    rows, note = look(watched, history)
                    if not watched.last and not note:
                        break
    except KeyboardInterrupt:
        return 0
    sys.stderr.write("netns-debug: the last sandbox has ended\n")
    return 0


def _obey(data: bytes, options: Options) -> bool:
    """Do what the keys say. False to quit."""
    from netns_runtime.debug.topframe import SORTS

    letters = {letter: name for name, (letter, _, _) in SORTS.items()}
    for key in data.decode("ascii", "ignore"):
        if key == "q":
            return False
        if key == "i":
            options.reverse = not options.reverse
        options.sort = letters.get(key, options.sort)
    return bool(data)


@contextmanager
def _keys() -> Iterator[None]:
    """Keys one by one and unseen, until the end."""
    before = termios.tcgetattr(0)
    try:
        tty.setcbreak(0)
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def _end(*_: object) -> NoReturn:
    raise KeyboardInterrupt
