"""What came of a row, as a line of the table and as JUnit XML. Pure but for reading two files.

Each row has one result: passed, failed (tests did), panicked, timed out, not started or vanished;
the last four have no tests to count and count as one error, so that no reader of the XML overlooks
them.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final
from xml.etree import ElementTree

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.vm.guest import Outcome
    from tests.vm.suite import Row

PASSED: Final = 0
FAILED: Final = 1
CRASHED: Final = 2
TIMED_OUT: Final = 3
_HEADINGS: Final = (
    *("kernel", "Debian", "variant", "cgroups", "headers", "kprobes", "netkit", "IPv6", "tproxy"),
    *("probe", "tests", "failed", "seconds", "result"),
)


@dataclass(frozen=True, slots=True)
class Done:
    """A row that ran. `counts`: tests, failures, errors, skipped of its JUnit file."""

    row: Row
    release: str
    userland: str
    outcome: Outcome
    facts: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def bad(self) -> int:
        return self.counts.get("failures", 0) + self.counts.get("errors", 0)

    @property
    def status(self) -> int:
        """PASSED only if tests ran, none failed and pytest ended well."""
        if self.outcome.kind == "timed out":
            return TIMED_OUT
        if self.outcome.kind != "ended":
            return CRASHED
        ran = self.counts.get("tests", 0) - self.counts.get("skipped", 0)
        return PASSED if self.outcome.status == 0 and ran > 0 and self.bad == 0 else FAILED

    @property
    def result(self) -> str:
        if self.outcome.kind != "ended":
            return self.outcome.kind
        return "passed" if self.status == PASSED else "failed"


def worst(outcomes: Sequence[Outcome]) -> Outcome:
    """Of the guests that shared a row: one that crashed, or ran out of time, or whose tests failed.

    Its `seconds` are those of the one that took longest.
    """

    def rank(one: Outcome) -> tuple[bool, bool, int]:
        return one.kind not in ("ended", "timed out"), one.kind != "ended", one.status or 0

    ranked = max(outcomes, key=rank)
    return replace(ranked, seconds=max(one.seconds for one in outcomes))


def read_facts(place: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((place / "facts.json").read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    return {}


def suites_of(place: Path) -> list[ElementTree.Element]:
    """The `testsuite` elements that a guest's pytest wrote."""
    with contextlib.suppress(OSError, ElementTree.ParseError):
        root = ElementTree.parse(place / "junit.xml").getroot()
        return list(root.iter("testsuite"))
    return []


def counts_of(suites: Sequence[ElementTree.Element]) -> dict[str, int]:
    names = ("tests", "failures", "errors", "skipped")
    return {name: sum(int(suite.get(name, "0")) for suite in suites) for name in names}


def _cells(done: Done) -> list[str]:
    facts, doctor = done.facts, done.facts.get("doctor", {})

    def told(known: bool, value: Any) -> str:
        return ("yes" if value else "no") if known else "?"

    return [
        done.release,
        done.userland,
        done.row.lack.name if done.row.lack else "",
        str(facts.get("cgroups", "?")),
        str(facts.get("headers", "?")).removesuffix("-common") or "none",
        *(told(name in facts, facts.get(name)) for name in ("kprobes", "netkit", "ipv6")),
        told("nft_tproxy" in facts, facts.get("nft_tproxy")),
        told("probe" in doctor, doctor.get("probe")),
        str(done.counts.get("tests", 0)),
        str(done.bad),
        f"{done.outcome.seconds:.0f}",
        done.result,
    ]


def _key(cells: Sequence[str]) -> tuple[str, ...]:
    """What a row is about, however new its kernel: series, flavour, Debian and variant."""
    series = ".".join(cells[0].split(".")[:2])
    flavour = cells[0].split("-")[-2] if cells[0].count("-") > 1 else ""
    return series, "cloud" if flavour == "cloud" else "", *cells[1:3]


def _read(text: str) -> list[list[str]]:
    """The rows of a table that `table` wrote; none if it had other columns."""
    lines = [
        [cell.strip() for cell in line.strip().strip("|").split("|")] for line in text.splitlines()
    ]
    return lines[2:] if lines[:1] == [list(_HEADINGS)] else []


def table(rows: Sequence[Done], before: str = "") -> str:
    """Markdown, aligned for a terminal too. Rows of the table `before` that did not run stay."""
    cells = {_key(line): line for line in _read(before)}
    cells |= {_key(line): line for line in map(_cells, rows)}
    lines = [list(_HEADINGS), *cells.values()]
    widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADINGS))]
    lines.insert(1, ["-" * width for width in widths])
    return "".join(
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |\n"
        for line in lines
    )


def junit(rows: Sequence[tuple[Done, Sequence[ElementTree.Element]]]) -> str:
    """One document with every row's suites, each named after its row."""
    root = ElementTree.Element("testsuites", name="test-vm")
    for done, suites in rows:
        name = f"{done.release} {done.row.lack.name if done.row.lack else ''}".rstrip()
        for suite in suites:
            suite.set("name", name)
            root.append(suite)
        if done.outcome.kind != "ended" or not suites:
            suite = ElementTree.SubElement(root, "testsuite", name=name, tests="1", errors="1")
            case = ElementTree.SubElement(suite, "testcase", classname=name, name="the guest ends")
            error = ElementTree.SubElement(
                case, "error", message=done.outcome.why or "no tests ran"
            )
            error.text = done.outcome.tail
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True)


def status_of(rows: Sequence[Done]) -> int:
    """A crash is told before a time limit, a time limit before failed tests."""
    found = {done.status for done in rows}
    return next((status for status in (CRASHED, TIMED_OUT, FAILED) if status in found), PASSED)
