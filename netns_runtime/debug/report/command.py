"""`netns-debug report [SANDBOX|AUDIT] -o FILE`: gets the evidence, has it told, writes the page.

Changes nothing but the file it is told to write. Ends with 0, or with one NetnsError.
"""

from __future__ import annotations

import gc
import os
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from netns_runtime import state
from netns_runtime.cli.text import say, say_json
from netns_runtime.debug.evidence import read_audit
from netns_runtime.debug.report import output
from netns_runtime.debug.report.page import page_of
from netns_runtime.debug.report.tell import Live, live_story, stories_of
from netns_runtime.debug.report.troubles import Setting
from netns_runtime.debug.text import shown, size_of
from netns_runtime.errors import NetnsError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from netns_runtime.debug.live import InForce
    from netns_runtime.debug.report.story import Story

USAGE: Final = """\
usage: netns-debug report [SANDBOX|AUDIT] -o FILE.html [--sandbox NAME] [--json]

One page, in one file that needs no other: a timeline, who talked to whom, what was refused and what
would allow it, how WebSockets ended, requests and secrets. It has no script and asks for nothing.

  SANDBOX         a running one, whose last 1,000 or so events and exact counts are told
  AUDIT           what --audit wrote, json or ocsf; `-` is standard input
  --sandbox NAME  that sandbox: a running one or, with AUDIT, one of those in the file
  -o FILE         where the page goes; `-` is standard output. A regular file of yours is replaced
  --json          the data behind the page, on standard output; -o may be left out then

A word with a slash in it, or that is the name of a file here, is an AUDIT; any other a SANDBOX.
"""
_HELP: Final = "see netns-debug report --help"
_VALUES: Final = ("-o", "--sandbox", "--from")


@dataclass(frozen=True, slots=True)
class Wanted:
    """`audit` None asks a running sandbox; `sandbox` None is the only one, or all of an audit."""

    audit: str | None
    sandbox: str | None
    target: str | None
    note: str = ""


def main(words: list[str], as_json: bool) -> int:
    """Write one report. `words` as USAGE has them."""
    wanted = parse(words, as_json=as_json)
    # A million events are kept until the end: looking for garbage among them takes a sixth longer.
    gc.disable()
    if wanted.target not in (None, "-"):
        output.check(str(wanted.target))
        _refuse_to_replace_the_audit(wanted)
    stories, notes = _told(wanted)
    notes = (*notes, wanted.note) if wanted.note else notes
    if wanted.target is not None:
        page = page_of(stories, notes).encode("utf-8")
        if wanted.target == "-":
            sys.stdout.buffer.write(page)
            sys.stdout.buffer.flush()
            return 0
        output.write(wanted.target, page)
    if as_json:
        say_json({"stories": [asdict(story) for story in stories], "notes": list(notes)})
    else:
        say(_summary(str(wanted.target), stories, len(page)))
    return 0


def _refuse_to_replace_the_audit(wanted: Wanted) -> None:
    with suppress(OSError):
        if wanted.audit is not None and os.path.samefile(wanted.audit, str(wanted.target)):
            raise UsageError(
                f"report: -o {shown(wanted.target)} is the audit itself", remedy="name another file"
            )


def parse(words: Sequence[str], *, as_json: bool = False) -> Wanted:
    """Read the command line. Raises UsageError."""
    given: dict[str, str] = {}
    names: list[str] = []
    rest = iter(words)
    for word in rest:
        option, equals, value = word.partition("=")
        if option in _VALUES:
            found = value if equals else next(rest, None)
            if not found:
                raise UsageError(f"report: {option} needs a value", remedy=_HELP)
            if option in given:
                raise UsageError(f"report: {option} is given twice", remedy="give it once")
            given[option] = found
        elif word.startswith("-") and word != "-":
            raise UsageError(f"report: unknown option {shown(word)}", remedy=_HELP)
        else:
            names.append(word)
    if len(names) > 1:
        raise UsageError(
            f"report takes one SANDBOX or AUDIT, not {shown(names[1])} too",
            remedy="--sandbox NAME picks one of an audit",
        )
    target = given.get("-o")
    if target is None and not as_json:
        raise UsageError("report needs -o FILE", remedy="as in -o report.html, or -o - for stdout")
    if target == "-" and as_json:
        raise UsageError("report: -o - and --json both want standard output", remedy="name a file")
    return _wanted(names[0] if names else None, given, target)


def _wanted(word: str | None, given: dict[str, str], target: str | None) -> Wanted:
    audit, sandbox = given.get("--from"), given.get("--sandbox")
    if word is None:
        return Wanted(audit, sandbox, target)
    if audit is not None:
        raise UsageError(f"report: --from and {shown(word)}", remedy="give one of them")
    if word == "-" or "/" in word:
        return Wanted(word, sandbox, target)
    if os.path.lexists(word):
        return Wanted(word, sandbox, target, _is_both(word))
    if sandbox not in (None, word):
        raise UsageError(
            f"report: there is no file {shown(word)}, and --sandbox says {shown(sandbox)}",
            remedy="name an audit file, or one sandbox",
        )
    return Wanted(None, word, target)


def _is_both(word: str) -> str:
    if os.geteuid() != 0 or word not in state.survey()[1]:
        return ""
    return (
        f"{shown(word)} is a file here and a running sandbox: this is the file; "
        f"--sandbox {shown(word)} without it is the sandbox"
    )


def _told(wanted: Wanted) -> tuple[tuple[Story, ...], tuple[str, ...]]:
    if wanted.audit is None:
        return _of_running(wanted.sandbox), ()
    evidence = read_audit(wanted.audit)
    if wanted.sandbox is not None:
        evidence = evidence.only(wanted.sandbox)
    return stories_of(evidence)


def _of_running(name: str | None) -> tuple[Story, ...]:
    if os.geteuid() != 0:
        raise UsageError("needs root", remedy="run sudo netns-debug …, or name an audit file")
    from netns_runtime.debug import live
    from netns_runtime.events import timestamp

    record = live.chosen(name)
    found = live.in_force(record.name)
    seen = Live(
        seen_at=timestamp(),
        totals=found.totals,
        flows=_open_flows(record),
        secrets=record.secrets,
        facts=_facts(record, found),
        command=" ".join(record.command[:1]),
        started=record.started,
    )
    setting = Setting(found.policy, found.redirect, found.report, seen.seen_at, found.destinations)
    return (live_story(record.name, found.recent, setting, seen),)


def _open_flows(record: state.Record) -> Sequence[dict[str, Any]]:
    from netns_runtime.debug.flowlist import sample

    try:
        return sample(record, sockets=False).flows
    except NetnsError:
        return ()


def _facts(record: state.Record, found: InForce) -> tuple[tuple[str, str], ...]:
    policies = [*record.policies, *(f"preset {name}" for name in record.presets)]
    policies += [f"--allow {host}" for host in record.allow]
    told = ", ".join(shown(policy, 120) for policy in policies[:8])
    more = f" and {len(policies) - 8} more" if len(policies) > 8 else ""
    return (
        ("Policy", (told + more) or "allows nothing"),
        ("Clients that ignore the proxy", "carried" if found.redirect else "refused"),
        *([("Report mode", "on: refusals of the policy are only noted")] if found.report else []),
    )


def _summary(target: str, stories: Sequence[Story], size: int) -> str:
    refused = sum(len(story.refusals) for story in stories)
    failed = sum(story.totals.sockets_failed for story in stories)
    kinds = "1 kind" if refused == 1 else f"{refused} kinds"
    return (
        f"{shown(target)}: {size_of(size)}, {len(stories)} "
        f"{'sandbox' if len(stories) == 1 else 'sandboxes'}, {kinds} of refusal, "
        f"{failed} failed {'WebSocket' if failed == 1 else 'WebSockets'}"
    )
