"""`netns-debug flows [SANDBOX]`: every open flow and those that closed lately.

Two looks a moment apart give the rates; the kernel gives round-trip times and retransmits of both
sockets, towards the sandbox and towards upstream; a WebSocket that is terminated tells its messages
and its last ping. Ends with 0, or with one NetnsError.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Final

from netns_runtime.cli.text import say, say_json
from netns_runtime.debug import live
from netns_runtime.debug.flowlist import Row, closed_of, rows_of, sample
from netns_runtime.debug.text import Page, age_of, clock_of, shown, size_of, where_of, who_of
from netns_runtime.errors import NetnsError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE: Final = """\
usage: netns-debug flows [SANDBOX] [--closed N] [--interval SECONDS] [--json]

Open flows, oldest first, then those that closed lately. `out` is towards upstream.
  --closed N          how many closed flows (default 20; --json: 200)
  --interval SECONDS  the time over which rates are measured (default 0.2; 0: no rates)
"""
LONGEST_INTERVAL: Final = 60.0


def main(words: list[str], as_json: bool) -> int:
    """List the flows of one sandbox."""
    name, options = parsed(words)
    if os.geteuid() != 0:
        raise UsageError("needs root", remedy="run sudo netns-debug …")
    record = live.chosen(name)
    interval = options["interval"]
    before = sample(record, sockets=False) if interval else None
    if before is not None and before.flows:
        time.sleep(interval)
    now = sample(record)
    rows = rows_of(now, before)
    closed, note = _closed(record.name)
    most = options["closed"]
    closed = closed[: (200 if as_json else 20) if most is None else most]
    if as_json:
        say_json([*rows, *closed])
    else:
        say(page_of(rows, closed, Page(), note))
    return 0


def parsed(words: list[str]) -> tuple[str | None, dict[str, Any]]:
    """The sandbox's name and the options. Raises UsageError."""
    options: dict[str, Any] = {"interval": 0.2, "closed": None}
    names = []
    rest = iter(words)
    for word in rest:
        if word == "--interval":
            options["interval"] = seconds_of(word, next(rest, ""))
        elif word == "--closed":
            text = next(rest, "")
            if not (text.isascii() and text.isdigit() and len(text) < 7):
                raise UsageError(f"--closed {text}: not a number", remedy="as in --closed 50")
            options["closed"] = int(text)
        elif word.startswith("-"):
            raise UsageError(f"flows has no option {word}", remedy="see netns-debug flows --help")
        else:
            names.append(word)
    if len(names) > 1:
        raise UsageError(f"flows takes no {names[1]!r}", remedy="see netns-debug flows --help")
    return (names[0] if names else None), options


def seconds_of(option: str, text: str, least: float = 0.0) -> float:
    """A time span. Raises UsageError."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not least <= value <= LONGEST_INTERVAL:
        raise UsageError(
            f"{option} {text}: not a time in seconds",
            remedy=f"give {least:g} to {LONGEST_INTERVAL:g}, as in {option} 0.5",
        )
    return value


def _closed(name: str) -> tuple[list[Row], str]:
    try:
        evidence = live.recent(name)
    except NetnsError as error:
        return [], f"flows that have closed are unknown: {error}"
    return closed_of(evidence.events), " ".join(evidence.notes)


def page_of(rows: Sequence[Row], closed: Sequence[Row], page: Page, note: str = "") -> str:
    """For a person: two lines for each open flow, one or two for each closed one."""
    parts = [page.paint(_plural(len(rows), "open flow"), "bold")]
    for row in rows:
        parts += _open_lines(row, page)
    if closed:
        parts += ["", page.paint(_plural(len(closed), "flow") + " closed lately", "bold")]
        for row in closed:
            parts += _closed_lines(row, page)
    if note:
        parts += ["", page.paragraph(note)]
    return "\n".join(parts)


def _plural(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _open_lines(row: Row, page: Page) -> list[str]:
    age = age_of(row.get("duration_ms", 0) / 1000)
    head = f"{row.get('flow', '-')}  {where_of(row)}  {who_of(row)}"
    kind = f"{row.get('protocol', '-')}, {row.get('entry', '-')}, {age}"
    address = row.get("address")
    at = f" at {shown(address)}" if address not in (None, row.get("host")) else ""
    facts = [
        kind + at,
        f"out {size_of(row.get('bytes_out', 0))}{_rate(row, 'out')}",
        f"in {size_of(row.get('bytes_in', 0))}{_rate(row, 'in')}",
        *socket_facts(row),
        *websocket_facts(row),
    ]
    return [
        page.paragraph(page.paint(head, "cyan"), hanging="      "),
        page.paragraph("; ".join(facts), indent="      "),
    ]


def _rate(row: Row, way: str) -> str:
    rate = row.get(f"rate_{way}")
    return "" if rate is None else f" ({size_of(rate)}/s)"


def socket_facts(row: Row) -> list[str]:
    """Round-trip times and retransmits, as far as the kernel told them."""
    facts = []
    for side in ("client", "upstream"):
        info = row.get(side)
        if not info:
            continue
        rtt = f"rtt {info['rtt_ms']:.1f} ms" if "rtt_ms" in info else "rtt unknown"
        again = info.get("retransmits")
        told = f"{side} {rtt}" + (f", {again} retransmitted" if again else "")
        state = info.get("state")
        facts.append(told + (f", {state}" if state not in (None, "established") else ""))
    return facts


def websocket_facts(row: Row) -> list[str]:
    """The WebSocket's state, messages and last ping, of one that is terminated."""
    if "websocket" not in row:
        return []
    facts = [
        f"websocket {row['websocket']}"
        + (f" with {row['code']}" if "code" in row else "")
        + f": {row.get('messages_out', 0)} messages out, {row.get('messages_in', 0)} in"
    ]
    if "ping_ms" in row:
        facts.append(f"last ping {age_of(row['ping_ms'] / 1000)} ago by {shown(row['ping_by'])}")
    elif row["websocket"] == "open":
        facts.append("no ping yet")
    return facts


def _closed_lines(row: Row, page: Page) -> list[str]:
    age = age_of(row.get("duration_ms", 0) / 1000)
    how = shown(row.get("reason") or "ended by both sides")
    by = f" (said by {shown(row['said_by'])})" if row.get("said_by") else ""
    line = (
        f"{row.get('flow', '-')}  {clock_of(row)}  {where_of(row)}  {who_of(row)}; lasted {age};"
        f" out {size_of(row.get('bytes_out', 0))}, in {size_of(row.get('bytes_in', 0))}; {how}{by}"
    )
    more = [*websocket_facts(row), *([shown(row["detail"])] if row.get("detail") else [])]
    lines = [page.paragraph(line, hanging="      ")]
    return lines + ([page.paragraph("; ".join(more), indent="      ")] if more else [])
