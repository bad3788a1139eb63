"""`netns-debug ws`: the WebSockets of a sandbox, and for each that failed who ended it and why.

Reads the recent events of a running sandbox or an audit file; changes nothing. Ends with status 0,
whatever there was to explain, or with one NetnsError.
"""

from __future__ import annotations

import os
from collections import deque
from typing import TYPE_CHECKING, Final

from netns_runtime.cli.text import say, say_json
from netns_runtime.debug.text import Page, age_of, clock_of, shown, where_of, who_of
from netns_runtime.debug.wsexplain import explain
from netns_runtime.debug.wslives import is_failure, lives_of, opaque_tunnels
from netns_runtime.debug.wswords import as_fields
from netns_runtime.errors import UsageError

if TYPE_CHECKING:
    from netns_runtime.debug.evidence import Evidence
    from netns_runtime.debug.wslives import Life
    from netns_runtime.debug.wswords import Explanation

OTHERS: Final = 200
"""Lives of the same host that one is compared with, the newest: a client in a loop has 100,000."""

USAGE: Final = """\
usage: netns-debug ws [SANDBOX] [--from AUDIT] [--host HOST] [--all] [--json]

Every WebSocket that failed, and every attempt that may have been to become one: who ended it, the
evidence, the usual cause, what to do.

  SANDBOX       a running one, whose last 1,000 or so events are looked at
  --from AUDIT  what --audit wrote, instead; SANDBOX then is one of those in it
  --host HOST   only this host
  --all         also those that ended well, or are open

A close code is known where frames are seen: rules with `protocol: websocket`, bound secrets.
"""


def main(words: list[str], as_json: bool) -> int:
    """The exit status."""
    options, names = _parsed(words)
    evidence = _evidence(options.get("--from"), names[0] if names else None)
    lives = lives_of(evidence)
    host = options.get("--host")
    if host is not None:
        lives = [life for life in lives if host in (life.get("host"), life.get("address"))]
    by_host: dict[object, deque[Life]] = {}
    for life in lives:
        others = by_host.setdefault((life.get("host"), life.get("port")), deque(maxlen=OTHERS))
        others.append(life)
    wanted = [life for life in lives if "--all" in options or is_failure(life)]
    found = [(life, explain(life, by_host[life.get("host"), life.get("port")])) for life in wanted]
    opaque = len(opaque_tunnels(evidence))
    if as_json:
        said = [as_fields(life, explanation) for life, explanation in found]
        rest = {"source": evidence.source, "notes": list(evidence.notes), "lost": evidence.lost}
        say_json({**rest, "websockets": said, "opaque_tunnels": opaque})
        return 0
    say(_told(evidence, lives, found, opaque, Page()))
    return 0


def _parsed(words: list[str]) -> tuple[dict[str, str], list[str]]:
    options: dict[str, str] = {}
    names: list[str] = []
    rest = list(words)
    while rest:
        word = rest.pop(0)
        option, equals, value = word.partition("=")
        if option in ("--from", "--host"):
            if not equals and not rest:
                raise UsageError(f"ws: {option} needs a value", remedy="see netns-debug ws --help")
            options[option] = value if equals else rest.pop(0)
        elif word == "--all":
            options[word] = ""
        elif word.startswith("-"):
            raise UsageError(f"ws: unknown option {word}", remedy="see netns-debug ws --help")
        else:
            names.append(word)
    if len(names) > 1:
        raise UsageError(f"ws takes one SANDBOX, not {names[1]!r}", remedy="name one of them")
    return options, names


def _evidence(audit: str | None, name: str | None) -> Evidence:
    if audit is not None:
        from netns_runtime.debug.evidence import read_audit

        found = read_audit(audit)
        return found if name is None else found.only(name)
    if os.geteuid() != 0:
        raise UsageError("needs root", remedy="run sudo netns-debug ..., or name --from AUDIT")
    from netns_runtime.debug import live

    return live.recent(live.chosen(name).name)


def _told(
    evidence: Evidence,
    lives: list[Life],
    found: list[tuple[Life, Explanation]],
    opaque: int,
    page: Page,
) -> str:
    parts = [_block(life, explanation, page) for life, explanation in found]
    sockets = [life for life in lives if life.is_websocket]
    failed = sum(map(is_failure, sockets))
    tried = sum(not life.is_websocket for life in lives)
    summary = (
        f"{evidence.source}: {len(sockets)} WebSockets, {failed} of them failed; "
        f"{tried} connections failed before it was known what they were to be"
    )
    if opaque:
        summary += (
            f"; {opaque} TLS tunnels were not looked into and may have carried some: a rule with "
            "`protocol: websocket` for their host would show"
        )
    notes = [page.paragraph(f"note: {note}") for note in evidence.notes]
    return "\n\n".join([*parts, "\n".join([page.paragraph(summary), *notes])])


def _block(life: Life, found: Explanation, page: Page) -> str:
    path = life.get("path") if life.is_websocket else None
    head = f"{clock_of(life.last)}  {where_of(life.last)}{shown(path or '', 300)}"
    colour = "red" if is_failure(life) else "green"
    facts = [who_of({key: life.get(key) for key in ("comm", "pid") if life.get(key) is not None})]
    if life.stage == "open" and life.duration is not None:
        facts.append(f"open {age_of(life.duration)}")
    counted = life.get("messages_in"), life.get("messages_out")
    if counted[0] is not None:
        facts.append(f"{shown(counted[0])} messages in, {shown(counted[1])} out")
    if life.count > 1:
        facts.append(f"{life.count} times")
    rows = [("ended by", found.who)]
    rows += [("evidence" if not index else "", text) for index, text in enumerate(found.evidence)]
    rows += [("usually", found.usually), ("do", found.do)]
    lines = [f"{page.paint(head, 'bold')}  {page.paint(found.key, colour)}"]
    if len(head) + len(found.key) + 2 > page.width:
        lines = [page.paint(head, "bold"), f"  {page.paint(found.key, colour)}"]
    lines.append("  " + ", ".join(facts))
    lines += [
        page.paragraph(shown(text), indent=f"  {label.ljust(9)} ", hanging=" " * 12)
        for label, text in rows
    ]
    return "\n".join(lines)
