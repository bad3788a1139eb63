"""What `netns-debug why` prints: an explanation as a page for a person, or as a value for --json.

Pure: facts and an Explanation in, text out. Whatever the sandbox chose goes through `shown`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from netns_runtime.debug.steps import TITLES
from netns_runtime.debug.text import Page, clock_of, shown, where_of, who_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from netns_runtime.debug.attempts import Attempt
    from netns_runtime.debug.evidence import Evidence
    from netns_runtime.debug.foresee import Question
    from netns_runtime.debug.live import InForce
    from netns_runtime.debug.walk import Explanation
    from netns_runtime.policy import Policy

SHOWN_ATTEMPTS: Final = 5
_MARKS: Final = {
    "ok": ("ok", ("green",)),
    "stop": ("STOP", ("red", "bold")),
    "unknown": ("?", ("yellow",)),
    "unreached": ("-", ("dim",)),
}


@dataclass(frozen=True, slots=True)
class Known:
    """What there is to judge by."""

    source: str
    evidence: Evidence
    policy: Policy | None
    judged_by: str
    redirect: bool | None
    report: bool = False
    in_force: InForce | None = None
    notes: tuple[str, ...] = ()


def counts_of(question: Question, known: Known) -> dict[str, Any] | None:
    """The kernel's exact counters; None where no kernel was asked."""
    found = known.in_force
    if found is None:
        exited = [e for e in known.evidence.events if e["event"] == "sandbox.exited"]
        keys = ("count", "counted_bpf", "counted_nft", "suppressed")
        told = {key: exited[-1][key] for key in keys if key in exited[-1]} if exited else {}
        return told or None
    here = sum(
        int(entry["count"])
        for entry in found.destinations
        if question.target.host in (entry.get("host"), entry["address"])
        and entry["port"] in (question.target.port, None)
    )
    return {**found.totals, "to_this_host": here, "packets": found.packets}


def json_of(
    question: Question,
    known: Known,
    found: Explanation,
    attempts: Sequence[Attempt],
    counts: dict[str, Any] | None,
    notes: Sequence[str],
) -> dict[str, Any]:
    told = {key: value for key, value in asdict(found).items() if key != "notes"}
    return {
        "host": question.target.host,
        "port": question.target.port,
        "source": known.source,
        "judged_by": known.judged_by,
        **told,
        "policy_helps": bool(found.changes) if found.stops_at is not None else None,
        "attempts": [attempt.summary() for attempt in attempts[-50:]],
        "counters": counts,
        "notes": list(notes),
    }


def page_of(
    question: Question,
    known: Known,
    found: Explanation,
    attempts: Sequence[Attempt],
    counts: dict[str, Any] | None,
    notes: Sequence[str],
) -> str:
    page = Page()
    lines = []
    state = f"stops at {TITLES[found.stops_at]}" if found.stops_at else found.verdict
    colour = "red" if found.stops_at else ("yellow" if found.said_by == "unknown" else "green")
    head = f"{question.target} in {known.source}: "
    lines.append(page.paint(page.paragraph(head + state), "bold", colour))
    lines.append(page.paragraph(shown(found.cause), indent="  "))
    if found.stops_at:
        whose = found.verdict if found.is_observed else f"{found.verdict} (nobody tried it yet)"
        lines.append(page.paragraph(f"{whose}.", indent="  "))
    lines.append("")
    lines += [_line_of(page, step.step, step.state, step.detail, step.rule) for step in found.steps]
    if found.changes:
        lines += ["", page.paint("what would allow it", "bold")]
        for number, change in enumerate(found.changes):
            lead = "  or  " if number else "      "
            lines.append(page.paint(page.paragraph(shown(change), indent=lead), "cyan"))
    elif found.stops_at and found.said_by != "upstream":
        lines += ["", page.paragraph("no policy or flag is known that would allow it")]
    if found.advice:
        lines += ["", page.paint("what helps", "bold")]
        lines.append(page.paragraph(shown(found.advice), indent="      "))
    lines += _attempt_lines(page, attempts)
    if counts is not None:
        to_here = f", {counts['to_this_host']} to here" if "to_this_host" in counts else ""
        told = (
            f"kernel: {counts.get('count', 0)} refused connects in all (hook "
            f"{counts.get('counted_bpf', 0)}, nft {counts.get('counted_nft', 0)}){to_here}"
        )
        lines += ["", page.paragraph(told)]
    lines += ["", page.paragraph(f"judged by {known.judged_by}")]
    lines += [page.paragraph(f"note: {shown(note)}", hanging="      ") for note in notes]
    return "\n".join(lines)


def _line_of(page: Page, step: str, state: str, detail: str, rule: str | None) -> str:
    mark, styles = _MARKS[state]
    lead = f"{mark:<5} {TITLES[step]:<15} "
    text = shown(detail) + (f" [{shown(rule)}]" if rule and rule not in detail else "")
    wrapped = page.paragraph(text, indent=lead, hanging=" " * len(lead))
    return page.paint(mark, *styles) + wrapped[len(mark) :]


def _attempt_lines(page: Page, attempts: Sequence[Attempt]) -> list[str]:
    if not attempts:
        return ["", "no attempt is on record"]
    lines = ["", page.paint(f"last attempts ({len(attempts)} on record, UTC)", "bold")]
    for attempt in attempts[-SHOWN_ATTEMPTS:]:
        who = who_of({key: attempt.get(key) for key in ("pid", "comm") if attempt.get(key)})
        where = where_of({k: attempt.get(k) for k in ("host", "address", "port") if attempt.get(k)})
        if attempt.get("method"):
            where = f"{attempt.get('method')} {where}{shown(attempt.get('path') or '')}"
        count = attempt.event.get("count", 1)
        times = f" {count} times" if count != 1 else ""
        what = shown(attempt.get("reason") or attempt.get("code") or attempt.get("status") or "")
        ended = f"{attempt.outcome} at {TITLES[attempt.step]}" if attempt.step else attempt.outcome
        text = f"{who} {where}{times}: {ended}" + (f" ({what})" if what else "")
        lead = f"  {clock_of(attempt.event)}  "
        lines.append(page.paragraph(text, indent=lead))
    return lines
