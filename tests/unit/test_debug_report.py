"""Evidence as a Story: what is counted, what is grouped, and what is said to be missing."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pytest

from netns_runtime import state
from netns_runtime.debug.evidence import Evidence, evidence_of, read_audit
from netns_runtime.debug.report import command
from netns_runtime.debug.report.page import page_of
from netns_runtime.debug.report.story import CARDS, ROWS, Story
from netns_runtime.debug.report.tell import SANDBOXES, Live, live_story, stories_of
from netns_runtime.debug.report.timeline import BARS, LANES, ticks_of
from netns_runtime.debug.report.troubles import Setting
from netns_runtime.errors import UsageError
from netns_runtime.policy import Policy, load_policy
from tests.support.report_page import Page, read

if TYPE_CHECKING:
    from pathlib import Path

BASE: dict[str, Any] = {"sandbox": "box", "comm": "node", "exe": "/usr/bin/node", "pid": 7}
API: dict[str, Any] = {**BASE, "host": "api.test", "port": 443, "entry": "explicit"}


def stamp(seconds: float) -> str:
    return f"2026-11-21T08:{int(seconds) // 60:02}:{seconds % 60:09.6f}Z"


def event(name: str, at: float, **fields: Any) -> dict[str, Any]:
    return {"event": name, "time": stamp(at), **BASE, **fields}


def connect(at: float, address: str = "203.0.113.9", **fields: Any) -> dict[str, Any]:
    said = {"action": "refuse", "said_by": "sandbox", "reason": "direct_tcp", "protocol": "tcp"}
    where = {"address": address, "port": 443, "counted_by": "bpf"}
    return event("connect.refused", at, **{**said, **where, **fields})


def flow(number: int, at: float, **fields: Any) -> list[dict[str, Any]]:
    said = {**API, "flow": number, "protocol": "connect", **fields}
    ends = {"bytes_in": 10, "bytes_out": 20, "duration_ms": 500.0}
    return [
        event("flow.decided", at, **{**said, "action": "allow", "said_by": "policy"}),
        event("flow.closed", at + 0.5, **{**ends, **said}),
    ]


def denied(number: int, at: float, host: str = "evil.test") -> dict[str, Any]:
    said = {"action": "refuse", "said_by": "policy", "reason": "http_request_denied"}
    told = {"detail": f"no rule allows {host}:443", "remedy": f"--allow {host}:443"}
    return event("flow.decided", at, **{**API, "host": host, "flow": number, **said, **told})


def websocket(number: int, at: float, code: int, host: str = "ws.test") -> list[dict[str, Any]]:
    said = {**API, "host": host, "flow": number, "protocol": "websocket", "said_by": "upstream"}
    asked = {"method": "GET", "path": "/s", "status": 101}
    return [
        event("flow.decided", at, **{**said, "action": "allow"}),
        event("http.request", at + 0.1, **said, **asked),
        event("ws.opened", at + 0.1, **said),
        event("ws.closed", at + 1, **said, code=code, messages_in=1, duration_ms=900.0),
        event("flow.closed", at + 1, **said),
    ]


def story(*events: dict[str, Any]) -> Story:
    ((found,), _) = stories_of(Evidence("audit x", events))
    return found


def page(*events: dict[str, Any]) -> Page:
    stories, notes = stories_of(Evidence("audit x", events))
    found = read(page_of(stories, notes))
    assert set(found.links) <= set(found.ids)
    assert len(found.ids) == len(set(found.ids))
    return found


def test_refusals_of_one_process_at_one_place_are_one_with_a_count() -> None:
    found = story(*[connect(n) for n in range(5)], connect(6, pid=8), connect(7, comm="curl"))
    first, second = found.refusals
    assert (first.count, first.pids, first.who) == (6, (7, 8), "node")
    assert (first.first, first.last) == (stamp(0), stamp(6))
    assert (second.count, second.who) == (1, "curl")
    assert first.step == "kernel hook"
    assert first.changes == ("--allow 203.0.113.9:443",)


def test_a_remedy_for_udp_is_not_a_rule_that_does_not_carry_it() -> None:
    remedy = "UDP is not carried: use TCP (HTTP/2 or 1.1 in place of HTTP/3)"
    (found,) = story(connect(0, protocol="udp", reason="direct_udp", remedy=remedy)).refusals
    assert (found.changes, found.advice) == ((), remedy)


def test_a_count_in_an_event_counts() -> None:
    said = {"host": "x.test", "action": "refuse", "reason": "name_not_allowed", "said_by": "policy"}
    found = story(event("dns.refused", 0, **said, count=41), event("dns.refused", 1, **said))
    assert found.totals.names_refused == 42
    assert found.refusals[0].count == 42


def test_the_exact_count_is_the_exit_s_and_what_no_event_tells_is_said() -> None:
    exit_ = event("sandbox.exited", 3, code=137, duration_ms=3000, count=900, counted_bpf=899,
                  counted_nft=1, direct_tcp=900)  # fmt: skip
    found = story(connect(0), exit_)
    totals = found.totals
    assert (totals.refused, totals.counted_bpf, totals.untold) == (900, 899, 899)
    assert (found.status, found.seconds) == (137, 3.0)
    told = page(connect(0), exit_)
    assert "exact: hook 899, nft 1" in told.text
    assert "899 refused connects were counted and not told one by one" in told.text
    assert "exit status 137 (SIGKILL)" in told.text


def test_without_an_exit_there_is_no_exact_count() -> None:
    found = story(connect(0))
    assert found.totals.refused is None
    assert "no end of the sandbox is on record" in found.left_out[0]
    assert "no exact count on record" in page(connect(0)).text


def test_who_talked_to_whom_has_attempts_and_bytes() -> None:
    talks = {(t.who, t.where): t for t in story(*flow(1, 0), *flow(2, 1), connect(2)).talks}
    assert talks["node", "api.test:443"].passed == 2
    assert talks["node", "api.test:443"].bytes_out == 40
    assert talks["node", "203.0.113.9:443"].refused == 1


def test_two_executables_of_one_name_are_told_apart() -> None:
    found = story(*flow(1, 0), *flow(2, 1, exe="/tmp/node"))
    assert {talk.who for talk in found.talks} == {"node (/usr/bin/node)", "node (/tmp/node)"}


def test_a_websocket_is_one_attempt_and_its_handshake_not_another() -> None:
    found = story(*websocket(1, 0, 1000), *websocket(2, 5, 4004))
    (talk,) = found.talks
    assert (talk.passed, talk.failed) == (1, 1)
    assert (found.totals.sockets, found.totals.sockets_failed) == (2, 1)
    assert found.failures == ()
    assert [life.kind for life in found.sockets] == ["close-4004", "close-1000"]


def test_a_failed_life_is_explained_where_its_bar_points() -> None:
    found = story(*websocket(1, 0, 4004))
    (lane,) = found.timeline.lanes
    assert lane.bars[0].place == found.sockets[0].id
    assert (lane.bars[0].is_socket, lane.bars[0].outcome, lane.points) == (True, "failed", ())


def test_report_mode_s_findings_are_noted_and_not_refused() -> None:
    said = {"reason": "http_request_denied", "detail": "would be refused: no rule allows it"}
    decided, closed = flow(1, 0)
    found = story({**decided, **said, "remedy": "--allow api.test:443"}, closed)
    (noted,) = found.refusals
    assert (noted.outcome, noted.changes) == ("noted", ("--allow api.test:443",))
    assert dict(found.totals.attempts)["refused"] == 0
    assert "would have been, without --report" in page(
        {**decided, **said, "remedy": "--allow api.test:443"}, closed
    ).text  # fmt: skip


def test_secrets_are_told_by_name() -> None:
    said = {**API, "flow": 1, "secret": "TOKEN"}
    found = story(
        *flow(1, 0),
        event("secret.substituted", 0.1, **said, slot="header authorization"),
        event("secret.withheld", 0.2, **said, detail="it is not bound to api.test"),
    )
    (secret,) = found.secrets
    assert (secret.name, secret.substituted, secret.withheld) == ("TOKEN", 1, 1)
    assert secret.hosts == ("api.test:443",)
    assert secret.why == ("it is not bound to api.test",)


def test_requests_are_counted_by_host_method_and_class() -> None:
    asked = {**API, "flow": 1, "said_by": "upstream", "action": "allow"}
    found = story(
        flow(1, 0)[0],
        event("http.request", 0.25, **asked, method="GET", path="/a", status=200),
        event("http.request", 0.5, **asked, method="POST", path="/b", status=500),
    )
    (host,) = found.requests
    assert (host.count, dict(host.methods)) == (2, {"GET": 1, "POST": 1})
    assert dict(host.statuses) == {"2xx": 1, "5xx": 1}
    (slow,) = found.slowest
    assert (slow.what, slow.milliseconds) == ("GET /a", 250.0)


def test_many_flows_are_columns_and_few_are_bars() -> None:
    few = story(*[e for n in range(3) for e in flow(n, n)]).timeline.lanes[0]
    assert (len(few.bars), few.columns) == (3, ())
    many = story(*[e for n in range(BARS + 1) for e in flow(n, n)]).timeline
    lane = many.lanes[0]
    assert lane.bars == ()
    assert sum(sum(column.counts) for column in lane.columns) == many.binned == BARS + 1


def test_flows_that_overlap_stand_in_rows() -> None:
    lane = story(*flow(1, 0), *flow(2, 0.1), *flow(3, 0.9)).timeline.lanes[0]
    assert [bar.row for bar in lane.bars] == [0, 1, 0]


def test_destinations_beyond_the_lanes_share_the_last() -> None:
    found = story(*[connect(n, f"203.0.113.{n}") for n in range(LANES + 5)]).timeline
    assert len(found.lanes) == LANES
    assert found.lanes[-1].label == "6 others"
    assert sum(dict(lane.counts)["refused"] for lane in found.lanes) == LANES + 5


@pytest.mark.parametrize("seconds", [0.001, 0.7, 3, 59, 601, 7200, 90_000, 1e7, 1e9])
def test_ticks_are_few_and_inside(seconds: float) -> None:
    ticks = ticks_of(1.7e9 + 0.123, seconds)
    assert len(ticks) <= 6
    assert all(0 <= at <= 1 for at, _ in ticks)
    assert len({label for _, label in ticks}) == len(ticks)


def test_more_kinds_than_cards_are_rows_and_more_than_rows_are_counted() -> None:
    events = [denied(n, n / 100, f"h{n}.test") for n in range(CARDS + 3)]
    told = page(*events)
    assert told.text.count("What would allow it") == CARDS
    assert "3 more kinds" in told.text
    many = story(*[connect(n / 100, f"203.0.{n % 5}.{n % 251}") for n in range(1300)])
    assert len(many.refusals) == ROWS
    assert many.totals.places_refused > ROWS


def test_the_same_evidence_gives_the_same_page() -> None:
    events = (*flow(1, 0), *websocket(2, 1, 1006), connect(3), denied(4, 4))
    first = page_of(*stories_of(Evidence("audit x", events)))
    assert first == page_of(*stories_of(Evidence("audit x", tuple(map(dict, events)))))


def test_several_sandboxes_are_chapters_and_too_many_are_said() -> None:
    events = [
        {**connect(n, f"203.0.113.{n}"), "sandbox": f"s{n % (SANDBOXES + 2)}"} for n in range(30)
    ]
    stories, notes = stories_of(Evidence("audit x", tuple(events)))
    assert len(stories) == SANDBOXES
    assert "2 more sandboxes are in it" in notes[-1]
    told = page(*events)
    assert told.elements["article"] >= SANDBOXES
    assert told.elements["h1"] == SANDBOXES + 1


def test_a_cut_and_newer_audit_is_told_with_its_notes(tmp_path: Path) -> None:
    audit = tmp_path / "audit"
    lines = [json.dumps(e) for e in (connect(0), event("sandbox.dreamt", 1, dream={"a": [1]}))]
    audit.write_text("\n".join([*lines, json.dumps(connect(2))[:40]]))
    stories, notes = stories_of(read_audit(str(audit)))
    text = read(page_of(stories, notes)).text
    assert "the last line is cut off in the middle" in text
    assert "1 events are of a newer version (sandbox.dreamt)" in text


def test_events_that_say_next_to_nothing_are_told_for_as_much_as_they_say() -> None:
    names = ("connect.refused", "dns.refused", "flow.decided", "flow.closed", "http.request")
    more = ("ws.opened", "ws.closed", "secret.withheld", "sandbox.started", "sandbox.exited")
    bare = [{"event": name} for name in (*names, *more)]
    flows = [{"event": name, "flow": 1, "time": 7, "host": ["x"]} for name in (*names, *more)]
    lines = [json.dumps(line).encode() + b"\n" for line in (*bare, *flows)]
    told = page(*evidence_of(lines, "audit x").events)
    assert "events without a readable time are in no timeline" in told.text


def policy_of(text: str) -> Policy:
    return load_policy(text.encode(), "p.yaml")


LIVE = Live(
    seen_at=stamp(10),
    totals={"count": 50, "counted_bpf": 50, "counted_nft": 0, "direct_tcp": 50},
    flows=({"flow": 1, "bytes_in": 5, "bytes_out": 6},),
    secrets=({"name": "TOKEN", "hosts": ["api.test"]},),
    facts=(("Policy", "p.yaml"),),
    command="node",
    started=stamp(0),
)
COUNTED = {"count": 40, "reason": "direct_tcp", "address": "203.0.113.9", "port": 443,
           "protocol": "tcp", "comm": "node", "pid": 7, "counted_by": "bpf"}  # fmt: skip


def test_a_running_sandbox_s_counters_tell_what_its_events_no_longer_do() -> None:
    policy = policy_of("version: 1\nnetwork_policies: {}\n")
    gone = {**COUNTED, "address": "203.0.113.10", "count": 10}
    setting = Setting(policy, True, False, "", (COUNTED, gone))
    found = live_story("box", Evidence("sandbox box", (connect(1), *flow(1, 2)[:1])), setting, LIVE)
    first, second = found.refusals
    assert (first.where, first.count, first.counted) == ("203.0.113.9:443", 1, 40)
    assert (second.where, second.count, second.counted) == ("203.0.113.10:443", 0, 10)
    assert second.changes == ("--allow 203.0.113.10:443",)
    assert (found.totals.refused, found.totals.untold) == (50, 49)
    assert (found.totals.bytes_in, found.totals.flows_open) == (5, 1)
    assert found.flows[0].outcome == "open"
    assert found.secrets[0].bound == ("api.test",)
    text = read(page_of((found,), ())).text
    assert "40\u00d7 counted, 1 told" in text
    assert "running, seen at 08:00:10" in text


def test_the_policy_in_force_now_is_what_a_remedy_answers_to() -> None:
    allowed = policy_of(
        "version: 1\nnetwork_policies: {a: {endpoints: [{host: evil.test, port: 443}]}}\n"
    )
    found = live_story(
        "box", Evidence("sandbox box", (denied(1, 0),)), Setting(allowed, True), LIVE
    )
    assert "the policy given here would let it pass" in found.refusals[0].notes[0]


@pytest.mark.parametrize(
    ("words", "audit", "sandbox", "target"),
    [
        (["box", "-o", "x.html"], None, "box", "x.html"),
        (["-o", "x.html"], None, None, "x.html"),
        (["./box", "-o=x"], "./box", None, "x"),
        (["-", "-o", "x"], "-", None, "x"),
        (["dir/a.jsonl", "--sandbox", "box", "-o", "-"], "dir/a.jsonl", "box", "-"),
        (["--from", "a", "-o", "x"], "a", None, "x"),
        (["--sandbox", "box", "-o", "x"], None, "box", "x"),
    ],
)
def test_a_command_line_is_read(
    words: list[str], audit: str | None, sandbox: str | None, target: str
) -> None:
    wanted = command.parse(words)
    assert (wanted.audit, wanted.sandbox, wanted.target) == (audit, sandbox, target)


def test_a_word_that_names_a_file_here_is_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "box").write_text("")
    assert command.parse(["box", "-o", "x"]).audit == "box"
    assert command.parse(["other", "-o", "x"]).sandbox == "other"
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(state, "survey", lambda: ([], frozenset({"box"}), []))
    assert "a file here and a running sandbox" in command.parse(["box", "-o", "x"]).note


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["a", "b", "-o", "x"],
        ["a", "-o"],
        ["a", "-o", "x", "-o", "y"],
        ["a", "--bogus", "-o", "x"],
        ["--from", "a", "./b", "-o", "x"],
        ["no-file", "--sandbox", "box", "-o", "x"],
        ["\x1b[31m", "b", "-o", "x"],
    ],
)
def test_a_wrong_command_line_is_one_line_with_a_remedy(words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        command.parse(words)
    assert caught.value.remedy
    assert str(caught.value).isprintable()


def test_json_needs_no_page_and_no_second_use_of_standard_output() -> None:
    assert command.parse(["./a"], as_json=True).target is None
    with pytest.raises(UsageError, match="both want standard output"):
        command.parse(["./a", "-o", "-"], as_json=True)


def test_the_data_behind_the_page_is_json() -> None:
    found = story(*flow(1, 0), *websocket(2, 1, 1006), connect(3))
    assert json.loads(json.dumps(asdict(found)))["name"] == "box"
