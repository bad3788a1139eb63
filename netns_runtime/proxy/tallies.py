"""What a sandbox's events add up to since it started, for `netns-debug metrics`.

`take` sees every audit event of the proxy, `took` a duration. Counts only ever grow, their labels
come from bounded tables or are bounded here (what is past the bound is counted as "other"), and
nothing is sampled. `told` is a list of plain values that fits one message.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from netns_runtime.proxy.flow import Flow

LABEL_SETS: Final = 100
"""Different label values of one counter; what comes after is counted under "other", but for its
last label (who said it, or why), whose values are ours: 100 statuses hide no refusal."""
OTHER: Final = "other"
_METHODS: Final = frozenset(
    {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"}
)
_QUICK: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
BUCKETS: Final[dict[str, tuple[float, ...]]] = {
    "connect": _QUICK,
    "response": _QUICK,
    "flow": (0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0, 21600.0, 86400.0),
    "websocket": (1.0, 10.0, 60.0, 600.0, 3600.0, 21600.0, 86400.0),
}
"""Upper bounds in seconds: dialling upstream; a request until its response began; lives."""


class Tallies:
    """Counters by name and label values; histograms by name."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[tuple[str, ...], float]] = {}
        self._times = {name: [0] * (len(bounds) + 1) for name, bounds in BUCKETS.items()}
        self._sums = dict.fromkeys(BUCKETS, 0.0)
        self._shown = {"bytes_in": 0, "bytes_out": 0}
        self.untold: Callable[[], Mapping[str, int]] = dict
        """Refused lookups by reason that have no audit line yet (dnsaudit.RefusedNames.untold)."""
        self._take = {
            "dns.answered": self._dns_answered,
            "dns.refused": self._dns_refused,
            "flow.decided": self._decided,
            "flow.closed": self._closed,
            "http.request": self._request,
            "ws.opened": self._opened,
            "ws.closed": self._websocket_closed,
            "secret.substituted": self._substituted,
            "secret.withheld": self._withheld,
        }

    def take(self, event: dict[str, Any]) -> None:
        """Count one audit event."""
        counted = self._take.get(event["event"])
        if counted is not None:
            counted(event)

    def took(self, what: str, seconds: float) -> None:
        """Count one duration of BUCKETS' `what`."""
        self._times[what][bisect_left(BUCKETS[what], seconds)] += 1
        self._sums[what] += seconds

    def _add(self, name: str, *labels: object, by: float = 1) -> None:
        counts = self._counts.setdefault(name, {})
        key = tuple(map(str, labels))
        if key not in counts and len(counts) >= LABEL_SETS:
            key = (*(OTHER,) * (len(key) - 1), *key[-1:])
        counts[key] = counts.get(key, 0) + by

    def _dns_answered(self, _: dict[str, Any]) -> None:
        self._add("dns_names")

    def _dns_refused(self, event: dict[str, Any]) -> None:
        self._add("dns_refused", event.get("reason", ""), by=event.get("count", 1))

    def _decided(self, event: dict[str, Any]) -> None:
        reason = event.get("reason", "") if event.get("action") == "refuse" else ""
        self._add("decisions", event.get("entry", ""), event.get("action", ""), reason)

    def _closed(self, event: dict[str, Any]) -> None:
        self._add("closed", event.get("reason", ""), event.get("said_by", ""))
        for way in self._shown:
            self._add(way, by=event.get(way, 0))
        self.took("flow", event.get("duration_ms", 0) / 1000)

    def _request(self, event: dict[str, Any]) -> None:
        method = str(event.get("method", ""))
        method = method if method in _METHODS else OTHER
        self._add("requests", method, event.get("status", ""), event.get("said_by", ""))

    def _opened(self, _: dict[str, Any]) -> None:
        self._add("websockets")

    def _websocket_closed(self, event: dict[str, Any]) -> None:
        self._add("websocket_closes", event.get("code", ""), event.get("said_by", ""))
        for way in ("in", "out"):
            self._add("messages", way, by=event.get(f"messages_{way}", 0))
        self.took("websocket", event.get("duration_ms", 0) / 1000)

    def _substituted(self, event: dict[str, Any]) -> None:
        self._add("secrets", "substituted", by=event.get("count", 1))

    def _withheld(self, event: dict[str, Any]) -> None:
        self._add("secrets", "withheld", by=event.get("count", 1))

    def told(self, flows: Iterable[Flow], connections: int) -> dict[str, Any]:
        """`counts`: [name, labels, value] each; `times`: by name, counts of the buckets and sum.

        `bytes_in` and `bytes_out` include those of open flows, whose numbers are `active`:
        [entry, count] each; `open_websockets` and `connections` are numbers of now.
        """
        active: dict[str, int] = {}
        websockets = 0
        moving = dict.fromkeys(self._shown, 0)
        for flow in flows:
            active[flow.entry] = active.get(flow.entry, 0) + 1
            progress = dict(flow.progress()) if flow.progress is not None else {}
            websockets += "websocket" in progress
            for way in moving:
                moving[way] += int(progress.get(way, 0))
        for way, now in moving.items():
            total = int(self._counts.get(way, {}).get((), 0)) + now
            # A flow's last word may be less than what it showed; a counter never goes back.
            self._shown[way] = max(self._shown[way], total)
        refused = dict(self._counts.get("dns_refused", {}))
        for reason, count in self.untold().items():
            refused[(reason,)] = refused.get((reason,), 0) + count
        return {
            "counts": [
                [name, list(labels), value]
                for name, counts in {**self._counts, "dns_refused": refused}.items()
                if name not in self._shown
                for labels, value in counts.items()
            ],
            "times": {
                name: {"bounds": BUCKETS[name], "counts": counts, "sum": self._sums[name]}
                for name, counts in self._times.items()
            },
            **self._shown,
            "active": list(active.items()),
            "open_websockets": websockets,
            "connections": connections,
        }
