"""WebSockets as the audit tells of them: one `Life` for each, from the name to the last frame.

An attempt that ended before its upgrade cannot be told from any other connection; it is a Life
whose `is_websocket` is False, and only failures of that kind are kept. Pure: `lives_of` takes
events in order, and what a newer version or a cut file left out is None here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from netns_runtime.debug.evidence import Event, Evidence

NORMAL: Final = frozenset({None, 1000, 1001, 1005})


@dataclass(frozen=True)
class Life:
    """`stage` is how far it came: name, connect, policy, dial, tls, tunnel, handshake or open.

    `last` is the event that tells how it ended, the others by name as far as there are any.
    `count` is how many attempts were alike. `is_over` is False where no end was told.
    """

    stage: str
    last: Event
    is_websocket: bool = False
    is_over: bool = True
    request: Event | None = None
    opened: Event | None = None
    closed: Event | None = None
    flow: Event | None = None
    secrets: tuple[str, ...] = ()
    withheld: tuple[str, ...] = ()
    messages: tuple[Event, ...] = field(default=(), repr=False)
    count: int = 1

    def get(self, key: str) -> Any:
        """The field of the latest event that has it."""
        for event in (self.last, self.closed, self.flow, self.opened, self.request):
            if event is not None and event.get(key) is not None:
                return event[key]
        return None

    @property
    def said_by(self) -> str | None:
        """Who ended it, in the audit's words."""
        found = self.last.get("said_by")
        return found if isinstance(found, str) else None

    @property
    def is_relayed(self) -> bool:
        """Whether its frames passed without being looked at."""
        return self.stage == "open" and self.opened is None

    @property
    def idle(self) -> float | None:
        """Seconds in which nobody said anything before the end."""
        return _seconds(self.last.get("idle_ms"))

    @property
    def duration(self) -> float | None:
        """Seconds it was open, or that its connection was."""
        return _seconds(self.get("duration_ms"))


def _seconds(value: object) -> float | None:
    return value / 1000 if isinstance(value, int | float) else None


def lives_of(evidence: Evidence) -> list[Life]:
    """Every WebSocket, and every attempt that failed before it could be seen to be one."""
    found: list[tuple[int, Life]] = []
    flows: dict[tuple[str, int], list[tuple[int, Event]]] = {}
    for at, event in enumerate(evidence.events):
        number = event.get("flow")
        if isinstance(number, int):
            flows.setdefault((str(event.get("sandbox", "")), number), []).append((at, event))
        elif event["event"] == "dns.refused" and event.get("host"):
            found.append((at, Life("name", event, count=_count(event))))
        elif event["event"] == "connect.refused":
            found.append((at, Life("connect", event, count=_count(event))))
        elif event["event"] == "flow.decided" and event.get("action") == "refuse":
            found.append((at, Life("policy", event)))
    for group in flows.values():
        found += _of_flow(group)
    found.sort(key=lambda pair: pair[0])
    return _merged(life for _, life in found)


def opaque_tunnels(evidence: Evidence) -> list[Event]:
    """Flows whose TLS nobody looked into and that ended in order: they may have been anything."""
    seen = {
        (event.get("sandbox"), event.get("flow"))
        for event in evidence.events
        if event["event"] in ("http.request", "ws.opened")
    }
    return [
        event
        for event in evidence.events
        if event["event"] == "flow.closed"
        and event.get("reason") is None
        and event.get("protocol") in ("connect", "tls")
        and (event.get("sandbox"), event.get("flow")) not in seen
    ]


def _count(event: Event) -> int:
    count = event.get("count", 1)
    return count if isinstance(count, int) else 1


def _of_flow(group: list[tuple[int, Event]]) -> Iterable[tuple[int, Life]]:
    requests = [
        (place, at, event)
        for place, (at, event) in enumerate(group)
        if event["event"] == "http.request" and event.get("protocol") == "websocket"
    ]
    by_name = {event["event"]: event for _, event in group}
    flow = by_name.get("flow.closed")
    for index, (place, at, request) in enumerate(requests):
        until = requests[index + 1][0] if index + 1 < len(requests) else None
        rest = [event for _, event in group[place:until]]
        yield at, _upgraded(request, rest, flow if until is None else None)
    if not requests and "ws.closed" in by_name:
        # The request's line is not in what is left of the audit.
        opened, closed = by_name.get("ws.opened"), by_name["ws.closed"]
        life = Life("open", closed, True, opened=opened or closed, closed=closed, flow=flow)
        yield group[0][0], life
    elif not requests:
        yield from _before_upgrade(group)


def _upgraded(request: Event, rest: list[Event], flow: Event | None) -> Life:
    def of(name: str) -> list[Event]:
        return [event for event in rest if event["event"] == name]

    secrets = tuple(str(event.get("secret")) for event in of("secret.substituted"))
    withheld = tuple(str(event.get("secret")) for event in of("secret.withheld"))
    life = Life(
        "handshake",
        request,
        is_websocket=True,
        request=request,
        flow=flow,
        secrets=secrets,
        withheld=withheld,
        messages=tuple(of("ws.message")),
    )
    if request.get("status") != 101:
        return life
    opened, closed = next(iter(of("ws.opened")), None), next(iter(of("ws.closed")), None)
    last = closed or flow or opened or request
    return replace(
        life,
        stage="open",
        last=last,
        is_over=closed is not None or flow is not None,
        opened=opened,
        closed=closed,
    )


_STAGES: Final = {
    "connection_refused": "dial",
    "connection_timeout": "dial",
    "destination_unavailable": "dial",
    "destination_ip_unroutable": "dial",
    "destination_not_found": "dial",
    "dns_error": "dial",
    "dns_timeout": "dial",
    "connection_limit_reached": "policy",
    "tls_certificate_error": "tls",
    "tls_protocol_error": "tls",
    "tls_alert_received": "tls",
    "client_tls_error": "tls",
    "connection_terminated": "tunnel",
}


def _before_upgrade(group: list[tuple[int, Event]]) -> Iterable[tuple[int, Life]]:
    """The end of a connection that was none of HTTP's, as far as anybody saw."""
    if any(event["event"] == "http.request" for _, event in group):
        return
    for at, event in group:
        name = event["event"]
        if name == "flow.decided" and event.get("action") == "refuse":
            yield at, Life("policy", event)
        elif name == "flow.closed" and event.get("action") == "refuse":
            yield at, Life("policy", event, flow=event)
        elif name == "flow.closed" and event.get("reason") is not None:
            stage = _STAGES.get(str(event["reason"]), "dial")
            yield at, Life(stage, event, flow=event)


def _merged(lives: Iterable[Life]) -> list[Life]:
    """Attempts that never became a WebSocket, alike ones as one: clients retry in loops."""
    kept: dict[object, Life] = {}
    for life in lives:
        if life.is_websocket:
            kept[id(life), len(kept)] = life
            continue
        last = life.last
        names = ("sandbox", "event", "host", "address", "port", "reason", "said_by", "comm")
        key = (life.stage, *(last.get(name) for name in names))
        before = kept.pop(key, None)
        kept[key] = replace(life, count=life.count + before.count) if before else life
    return list(kept.values())


def is_failure(life: Life) -> bool:
    """Whether somebody would want it explained."""
    if not life.is_over:
        return False
    if life.stage != "open":
        return True
    last = life.last
    broken = last.get("reason") is not None or last.get("action") == "refuse"
    request = life.request or {}
    return broken or last.get("code") not in NORMAL or request.get("reason") is not None
