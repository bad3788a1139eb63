"""One event of the trace: whether it is wanted, and how a person sees it.

Pure. The first line of an event says when, what became of it, who and where; the lines below say
why, what would allow it, and whose child the process is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from netns_runtime.debug.text import clock_of, named, shown, size_of, where_of, who_of
from netns_runtime.policy.hosts import host_matches

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from netns_runtime.debug.text import Page

ACTIONS: Final = ("refuse", "fail", "allow", "close")
_LABELS: Final = {
    "refuse": ("REFUSED", ("red", "bold")),
    "fail": ("FAILED", ("yellow", "bold")),
    "allow": ("allowed", ("green",)),
    "close": ("closed", ("dim",)),
    "": ("", ()),
}
_SHORT: Final = {
    "connect.refused": "connect",
    "dns.refused": "name",
    "dns.answered": "name",
    "flow.decided": "flow",
    "flow.closed": "flow",
    "http.request": "http",
    "ws.opened": "ws",
    "ws.closed": "ws",
    "ws.message": "ws",
    "secret.substituted": "secret",
    "secret.withheld": "secret",
    "publish.request": "publish",
}
_FINE_CODES: Final = (1000, 1001, 1005)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Filters; empty is everything. `processes`: names, paths or pids. `hosts`: names, `*.tail`
    patterns or addresses. `actions`: of ACTIONS."""

    processes: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()

    def has(self, event: Mapping[str, Any]) -> bool:
        """Whether the event is to be shown. The sandbox's own start and end always are."""
        if str(event.get("event", "")).startswith("sandbox."):
            return True
        if self.actions and action_of(event) not in self.actions:
            return False
        if self.processes:
            names = {str(event.get(key)) for key in ("pid", "comm", "exe") if key in event}
            names |= {str(event["exe"]).rpartition("/")[2]} if event.get("exe") else set()
            if not names & set(self.processes):
                return False
        return not self.hosts or any(_is_at(event, host) for host in self.hosts)


def _is_at(event: Mapping[str, Any], wanted: str) -> bool:
    host, address = event.get("host"), event.get("address")
    if wanted in (host, address):
        return True
    if not wanted.startswith("*.") or not isinstance(host, str):
        return False
    return host_matches("*" + wanted, host)


def action_of(event: Mapping[str, Any]) -> str:
    """refuse, fail (upstream, or the client broke it), allow, close, or "" for anything else."""
    kind = event.get("event")
    if event.get("action") == "refuse" or kind in ("connect.refused", "dns.refused"):
        return "refuse"
    status, code = event.get("status"), event.get("code")
    if kind == "http.request":
        return "fail" if isinstance(status, int) and status >= 400 else "allow"
    if kind == "flow.closed":
        return "fail" if event.get("reason") else "close"
    if kind == "ws.closed":
        return "close" if code in _FINE_CODES else "fail"
    if kind in ("flow.decided", "dns.answered", "ws.opened", "publish.request"):
        return "allow"
    return "refuse" if kind == "secret.withheld" else ""


def lines_of(
    event: Mapping[str, Any], ancestry: Sequence[Mapping[str, Any]], page: Page
) -> list[str]:
    """The event for a person."""
    kind = str(event.get("event", ""))
    if kind.startswith("sandbox."):
        return [page.paint(page.paragraph(_of_sandbox(event), hanging=" " * 13), "bold")]
    label, styles = _LABELS[action_of(event)]
    lead = f"{clock_of(event)} {label:<7} {shown(_SHORT.get(kind, kind), 12):<7} "
    what = f"{who_of(event)} -> {_place(event)}"
    if facts := _facts(event):
        what += f"  {facts}"
    first = page.paragraph(what, indent=lead, hanging=" " * 21)
    time, rest = first[: len(clock_of(event)) + 1], first[len(clock_of(event)) + 1 :]
    painted = page.paint(rest[: len(label)], *styles) + rest[len(label) :] if label else rest
    lines = [page.paint(time, "dim") + painted]
    is_bad = action_of(event) in ("refuse", "fail")
    for key, mark in (("detail", "why  "), ("rule", "rule "), ("remedy", "fix  ")):
        if event.get(key) and is_bad:
            indent = " " * 13 + mark
            text = page.paragraph(shown(event[key]), indent=indent, hanging=" " * 18)
            lines.append(page.paint(text, "cyan") if key == "remedy" else text)
    if is_bad and (event.get("exe") or ancestry):
        chain = [named(event.get("exe") or event.get("comm") or "?")]
        chain += [f"{named(entry['comm'])}({entry['pid']})" for entry in ancestry]
        text = page.paragraph(" < ".join(chain), indent=" " * 13 + "by   ", hanging=" " * 18)
        lines.append(page.paint(text, "dim"))
    return lines


def _place(event: Mapping[str, Any]) -> str:
    where = where_of(event)
    if event.get("method"):
        return f"{shown(event['method'])} {where}{shown(event.get('path') or '', 200)}"
    if event.get("host") and event.get("address"):
        where += f" ({shown(event['address'])})"
    return where


def _facts(event: Mapping[str, Any]) -> str:
    found = [shown(event[k]) for k in ("status", "code", "reason") if event.get(k) is not None]
    if event.get("count", 1) != 1:
        found.append(f"{shown(event['count'])} times")
    if event.get("event") == "flow.closed":
        moved = (event.get("bytes_out") or 0, event.get("bytes_in") or 0)
        found.append(f"{size_of(moved[0])} out, {size_of(moved[1])} in")
    if event.get("said_by") and action_of(event) in ("refuse", "fail"):
        found.append(f"said by {shown(event['said_by'])}")
    return ", ".join(found)


def _of_sandbox(event: Mapping[str, Any]) -> str:
    name = shown(event.get("sandbox", "-"))
    if event.get("event") == "sandbox.exited":
        return f"{clock_of(event)} sandbox {name} ended with {shown(event.get('code', '?'))}"
    return f"{clock_of(event)} sandbox {name} started {shown(event.get('command', ''))}".rstrip()


def total_line(totals: Mapping[str, int], base: Mapping[str, int], told: int, unwanted: int) -> str:
    """How many connects were refused since the trace began, and how many of them no line told.

    `told` were seen as events, `unwanted` of these were left out by filters.
    """
    refused = totals.get("count", 0) - base.get("count", 0)
    untold = max(0, refused - told)
    text = f"{refused} refused connects since the trace began; {told - unwanted} shown"
    if unwanted:
        text += f", {unwanted} left out by the filters"
    if untold:
        text += f", {untold} counted and not told one by one (100/s are, and none after the end)"
    return text
