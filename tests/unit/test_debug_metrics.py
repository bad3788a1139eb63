"""Metrics: what events add up to, and how Prometheus reads it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from netns_runtime.debug.exposition import Family, exposition_of
from netns_runtime.debug.measures import FAMILIES, add_told
from netns_runtime.debug.metrics import parsed
from netns_runtime.errors import UsageError
from netns_runtime.proxy.dnsaudit import Refused, RefusedNames
from netns_runtime.proxy.tallies import BUCKETS, LABEL_SETS, Tallies


def told(tallies: Tallies, *flows: Any) -> dict[str, Any]:
    return tallies.told(flows, 0)


def counts(tallies: Tallies) -> dict[tuple[str, ...], float]:
    return {(name, *labels): value for name, labels, value in told(tallies)["counts"]}


def test_every_event_that_counts_is_counted_once() -> None:
    tallies = Tallies()
    for event in (
        {"event": "dns.answered", "host": "a.test"},
        {"event": "dns.refused", "reason": "name_not_allowed"},
        {"event": "dns.refused", "reason": "name_not_allowed", "count": 4},
        {"event": "flow.decided", "entry": "explicit", "action": "allow", "reason": "noted"},
        {"event": "flow.decided", "entry": "redirected", "action": "refuse", "reason": "why"},
        {"event": "flow.closed", "bytes_in": 7, "bytes_out": 5, "duration_ms": 1500},
        {"event": "http.request", "method": "GET", "status": 200, "said_by": "upstream"},
        {"event": "http.request", "method": "BREW", "status": 418, "said_by": "upstream"},
        {"event": "ws.opened"},
        {"event": "ws.closed", "code": 1006, "said_by": "upstream", "messages_in": 3},
        {"event": "secret.withheld"},
        {"event": "sandbox.started"},
    ):
        tallies.take(event)
    assert counts(tallies) == {
        ("dns_names",): 1,
        ("dns_refused", "name_not_allowed"): 5,
        ("decisions", "explicit", "allow", ""): 1,
        ("decisions", "redirected", "refuse", "why"): 1,
        ("closed", "", ""): 1,
        ("requests", "GET", "200", "upstream"): 1,
        ("requests", "other", "418", "upstream"): 1,
        ("websockets",): 1,
        ("websocket_closes", "1006", "upstream"): 1,
        ("messages", "in"): 3,
        ("messages", "out"): 0,
        ("secrets", "withheld"): 1,
    }
    shown = told(tallies)
    assert (shown["bytes_in"], shown["bytes_out"]) == (7, 5)
    assert sum(shown["times"]["flow"]["counts"]) == 1
    assert shown["times"]["flow"]["sum"] == 1.5


def test_labels_that_the_sandbox_chooses_are_bounded_and_nothing_is_lost() -> None:
    tallies = Tallies()
    for code in range(3000, 3000 + 5 * LABEL_SETS):
        tallies.take({"event": "ws.closed", "code": code, "said_by": "sandbox"})
    found = {key: value for key, value in counts(tallies).items() if key[0] == "websocket_closes"}
    assert len(found) == LABEL_SETS + 1
    assert sum(found.values()) == 5 * LABEL_SETS
    assert found["websocket_closes", "other", "sandbox"] == 4 * LABEL_SETS


def test_bytes_of_open_flows_count_and_never_go_back() -> None:
    tallies = Tallies()
    flow = SimpleNamespace(entry="explicit", progress=lambda: (("bytes_in", 90), ("bytes_out", 1)))
    shown = told(tallies, flow)
    assert (shown["bytes_in"], shown["active"]) == (90, [("explicit", 1)])
    tallies.take({"event": "flow.closed", "bytes_in": 80})
    assert told(tallies)["bytes_in"] == 90
    tallies.take({"event": "flow.closed", "bytes_in": 20})
    assert told(tallies)["bytes_in"] == 100


def test_a_bucket_takes_what_is_at_most_its_bound() -> None:
    tallies = Tallies()
    bounds = BUCKETS["connect"]
    for seconds in (bounds[0], bounds[0] + 1e-6, bounds[-1] + 1):
        tallies.took("connect", seconds)
    found = told(tallies)["times"]["connect"]["counts"]
    assert (found[0], found[1], found[-1], len(found)) == (1, 1, 1, len(bounds) + 1)


def test_a_histogram_is_cumulative_and_ends_with_everything() -> None:
    family = Family("netns_x_seconds", "histogram", "About.")
    family.add_histogram((0.5, 1.0), (2, 3, 4), 12.5, {"sandbox": "s"})
    assert exposition_of([family]) == (
        "# HELP netns_x_seconds About.\n# TYPE netns_x_seconds histogram\n"
        'netns_x_seconds_bucket{sandbox="s",le="0.5"} 2\n'
        'netns_x_seconds_bucket{sandbox="s",le="1"} 5\n'
        'netns_x_seconds_bucket{sandbox="s",le="+Inf"} 9\n'
        'netns_x_seconds_sum{sandbox="s"} 12.5\nnetns_x_seconds_count{sandbox="s"} 9\n'
    )


def test_a_label_cannot_end_its_line_or_its_quotes() -> None:
    family = Family("netns_x", "gauge", "About.")
    family.add(1, {"a": 'x"} 1\nnetns_y \\ \x1b'})
    (sample,) = [line for line in exposition_of([family]).splitlines() if line[0] != "#"]
    assert sample == 'netns_x{a="x\\"} 1\\\\nnetns_y \\\\ \\\\x1b"} 1'


def test_a_family_without_samples_is_left_out() -> None:
    assert exposition_of([Family("netns_x", "gauge", "About.")]) == ""


@pytest.mark.parametrize(("name", "kind"), [("netns_x_total", "gauge"), ("netns_x", "counter")])
def test_counters_and_they_alone_end_with_total(name: str, kind: Any) -> None:
    with pytest.raises(ValueError, match="_total"):
        Family(name, kind, "About.")


def test_all_that_the_proxy_tells_has_a_family_and_the_unknown_is_passed_over() -> None:
    tallies = Tallies()
    tallies.take({"event": "ws.opened"})
    tallies.took("response", 0.1)
    found = {name: Family(name, kind, about) for name, (kind, about) in FAMILIES.items()}
    shown = told(tallies) | {"newer": 1}
    shown["counts"].append(["newer", ["x"], 1])
    add_told(found, shown, {"sandbox": "s"})
    text = exposition_of(found.values())
    assert 'netns_websockets_opened_total{sandbox="s"} 1\n' in text
    assert 'netns_http_response_delay_seconds_count{sandbox="s"} 1\n' in text
    assert "newer" not in text


def test_refused_lookups_count_before_they_are_told_and_once() -> None:
    """What repeats has no line for minutes; the count is exact at every scrape."""
    audit = Lines()
    names = RefusedNames(audit, lambda: 0.0)  # type: ignore[arg-type]
    tallies = Tallies()
    tallies.untold = names.untold
    refused = Refused("a.test", 1, "name_not_allowed", "no rule")
    assert names.note(refused)
    names.tell(refused, None, "udp")
    for _ in range(3):
        assert not names.note(refused)
    for event in audit.events:
        tallies.take(event)
    wanted = [["dns_refused", ["name_not_allowed"], 4]]
    assert told(tallies)["counts"] == wanted
    audit.events.clear()
    names.flush(everything=True)
    for event in audit.events:
        tallies.take(event)
    assert told(tallies)["counts"] == wanted


class Lines:
    """An audit that keeps its events."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def write(self, event: str, **fields: Any) -> None:
        self.events.append({"event": event, **fields})


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("127.0.0.1:9464", ("127.0.0.1", 9464)),
        ("[::1]:0", ("::1", 0)),
        ("0.0.0.0:1", ("0.0.0.0", 1)),
    ],
)
def test_takes_an_address_and_a_port(text: str, wanted: tuple[str, int]) -> None:
    assert parsed(["--listen", text]) == wanted


@pytest.mark.parametrize(
    "words",
    [
        ["--listen"],
        ["--listen", ""],
        ["--listen", "9464"],
        ["--listen", "localhost:1"],
        ["--listen", "127.0.0.1:65536"],
        ["--listen", "127.0.0.1:1", "more"],
        ["--port", "1"],
    ],
)
def test_refuses_anything_else(words: list[str]) -> None:
    with pytest.raises(UsageError):
        parsed(words)
