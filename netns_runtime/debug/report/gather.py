"""One pass over the events of one sandbox: flows, requests, names, secrets and totals.

It counts and keeps; what ended how is `attempts_of`'s to say and `troubles` groups it. Memory is
bounded by the number of flows and by GROUPS of everything that clients choose. Pure; a field that
is missing or of another kind is left out.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from netns_runtime.debug.report.story import GROUPS, Asked, Secret, Slow, told
from netns_runtime.debug.text import where_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from netns_runtime.debug.evidence import Event

SLOWEST: Final = 10
DECISIONS: Final = 50
"""Events about a flow as such that are kept of one: two or three are what a proxy writes."""


@dataclass(slots=True)
class Track:
    """What is known of one flow. `end` None: no end of it is told."""

    number: int
    time: str
    start: float | None
    decided: float | None = None
    end: float | None = None
    about: dict[str, Any] = field(default_factory=dict)
    bytes_in: int = 0
    bytes_out: int = 0
    requests: int = 0
    is_socket: bool = False
    is_open: bool = True
    code: int | None = None
    kept: int = 0


@dataclass(slots=True)
class Use:
    """One secret, as it comes in."""

    substituted: int = 0
    withheld: int = 0
    slots: dict[str, None] = field(default_factory=dict)
    hosts: dict[str, None] = field(default_factory=dict)
    why: dict[str, None] = field(default_factory=dict)


@dataclass(slots=True)
class Gathered:
    """`events` are those that attempts are made of; `sockets` those of flows with a WebSocket."""

    events: list[Event] = field(default_factory=list)
    flows: dict[int, Track] = field(default_factory=dict)
    started: Event | None = None
    exited: Event | None = None
    began: float | None = None
    ended: float | None = None
    first: str = ""
    last: str = ""
    timeless: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    methods: dict[str, Counter[str]] = field(default_factory=dict)
    statuses: dict[str, Counter[str]] = field(default_factory=dict)
    secrets: dict[str, Use] = field(default_factory=dict)
    slow: list[Slow] = field(default_factory=list)
    slowest: float = -1.0

    def take(self, event: Event) -> None:
        kind = event["event"]
        self.kinds[kind] += 1
        at = seconds_of(event.get("time"))
        if at is None:
            self.timeless += 1
        else:
            if self.began is None or at < self.began:
                self.began, self.first = at, str(event["time"])
            if self.ended is None or at >= self.ended:
                self.ended, self.last = at, str(event["time"])
        number = event.get("flow")
        track = self._track(event, number, at) if isinstance(number, int) else None
        if track is not None and kind.startswith("flow."):
            track.kept += 1
            if track.kept > DECISIONS:
                return
        self.events.append(event)
        taker = _TAKERS.get(kind)
        if taker is not None:
            taker(self, event, track, at)

    def _track(self, event: Event, number: int, at: float | None) -> Track:
        track = self.flows.get(number)
        if track is None:
            track = self.flows[number] = Track(number, str(event.get("time", "")), at)
        for key in _ABOUT:
            if key in event:
                track.about[key] = event[key]
        return track


_ABOUT: Final = ("host", "port", "address", "entry", "protocol", "comm", "pid", "exe")


def gathered(events: Iterable[Event]) -> Gathered:
    """All of it."""
    found = Gathered()
    for event in events:
        found.take(event)
    return found


@lru_cache(maxsize=64)
def _whole_seconds(text: str) -> float | None:
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()
    except (ValueError, OverflowError):
        return None


def seconds_of(time: object) -> float | None:
    """Seconds since the epoch of the audit's UTC timestamps; None for anything else."""
    if not isinstance(time, str) or len(time) > 40 or not time.isascii():
        return None
    whole = _whole_seconds(time[:19])
    fraction = time[20:].rstrip("Z")
    if whole is None or not 0 <= whole < 1e11:
        return None
    return whole + (int(fraction[:6].ljust(6, "0")) / 1e6 if fraction.isdigit() else 0.0)


def _number(event: Mapping[str, Any], key: str) -> int:
    value = event.get(key)
    return max(0, int(value)) if isinstance(value, (int, float)) and -1e18 < value < 1e18 else 0


def count_of(event: Mapping[str, Any]) -> int:
    """How many the event stands for."""
    return _number(event, "count") if "count" in event else 1


def _on_started(found: Gathered, event: Event, track: Track | None, at: float | None) -> None:
    found.started = event


def _on_exited(found: Gathered, event: Event, track: Track | None, at: float | None) -> None:
    found.exited = event


def _on_refused(found: Gathered, event: Event, track: Track | None, at: float | None) -> None:
    found.refused[event["event"]] += count_of(event)


def _on_decided(found: Gathered, event: Event, track: Track | None, at: float | None) -> None:
    if track is None:
        return
    if track.decided is None or not track.requests:
        track.decided = at
    if event.get("action") == "refuse":
        track.is_open, track.end = False, at


def _on_closed(found: Gathered, event: Event, track: Track | None, at: float | None) -> None:
    if track is not None:
        track.is_open, track.end = False, at
        track.bytes_in, track.bytes_out = _number(event, "bytes_in"), _number(event, "bytes_out")


def _on_request(found: Gathered, event: Event, track: Track | None, at: float | None) -> None:
    where = told(where_of(event), 260)
    if where not in found.methods and len(found.methods) >= GROUPS:
        where = "others"
    method = told(event.get("method") or "?", 20)
    methods = found.methods.setdefault(where, Counter())
    methods[method if method in methods or len(methods) < 20 else "others"] += 1
    status = event.get("status")
    family = f"{status // 100}xx" if isinstance(status, int) and 100 <= status < 600 else "unknown"
    if event.get("action") == "refuse":
        family = "refused"
    elif event.get("said_by") == "proxy" or (event.get("reason") and status in (502, 504)):
        family = "failed"
    found.statuses.setdefault(where, Counter())[family] += 1
    if track is None:
        return
    track.requests += 1
    track.is_socket = track.is_socket or event.get("protocol") == "websocket"
    if track.requests == 1 and track.decided is not None and at is not None and family[0].isdigit():
        took = max(0.0, at - track.decided) * 1000
        if took > found.slowest or len(found.slow) < SLOWEST:
            what = f"{method} {told(event.get('path') or '', 120)}".rstrip()
            code = status if isinstance(status, int) else None
            found.slow.append(Slow(told(event.get("time"), 32), where, what, code, round(took, 3)))
            found.slow.sort(key=lambda slow: (-slow.milliseconds, slow.time))
            del found.slow[SLOWEST:]
            found.slowest = found.slow[-1].milliseconds


def _on_socket(found: Gathered, event: Event, track: Track | None, at: float | None) -> None:
    if track is not None:
        track.is_socket = True
        if isinstance(event.get("code"), int):
            track.code = event["code"]


def _on_secret(found: Gathered, event: Event, track: Track | None, at: float | None) -> None:
    name = told(event.get("secret") or "?", 120)
    if name not in found.secrets and len(found.secrets) >= 200:
        name = "others"
    use = found.secrets.setdefault(name, Use())
    where = told(where_of(event), 260)
    if event["event"] == "secret.substituted":
        use.substituted += 1
        if len(use.slots) < 20 and event.get("slot"):
            use.slots[told(event["slot"], 100)] = None
        if len(use.hosts) < 20 and where != "-":
            use.hosts[where] = None
    else:
        use.withheld += 1
        if len(use.why) < 20:
            detail = told(event.get("detail") or event.get("reason") or "no word about why", 300)
            use.why[detail if where == "-" or where.split(":")[0] in detail
                    else f"{where}: {detail}"] = None  # fmt: skip


_TAKERS: Final = {
    "sandbox.started": _on_started,
    "sandbox.exited": _on_exited,
    "connect.refused": _on_refused,
    "dns.refused": _on_refused,
    "flow.decided": _on_decided,
    "flow.closed": _on_closed,
    "http.request": _on_request,
    "ws.opened": _on_socket,
    "ws.closed": _on_socket,
    "secret.substituted": _on_secret,
    "secret.withheld": _on_secret,
}


def asked_of(found: Gathered) -> list[Asked]:
    """Requests by host, the most frequent first."""
    rows = [
        Asked(
            where,
            methods.total(),
            tuple(sorted(methods.items(), key=lambda item: (-item[1], item[0]))),
            tuple(sorted(found.statuses[where].items())),
        )
        for where, methods in found.methods.items()
    ]
    return sorted(rows, key=lambda row: (-row.count, row.where))


def secrets_of(found: Gathered, bound: Iterable[Mapping[str, Any]]) -> list[Secret]:
    """Uses by name; `bound` is what a running sandbox says of its secrets (names and hosts)."""
    hosts = {told(entry.get("name"), 120): _hosts(entry.get("hosts")) for entry in bound}
    names = sorted({*hosts, *found.secrets})
    return [
        Secret(
            name,
            hosts.get(name, ()),
            use.substituted,
            tuple(use.slots),
            tuple(use.hosts),
            use.withheld,
            tuple(use.why),
        )
        for name in names
        for use in [found.secrets.get(name, Use())]
    ]


def _hosts(value: object) -> tuple[str, ...]:
    return tuple(told(host, 260) for host in value) if isinstance(value, (list, tuple)) else ()
