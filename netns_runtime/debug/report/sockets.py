"""WebSocket lives for the page: what `netns-debug ws` says of them, alike ones as one.

Only what was seen to be a WebSocket is told here; a name or a connect that was refused before is
among the refusals. Pure. At most LIVES of them are looked at, the newest.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from netns_runtime.debug.evidence import Evidence
from netns_runtime.debug.report.story import ROWS, Socket, told
from netns_runtime.debug.text import where_of
from netns_runtime.debug.wsexplain import explain
from netns_runtime.debug.wslives import is_failure, lives_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from netns_runtime.debug.evidence import Event
    from netns_runtime.debug.report.gather import Gathered
    from netns_runtime.debug.wslives import Life

LIVES: Final = 2000
PER_FLOW: Final = 60
"""Events of one flow that are looked at."""
KIN: Final = 200
"""Lives of the same host that can tell chance from habit."""


@dataclass(frozen=True, slots=True)
class Sockets:
    """`told` are the failed first, then the others; `places` has the id of each flow's card;
    `unseen` is how many lives were not looked at."""

    told: tuple[Socket, ...]
    count: int
    failed: int
    places: Mapping[int, str]
    unseen: int


def sockets_of(found: Gathered, source: str) -> Sockets:
    flows = [number for number, track in found.flows.items() if track.is_socket]
    wanted = set(flows[-LIVES:])
    kept: dict[int, int] = {}
    events: list[Event] = []
    for event in found.events:
        number = event.get("flow")
        if number in wanted and event["event"].startswith(_KINDS):
            seen = kept[number] = kept.get(number, 0) + 1
            if seen <= PER_FLOW or event["event"] in ("ws.closed", "flow.closed"):
                events.append(event)
    lives = [life for life in lives_of(Evidence(source, tuple(events))) if life.is_websocket]
    kin: dict[object, list[Life]] = {}
    for life in lives:
        kin.setdefault((life.get("host"), life.get("port")), []).append(life)
    groups: dict[tuple[object, ...], Socket] = {}
    places: dict[int, str] = {}
    failed = 0
    for life in lives:
        failed += is_failure(life)
        made = _socket(life, kin[life.get("host"), life.get("port")][-KIN:], len(groups) + 1)
        key = (made.where, made.kind, made.who, made.ended_by.partition(" (")[0], made.is_failed)
        before = groups.get(key)
        if before is not None:
            made = replace(made, id=before.id, count=before.count + 1, first=before.first)
        groups[key] = made
        number = life.get("flow")
        if isinstance(number, int):
            places[number] = made.id
    ranked = sorted(groups.values(), key=lambda s: (not s.is_failed, -s.count, s.first))[:ROWS]
    shown_ids = {socket.id for socket in ranked}
    return Sockets(
        tuple(ranked),
        len(flows),
        failed,
        {number: place for number, place in places.items() if place in shown_ids},
        len(flows) - len(wanted),
    )


_KINDS: Final = ("flow.", "http.request", "ws.", "secret.")


def _socket(life: Life, others: Sequence[Life], number: int) -> Socket:
    found = explain(life, others)
    codes = life.get("code"), life.get("messages_in"), life.get("messages_out")
    code, received, sent = (value if isinstance(value, int) else None for value in codes)
    opened = life.request or life.opened or life.last
    return Socket(
        id=f"ws-{number}",
        where=told(where_of({k: life.get(k) for k in ("host", "port") if life.get(k)}), 280),
        path=told(life.get("path") or "", 200),
        who=told(life.get("comm") or "unknown process", 64),
        count=1,
        first=told(opened.get("time") or "", 32),
        last=told(life.last.get("time") or "", 32),
        kind=found.key,
        is_failed=is_failure(life),
        is_open=not life.is_over,
        duration=life.duration if life.stage == "open" else None,
        code=code,
        messages_in=received,
        messages_out=sent,
        ended_by=told(found.who, 200),
        evidence=tuple(told(text, 500) for text in found.evidence),
        usually=told(found.usually, 500),
        do=told(found.do, 500),
    )
