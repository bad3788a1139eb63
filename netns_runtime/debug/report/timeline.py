"""The plan of a timeline: a lane for each destination, in it bars, histograms and points.

A lane with few flows has a bar for each, in rows that do not overlap, and points for what was
refused before it was a flow, those of one kind within a slice of time as one. A lane with many has
a histogram of what began in each slice. Pure; places are fractions of the
whole, so that whoever draws it needs no sizes.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from netns_runtime.debug.report.story import GROUPS, OUTCOMES
from netns_runtime.debug.text import age_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

LANES: Final = 18
"""Destinations with a lane of their own."""
SLICES: Final = 120
BARS: Final = 60
"""Flows of a lane that are drawn one by one, if they also fit in ROWS rows."""
ROWS: Final = 4
POINTS: Final = 30
"""Points of a lane beside bars."""
UNTOLD: Final = ""
"""The host of points beyond the first GROUPS hosts."""
_ALONE: Final = ("refused", "noted")
"""What is a point; a failure is told by its flow's bar."""
_TICKS: Final = 5
_STEPS: Final = (
    *(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300),
    *(600, 1200, 1800, 3600, 7200, 14400, 21600, 43200),
)
_DAY: Final = 86400


@dataclass(frozen=True, slots=True)
class Bar:
    """A flow. `start` and `end` are fractions; `row` counts from 0, at the top."""

    start: float
    end: float
    row: int
    outcome: str
    is_socket: bool
    words: str
    place: str


@dataclass(frozen=True, slots=True)
class Column:
    """A slice of a histogram; `counts` by outcome, in the order of OUTCOMES."""

    start: float
    counts: tuple[int, ...]
    words: str
    place: str


@dataclass(frozen=True, slots=True)
class Point:
    """`kind` is refused or noted."""

    at: float
    kind: str
    count: int
    words: str
    place: str


@dataclass(frozen=True, slots=True)
class Lane:
    label: str
    counts: tuple[tuple[str, int], ...]
    rows: int
    bars: tuple[Bar, ...]
    columns: tuple[Column, ...]
    tallest: int
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Timeline:
    """`ticks` are fractions with their labels. `others` is how many destinations share the last
    lane; `slice_seconds` how long a slice is."""

    lanes: tuple[Lane, ...]
    ticks: tuple[tuple[float, str], ...]
    others: int
    slice_seconds: float
    binned: int


@dataclass(slots=True)
class Stretch:
    """A flow as the plan wants it, in seconds since the epoch; `end` None is open. `thing` is what
    words are asked for."""

    host: str
    start: float
    end: float | None
    outcome: str
    is_socket: bool
    thing: Any
    place: str


@dataclass(slots=True)
class Gathering:
    """What one slice of one lane saw of a kind: how often, and the last of them."""

    count: int = 0
    thing: Any = None
    place: str = ""
    first: float = 0.0
    last: float = 0.0


@dataclass(slots=True)
class Moments:
    """Points as they come in, by host, slice and kind: memory is bounded by slices and hosts."""

    began: float
    seconds: float
    found: dict[str, dict[tuple[int, str], Gathering]] = field(default_factory=dict)

    def add(self, host: str, at: float, kind: str, count: int, thing: Any, place: str) -> None:
        key = (slice_of((at - self.began) / self.seconds), kind)
        if host not in self.found and len(self.found) >= GROUPS:
            host = UNTOLD
        lane = self.found.setdefault(host, {})
        seen = lane.get(key)
        if seen is None:
            seen = lane[key] = Gathering(first=at)
        seen.count += count
        seen.last = at
        seen.thing, seen.place = thing, place


def slice_of(fraction: float) -> int:
    return min(SLICES - 1, max(0, int(fraction * SLICES)))


def clock(at: float, *, millis: bool = True) -> str:
    """HH:MM:SS[.mmm], UTC."""
    when = datetime.fromtimestamp(at, UTC)
    text = when.strftime("%H:%M:%S")
    return f"{text}.{when.microsecond // 1000:03}" if millis else text


def plan(stretches: Sequence[Stretch], moments: Moments, words: Callable[[Any], str]) -> Timeline:
    """Lanes in the order in which their destinations first appeared. `words` says what a `thing`
    is; only what is drawn is asked for."""
    began, seconds = moments.began, moments.seconds
    weight: Counter[str] = Counter()
    first: dict[str, float] = {}
    for stretch in stretches:
        weight[stretch.host] += 1
        first[stretch.host] = min(first.get(stretch.host, stretch.start), stretch.start)
    for host, lane in moments.found.items():
        weight[host] += sum(seen.count for seen in lane.values())
        earliest = min(seen.first for seen in lane.values())
        first[host] = min(first.get(host, earliest), earliest)
    most = sorted(weight.keys() - {UNTOLD}, key=lambda host: (-weight[host], host))
    has_rest = len(most) > LANES or UNTOLD in weight
    kept = most[: LANES - 1] if has_rest else most
    kept.sort(key=lambda host: (first[host], host))
    own = set(kept)
    by_host: dict[str, list[Stretch]] = {}
    for stretch in stretches:
        by_host.setdefault(stretch.host if stretch.host in own else UNTOLD, []).append(stretch)
    rest: dict[tuple[int, str], Gathering] = {}
    for host, lane in moments.found.items():
        if host not in own:
            for key, seen in lane.items():
                kin = rest.setdefault(key, Gathering(first=seen.first))
                kin.count += seen.count
                kin.first, kin.last = min(kin.first, seen.first), max(kin.last, seen.last)
                kin.thing, kin.place = seen.thing, seen.place
    lanes = [_lane(host, by_host.get(host, ()), moments.found.get(host, {}), moments, words)
             for host in kept]  # fmt: skip
    others = len(most) - len(kept)
    if has_rest:
        label = f"{others} others" if UNTOLD not in weight else f"more than {others} others"
        lanes.append(_lane(label, by_host.get(UNTOLD, ()), rest, moments, words))
    binned = sum(sum(map(sum, (c.counts for c in lane.columns))) for lane in lanes)
    return Timeline(tuple(lanes), ticks_of(began, seconds), others, seconds / SLICES, binned)


def _lane(
    label: str,
    stretches: Iterable[Stretch],
    seen: dict[tuple[int, str], Gathering],
    moments: Moments,
    words: Callable[[Any], str],
) -> Lane:
    ordered = sorted(stretches, key=lambda s: (s.start, s.end or 0.0))
    counts: Counter[str] = Counter(stretch.outcome for stretch in ordered)
    for (_, kind), found in seen.items():
        if kind in _ALONE:
            counts[kind] += found.count
    alone = {key: found for key, found in seen.items() if key[1] in _ALONE}
    is_busy = len(ordered) > BARS or len(alone) > POINTS
    rows = None if is_busy else _rows(ordered, moments)
    told = tuple((name, counts[name]) for name in OUTCOMES if counts[name])
    if rows is None:
        columns = _columns(ordered, seen, moments)
        tallest = max((sum(column.counts) for column in columns), default=0)
        return Lane(label, told, 1, (), columns, tallest, ())
    bars = (_bar(s, row, moments, words) for s, row in zip(ordered, rows, strict=True))
    points = (
        _point(number, kind, found, words)
        for (number, kind), found in sorted(alone.items(), key=lambda item: item[0])
    )
    return Lane(label, told, max(rows, default=0) + 1, tuple(bars), (), 0, tuple(points))


def _rows(ordered: Sequence[Stretch], moments: Moments) -> list[int] | None:
    """Each bar's row, so that none overlap; None where more than ROWS would be needed."""
    free: list[float] = []
    found = []
    gap = moments.seconds / 400
    for stretch in ordered:
        end = moments.began + moments.seconds if stretch.end is None else stretch.end
        row = next((n for n, until in enumerate(free) if until <= stretch.start), None)
        if row is None:
            row = len(free)
            free.append(0.0)
        if row >= ROWS:
            return None
        free[row] = max(end, stretch.start) + gap
        found.append(row)
    return found


def _bar(stretch: Stretch, row: int, moments: Moments, words: Callable[[Any], str]) -> Bar:
    start = (stretch.start - moments.began) / moments.seconds
    end = 1.0 if stretch.end is None else (stretch.end - moments.began) / moments.seconds
    return Bar(
        round(start, 5),
        round(max(start, end), 5),
        row,
        stretch.outcome,
        stretch.is_socket,
        f"{clock(stretch.start)} {words(stretch.thing)}",
        stretch.place,
    )


def _columns(
    ordered: Sequence[Stretch], seen: Mapping[tuple[int, str], Gathering], moments: Moments
) -> tuple[Column, ...]:
    """Flows, and what was refused before it was one."""
    slices: dict[int, Counter[str]] = {}
    places: dict[int, str] = {}
    for stretch in ordered:
        number = slice_of((stretch.start - moments.began) / moments.seconds)
        slices.setdefault(number, Counter())[stretch.outcome] += 1
        places[number] = stretch.place or places.get(number, "")
    for (number, kind), found in seen.items():
        if kind in _ALONE:
            slices.setdefault(number, Counter())[kind] += found.count
        places[number] = found.place or places.get(number, "")
    columns = []
    for number, counts in sorted(slices.items()):
        at = moments.began + number / SLICES * moments.seconds
        said = ", ".join(f"{counts[name]} {name}" for name in OUTCOMES if counts[name])
        words = f"{clock(at)}, for {age_of(moments.seconds / SLICES)}: {said}"
        by_outcome = tuple(counts[name] for name in OUTCOMES)
        place = places.get(number, "")
        columns.append(Column(round(number / SLICES, 5), by_outcome, words, place))
    return tuple(columns)


def _point(number: int, kind: str, found: Gathering, words: Callable[[Any], str]) -> Point:
    said = f"{clock(found.first)} {words(found.thing)}"
    if found.count > 1:
        until = f" to {clock(found.last)}" if found.last > found.first else ""
        said = f"{clock(found.first)}{until}: {found.count} {kind}, the last {words(found.thing)}"
    return Point(round((number + 0.5) / SLICES, 5), kind, found.count, said, found.place)


def ticks_of(began: float, seconds: float) -> tuple[tuple[float, str], ...]:
    """At most five round moments, as a rule, as fractions, with their labels."""
    step = next((s for s in _STEPS if seconds / s <= _TICKS), None)
    if step is None:
        days = 1
        while seconds / (days * _DAY) > _TICKS:
            days *= 2
        step = float(days * _DAY)
    found: list[tuple[float, str]] = []
    number = int(began // step) + 1
    while (at := number * step) < began + seconds and len(found) < 2 * _TICKS:
        found.append((round((at - began) / seconds, 5), _label(at, step, seconds)))
        number += 1
    return tuple(found)


def _label(at: float, step: float, seconds: float) -> str:
    if step < 1:
        return clock(at + 0.0001)
    when = datetime.fromtimestamp(at, UTC)
    if step >= _DAY:
        return when.strftime("%b %d")
    if seconds > _DAY:
        return when.strftime("%b %d %H:%M")
    return when.strftime("%H:%M:%S" if step < 60 else "%H:%M")
