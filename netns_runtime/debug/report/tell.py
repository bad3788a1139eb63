"""Evidence → Story: who did what, how it ended, and in which words a person is told.

`stories_of` takes an audit, which may hold several sandboxes, `live_story` what a running one says.
Pure, and the same for the same evidence; what is cut, of a newer version or beyond a limit is said
in the Story's `notes` and `left_out`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from netns_runtime.debug.attempts import attempts_of
from netns_runtime.debug.evidence import Evidence
from netns_runtime.debug.report.gather import asked_of, count_of, gathered, seconds_of, secrets_of
from netns_runtime.debug.report.sockets import sockets_of
from netns_runtime.debug.report.story import (
    GROUPS,
    OUTCOMES,
    ROWS,
    Flow,
    Story,
    Talk,
    Totals,
    told,
)
from netns_runtime.debug.report.timeline import Moments, Stretch, plan
from netns_runtime.debug.report.troubles import Groups, Setting, outcome_of, troubles_of
from netns_runtime.debug.text import size_of, where_of
from netns_runtime.debug.why import redirect_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from netns_runtime.debug.attempts import Attempt
    from netns_runtime.debug.report.gather import Gathered, Track
    from netns_runtime.debug.report.sockets import Sockets

SANDBOXES: Final = 5
"""Of an audit: those with the most events are told."""
_REASONS: Final = (
    *("direct_tcp", "direct_udp", "direct_icmp", "direct_other"),
    *("spoofed_source", "unknown_sandbox"),
)


@dataclass(frozen=True, slots=True)
class Live:
    """What only a running sandbox tells. `flows` are its open ones (debug/flowlist)."""

    seen_at: str
    totals: Mapping[str, int]
    flows: Sequence[Mapping[str, Any]]
    secrets: Sequence[Mapping[str, Any]]
    facts: tuple[tuple[str, str], ...]
    command: str
    started: str


def stories_of(evidence: Evidence) -> tuple[tuple[Story, ...], tuple[str, ...]]:
    """The stories of an audit, in the order in which they began, and notes about the rest."""
    names = sorted(evidence.by_sandbox, key=lambda name: (-len(evidence.by_sandbox[name]), name))
    kept = set(names[:SANDBOXES])
    parts = [
        (name, Evidence(evidence.source, tuple(events)))
        for name, events in evidence.by_sandbox.items()
        if name in kept
    ]
    found = tuple(story_of(name, part, Setting(redirect=redirect_of(part))) for name, part in parts)
    notes = list(evidence.notes)
    if len(names) > SANDBOXES:
        others = ", ".join(told(name, 60) for name in names[SANDBOXES : SANDBOXES + 5])
        notes.append(
            f"{len(names) - SANDBOXES} more sandboxes are in it ({others}): --sandbox NAME"
        )
    return found, tuple(told(note, 500) for note in notes)


def live_story(name: str, evidence: Evidence, setting: Setting, live: Live) -> Story:
    """One that runs; what its events no longer tell, its counters do."""
    return story_of(name, evidence, setting, live)


def story_of(name: str, evidence: Evidence, setting: Setting, live: Live | None = None) -> Story:
    found = gathered(evidence.events)
    if live is not None:
        _add_open(found, live)
    sockets = sockets_of(found, evidence.source)
    telling = _Telling(found, sockets)
    for attempt in attempts_of(found.events):
        telling.take(attempt)
    flows = telling.flows()
    listed = {flow.number for flow in flows}
    timeline = plan(telling.stretches(listed), telling.moments, _words)
    refusals = troubles_of(telling.groups, ("refused", "noted"), setting)
    failures = troubles_of(telling.groups, ("failed",), replace(setting, destinations=()))
    started, exited = found.started or {}, found.exited or {}
    status = exited.get("code")
    return Story(
        name=told(name or "without a name", 120),
        source=told(evidence.source, 300),
        command=told(live.command if live else started.get("command") or "", 300),
        facts=(*_facts(started), *(live.facts if live else ())),
        began=told(live.started if live else started.get("time") or found.first, 32),
        ended=told(exited.get("time") or "", 32),
        seen_at=live.seen_at if live else "",
        seconds=_seconds(found, exited, live),
        status=status if isinstance(status, int) else None,
        totals=_totals(found, telling, sockets, exited, live),
        refusals=tuple(refusals),
        failures=tuple(failures),
        sockets=sockets.told,
        talks=telling.talks_told(),
        requests=tuple(asked_of(found)[:ROWS]),
        slowest=tuple(found.slow),
        secrets=tuple(secrets_of(found, live.secrets if live else ())),
        flows=flows,
        timeline=timeline,
        notes=tuple(told(note, 500) for note in evidence.notes) if live else (),
        left_out=tuple(_left_out(found, telling, sockets, len(flows))),
    )


class _Telling:
    """What a walk over the attempts gathers."""

    def __init__(self, found: Gathered, sockets: Sockets) -> None:
        self.found = found
        self.sockets = sockets
        self.groups = Groups()
        self.outcomes: Counter[str] = Counter()
        self.worst: dict[int, tuple[str, str]] = {}
        began, ended = found.began or 0.0, found.ended or 0.0
        self.moments = Moments(began, max(ended - began, 0.001))
        self._talks: dict[tuple[str, str, str], Counter[str]] = {}
        self._names: dict[tuple[object, object, object, object, object], tuple[str, str, str]] = {}

    def take(self, attempt: Attempt) -> None:
        outcome, event = outcome_of(attempt), attempt.event
        if _is_upgrade_of_a_life(event, self.found):
            return
        count = count_of(event) if event["event"] in ("connect.refused", "dns.refused") else 1
        self.outcomes[outcome] += count
        number = event.get("flow")
        track = self.found.flows.get(number) if isinstance(number, int) else None
        is_life = track is not None and track.is_socket and outcome == "failed"
        place = self.sockets.places.get(track.number, "") if track is not None else ""
        if outcome in ("refused", "noted") or (outcome == "failed" and not is_life):
            group = self.groups.add(outcome, attempt)
            place = f"{outcome}-{group}" if group is not None else ""
        if isinstance(number, int):
            before = self.worst.get(number)
            if before is None or OUTCOMES.index(outcome) >= OUTCOMES.index(before[0]):
                self.worst[number] = outcome, place
        self._talk(event)["passed" if outcome == "open" else outcome] += count
        at = seconds_of(event.get("time"))
        if at is None:
            return
        host = told(event.get("host") or event.get("address") or "no destination", 120)
        if outcome in ("refused", "noted", "failed"):
            self.moments.add(host, at, outcome, count, attempt, place)

    def _talk(self, event: Mapping[str, Any]) -> Counter[str]:
        raw = tuple(event.get(key) for key in ("comm", "exe", "host", "address", "port"))
        key = self._names.get(raw)  # type: ignore[arg-type]
        if key is None:
            who = told(event.get("comm") or "unknown process", 64)
            key = who, told(event.get("exe") or "", 200), told(where_of(event), 280)
            if len(self._names) < 4 * GROUPS:
                self._names[raw] = key  # type: ignore[index]
        if key not in self._talks and len(self._talks) >= GROUPS:
            key = "others", "", "others"
        return self._talks.setdefault(key, Counter())

    def talks_told(self) -> tuple[Talk, ...]:
        """By how much was attempted; bytes are those of flows."""
        for track in self.found.flows.values():
            if track.bytes_in or track.bytes_out:
                counts = self._talk(track.about)
                counts["in"] += track.bytes_in
                counts["out"] += track.bytes_out
        executables: dict[str, set[str]] = {}
        for who, exe, _ in self._talks:
            executables.setdefault(who, set()).add(exe)
        rows = [
            Talk(
                f"{who} ({exe})" if exe and len(executables[who]) > 1 else who,
                where,
                *(counts[name] for name in ("passed", "noted", "failed", "refused", "in", "out")),
            )
            for (who, exe, where), counts in self._talks.items()
        ]
        rows.sort(key=lambda talk: (-talk.attempts, talk.who, talk.where))
        return tuple(rows[:ROWS])

    def failed_sockets(self) -> int:
        flows = self.found.flows
        return sum(
            outcome == "failed" and number in flows and flows[number].is_socket
            for number, (outcome, _) in self.worst.items()
        )

    def flows(self) -> tuple[Flow, ...]:
        """At most ROWS, those that did not pass before the others; in order of time."""
        ranked = sorted(
            (track for number, track in self.found.flows.items() if number in self.worst),
            key=lambda t: (-OUTCOMES.index(self.worst[t.number][0]), t.time, t.number),
        )
        kept = sorted(ranked[:ROWS], key=lambda track: (track.time, track.number))
        return tuple(_flow(track, self.worst[track.number][0]) for track in kept)

    def stretches(self, listed: set[int]) -> list[Stretch]:
        """Flows that have a length: those that were not refused."""
        found = []
        for number, (outcome, place) in self.worst.items():
            track = self.found.flows.get(number)
            if track is None or track.start is None or outcome == "refused":
                continue
            at = place or self.sockets.places.get(number, "")
            at = at or (f"flow-{number}" if number in listed else "")
            outcome = "open" if track.is_open and outcome == "passed" else outcome
            host = told(track.about.get("host") or track.about.get("address") or "-", 120)
            end = None if track.is_open else track.end
            found.append(Stretch(host, track.start, end, outcome, track.is_socket, track, at))
        return found


def _is_upgrade_of_a_life(event: Mapping[str, Any], found: Gathered) -> bool:
    """A WebSocket whose end is told is one attempt, and its handshake not another."""
    if event["event"] != "http.request" or event.get("status") != 101:
        return False
    track = found.flows.get(event.get("flow", -1))
    return track is not None and track.code is not None


def _flow(track: Track, outcome: str) -> Flow:
    about = track.about
    seconds = None
    if track.start is not None and track.end is not None:
        seconds = round(max(0.0, track.end - track.start), 6)
    if track.is_open and outcome == "passed":
        outcome = "open"
    return Flow(
        track.number,
        told(track.time, 32),
        seconds,
        told(where_of(about), 280),
        told(about.get("comm") or "unknown process", 64),
        told(about.get("entry") or "", 20),
        told(about.get("protocol") or "", 20),
        outcome,
        track.bytes_in,
        track.bytes_out,
        track.requests,
    )


def _words(thing: Attempt | Track) -> str:
    """What a mark of the timeline says when it is pointed at."""
    event = getattr(thing, "about", None)
    if event is not None:
        who = told(event.get("comm") or "unknown process", 64)
        moved = f"{size_of(thing.bytes_out)} out, {size_of(thing.bytes_in)} in"  # type: ignore[union-attr]
        what = "WebSocket" if thing.is_socket else told(event.get("protocol") or "flow", 20)  # type: ignore[union-attr]
        return f"{who} to {told(where_of(event), 200)} ({what}), {moved}"
    event = thing.event  # type: ignore[union-attr]
    who = told(event.get("comm") or "unknown process", 64)
    why = event.get("reason") or event.get("code") or event.get("status") or ""
    why = f"close {why}" if event["event"] == "ws.closed" and not event.get("reason") else why
    return f"{who} to {told(where_of(event), 200)}: {told(why, 80)}"


def _add_open(found: Gathered, live: Live) -> None:
    """Bytes of open flows are in no event yet."""
    now = seconds_of(live.seen_at)
    for row in live.flows:
        number = row.get("flow")
        track = found.flows.get(number) if isinstance(number, int) else None
        if track is not None:
            track.bytes_in = int(row.get("bytes_in", 0))
            track.bytes_out = int(row.get("bytes_out", 0))
    if now is not None and found.began is not None:
        found.ended = max(found.ended or now, now)


def _facts(started: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    names = (("pid", "Process"), ("uid", "User id"), ("probe", "Probe"), ("detail", "Without"))
    return tuple((label, told(started[key], 200)) for key, label in names if key in started)


def _seconds(found: Gathered, exited: Mapping[str, Any], live: Live | None) -> float:
    took = exited.get("duration_ms")
    if isinstance(took, (int, float)):
        return round(took / 1000, 3)
    began = seconds_of(live.started) if live is not None else found.began
    began = found.began if began is None else began
    ended = seconds_of(live.seen_at) if live is not None else found.ended
    return round(max(0.0, (ended or 0.0) - (began or 0.0)), 3)


def _totals(
    found: Gathered,
    telling: _Telling,
    sockets: Sockets,
    exited: Mapping[str, Any],
    live: Live | None,
) -> Totals:
    exact: Mapping[str, Any] = live.totals if live is not None else exited
    refused = exact.get("count")
    refused = refused if isinstance(refused, int) else None
    events_refused = found.refused["connect.refused"]
    reasons = [(name, exact[name]) for name in _REASONS if isinstance(exact.get(name), int)]
    flows = [track for number, track in found.flows.items() if number in telling.worst]
    by_hook, by_nft = (
        value if isinstance(value := exact.get(key), int) else 0
        for key in ("counted_bpf", "counted_nft")
    )
    return Totals(
        refused=refused,
        counted_bpf=by_hook,
        counted_nft=by_nft,
        reasons=tuple(reasons),
        events_refused=events_refused,
        untold=max(0, refused - events_refused) if refused is not None else 0,
        names_refused=found.refused["dns.refused"],
        names_answered=found.kinds["dns.answered"],
        flows=len(flows),
        flows_open=sum(track.is_open for track in flows),
        attempts=tuple((name, telling.outcomes[name]) for name in OUTCOMES),
        bytes_in=sum(track.bytes_in for track in found.flows.values()),
        bytes_out=sum(track.bytes_out for track in found.flows.values()),
        requests=found.kinds["http.request"],
        sockets=sockets.count,
        sockets_failed=sockets.failed if not sockets.unseen else telling.failed_sockets(),
        places_refused=telling.groups.places("refused"),
        is_more=telling.groups.over > 0,
        published=found.kinds["publish.request"],
    )


def _left_out(found: Gathered, telling: _Telling, sockets: Sockets, listed: int) -> list[str]:
    said = []
    if telling.groups.over:
        said.append(
            f"{telling.groups.over} attempts beyond the first {GROUPS} different ones are counted "
            "above and not told one by one"
        )
    if found.timeless:
        said.append(f"{found.timeless} events without a readable time are in no timeline")
    if sockets.unseen:
        said.append(f"{sockets.unseen} earlier WebSockets are counted and not explained")
    if len(telling.worst) > listed:
        said.append(f"{len(telling.worst) - listed} more flows are not in the list of flows")
    if found.exited is None:
        said.append("no end of the sandbox is on record: it still ran, or was killed")
    return said
