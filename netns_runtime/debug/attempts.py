"""What processes really tried, put together from audit events: one value for each attempt.

A flow has several lines and a kept-alive one several requests; an attempt is the smallest thing a
person would ask about: a name looked up, a direct connect, a tunnel, one request, one WebSocket.
`step` says where it ended, by the table in `steps`. Pure; an event that lacks a field is taken for
as much as it says.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from netns_runtime.debug.steps import is_of_request, step_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Event = dict[str, Any]

# RFC 6455, 7.4.1: a normal end, going away, and a close frame without a code.
CONTENT: Final = frozenset({1000, 1001, 1005})
_BROKEN_ANSWERS: Final = frozenset({"http_response_incomplete", "http_protocol_error"})
_SWITCHED: Final = 101


@dataclass(frozen=True, slots=True)
class Attempt:
    """`outcome` is passed, open (still under way), refused (by us) or failed (upstream, client).

    `event` is the line that decided it and `seen` all lines of the attempt. `step` is a key of
    `steps.TITLES`, None where it passed or is open.
    """

    outcome: str
    step: str | None
    event: Event
    seen: tuple[Event, ...]

    def get(self, key: str) -> Any:
        """A field of the deciding line, or else of the latest other that has it."""
        if key in self.event:
            return self.event[key]
        return next((event[key] for event in reversed(self.seen) if key in event), None)

    @property
    def time(self) -> str:
        return str(self.event.get("time", ""))

    def summary(self) -> dict[str, Any]:
        """Flat, for --json."""
        keys = ("pid", "comm", "exe", "host", "address", "port", "entry", "protocol", "method")
        more = ("path", "status", "code", "reason", "said_by", "detail", "rule", "remedy", "flow")
        told = {key: value for key in (*keys, *more) if (value := self.get(key)) is not None}
        count = self.event.get("count", 1)
        return {"time": self.time, "outcome": self.outcome, "step": self.step, **told} | (
            {"count": count} if count != 1 else {}
        )


def attempts_of(events: Iterable[Event]) -> list[Attempt]:
    """Every attempt among the events, in the order in which they were decided."""
    found: list[Attempt] = []
    flows: dict[tuple[str, int], list[Event]] = {}
    for event in events:
        kind, number = event["event"], event.get("flow")
        if kind in ("dns.refused", "connect.refused") or (
            kind == "flow.decided" and not isinstance(number, int)
        ):
            found.append(Attempt("refused", step_of(event), event, (event,)))
        elif isinstance(number, int):
            flows.setdefault((str(event.get("sandbox", "")), number), []).append(event)
    for group in flows.values():
        found += _of_flow(group)
    found.sort(key=lambda attempt: attempt.time)
    return _without_carriers(found)


def _without_carriers(found: list[Attempt]) -> list[Attempt]:
    """Leave out what was only the tunnel of other attempts: a terminated connection is a flow, and
    a request in it that gets a flow of its own another. Each of those gets the tunnel's decision,
    which has the address that was dialled for it."""
    requests: dict[tuple[Any, ...], list[Attempt]] = {}
    for attempt in found:
        if attempt.get("method") is not None:
            requests.setdefault(_way_of(attempt), []).append(attempt)
    decisions: dict[int, tuple[Event, ...]] = {}
    carriers: set[int] = set()
    for attempt in found:
        carried = _carried_by(attempt, requests.get(_way_of(attempt), ()))
        if carried:
            carriers.add(id(attempt))
        decided = tuple(event for event in attempt.seen if event["event"] == "flow.decided")
        decisions |= dict.fromkeys(map(id, carried), decided)
    return [
        replace(attempt, seen=(*decisions.get(id(attempt), ()), *attempt.seen))
        for attempt in found
        if id(attempt) not in carriers
    ]


def _way_of(attempt: Attempt) -> tuple[Any, ...]:
    return tuple(attempt.event.get(key) for key in ("sandbox", "pid", "host", "port"))


def _carried_by(attempt: Attempt, requests: Sequence[Attempt]) -> list[Attempt]:
    event = attempt.event
    if event["event"] != "flow.closed" or attempt.outcome != "passed" or event.get("bytes_out"):
        return []
    began = str(attempt.seen[0].get("time", ""))
    first = bisect_left(requests, began, key=_time_of)
    last = bisect_right(requests, attempt.time, key=_time_of)
    return [other for other in requests[first:last] if other is not attempt]


def _time_of(attempt: Attempt) -> str:
    return attempt.time


def _of_flow(group: Sequence[Event]) -> list[Attempt]:
    decided = [event for event in group if event["event"] == "flow.decided"]
    seen = tuple(group)
    if decided and decided[-1].get("action") == "refuse":
        asked = next((event for event in group if event["event"] == "http.request"), None)
        step = "traffic" if asked and is_of_request(asked) else step_of(decided[-1])
        return [Attempt("refused", step, decided[-1], seen)]
    closed = next((event for event in group if event["event"] == "flow.closed"), None)
    requests = [event for event in group if event["event"] == "http.request"]
    ends = [event for event in group if event["event"] in ("ws.opened", "ws.closed")]
    if not requests and not ends:
        return [_whole(closed or group[-1], seen, is_closed=closed is not None)]
    about = tuple(event for event in group if event["event"] in ("flow.decided", "flow.closed"))
    found = [_whole(event, (*about, event), is_closed=True) for event in requests]
    if ends or found[-1].event.get("status") == _SWITCHED:
        handshake = found.pop() if found else None
        return [*found, _of_websocket(handshake, ends[-1:], closed, about)]
    last = found[-1]
    if last.outcome == "passed" and closed and closed.get("reason") in _BROKEN_ANSWERS:
        found[-1] = _whole(closed, seen, is_closed=True)
    return found


def _of_websocket(
    handshake: Attempt | None, ends: list[Event], closed: Event | None, about: tuple[Event, ...]
) -> Attempt:
    """One attempt: the handshake says which WebSocket it was, its end how it went. Of one that is
    relayed the flow's end is all that is known."""
    if handshake is not None and handshake.outcome != "passed":
        return handshake
    request = [] if handshake is None else [handshake.event]
    is_over = bool(ends) and ends[-1]["event"] == "ws.closed"
    broken = [closed] if closed is not None and closed.get("reason") and not is_over else []
    event = (broken or ends or request)[-1]
    seen = (*about, *request, *ends)
    return _whole(event, seen, is_closed=is_over or closed is not None)


def _whole(event: Event, seen: tuple[Event, ...], *, is_closed: bool) -> Attempt:
    outcome = _outcome_of(event)
    if outcome != "passed":
        return Attempt(outcome, step_of(event), event, seen)
    return Attempt("passed" if is_closed else "open", None, event, seen)


def _outcome_of(event: Mapping[str, Any]) -> str:
    if event.get("action") == "refuse":
        return "refused"
    status, code = event.get("status"), event.get("code")
    if isinstance(status, int) and status >= 400:
        return "failed"
    if event["event"] == "ws.closed" and isinstance(code, int) and code not in CONTENT:
        return "failed"
    is_end = event["event"] in ("flow.closed", "http.request")
    # A client that may not trust us ends without a reason: its flow.closed has advice only.
    is_fault = is_end and (event.get("reason") or (event.get("detail") and event.get("remedy")))
    return "failed" if is_fault and not _is_noted(event) else "passed"


def _is_noted(event: Mapping[str, Any]) -> bool:
    return str(event.get("detail", "")).startswith("would be refused")
