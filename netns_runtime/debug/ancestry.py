"""Who started a process: its parents, by /proc, up to the sandbox's init.

A process may be gone before anybody looks, and then its parent, which the kernel noted, is where
the chain begins; a chain that cannot be read ends, and is never guessed. Answers are kept for a
second, so that a busy process costs one look.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

DEPTH: Final = 16
KEPT: Final = 1.0
MOST: Final = 512


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


class Ancestry:
    """`of` an event gives its parents, nearest first; `top` is where every chain ends."""

    def __init__(
        self,
        top: int,
        look: Callable[[int], tuple[str, int] | None] = stat_of,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._top = top
        self._look = look
        self._clock = clock
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
        found = self._chain(pid, parent)
        if len(self._kept) >= MOST:
            self._kept.clear()
        self._kept[pid, parent] = (now, found)
        return found

    def _chain(self, pid: int, parent: int) -> list[dict[str, Any]]:
        own = self._look(pid)
        if own is not None:
            parent = own[1]
        chain: list[dict[str, Any]] = []
        while parent > 1 and parent != self._top and len(chain) < DEPTH:
            found = self._look(parent)
            if found is None:
                break
            chain.append({"pid": parent, "comm": found[0]})
            parent = found[1]
        return chain
