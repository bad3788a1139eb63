"""Small pieces that all of the page is made of: sections, tables, times, counted words. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from netns_runtime.debug.report.html import Markup, tag
from netns_runtime.debug.text import age_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from netns_runtime.debug.report.html import Content

WORDS: Final = {
    "passed": "passed",
    "open": "still open",
    "noted": "only noted",
    "failed": "failed",
    "refused": "refused",
    "closed": "closed in order",
}
"""An outcome for a person."""


def plural(number: int, what: str) -> str:
    """`1 flow`, `2 flows`."""
    return f"{grouped(number)} {what}" + ("" if number == 1 else "s")


def grouped(number: int) -> str:
    """Digits in groups of three, by narrow spaces."""
    return f"{number:,}".replace(",", "\u202f")


def compact(number: int) -> str:
    """Short where there is no room: `60k`, `1.2M`."""
    if number >= 1_000_000:
        return f"{number / 1_000_000:.1f}M"
    if number >= 10_000:
        return f"{number / 1000:.0f}k"
    return grouped(number)


def span_of(seconds: float) -> str:
    """A time span, milliseconds too: `3 ms`, `4.1s`, `2h07m`."""
    return age_of(seconds) if seconds >= 1 else f"{seconds * 1000:.0f} ms"


def clock_of(time: str) -> Markup:
    """`HH:MM:SS.mmm`, whole where a program looks."""
    return tag("time", time[11:23] or "-", datetime=time) if time else tag("span", "-")


def section(key: str, title: str, *content: Content | Iterable[Content]) -> Markup:
    heading = tag("h2", title, id_=f"{key}-title")
    return tag("section", heading, *content, id_=key, labelledby=f"{key}-title")


def table(
    caption: str,
    header: Sequence[str],
    rows: Iterable[tuple[str, Sequence[Content]]],
    numbers: Iterable[int] = (),
) -> Markup:
    """Rows are an id ("" for none) and cells; `numbers` are the columns that are right-aligned."""
    right = set(numbers)
    head = tag(
        "tr",
        (
            tag("th", name, scope="col", class_="n" if at in right else None)
            for at, name in enumerate(header)
        ),
    )
    body = (
        tag(
            "tr",
            (tag("td", cell, class_="n" if at in right else None) for at, cell in enumerate(cells)),
            id_=place or None,
        )
        for place, cells in rows
    )
    whole = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", body))
    return tag("div", whole, class_="wide", tabindex=0, role="group", aria_label=caption)


def pairs(rows: Iterable[tuple[str, Content]]) -> Markup:
    """A list of names and what they say; empty ones are left out."""
    return tag(
        "dl",
        (tag("div", tag("dt", name), tag("dd", said)) for name, said in rows if said),
        class_="pairs",
    )


def badge(outcome: str) -> Markup:
    """The outcome in a word, with its sign: never by colour alone."""
    return tag("span", sign(outcome), WORDS.get(outcome, outcome), class_=f"badge {outcome}")


def sign(kind: str) -> Markup:
    """The mark that stands for an outcome, as in the timeline."""
    return tag(
        "svg",
        tag("use", href=f"#m-{kind}", x=6, y=6),
        class_=f"sign {kind}",
        width=12,
        height=12,
        aria_hidden="true",
        focusable="false",
    )


def signs() -> Markup:
    """Their shapes, once a page; each is drawn around 0,0."""
    shapes = {
        "passed": tag("rect", x=-4, y=-2, width=8, height=4, rx=2),
        "open": tag("path", d="M-4,-2 H1 L4,0 L1,2 H-4 Z"),
        "noted": tag("circle", r=3, cx=0, cy=0, class_="ring"),
        "failed": tag("path", d="M0,-4.5 L4.5,3.5 H-4.5 Z"),
        "refused": tag("path", d="M-3,-3 L3,3 M3,-3 L-3,3", class_="stroke"),
        "closed": tag("path", d="M0,-4 L4,0 L0,4 L-4,0 Z"),
    }
    symbols = (tag("g", shape, id_=f"m-{kind}") for kind, shape in shapes.items())
    return tag(
        "svg", symbols, width=0, height=0, class_="shapes", aria_hidden="true", focusable="false"
    )


def listed(lines: Iterable[str]) -> Markup | None:
    found = [tag("li", line) for line in lines]
    return tag("ul", found, class_="notes") if found else None
