"""The two pictures of the page as inline SVG: the timeline, and who talked to whom.

Places along the time axis are percentages and labels are HTML beside the lanes, so that a picture
is as wide as its page, on a phone and in print, without a script and with its text unscaled. Every
mark has a title, and where there is more to say, a link to it. Pure.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from netns_runtime.debug.report.html import Markup, tag
from netns_runtime.debug.report.parts import WORDS, compact, grouped, sign
from netns_runtime.debug.report.story import OUTCOMES
from netns_runtime.debug.report.timeline import SLICES
from netns_runtime.debug.text import age_of

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from netns_runtime.debug.report.story import Talk
    from netns_runtime.debug.report.timeline import Bar, Lane, Point, Timeline

_ROW: Final = 11
_TALLEST: Final = 30
_LEAST: Final = 0.35
"""Per cent of the width that the shortest bar takes."""
_ZOOMS: Final = (1, 2, 4, 8)


def timeline(plan: Timeline, key: str, known: Container[str]) -> Markup:
    """All lanes, with a legend and, by radio buttons and style alone, a zoom. `known` are the ids
    of this chapter that marks may link to, without its `key`."""
    if not plan.lanes:
        return tag("p", "Nothing happened that has a place in time.", class_="none")
    inputs = [
        tag("input", type_="radio", name=f"{key}zoom", id_=f"{key}zoom-{zoom}",
            class_=f"zoom z{zoom}", checked=zoom == 1)
        for zoom in _ZOOMS
    ]  # fmt: skip
    labels = [
        tag("label", f"{zoom}\u00d7", for_=f"{key}zoom-{zoom}", class_=f"z{zoom}")
        for zoom in _ZOOMS
    ]
    lanes = [_axis(plan), *(_lane(lane, plan, key, known) for lane in plan.lanes)]
    scroll = tag("div", tag("div", lanes, class_="lanes"), class_="scroll", tabindex=0,
                 role="group", aria_label="timeline, scrolls sideways when widened")  # fmt: skip
    controls = tag("div", tag("span", "Widen"), labels, class_="zooms")
    return tag("div", inputs, tag("div", _legend(plan), controls, class_="bar"), scroll,
               class_="timeline")  # fmt: skip


def _legend(plan: Timeline) -> Markup:
    kinds = {point.kind for lane in plan.lanes for point in lane.points}
    for lane in plan.lanes:
        kinds |= {bar.outcome for bar in lane.bars} | {_end_of(bar) for bar in lane.bars}
        kinds |= {
            OUTCOMES[at] for column in lane.columns for at, n in enumerate(column.counts) if n
        }
    order = ("passed", "open", "noted", "refused", "failed", "closed")
    said = [tag("li", sign(kind), WORDS[kind]) for kind in order if kind in kinds]
    return tag("ul", said, class_="legend")


def _percent(fraction: float) -> str:
    return f"{fraction * 100:.2f}%"


def _grid(plan: Timeline, height: int) -> list[Markup]:
    return [
        tag("line", x1=_percent(at), x2=_percent(at), y1=0, y2=height, class_="grid")
        for at, _ in plan.ticks
    ]


def _axis(plan: Timeline) -> Markup:
    ticks = [
        tag(
            "text",
            label,
            x=_percent(at),
            y=12,
            class_="end" if at > 0.95 else "start" if at < 0.05 else None,
        )
        for at, label in plan.ticks
    ]
    plot = tag("svg", ticks, width="100%", height=16, class_="plot", aria_hidden="true")
    return tag("div", tag("span", "UTC", class_="name"), plot, tag("span", class_="sum"),
               class_="lane axis")  # fmt: skip


def _lane(lane: Lane, plan: Timeline, key: str, known: Container[str]) -> Markup:
    def linked(place: str, mark: Markup) -> Markup:
        return tag("a", mark, href=f"#{key}{place}") if place in known else mark

    height = _TALLEST + 4 if lane.columns else lane.rows * _ROW + 5
    counts = ", ".join(f"{n} {WORDS[name]}" for name, n in lane.counts)
    marks = _histogram(lane, height) if lane.columns else _bars(lane)
    drawn = [linked(place, mark) for place, mark in marks]
    points = [linked(point.place, _point(point, height)) for point in lane.points]
    plot = tag(
        "svg",
        tag("title", f"{lane.label}: {counts}"),
        _grid(plan, height),
        drawn,
        points,
        width="100%",
        height=height,
        class_="plot",
        role="group",
    )
    worst = [(name, n) for name, n in lane.counts if name in ("refused", "failed", "noted")]
    told = worst or list(lane.counts)
    total = tag("span", (tag("span", sign(name), compact(n), class_=name) for name, n in told),
                class_="sum")  # fmt: skip
    return tag("div", tag("span", lane.label, class_="name"), plot, total, class_="lane")


def _bars(lane: Lane) -> list[tuple[str, Markup]]:
    found = []
    for bar in lane.bars:
        width = max(_LEAST, (bar.end - bar.start) * 100)
        left = min(bar.start * 100, 100 - width)
        box = tag(
            "rect",
            tag("title", bar.words),
            x=f"{left:.2f}%",
            y=4 + bar.row * _ROW,
            width=f"{width:.2f}%",
            height=7,
            rx=2 if width > 1 else 1,
            class_=f"flow {bar.outcome}{' socket' if bar.is_socket else ''}",
        )
        end = _end_of(bar)
        if end:
            mark = tag("use", href=f"#m-{end}", x=_percent(bar.end), y=7.5 + bar.row * _ROW)
            box = tag("g", box, mark, class_=end)
        found.append((bar.place, box))
    return found


def _end_of(bar: Bar) -> str:
    """The sign at the end of a bar: a failure, or the orderly close of a WebSocket."""
    if bar.outcome == "failed":
        return "failed"
    return "closed" if bar.is_socket and bar.outcome == "passed" else ""


def _histogram(lane: Lane, height: int) -> list[tuple[str, Markup]]:
    """Stacked columns: the worst stands at the bottom, where it is seen."""
    found = []
    for column in lane.columns:
        total = sum(column.counts)
        tall = max(3.0, _TALLEST * total / max(1, lane.tallest))
        bottom = height - 2.0
        boxes = []
        for at in reversed(range(len(OUTCOMES))):
            if not column.counts[at]:
                continue
            share = tall * column.counts[at] / total
            bottom -= share
            boxes.append(tag("rect", x=_percent(column.start), y=f"{bottom:.1f}",
                             width=_percent(0.86 / SLICES), height=f"{share:.1f}",
                             class_=f"flow {OUTCOMES[at]}"))  # fmt: skip
        found.append((column.place, tag("g", tag("title", column.words), boxes)))
    return found


def _point(point: Point, height: int) -> Markup:
    size = 0 if point.count < 2 else min(3, 1 + int(math.log10(point.count)))
    at, middle = _percent(point.at), height / 2 + 0.5
    mark = [
        tag("title", point.words),
        tag("circle", cx=at, cy=middle, r=5 + 2 * size, class_=f"around s{size}"),
        tag("use", href=f"#m-{point.kind}", x=at, y=middle),
    ]
    return tag("g", mark, class_=f"point {point.kind}")


_NODE: Final = 30
_LEFT: Final = 10
_RIGHT: Final = 16


def ribbons(talks: Sequence[Talk]) -> Markup:
    """Processes to the left, destinations to the right; a ribbon is as thick as the logarithm of
    how often was tried. The table beside it has every number."""
    left = _most(talks, "who", _LEFT)
    right = _untangled(_most(talks, "where", _RIGHT), left, talks)
    height = max(len(left), len(right)) * _NODE
    drawn = []
    for talk in talks:
        at = _index(left, talk.who), _index(right, talk.where)
        worst = "refused" if talk.refused else "failed" if talk.failed else "passed"
        if talk.passed or talk.noted:
            drawn.append((at, "passed", talk.passed + talk.noted))
        if talk.failed or talk.refused:
            drawn.append((at, worst, talk.failed + talk.refused))
    merged: dict[tuple[tuple[int, int], str], int] = {}
    for at, outcome, count in drawn:
        merged[at, outcome] = merged.get((at, outcome), 0) + count
    most = math.log(1 + max(merged.values(), default=1))
    most = max(most, math.log(64))
    paths = []
    for ((source, target), outcome), count in sorted(merged.items()):
        shift = {"passed": -4, "failed": 3, "refused": 3}[outcome]
        y1 = (source + 0.5) * height / len(left) + shift
        y2 = (target + 0.5) * height / len(right) + shift
        thick = 1.2 + 7.8 * math.log(1 + count) / most
        words = f"{left[source]} to {right[target]}: {grouped(count)} {WORDS[outcome]}"
        paths.append(
            tag("path", tag("title", words), d=f"M0,{y1:g} C45,{y1:g} 55,{y2:g} 100,{y2:g}",
                class_=f"ribbon {outcome}", stroke_width=f"{thick:.1f}")
        )  # fmt: skip
    picture = tag("svg", tag("title", "Processes and the destinations they tried"), paths,
                  viewbox=f"0 0 100 {height}", preserve="none", width="100%", height=height,
                  role="img")  # fmt: skip
    sides = [
        tag("ul", (tag("li", name) for name in names), class_=side)
        for names, side in ((left, "who"), (right, "where"))
    ]
    return tag("div", sides[0], picture, sides[1], class_="ribbons")


def _untangled(names: Sequence[str], left: Sequence[str], talks: Sequence[Talk]) -> list[str]:
    """Destinations beside who tried them most, so that fewer ribbons cross."""
    pull: dict[str, list[int]] = {name: [0, 0] for name in names}
    for talk in talks:
        name = talk.where if talk.where in pull else names[-1]
        pull[name][0] += _index(left, talk.who) * talk.attempts
        pull[name][1] += talk.attempts
    return sorted(
        names, key=lambda name: (pull[name][0] / max(1, pull[name][1]), names.index(name))
    )


def _most(talks: Sequence[Talk], side: str, limit: int) -> list[str]:
    counts: dict[str, int] = {}
    for talk in talks:
        name = getattr(talk, side)
        counts[name] = counts.get(name, 0) + talk.attempts
    ranked = sorted(counts, key=lambda name: (-counts[name], name))
    if len(ranked) <= limit:
        return ranked
    return [*ranked[: limit - 1], f"{len(ranked) - limit + 1} others"]


def _index(names: Sequence[str], name: str) -> int:
    return names.index(name) if name in names else len(names) - 1


def slice_note(plan: Timeline) -> str | None:
    """What the timeline does not draw one by one."""
    if not plan.binned:
        return None
    return (
        f"{grouped(plan.binned)} attempts at busy destinations are drawn as columns of "
        f"{age_of(plan.slice_seconds)} each"
    )
