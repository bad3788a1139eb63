"""A Story as a page: what happened, in the order in which a person asks.

Totals, a timeline, who talked to whom, what was refused and what would allow it, what failed, the
lives of WebSockets, requests, secrets, flows. Pure, and bounded: what has no room is counted, and
said to be left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from netns_runtime.debug.report import draw
from netns_runtime.debug.report.cards import failures, refusals, websockets
from netns_runtime.debug.report.html import Markup, document, tag, together
from netns_runtime.debug.report.parts import (
    badge,
    clock_of,
    grouped,
    listed,
    pairs,
    plural,
    section,
    signs,
    span_of,
    table,
)
from netns_runtime.debug.report.style import STYLE
from netns_runtime.debug.text import size_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from netns_runtime.debug.report.story import Story, Totals

TALKS: Final = 40
"""Rows of the matrix that stand open."""
_FOOT: Final = (
    "All times are UTC and the audit's own. Written by netns-debug report of netns_runtime; this "
    "page has no script and asks for nothing."
)
_SIGNALS: Final = {1: "HUP", 2: "INT", 6: "ABRT", 9: "KILL", 11: "SEGV", 13: "PIPE", 15: "TERM"}


def page_of(stories: Sequence[Story], notes: Sequence[str]) -> str:
    """The whole document. One story is a page; several are chapters of one."""
    is_one = len(stories) == 1
    chapters = [
        _chapter(story, "" if is_one else f"s{number}-") for number, story in enumerate(stories, 1)
    ]
    said = listed(notes)
    title = f"{stories[0].name}: sandbox report" if is_one else "Sandbox report"
    contents: Markup | None = None
    if not is_one:
        links = (
            tag("li", tag("a", story.name, href=f"#s{number}-top"), " ", _headline(story))
            for number, story in enumerate(stories, 1)
        )
        heading = tag("h1", f"{len(stories)} sandboxes")
        contents = tag("header", heading, tag("p", stories[0].source), tag("ul", links))
    foot = tag("footer", tag("p", _FOOT))
    body = tag("main", contents, _notes(said) if said else None, chapters)
    return document(title, STYLE, together(signs(), body, foot))


def _notes(said: Markup) -> Markup:
    return tag("div", tag("strong", "About the evidence"), said, class_="evidence")


def _chapter(story: Story, key: str) -> Markup:
    parts = [
        _top(story, key),
        _timeline(story, key),
        _talks(story, key),
        refusals(story, key),
        failures(story, key),
        websockets(story, key),
        _requests(story, key),
        _secrets(story, key),
        _flows(story, key),
        _left_out(story, key),
    ]
    return tag("article", parts, class_="story")


def _headline(story: Story) -> str:
    totals = story.totals
    attempts = dict(totals.attempts)
    refused = attempts["refused"] + totals.untold
    said = ["nothing was refused"]
    if refused:
        places = plural(totals.places_refused, "destination")
        more = "more than " if totals.is_more else ""
        verb = "was" if refused == 1 else "were"
        said = [f"{plural(refused, 'attempt')} at {more}{places} {verb} refused"]
    if attempts["noted"]:
        said.append(f"{plural(attempts['noted'], 'attempt')} would have been, without --report")
    if totals.sockets_failed:
        said.append(f"{plural(totals.sockets_failed, 'WebSocket')} failed")
    failed = sum(t.count for t in story.failures)
    if failed:
        said.append(f"{plural(failed, 'other attempt')} failed after being allowed")
    return f"{'; '.join(said)}."


def _top(story: Story, key: str) -> Markup:
    status = story.status
    ended = "no end on record"
    if status is not None:
        signal = _SIGNALS.get(status - 128)
        ended = f"exit status {status}" + (f" (SIG{signal})" if signal else "")
    if story.seen_at:
        ended = f"running, seen at {story.seen_at[11:19]}"
    facts = pairs(
        [
            ("Command", tag("code", story.command) if story.command else None),
            ("Started", _moment(story.began)),
            ("Ended", _moment(story.ended)),
            ("Lasted", f"{span_of(story.seconds)}, {ended}"),
            *story.facts,
            ("Source", story.source),
        ]
    )
    said = listed(story.notes)
    return tag(
        "header",
        tag("p", "Sandbox", class_="kicker"),
        tag("h1", story.name, id_=f"{key}top"),
        tag("p", _sentence(_headline(story)), class_="lead"),
        facts,
        _tiles(story.totals),
        _notes(said) if said else None,
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _moment(time: str) -> Markup | None:
    return tag("time", f"{time[:10]} {time[11:19]}", datetime=time) if time else None


def _tiles(totals: Totals) -> Markup:
    attempts = dict(totals.attempts)
    exact = "no exact count on record"
    if totals.refused is not None:
        exact = f"exact: hook {grouped(totals.counted_bpf)}, nft {grouped(totals.counted_nft)}"
    refused = totals.events_refused if totals.refused is None else totals.refused
    tiles = [
        (grouped(refused), "refused connects", exact, "refused" if refused else ""),
        (
            grouped(totals.names_refused),
            "refused names",
            f"{grouped(totals.names_answered)} answered",
            "refused" if totals.names_refused else "",
        ),
        (
            grouped(totals.flows),
            "flows",
            f"{grouped(attempts['failed'])} attempts failed, {grouped(totals.flows_open)} open",
            "failed" if attempts["failed"] else "",
        ),
        (grouped(totals.requests), "HTTP requests", "where they were seen", ""),
        (
            grouped(totals.sockets),
            "WebSockets",
            f"{grouped(totals.sockets_failed)} failed",
            "failed" if totals.sockets_failed else "",
        ),
        (size_of(totals.bytes_out), "sent", f"{size_of(totals.bytes_in)} received", ""),
    ]
    if totals.published:
        tiles.append((grouped(totals.published), "published requests", "from the host", ""))
    return tag(
        "ul",
        (
            tag("li", tag("strong", number), tag("span", what), tag("small", more),
                class_=f"tile {kind}".strip())
            for number, what, more, kind in tiles
        ),
        class_="tiles",
    )  # fmt: skip


def _timeline(story: Story, key: str) -> Markup:
    note = draw.slice_note(story.timeline)
    untold = story.totals.untold
    said = [
        note,
        f"{grouped(untold)} refused connects were counted and not told one by one"
        if untold
        else None,
    ]
    return section(
        f"{key}timeline",
        "Timeline",
        tag("p", "A bar is a flow, a sign a moment. Point at one for what it was; follow it for "
                 "all that is known.", class_="hint"),
        draw.timeline(story.timeline, key, _places(story)),
        listed(line for line in said if line),
    )  # fmt: skip


def _places(story: Story) -> frozenset[str]:
    """The ids of this chapter that have more to say than a mark."""
    troubles = {trouble.id for trouble in (*story.refusals, *story.failures)}
    flows = {f"flow-{flow.number}" for flow in story.flows}
    return frozenset(troubles | flows | {socket.id for socket in story.sockets})


def _talks(story: Story, key: str) -> Markup:
    if not story.talks:
        return together()
    rows = [
        (
            "",
            (
                talk.who,
                tag("code", talk.where),
                _count(talk.passed + talk.noted, "passed"),
                _count(talk.failed, "failed"),
                _count(talk.refused, "refused"),
                size_of(talk.bytes_out) if talk.bytes_out else "-",
                size_of(talk.bytes_in) if talk.bytes_in else "-",
            ),
        )
        for talk in story.talks
    ]
    header = ("Process", "Destination", "Passed", "Failed", "Refused", "Sent", "Received")
    numbers = (2, 3, 4, 5, 6)
    first = table("Attempts and bytes by process and destination", header, rows[:TALKS], numbers)
    rest = rows[TALKS:]
    return section(
        f"{key}talks",
        "Who talked to whom",
        draw.ribbons(story.talks),
        first,
        _more(f"{len(rest)} more pairs", table("The other pairs", header, rest, numbers))
        if rest
        else None,
    )


def _count(number: int, outcome: str) -> Markup | str:
    return tag("span", grouped(number), class_=outcome) if number else "-"


def _more(title: str, content: Markup) -> Markup:
    return tag("details", tag("summary", title), content)


def _requests(story: Story, key: str) -> Markup:
    if not story.requests:
        return together()
    families = ("1xx", "2xx", "3xx", "4xx", "5xx", "failed", "refused", "unknown")
    used = [f for f in families if any(f in dict(row.statuses) for row in story.requests)]
    rows = [
        (
            "",
            (
                tag("code", row.where),
                grouped(row.count),
                ", ".join(f"{name} {grouped(n)}" for name, n in row.methods[:6]),
                *(grouped(n) if (n := dict(row.statuses).get(f)) else "-" for f in used),
            ),
        )
        for row in story.requests
    ]
    numbers = (1, *range(3, 3 + len(used)))
    header = ("Host", "Requests", "Methods", *used)
    slow = [
        (
            "",
            (
                clock_of(row.time),
                tag("code", row.where),
                tag("code", row.what),
                row.status,
                f"{row.milliseconds:.0f} ms"
                if row.milliseconds >= 10
                else f"{row.milliseconds:.1f} ms",
            ),
        )
        for row in story.slowest
    ]
    slowest = table(
        "Slowest first answers of a connection: from the decision to the answer's head, dial and "
        "TLS included",
        ("Time", "Host", "Request", "Status", "Took"),
        slow,
        (4,),
    )
    return section(
        f"{key}requests",
        "HTTP requests",
        table("Requests by host, with the class of the answer's status", header, rows, numbers),
        _more("The slowest", slowest) if slow else None,
    )


def _secrets(story: Story, key: str) -> Markup:
    if not story.secrets:
        return together()
    rows = [
        (
            "",
            (
                tag("code", secret.name),
                grouped(secret.substituted),
                ", ".join(secret.slots) or "-",
                ", ".join(secret.hosts or secret.bound) or "-",
                _count(secret.withheld, "refused"),
                "; ".join(secret.why) or "-",
            ),
        )
        for secret in story.secrets
    ]
    header = ("Secret", "Put in", "Slots", "Hosts", "Withheld", "Because")
    return section(
        f"{key}secrets",
        "Secrets",
        tag("p", "By name. No value is in an audit or on this page.", class_="hint"),
        table("What became of each secret", header, rows, (1, 4)),
    )


def _flows(story: Story, key: str) -> Markup:
    if not story.flows:
        return together()
    rows = [
        (
            f"{key}flow-{flow.number}",
            (
                flow.number,
                clock_of(flow.time),
                flow.who,
                tag("code", flow.where),
                f"{flow.entry} {flow.protocol}".strip(),
                badge(flow.outcome),
                span_of(flow.seconds) if flow.seconds is not None else "-",
                size_of(flow.bytes_out),
                size_of(flow.bytes_in),
            ),
        )
        for flow in story.flows
    ]
    header = ("#", "Time", "Process", "To", "How", "Outcome", "Lasted", "Sent", "Received")
    whole = table("Flows in order of time", header, rows, (0, 6, 7, 8))
    title = f"{plural(len(rows), 'flow')} one by one"
    return section(f"{key}flows", "Flows", _more(title, whole))


def _left_out(story: Story, key: str) -> Markup:
    said = listed(story.left_out)
    return section(f"{key}left-out", "What this page leaves out", said) if said else together()
