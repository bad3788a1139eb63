"""What an audit file gives that is whole, cut, of a newer version, or no audit file at all."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netns_runtime.debug.evidence import evidence_of, read_audit
from netns_runtime.errors import UsageError
from netns_runtime.recent import Recent

if TYPE_CHECKING:
    from pathlib import Path


def event(kind: str = "flow.decided", **fields: Any) -> dict[str, Any]:
    return {"event": kind, "time": "2026-01-01T00:00:00.000000Z", "sandbox": "s", **fields}


def lines(*events: dict[str, Any]) -> list[bytes]:
    return [json.dumps(each).encode() + b"\n" for each in events]


def test_a_last_line_that_is_cut_is_left_out_and_told() -> None:
    whole = lines(event(host="a.test"), event(host="b.test"))
    found = evidence_of([*whole[:-1], whole[-1][:20]], "audit x")
    assert [each["host"] for each in found.events] == ["a.test"]
    assert found.notes == ("the last line is cut off in the middle; it is left out",)


def test_a_last_line_without_its_newline_is_whole() -> None:
    [line] = lines(event(host="a.test"))
    found = evidence_of([line[:-1]], "audit x")
    assert len(found.events) == 1
    assert found.notes == ()


def test_lines_that_are_no_events_are_counted() -> None:
    found = evidence_of([b"{}\n", b"[1]\n", b"junk\n", b"\n", *lines(event())], "audit x")
    assert len(found.events) == 1
    assert found.notes == ("3 lines are no events (cut, or not ours) and left out",)


def test_events_of_a_newer_version_are_kept_and_told() -> None:
    found = evidence_of(lines(event("quic.opened", host="a.test", new={"deep": 1})), "audit x")
    assert found.by_host["a.test"][0]["new"] == {"deep": 1}
    assert found.notes == ("1 events are of a newer version (quic.opened)",)


def test_only_the_newest_are_kept_and_the_others_counted() -> None:
    found = evidence_of(lines(*[event(port=n) for n in range(5)]), "audit x", most=2)
    assert [each["port"] for each in found.events] == [3, 4]
    assert found.lost == 3


def test_events_are_found_by_host_and_sandbox() -> None:
    events = [event(host="a.test", port=443, flow=1), event("dns.refused", host="a.test")]
    events.append({**event("connect.refused", address="192.0.2.1", port=80), "sandbox": "other"})
    found = evidence_of(lines(*events), "audit x")
    assert found.about("a.test", 443) == events[:2], "a lookup has no port"
    assert found.about("a.test", 80) == events[1:2]
    assert found.about("192.0.2.1") == events[2:]
    assert found.only("other").events == (events[2],)
    with pytest.raises(UsageError, match="no event of sandbox gone: name one of: s, other"):
        found.only("gone")


@pytest.mark.parametrize("text", [b"", b"\n\n", b"no json", b"{}\n"])
def test_a_file_without_any_event_is_one_line_with_a_remedy(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "audit"
    path.write_bytes(text)
    with pytest.raises(UsageError, match=r"holds no event: .*: name a file that --audit wrote"):
        read_audit(str(path))


def test_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file or directory: check the path"):
        read_audit(str(tmp_path / "none"))


def test_a_line_without_end_costs_no_memory_and_no_other_line(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    [line] = lines(event())
    path.write_bytes(b"x" * (3 << 20) + b"\n" + line)
    assert len(read_audit(str(path)).events) == 1


@given(st.lists(st.binary(max_size=60), max_size=20))
def test_nothing_that_a_file_may_hold_raises(junk: list[bytes]) -> None:
    found = evidence_of(junk, "audit x")
    assert all(isinstance(each["event"], str) for each in found.events)


def test_a_ring_gives_batches_that_fit_and_says_what_is_lost() -> None:
    recent = Recent(limit=10)
    for number in range(25):
        recent.take(event(port=number))
    events, lost, following = recent.since(0)
    assert [each["port"] for each in events] == list(range(15, 25))
    assert (lost, following) == (15, 25)
    events, lost, following = recent.since(20, octets=1)
    assert ([each["port"] for each in events], lost, following) == ([20], 0, 21)
    assert recent.since(25) == ([], 0, 25)


def test_a_ring_shortens_what_would_not_fit_a_message() -> None:
    recent = Recent()
    recent.take(event(path="/" + "x" * 100_000, host="a.test"))
    [[told], _, _] = recent.since(0)
    assert len(told["path"]) < 3000
    assert told["host"] == "a.test"
