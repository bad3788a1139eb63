"""The explained parts of the page: refusals with their remedies, failures, and WebSocket lives.

A card for each of the most frequent, a row for each of the others; the words are those of
`netns-debug why` and `netns-debug ws`. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from netns_runtime.debug.report.html import Markup, tag, together
from netns_runtime.debug.report.parts import (
    badge,
    clock_of,
    grouped,
    listed,
    pairs,
    plural,
    section,
    span_of,
    table,
)
from netns_runtime.debug.report.story import CARDS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from netns_runtime.debug.report.html import Content
    from netns_runtime.debug.report.story import Socket, Story, Trouble


def refusals(story: Story, key: str) -> Markup:
    hint = (
        "What was stopped here, by which rule, and the smallest change that would let it through."
    )
    return _troubles(story.refusals, key, "refusals", "Refused", hint, "Nothing was refused.")


def failures(story: Story, key: str) -> Markup:
    if not story.failures:
        return together()
    hint = "Allowed by the policy, and broken by upstream, by the client, or on the way."
    return _troubles(story.failures, key, "failures", "Failed although allowed", hint, "")


def _troubles(
    troubles: Sequence[Trouble], key: str, name: str, title: str, hint: str, none: str
) -> Markup:
    if not troubles:
        return section(f"{key}{name}", title, tag("p", none, class_="none"))
    cards = [_card(trouble, key) for trouble in troubles[:CARDS]]
    rest = [
        (
            f"{key}{trouble.id}",
            (
                tag("code", trouble.where),
                trouble.what,
                trouble.who,
                trouble.reason,
                grouped(trouble.count),
                tag("code", "; or ".join(trouble.changes) or trouble.advice or "-"),
            ),
        )
        for trouble in troubles[CARDS:]
    ]
    header = ("Destination", "What", "Process", "Reason", "Times", "What would help")
    more: Markup | None = None
    if rest:
        rows = table(f"The other {len(rest)}", header, rest, (4,))
        more = tag("details", tag("summary", f"{plural(len(rest), 'more kind')} of them"), rows)
    body = tag("div", cards, class_="cards")
    return section(f"{key}{name}", title, tag("p", hint, class_="hint"), body, more)


def _card(trouble: Trouble, key: str) -> Markup:
    times = f"{grouped(trouble.count)}\u00d7" if trouble.count != 1 else ""
    if trouble.counted is not None and trouble.counted != trouble.count:
        times = f"{grouped(trouble.counted)}\u00d7 counted"
        if trouble.count:
            times += f", {grouped(trouble.count)} told"
    who: list[Content] = [tag("strong", trouble.who)]
    if trouble.pids:
        who.append(f" pid {', '.join(map(str, trouble.pids))}")
    if trouble.exe:
        who += [" ", tag("code", trouble.exe)]
    head = tag(
        "div",
        tag("h3", trouble.where),
        badge(trouble.outcome),
        tag("span", times, class_="times") if times else None,
        class_="head",
    )
    what = tag("p", trouble.what, class_="what")
    facts = pairs(
        [
            ("By", together(who)),
            ("When", _span(trouble.first, trouble.last)),
            (
                "Stopped at",
                f"{trouble.step} ({trouble.reason})" if trouble.step else trouble.reason,
            ),
            ("Because", trouble.cause),
            ("Rule", tag("code", trouble.rule) if trouble.rule else None),
        ]
    )
    return tag("article", head, what, facts, _remedy(trouble), id_=f"{key}{trouble.id}",
               class_=f"card {trouble.outcome}")  # fmt: skip


def _span(first: str, last: str) -> Markup | None:
    if not first:
        return None
    return clock_of(first) if first == last else together(clock_of(first), " to ", clock_of(last))


def _remedy(trouble: Trouble) -> Markup:
    said: list[Content] = []
    if trouble.changes:
        said.append(tag("p", "What would allow it", class_="label"))
        for number, change in enumerate(trouble.changes):
            lead = tag("span", "or ", class_="or") if number else None
            said.append(tag("p", lead, tag("code", change), class_="change"))
    elif trouble.outcome == "refused" and not trouble.advice:
        said.append(tag("p", "No policy or flag is known that would allow it."))
    else:
        said.append(tag("p", f"{trouble.verdict}.", class_="said"))
    if trouble.advice:
        said += [tag("p", "What helps", class_="label"), tag("p", trouble.advice, class_="said")]
    said.append(listed(trouble.notes))
    return tag("div", said, class_="remedy")


def websockets(story: Story, key: str) -> Markup:
    if not story.sockets:
        return together()
    failed = [socket for socket in story.sockets if socket.is_failed]
    well = [socket for socket in story.sockets if not socket.is_failed]
    cards = [_life(socket, key) for socket in failed[:CARDS]]
    rows = [
        (
            f"{key}{socket.id}",
            (
                tag("code", socket.where + socket.path),
                socket.who,
                grouped(socket.count),
                clock_of(socket.first),
                span_of(socket.duration) if socket.duration is not None else "-",
                _messages(socket) or "-",
                "still open" if socket.is_open else socket.kind,
            ),
        )
        for socket in [*well, *failed[CARDS:]]
    ]
    header = ("WebSocket", "Process", "Times", "First", "Open for", "Messages", "End")
    caption = "Open, or ended in order" if len(failed) <= CARDS else "The others"
    return section(
        f"{key}websockets",
        "WebSocket lives",
        tag("div", cards, class_="cards") if cards else None,
        table(caption, header, rows, (2, 4)) if rows else None,
    )


def _messages(socket: Socket) -> str:
    if socket.messages_in is None and socket.messages_out is None:
        return ""
    return f"{grouped(socket.messages_out or 0)} out, {grouped(socket.messages_in or 0)} in"


def _life(socket: Socket, key: str) -> Markup:
    head = tag(
        "div",
        tag("h3", socket.where, tag("span", socket.path, class_="path")),
        badge("failed"),
        tag("span", f"{grouped(socket.count)}\u00d7", class_="times") if socket.count > 1 else None,
        class_="head",
    )
    lasted = "never opened" if socket.duration is None else f"open {span_of(socket.duration)}"
    told = [lasted, _messages(socket), f"close code {socket.code}" if socket.code else ""]
    facts = pairs(
        [
            ("By", tag("strong", socket.who)),
            ("When", _span(socket.first, socket.last)),
            ("Life", ", ".join(part for part in told if part)),
            ("Ended by", socket.ended_by),
            ("Evidence", listed(socket.evidence)),
        ]
    )
    remedy = tag(
        "div",
        tag("p", "Usually", class_="label"),
        tag("p", socket.usually, class_="said"),
        tag("p", "What to do", class_="label"),
        tag("p", socket.do, class_="said"),
        class_="remedy",
    )
    return tag("article", head, tag("p", socket.kind, class_="what"), facts, remedy,
               id_=f"{key}{socket.id}", class_="card failed")  # fmt: skip
