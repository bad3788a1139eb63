"""Who started a process: its parents, by /proc, up to the sandbox's init.

A process may be gone before anybody looks, and then its parent, which the kernel noted, is where
the chain begins; a chain that cannot be read ends, and is never guessed. A process that began after
the event has a pid that was used again: it is a stranger, and ends the chain too. Answers are kept
for a second, so that a busy process costs one look.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

DEPTH: Final = 16
KEPT: Final = 1.0
MOST: Final = 512
SLACK: Final = 0.05
"""Seconds that two clocks of the kernel's may differ by: a start is told in ticks of 10 ms."""


def stat_of(pid: int) -> tuple[str, int] | None:
    """Name and parent of a living process (proc(5): pid, (comm), state, ppid)."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="backslashreplace") as file:
            text = file.read()
    except OSError:
        return None
    comm, bracket, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()
    return (comm, int(fields[1])) if bracket and len(fields) > 1 else None


def start_of(pid: int) -> float | None:
    """When a living process began, in seconds since the epoch (proc(5): field 22, since boot)."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            ticks = int(file.read().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return None
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return booted + ticks / os.sysconf("SC_CLK_TCK")


def time_of(event: dict[str, Any]) -> float | None:
    """An event's time in seconds since the epoch; None where it has none that can be read."""
    with suppress(KeyError, TypeError, ValueError):
        return datetime.fromisoformat(event["time"]).timestamp()
    return None


class Ancestry:
    """`of` an event gives its parents, nearest first; `top` is where every chain ends."""

    def __init__(
        self,
        top: int,
        look: Callable[[int], tuple[str, int] | None] = stat_of,
        clock: Callable[[], float] = time.monotonic,
        start: Callable[[int], float | None] = start_of,
    ) -> None:
        self._top = top
        self._look = look
        self._clock = clock
        self._start = start
        self._kept: dict[tuple[int, int], tuple[float, list[dict[str, Any]]]] = {}

    def of(self, event: dict[str, Any]) -> list[dict[str, Any]]:
        """[{"pid", "comm"}, ...] without the process itself."""
        pid, parent = int(event.get("pid") or 0), int(event.get("ppid") or 0)
        if pid <= 0:
            return []
        now = self._clock()
        kept = self._kept.get((pid, parent))
        if kept is not None and now - kept[0] < KEPT:
            return kept[1]
        found = self._chain(pid, parent, time_of(event))
        if len(self._kept) >= MOST:
            self._kept.clear()
        self._kept[pid, parent] = (now, found)
        return found

    def _chain(self, pid: int, parent: int, when: float | None) -> list[dict[str, Any]]:
        own = self._look_before(pid, when)
        if own is not None:
            parent = own[1]
        chain: list[dict[str, Any]] = []
        while parent > 1 and parent != self._top and len(chain) < DEPTH:
            found = self._look_before(parent, when)
            if found is None:
                break
            chain.append({"pid": parent, "comm": found[0]})
            parent = found[1]
        return chain

    def _look_before(self, pid: int, when: float | None) -> tuple[str, int] | None:
        """The process, if it is no later one with the same pid."""
        found = self._look(pid)
        began = self._start(pid) if found is not None and when is not None else None
        return None if began is not None and when is not None and began > when + SLACK else found
