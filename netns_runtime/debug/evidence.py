"""What is known of what happened: audit events in order, indexed, and what is missing of them.

`read_audit` takes a file as it lies there: cut in the middle of a line, with lines of a newer
version, or still being written; what it could not use is counted in `notes` and never guessed at.
Ends in an Evidence or, where there is nothing to read at all, in one UsageError.
"""

from __future__ import annotations

import json
import os
import stat
from collections import deque
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

from netns_runtime.debug.text import shown
from netns_runtime.errors import UsageError, file_error
from netns_runtime.events import EVENTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Event = dict[str, Any]

MOST: Final = 1_000_000
"""Events kept of one file, the newest."""
LONGEST: Final = 1 << 20
"""Bytes of one line."""
ROOM: Final = 4 << 30
"""Bytes that all events may take, by `_weight_of`; a million of ours take half of that."""
LARGEST: Final = 1e15
"""What a number of ours never reaches: 30 years of milliseconds, a petabyte."""

_KINDS: Final = (
    *((key, (int,)) for key in ("pid", "ppid", "port", "flow", "count", "status", "code")),
    *((key, (int,)) for key in ("messages_in", "messages_out")),
    *((key, (int, float)) for key in ("bytes_in", "bytes_out", "duration_ms", "idle_ms")),
    *((key, (str,)) for key in ("time", "sandbox", "host", "address", "reason", "said_by")),
    *((key, (str,)) for key in ("action", "entry", "detail", "remedy", "rule", "comm", "exe")),
    *((key, (str,)) for key in ("method", "path", "protocol", "counted_by")),
)


@dataclass(frozen=True)
class Evidence:
    """`events` are flat audit events, oldest first, each with `event` and `time`.

    `source` says where they come from ("audit FILE", "sandbox NAME"). `lost` is how many there were
    beyond these; `notes` are sentences about what could not be read. Events and fields of a newer
    version are kept as they are.
    """

    source: str
    events: tuple[Event, ...]
    notes: tuple[str, ...] = ()
    lost: int = 0

    @cached_property
    def by_host(self) -> dict[str, list[Event]]:
        """Events by `host`, and those that have an `address` and no host by that."""
        found: dict[str, list[Event]] = {}
        for event in self.events:
            key = event.get("host") or event.get("address")
            if isinstance(key, str):
                found.setdefault(key, []).append(event)
        return found

    @cached_property
    def by_sandbox(self) -> dict[str, list[Event]]:
        """Events by the sandbox's name."""
        found: dict[str, list[Event]] = {}
        for event in self.events:
            found.setdefault(str(event.get("sandbox", "")), []).append(event)
        return found

    def only(self, sandbox: str) -> Evidence:
        """The same of one sandbox. Raises UsageError where it has none."""
        if sandbox not in self.by_sandbox:
            names = ", ".join(shown(name) for name in self.by_sandbox) or "none"
            raise UsageError(
                f"{self.source} has no event of sandbox {shown(sandbox)}",
                remedy=f"name one of: {names}",
            )
        return Evidence(self.source, tuple(self.by_sandbox[sandbox]), self.notes, self.lost)

    def about(self, host: str, port: int | None = None) -> list[Event]:
        """What concerns this host or address, on this port; events without a port included."""
        return [
            event
            for event in self.by_host.get(host, ())
            if port is None or event.get("port") in (None, port)
        ]


def evidence_of(lines: Iterable[bytes], source: str, *, most: int = MOST) -> Evidence:
    """Parse JSON lines. Never raises: what is no event is counted and told in `notes`."""
    kept: deque[Event] = deque()
    weights: deque[int] = deque()
    total = broken = weight = 0
    strange: dict[str, int] = {}
    cut = False
    for line in lines:
        if not line.strip(b"\0 \t\r\n"):
            continue
        event = _event_of(line)
        if event is None:
            cut = not line.endswith(b"\n")
            broken += not cut
            continue
        total += 1
        kept.append(event)
        weights.append(_weight_of(line))
        weight += weights[-1]
        while len(kept) > most or weight > ROOM:
            kept.popleft()
            weight -= weights.popleft()
        if event["event"] not in EVENTS:
            strange[event["event"]] = strange.get(event["event"], 0) + 1
    notes = []
    if cut:
        notes.append("the last line is cut off in the middle; it is left out")
    if broken:
        lines_are = "1 line is no audit event" if broken == 1 else f"{broken} lines are no events"
        notes.append(f"{lines_are} (cut, or not ours) and left out")
    if strange:
        names = ", ".join(shown(name, 40) for name in list(strange)[:5])
        notes.append(f"{sum(strange.values())} events are of a newer version ({names})")
    if total > len(kept):
        notes.append(f"only the newest {len(kept)} of {total} events are looked at")
    return Evidence(source, tuple(kept), tuple(notes), total - len(kept))


def _weight_of(line: bytes) -> int:
    """About the most bytes that its event takes as Python's values: each has a name or a place."""
    return len(line) + 100 * (line.count(b",") + line.count(b"[") + line.count(b"{"))


def _event_of(line: bytes) -> Event | None:
    if len(line) > LONGEST:
        return None
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if isinstance(event, dict) and "class_uid" in event:
        event = event.get("unmapped")  # --audit-format ocsf: the contract's event is whole there
    if not isinstance(event, dict) or not isinstance(event.get("event"), str):
        return None
    for key, kind in _KINDS:
        # Another version's, or somebody's own: what is no number here cannot be counted with.
        if key in event and not _is_usable(event[key], kind):
            del event[key]
    return event


def _is_usable(value: Any, kind: tuple[type, ...]) -> bool:
    if not isinstance(value, kind) or isinstance(value, bool):
        return False
    # JSON's 1e999, and what Python's reads as NaN, break every sum and every clock.
    return not isinstance(value, int | float) or -LARGEST < value < LARGEST


def read_audit(path: str) -> Evidence:
    """The events of the file that `--audit` wrote; `-` is standard input.

    A file is read as far as it goes now. Raises UsageError where it cannot be opened, is a device
    or holds no event at all.
    """
    name = "standard input" if path == "-" else f"audit {shown(path)}"
    try:
        fd = os.dup(0) if path == "-" else os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
        with open(fd, "rb") as file:
            status = os.fstat(fd)
            if path != "-" and (stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)):
                raise UsageError(f"{name} is a device", remedy="name a file that --audit wrote")
            size = status.st_size if stat.S_ISREG(status.st_mode) else None
            found = evidence_of(_lines(file, size), name)
    except OSError as error:
        raise file_error(name, error) from error
    if not found.events:
        why = found.notes[0] if found.notes else "it is empty"
        raise UsageError(f"{name} holds no event: {why}", remedy="name a file that --audit wrote")
    return found


def _lines(file: Any, size: int | None) -> Iterator[bytes]:
    """Those that begin in the first `size` bytes: somebody may write as fast as we read."""
    seen = 0
    while (size is None or seen < size) and (line := file.readline(LONGEST + 1)):
        seen += len(line)
        while not line.endswith(b"\n") and len(line) > LONGEST:
            # A line without an end: passed over, and counted as one that is no event.
            rest = file.readline(LONGEST + 1)
            seen += len(rest)
            if size is not None and seen > size:
                break
            if len(rest) <= LONGEST:
                line += rest[-1:]
                break
        yield line
