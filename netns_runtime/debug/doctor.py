"""`netns-debug doctor SANDBOX`: what a running sandbox lives on, each thing tried or looked at.

Nothing is changed and nothing reaches the sandbox's audit: its DNS is asked for `localhost`, its
proxy for its counts. A check that could not be made says "unknown" and why. Ends with 0, with 1
where something has failed, or with one NetnsError.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

from netns_runtime.cli.text import say, say_json
from netns_runtime.control import ask
from netns_runtime.debug import live
from netns_runtime.debug.text import Page, shown
from netns_runtime.debug.vitals import (
    Finding,
    Looked,
    clock,
    command,
    dns,
    firewall,
    gateway,
    links,
    probe,
    proxy,
    resolver,
    trust,
    unregistered,
    uplink,
)
from netns_runtime.errors import NetnsError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from netns_runtime.state import Record

USAGE: Final = """\
usage: netns-debug doctor [--json]            could a sandbox start here
       netns-debug doctor SANDBOX [--json]    is this one well

Of a running sandbox: its command, proxy, DNS, links and MTU, gateway rules, probe, trust store,
clock, and on the uplink's side the routes, the resolver, and what its firewall may drop.
exit status: 0; 1 where something has failed; 125 for any error
"""
PATIENCE: Final = 3.0
CHECKS: Final[tuple[Callable[[Looked], Finding | list[Finding]], ...]] = (
    *(command, proxy, dns, links, gateway, probe, unregistered),
    *(trust, clock, uplink, resolver, firewall),
)
_COLOURS: Final = {"ok": "green", "fail": "red", "warn": "yellow", "unknown": "yellow"}


def main(words: list[str], as_json: bool) -> int:
    """Look at one sandbox."""
    wrong = next((word for word in words if word.startswith("-")), None) or "".join(words[1:2])
    if wrong:
        raise UsageError(f"doctor takes no {wrong!r}", remedy="see netns-debug doctor --help")
    if os.geteuid() != 0:
        raise UsageError("needs root", remedy="run sudo netns-debug …")
    record = live.chosen(words[0] if words else None)
    findings = examined(looked_at(record))
    is_well = all(finding.verdict != "fail" for finding in findings)
    if as_json:
        checks = [asdict(finding) for finding in findings]
        say_json({"sandbox": record.name, "well": is_well, "checks": checks})
    else:
        say(page_of(record.name, findings, Page(), is_well=is_well))
    return 0 if is_well else 1


def looked_at(record: Record) -> Looked:
    """What the supervisor says; None for what it does not answer."""

    def told(command: str) -> dict[str, Any] | None:
        try:
            answer = ask(record.name, {"command": command}, PATIENCE)
        except NetnsError:
            return None
        return None if "error" in answer else answer

    return Looked(record, told("enter"), told("uplink"))


def examined(looked: Looked) -> list[Finding]:
    """All findings, in the order of CHECKS; they are made side by side, as most of them wait."""

    def made(check: Callable[[Looked], Finding | list[Finding]]) -> list[Finding]:
        name = check.__name__
        try:
            found = check(looked)
        except NetnsError as error:
            return [Finding(name, "fail", error.what, error.remedy)]
        except (OSError, ValueError, KeyError, IndexError) as error:
            return [Finding(name, "unknown", f"could not be looked at: {error}")]
        return found if isinstance(found, list) else [found]

    with ThreadPoolExecutor(len(CHECKS)) as pool:
        return [finding for found in pool.map(made, CHECKS) for finding in found]


def page_of(name: str, findings: Sequence[Finding], page: Page, *, is_well: bool) -> str:
    """For a person."""
    lines = []
    for finding in findings:
        mark = page.paint(f"{finding.verdict:<8}", _COLOURS[finding.verdict])
        remedy = f"; {finding.remedy}" if finding.remedy else ""
        text = shown(f"{finding.check}: {finding.detail}{remedy}")
        lines.append(page.paragraph(text, indent=mark, hanging=" " * 8))
    lines.append(f"{shown(name)} is well" if is_well else f"{shown(name)} is not well")
    return "\n".join(lines)
