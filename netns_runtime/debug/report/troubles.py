"""Attempts that ended alike as one Trouble each, in the words of `netns-debug why`.

The last attempt of a group is walked through policy and evidence as `why` walks it (debug/walk), so
page and command never differ. Groups beyond GROUPS are only counted. Pure but for `owner_of`, which
looks at an executable where a running sandbox is told of.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from netns_runtime.address import AddressError, HostPort
from netns_runtime.debug.attempts import Attempt
from netns_runtime.debug.foresee import Facts, Question
from netns_runtime.debug.report.gather import count_of
from netns_runtime.debug.report.story import GROUPS, ROWS, Trouble, told
from netns_runtime.debug.steps import TITLES, blame_of
from netns_runtime.debug.text import where_of
from netns_runtime.debug.walk import walk
from netns_runtime.debug.why import owner_of, port_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from netns_runtime.policy import Policy

PIDS: Final = 5
_DIRECT: Final = ("hook", "gateway")


@dataclass(frozen=True, slots=True)
class Setting:
    """What a walk needs beside the attempts. `destinations` are the kernel's counters of a running
    sandbox (counts.counts_of); None of policy or redirect is unknown."""

    policy: Policy | None = None
    redirect: bool | None = None
    report: bool = False
    now: str = ""
    destinations: Sequence[Mapping[str, Any]] = ()


@dataclass(slots=True)
class Group:
    outcome: str
    last: Attempt
    since: str
    count: int = 0
    pids: dict[int, None] = field(default_factory=dict)
    number: int = 0


@dataclass(slots=True)
class Groups:
    """Groups in the order in which they began; `over` counts attempts beyond GROUPS groups."""

    found: dict[tuple[Any, ...], Group] = field(default_factory=dict)
    over: int = 0

    def add(self, outcome: str, attempt: Attempt) -> int | None:
        """The number of the attempt's group, None beyond the last."""
        event = attempt.event
        key = (
            *(outcome, attempt.step, event.get("reason"), event.get("status")),
            *(event.get("host"), event.get("address") if attempt.step in _DIRECT else None),
            *(event.get("port"), event.get("comm"), event.get("exe")),
            *((attempt.get("method"), attempt.get("path")) if outcome != "failed" else ()),
        )
        group = self.found.get(key)
        if group is None:
            if len(self.found) >= GROUPS:
                self.over += count_of(event)
                return None
            group = self.found[key] = Group(outcome, attempt, attempt.time)
            group.number = len(self.found)
        group.last = attempt
        group.count += count_of(event)
        pid = event.get("pid")
        if isinstance(pid, int) and len(group.pids) < PIDS:
            group.pids[pid] = None
        return group.number

    def places(self, outcome: str) -> int:
        """How many destinations there are among the groups of that outcome."""
        return len(
            {
                (group.last.get("host") or group.last.get("address"), group.last.get("port"))
                for group in self.found.values()
                if group.outcome == outcome
            }
        )


def outcome_of(attempt: Attempt) -> str:
    """As `Attempt.outcome`, and `noted` for what report mode let pass."""
    if attempt.outcome in ("passed", "open") and any(
        str(event.get("detail", "")).startswith("would be refused") for event in attempt.seen
    ):
        return "noted"
    return attempt.outcome


def troubles_of(groups: Groups, outcomes: Iterable[str], setting: Setting) -> list[Trouble]:
    """Those of these outcomes, the most frequent first, at most ROWS."""
    wanted = set(outcomes)
    chosen = [group for group in groups.found.values() if group.outcome in wanted]
    counted = _counted(setting.destinations)
    if "refused" in wanted:
        chosen += _of_kernel(groups, setting.destinations)
    ranked = sorted(chosen, key=lambda group: (-_weight(group, counted), group.number))
    ports = _ports_of(groups)
    return [_trouble(group, setting, counted, ports) for group in ranked[:ROWS]]


def _key(event: Mapping[str, Any]) -> tuple[str, Any, Any]:
    return str(event.get("address")), event.get("port"), event.get("reason")


def _counted(destinations: Sequence[Mapping[str, Any]]) -> dict[tuple[str, Any, Any], int]:
    found: dict[tuple[str, Any, Any], int] = {}
    for entry in destinations:
        found[_key(entry)] = found.get(_key(entry), 0) + count_of(entry)
    return found


def _weight(group: Group, counted: Mapping[tuple[str, Any, Any], int]) -> int:
    return max(group.count, counted.get(_key(group.last.event), 0))


def _of_kernel(groups: Groups, destinations: Sequence[Mapping[str, Any]]) -> list[Group]:
    """Refused connects that the kernel counts and of which no event is remembered."""
    told_of = {_key(group.last.event) for group in groups.found.values()}
    found: list[Group] = []
    for entry in destinations:
        if _key(entry) in told_of:
            continue
        event = {"event": "connect.refused", "action": "refuse", "said_by": "sandbox", **entry}
        step = "gateway" if entry.get("counted_by") == "nft" else "hook"
        group = Group("refused", Attempt("refused", step, event, (event,)), "", 0)
        group.number = GROUPS + len(found)
        found.append(group)
    return found


def _ports_of(groups: Groups) -> dict[str, int]:
    """The last port that was tried at each host: the resolver is not told one."""
    found: dict[str, int] = {}
    for group in groups.found.values():
        host, port = group.last.get("host"), group.last.get("port")
        if isinstance(host, str) and isinstance(port, int) and 0 < port < 65536:
            found[host] = port
    return found


def _trouble(
    group: Group,
    setting: Setting,
    counted: Mapping[tuple[str, Any, Any], int],
    ports: Mapping[str, int],
) -> Trouble:
    attempt, event = group.last, group.last.event
    fields = {key: attempt.get(key) for key in ("host", "address", "port")}
    place = {key: value for key, value in fields.items() if value is not None}
    common: dict[str, Any] = {
        "id": f"{group.outcome}-{group.number}",
        "outcome": group.outcome,
        "where": told(where_of(place), 280),
        "what": _what(attempt, place),
        "who": told(event.get("comm") or attempt.get("comm") or "unknown process", 64),
        "pids": tuple(group.pids),
        "exe": told(attempt.get("exe") or "", 200),
        "count": group.count,
        "counted": counted.get(_key(event)) if attempt.step in _DIRECT else None,
        "first": told(group.since, 32),
        "last": told(attempt.time, 32),
        "reason": told(_reason(attempt), 80),
    }
    return Trouble(**common, **_explained(attempt, place, setting, ports))


def _what(attempt: Attempt, place: Mapping[str, Any]) -> str:
    """What was tried, in a few words."""
    if attempt.step == "dns":
        return "name looked up"
    if attempt.step in _DIRECT:
        address = place.get("address")
        at = f" to {told(address, 60)}" if address and place.get("host") else ""
        return f"direct {told(attempt.get('protocol') or 'IP', 12).upper()} connect{at}"
    if attempt.get("method"):
        return f"{told(attempt.get('method'), 20)} {told(attempt.get('path') or '', 200)}".rstrip()
    return f"connection ({told(attempt.get('protocol') or 'unknown', 20)})"


def _reason(attempt: Attempt) -> object:
    event = attempt.event
    if event.get("reason"):
        return event["reason"]
    noted = next((e["reason"] for e in attempt.seen if e.get("reason")), None)
    if noted is not None:
        return noted
    return f"status {event['status']}" if event.get("status") is not None else "no reason given"


def _explained(
    attempt: Attempt, place: Mapping[str, Any], setting: Setting, ports: Mapping[str, int]
) -> dict[str, Any]:
    event = attempt.event
    rule = attempt.get("rule")
    try:
        host = str(place.get("host") or place.get("address") or "")
        port = place.get("port")
        notes: tuple[str, ...] = ()
        if port is None:
            port = ports.get(host) or port_of(host, setting.policy)
            whence = "the last attempt's" if host in ports else "assumed"
            notes = (f"port {port} is {whence}",)
        target = HostPort(host, port)
    except AddressError:
        _, verdict, advice = blame_of(event)
        remedy = event.get("remedy")
        return {
            "step": TITLES.get(attempt.step or "", ""),
            "cause": told(event.get("detail") or event.get("reason") or "no word about why", 600),
            "verdict": verdict,
            "rule": told(rule or "", 260),
            "changes": (),
            "advice": told(remedy or advice, 400),
            "notes": (),
        }
    owner = owner_of(None, attempt) if setting.now else None
    facts = Facts(setting.policy, setting.redirect, setting.report, (attempt,), setting.now)
    found = walk(Question(target, None, owner), facts)
    step = found.stops_at or attempt.step
    cause = found.cause
    changes, advice = found.changes, found.advice
    if attempt.outcome in ("passed", "open"):
        noted = next((e for e in attempt.seen if e.get("remedy") and e.get("detail")), event)
        cause = str(noted.get("detail") or cause)
        changes = (str(noted["remedy"]),) if noted.get("remedy") else ()
        step = "traffic" if attempt.get("method") else "decision"
    return {
        "step": TITLES.get(step or "", ""),
        "cause": told(cause, 600),
        "verdict": told(found.verdict, 200),
        "rule": told(rule or "", 260),
        "changes": tuple(told(change, 500) for change in changes),
        "advice": told(advice, 500),
        "notes": tuple(told(note, 400) for note in (*notes, *found.notes)),
    }
