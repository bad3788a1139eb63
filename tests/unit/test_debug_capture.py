"""`netns-debug capture`: its words, whose a packet is, and what of the uplink is ours."""

from __future__ import annotations

import os
import stat
import struct
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netns_runtime.debug.capture import Order, parse
from netns_runtime.debug.capturedials import SOON, Dials
from netns_runtime.debug.captureevents import journal_of
from netns_runtime.debug.capturefile import open_capture
from netns_runtime.debug.capturesummary import Summary
from netns_runtime.debug.capturewho import ACK, SYN, TCP, UDP, Ends, Who, asked_name, ends_of
from netns_runtime.errors import UsageError
from netns_runtime.owner import Owner

if TYPE_CHECKING:
    from pathlib import Path

SANDBOX, PROXY = "10.200.0.2", "10.200.0.1"
SECOND = 1_000_000_000


def raw(address: str) -> bytes:
    return ip_address(address).packed


def tcp_bytes(source: str, sport: int, destination: str, dport: int, flags: int = 0) -> bytes:
    one, other = raw(source), raw(destination)
    segment = struct.pack("!HHIIBBHHH", sport, dport, 77, 0, 5 << 4, flags, 0, 0, 0) + b"GET / "
    if len(one) == 4:
        head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(segment), 0, 0, 64, TCP, 0)
        return head + one + other + segment
    return struct.pack("!IHBB", 6 << 28, len(segment), TCP, 64) + one + other + segment


def out(port: int, flags: int = 0, sequence: int = 0) -> Ends:
    return Ends(TCP, raw(SANDBOX), port, raw(PROXY), 3128, flags, sequence)


def back(ends: Ends) -> Ends:
    return Ends(TCP, ends.destination, ends.destination_port, ends.source, ends.source_port)


# --- the command line ---


def test_the_command_line_is_read() -> None:
    words = ["sb", "-o", "f.pcapng", "--seconds=2.5", "--packets", "9", "--with-secrets"]
    assert parse(words) == Order("sb", "f.pcapng", 2.5, 9, secrets=True)
    assert parse(["-o=x"]) == Order(None, "x")


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["-o"],
        ["-o", "a", "-o", "b"],
        ["-o", "a", "--seconds", "soon"],
        ["-o", "a", "--seconds", "nan"],
        ["-o", "a", "--packets", "0"],
        ["-o", "a", "--packets", "1.5"],
        ["-o", "a", "--with-secret"],
        ["-o", "a", "one", "two"],
    ],
)
def test_bad_words_are_one_line_with_a_remedy(words: list[str]) -> None:
    with pytest.raises(UsageError) as told:
        parse(words)
    assert told.value.remedy
    assert "\n" not in str(told.value)


# --- the file ---


def test_the_file_is_new_and_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "f.pcapng"
    file = open_capture(str(path))
    file.write([b"one", b"two"])
    file.close()
    assert path.read_bytes() == b"onetwo"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("mine")
    with pytest.raises(UsageError, match="there already"):
        open_capture(str(path))
    assert path.read_text() == "mine"


@pytest.mark.parametrize("target", ["aim", "missing"])
def test_a_link_is_not_followed(tmp_path: Path, target: str) -> None:
    (tmp_path / "aim").write_text("mine")
    (tmp_path / "f").symlink_to(tmp_path / target)
    with pytest.raises(UsageError):
        open_capture(str(tmp_path / "f"))
    assert (tmp_path / "aim").read_text() == "mine"
    assert not (tmp_path / "missing").exists()


def test_a_link_on_the_way_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(UsageError, match="a link is on the way"):
        open_capture(str(tmp_path / "link" / "f"))
    assert not list((tmp_path / "real").iterdir())


@pytest.mark.parametrize("name", ["missing/f", "", ".", "x/", "/dev/null"])
def test_a_name_that_cannot_be_is_one_line(tmp_path: Path, name: str) -> None:
    before = os.getcwd()
    os.chdir(tmp_path)
    try:
        with pytest.raises(UsageError) as told:
            open_capture(name)
    finally:
        os.chdir(before)
    assert told.value.remedy


def test_a_full_disk_leaves_whole_blocks() -> None:
    """/dev/full is no regular file: what is cut back is tested with tmpfs, end to end."""
    from netns_runtime.debug.capturefile import CaptureFile

    file = CaptureFile(os.open("/dev/full", os.O_WRONLY | os.O_CLOEXEC), "f\x1b")
    with pytest.raises(UsageError, match=r"-o f\\x1b: No space left on device: free space"):
        file.write([b"block"])
    assert file.written == 0
    file.close()


# --- packets ---


@pytest.mark.parametrize("pair", [(SANDBOX, PROXY), ("fd00:c8::2", "fd00:c8::1")])
def test_ends_are_read_from_either_family(pair: tuple[str, str]) -> None:
    data = tcp_bytes(pair[0], 40000, pair[1], 443, SYN)
    found = ends_of(bytes(14) + data, 14)
    assert found is not None
    assert found[:5] == (TCP, raw(pair[0]), 40000, raw(pair[1]), 443)
    assert found.is_syn
    assert found.sequence == 77
    assert (bytes(14) + data)[found.content :] == b"GET / "


@given(st.binary(max_size=80), st.integers(0, 20))
def test_what_is_no_packet_has_no_ends_and_no_accident(data: bytes, start: int) -> None:
    found = ends_of(data, start)
    assert found is None or found.protocol in (TCP, UDP)


@given(st.integers(0, 60))
def test_a_packet_that_was_cut_has_no_ends(size: int) -> None:
    whole = tcp_bytes(SANDBOX, 1, PROXY, 2)
    found = ends_of(whole[:size], 0)
    assert (found is not None) == (size >= 40)


def test_a_later_fragment_has_no_ports() -> None:
    data = bytearray(tcp_bytes(SANDBOX, 1, PROXY, 2))
    data[6:8] = b"\x00\x01"
    assert ends_of(bytes(data), 0) is None


@given(st.binary(max_size=300))
def test_a_name_is_asked_in_printable_characters(data: bytes) -> None:
    assert asked_name(data, 0).isprintable()


def test_the_asked_name_is_read() -> None:
    query = bytes(12) + b"\x03Web\x03lab\x04test\x00\x00\x01\x00\x01"
    assert asked_name(b"xx" + query, 2) == "web.lab.test"


# --- whose ---


class Owners:
    fd = -1

    def __init__(self, **by_port: Owner) -> None:
        self.by_port = by_port

    def owner_of(self, ip: str, port: int, *destination: Any) -> Owner | None:
        return self.by_port.get(f"p{port}")


class Record:
    cgroup = "/nowhere"


def who_of(**owners: Owner) -> Who:
    record: Any = Record()
    table: Any = Owners(**owners)
    return Who(record, -1, table)


def flow(number: int, at: int, port: int = 40000, **fields: Any) -> dict[str, Any]:
    told = {"pid": 7, "comm": "curl", "host": f"h{number}.test", "port": 443, "entry": "explicit"}
    ends = [PROXY, 3128, SANDBOX, port]
    rule = {"action": "allow", "rule": "r", "terminated": True}
    return {"flow": number, "at": at, **told, **rule, "client": ends, **fields}


def said(who: Who, ends: Ends, when: int, data: bytes = b"") -> str:
    return who.remark(ends, when, data, is_loopback=False)


def test_a_packet_has_the_probe_s_owner_before_any_flow() -> None:
    who = who_of(p40000=Owner(9, "nc"))
    who.see(out(40000, SYN), SECOND, is_loopback=False)
    assert said(who, out(40000), SECOND) == "nc (pid 9) -> 10.200.0.1:3128"


def test_a_flow_is_known_from_both_sides() -> None:
    who = who_of()
    who.told(flow(3, SECOND))
    for ends in (out(40000), back(out(40000))):
        text = said(who, ends, SECOND)
        assert text.startswith("curl (pid 7) -> h3.test:443, explicit, flow 3, allowed: r")
    assert said(who, out(40001), SECOND) == ""


def test_flows_of_one_connection_follow_each_other_in_time() -> None:
    who = who_of()
    who.told(flow(1, 10 * SECOND))
    who.told(flow(2, 20 * SECOND))
    request = Ends(*out(40000)[:5], content=0)
    soon = 20 * SECOND - 1_000_000
    assert "flow 1," in said(who, request, 15 * SECOND, b"GET /1")
    assert "flow 1," in said(who, back(request), soon, b"200")
    assert "flow 2," in said(who, request, soon, b"GET /2"), "a request comes before its decision"
    assert "flow 2," in said(who, back(request), 21 * SECOND)


def test_a_new_connection_from_the_same_port_forgets_the_earlier_one() -> None:
    who = who_of(p40000=Owner(9, "nc"))
    who.told(flow(1, 10 * SECOND))
    who.see(out(40000, SYN), 20 * SECOND, is_loopback=False)
    assert said(who, out(40000), 20 * SECOND).startswith("nc (pid 9)")
    who.told(flow(2, 21 * SECOND))
    assert "flow 2," in said(who, out(40000), 20 * SECOND)


def test_a_flow_that_was_told_before_its_syn_was_read_stays() -> None:
    who = who_of()
    who.told(flow(1, 10 * SECOND + 5))
    who.see(out(40000, SYN), 10 * SECOND, is_loopback=False)
    assert "flow 1," in said(who, out(40000), 10 * SECOND)


def test_an_opened_flow_stays_where_it_was_in_time() -> None:
    who = who_of()
    who.told(flow(1, 10 * SECOND + 5))
    who.told({"flow": 1, "opened": True, "client": [PROXY, 3128, SANDBOX, 40000]})
    who.see(out(40000, SYN), 10 * SECOND, is_loopback=False)
    assert "flow 1," in said(who, out(40000), 10 * SECOND)


def test_a_comment_says_why_bytes_stay_as_they_are() -> None:
    who = who_of()
    who.told(flow(1, SECOND, terminated=False, unread="tls: skip"))
    assert said(who, out(40000), SECOND).endswith("a tunnel, tls: skip: its bytes stay as they are")
    who.told(flow(2, SECOND, port=40001, opened=True, before=True))
    assert said(who, out(40001), SECOND).endswith("began before the capture: no keys of its TLS")
    who.told(flow(3, SECOND, port=40002, action="refuse", detail="no rule"))
    assert said(who, out(40002), SECOND).endswith("flow 3, refused: no rule")


def test_names_that_the_sandbox_chose_stay_one_line_of_ascii() -> None:
    who = who_of()
    evil = "a\nb\x1b[31m\u202e"
    who.told(flow(1, SECOND, comm=evil, exe=f"/{evil}", host=evil, rule=evil))
    text = said(who, out(40000), SECOND)
    assert text.isascii()
    assert text.isprintable()
    assert "a\\nb\\x1b[31m" in text


@pytest.mark.parametrize("client", [None, [], ["x", 1, "y", 2], [PROXY, 3128, SANDBOX, None]])
def test_a_message_that_makes_no_sense_changes_nothing(client: Any) -> None:
    who = who_of()
    who.told({**flow(1, SECOND), "client": client})
    assert said(who, out(40000), SECOND) == ""


def test_a_question_says_who_asked_and_why_it_was_refused() -> None:
    who = who_of()
    event = {"event": "dns.refused", "host": "no.test", "pid": 3, "comm": "first", "detail": "why"}
    who.told_event(event)
    ends = Ends(UDP, raw(SANDBOX), 5353, raw(PROXY), 53)
    query = bytes(12) + b"\x02no\x04test\x00\x00\x01\x00\x01"
    unknown = "an unknown process -> policy DNS: no.test, refused: why"
    assert said(who, ends, SECOND, query) == unknown, "the first to ask is not this one"
    who.told({"asked": ["udp", 5353], "at": SECOND + 5, "pid": 4, "comm": "dig"})
    for one in (ends, back(ends)._replace(protocol=UDP)):
        assert said(who, one, SECOND, query) == "dig (pid 4) -> policy DNS: no.test, refused: why"
    assert said(who, ends, 60 * SECOND, query) == unknown, "ports are used again"


@pytest.mark.parametrize(
    "message",
    [
        {"asked": ["udp"], "at": 1},
        {"asked": 7, "at": 1},
        {"asked": ["udp", []], "at": 1},
        {"client": [PROXY, 3128, SANDBOX, 1], "at": float("inf")},
        {"client": [PROXY, 3128, SANDBOX, 1], "at": "soon"},
        {"client": [PROXY, 3128, SANDBOX, 10**9], "at": 1},
    ],
)
def test_a_proxy_that_was_taken_over_can_only_talk_nonsense(message: dict[str, Any]) -> None:
    who = who_of()
    who.told(message)
    assert said(who, out(1), SECOND) == ""


# --- the uplink ---

OWN, PEER = "192.0.2.1", "198.51.100.7"


def dialled(at: int) -> dict[str, Any]:
    return {"dialling": [OWN, 50000, PEER, 443], "host": "up.test", "at": at}


def up(flags: int = ACK, sequence: int = 0, port: int = 50000) -> Ends:
    return Ends(TCP, raw(OWN), port, raw(PEER), 443, flags, sequence)


def test_only_what_the_proxy_dialled_is_taken() -> None:
    dials = Dials()
    assert dials.remark(up(SYN, 5), SECOND, 1) is None
    dials.told(dialled(SECOND))
    assert dials.remark(up(SYN, 5), SECOND, 1) == "the proxy -> up.test"
    assert dials.remark(back(up()), SECOND, 1) == "the proxy -> up.test"
    assert dials.remark(up(port=50001), SECOND, 1) is None
    assert dials.remark(up()._replace(protocol=UDP), SECOND, 1) is None


def test_somebody_else_s_connection_with_the_same_ends_is_left_alone() -> None:
    dials = Dials()
    dials.told(dialled(10 * SECOND))
    assert dials.remark(up(), 9 * SECOND, 1) is None, "the tail of an earlier one"
    assert dials.remark(up(SYN, 5), 10 * SECOND, 1)
    assert dials.remark(up(SYN, 5), 13 * SECOND, 1), "sent again"
    assert dials.remark(up(SYN, 6), 90 * SECOND, 1) is None
    assert dials.remark(up(), 91 * SECOND, 1) is None
    assert dials.remark(back(up()), 91 * SECOND, 1) is None


def test_a_connection_from_before_is_taken_until_it_begins_anew() -> None:
    dials = Dials()
    ends = [OWN, 50000, PEER, 443]
    dials.told({"flow": 4, "host": "up.test", "port": 443, "upstream": ends, "before": True})
    assert (
        dials.remark(up(), SECOND, 1) == "the proxy for an unknown process -> up.test:443, flow 4"
    )
    assert dials.remark(up(SYN, 5), 2 * SECOND, 1) is None
    assert dials.remark(up(), 3 * SECOND, 1) is None


def test_a_syn_long_before_the_proxy_s_word_is_not_its() -> None:
    dials = Dials()
    dials.told(dialled(10 * SECOND))
    assert dials.remark(up(SYN, 5), 10 * SECOND - 2 * SOON, 1) is None


def test_what_passes_two_interfaces_is_taken_once() -> None:
    dials = Dials()
    dials.told(dialled(SECOND))
    assert dials.remark(up(SYN, 5), SECOND, 3)
    assert dials.remark(up(SYN, 5), SECOND, 4) is None


# --- events and the end ---


def test_a_refusal_is_a_journal_entry_and_a_success_is_none() -> None:
    event = {"event": "connect.refused", "time": "2026-01-01T00:00:01.5Z", "action": "refuse"}
    told = journal_of({**event, "pid": 3, "comm": "x\ny", "address": PEER, "port": 81})
    assert told is not None
    assert told["__REALTIME_TIMESTAMP"] == "1767225601500000"
    assert told["_PID"] == "3"
    assert told["_COMM"] == "x\\ny"
    assert told["MESSAGE"].startswith(f'refused "x\\ny" (pid 3) -> {PEER}:81')
    assert journal_of({**event, "action": "allow"}) is None
    assert journal_of({**event, "time": "soon"}) is None


def test_the_end_tells_what_is_not_in_the_file() -> None:
    lines = Summary("s", "f", open_before=1, dropped=5, lost=2, ended_by="interrupted").lines("f")
    assert lines[0] == "f: 0 packets, 0 B, interrupted"
    assert "1 flow began before the capture" in lines[1]
    assert "5 packets were dropped" in lines[2]
    assert "2 messages of the proxy were lost" in lines[3]
    assert len(Summary("s", "f").lines("f")) == 1
