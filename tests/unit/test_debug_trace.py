"""One event of the trace: is it wanted, how does it look, and who had started the process."""

from __future__ import annotations

import io
import struct
from ipaddress import IPv6Address, ip_address
from typing import Any

import pytest

from netns_runtime.debug.ancestry import Ancestry
from netns_runtime.debug.kernel import (
    WAITING,
    Symbols,
    Waiting,
    fields_of,
    is_refused_later,
    text_of,
)
from netns_runtime.debug.text import Page
from netns_runtime.debug.traceline import Wanted, action_of, lines_of, total_line
from netns_runtime.debug.usersymbols import UserSymbols
from netns_runtime.probes.seen import FRAMES, SEEN, STACK, seen_of

REFUSED: dict[str, Any] = {
    "event": "connect.refused",
    "time": "2026-01-01T12:00:01.123456Z",
    "sandbox": "s",
    "address": "192.0.2.1",
    "port": 80,
    "action": "refuse",
    "reason": "direct_tcp",
    "said_by": "sandbox",
    "pid": 7,
    "comm": "curl",
    "exe": "/usr/bin/curl",
    "remedy": "--allow 192.0.2.1:80",
}


@pytest.mark.parametrize(
    ("event", "action"),
    [
        ({"event": "connect.refused"}, "refuse"),
        ({"event": "flow.decided", "action": "allow"}, "allow"),
        ({"event": "flow.decided", "action": "refuse"}, "refuse"),
        ({"event": "flow.closed"}, "close"),
        ({"event": "flow.closed", "reason": "connection_refused"}, "fail"),
        ({"event": "http.request", "status": 200}, "allow"),
        ({"event": "http.request", "status": 503}, "fail"),
        ({"event": "ws.closed", "code": 1000}, "close"),
        ({"event": "ws.closed", "code": 1006}, "fail"),
        ({"event": "brand.new"}, ""),
    ],
)
def test_an_event_is_a_refusal_a_failure_a_decision_or_an_end(
    event: dict[str, Any], action: str
) -> None:
    assert action_of(event) == action


@pytest.mark.parametrize(
    ("wanted", "is_wanted"),
    [
        (Wanted(), True),
        (Wanted(processes=("curl",)), True),
        (Wanted(processes=("7",)), True),
        (Wanted(processes=("/usr/bin/curl",)), True),
        (Wanted(processes=("cur",)), False),
        (Wanted(hosts=("192.0.2.1",)), True),
        (Wanted(hosts=("*.test",)), False),
        (Wanted(actions=("fail",)), False),
        (Wanted(("curl",), ("192.0.2.1",), ("refuse",)), True),
        (Wanted(("wget",), ("192.0.2.1",), ("refuse",)), False),
    ],
)
def test_filters_are_joined_by_and(wanted: Wanted, *, is_wanted: bool) -> None:
    assert wanted.has(REFUSED) is is_wanted


def test_a_pattern_covers_names_below_and_not_the_name_itself() -> None:
    wanted = Wanted(hosts=("*.a.test",))
    assert wanted.has({**REFUSED, "host": "x.y.a.test"})
    assert not wanted.has({**REFUSED, "host": "a.test"})


def test_a_refusal_names_who_where_why_and_what_would_allow_it() -> None:
    page = Page(io.StringIO())
    chain = [{"pid": 3, "comm": "sh\x1b"}]
    lines = "\n".join(lines_of(REFUSED, chain, page)).splitlines()
    assert lines[0].startswith("12:00:01.123 REFUSED connect curl (pid 7) -> 192.0.2.1:80")
    assert "             fix  --allow 192.0.2.1:80" in lines
    assert '             by   /usr/bin/curl < "sh\\x1b"(3)' in lines
    assert all(len(line) <= 80 for line in lines)


def test_the_count_says_what_was_not_told() -> None:
    assert total_line({"count": 1100}, {"count": 100}, 30, 10) == (
        "1000 refused connects since the trace began; 20 shown, 10 left out by the filters, "
        "970 counted and not told one by one (100/s are, and none after the end)"
    )
    assert total_line({}, {}, 0, 0) == "0 refused connects since the trace began; 0 shown"


def test_ancestry_goes_up_to_the_top_and_no_further() -> None:
    processes = {9: ("curl", 8), 8: ("sh", 7), 7: ("init", 5), 5: ("netns-run", 1)}
    ancestry = Ancestry(5, processes.get, lambda: 0.0)
    assert [entry["comm"] for entry in ancestry.of({"pid": 9})] == ["sh", "init"]


def test_the_parent_of_a_process_that_has_gone_is_who_the_kernel_noted() -> None:
    processes = {8: ("sh", 5)}
    ancestry = Ancestry(5, processes.get, lambda: 0.0)
    assert ancestry.of({"pid": 9, "ppid": 8}) == [{"pid": 8, "comm": "sh"}]
    assert ancestry.of({"pid": 10}) == []
    assert ancestry.of({}) == []


def test_a_circle_of_parents_ends() -> None:
    assert len(Ancestry(5, {9: ("a", 8), 8: ("b", 9)}.get, lambda: 0.0).of({"pid": 9})) == 16


def record(kind: int, reason: int, family: int = 4) -> bytes:
    source, destination = b"\xc0\x00\x02\x01", b"\xcb\x00\x71\x05"
    if family == 6:
        source = destination = IPv6Address("2001:db8::1").packed
    return SEEN.pack(
        *(5, 0x1010, kind, 2, reason, 7, family, 6, 1234, 81),
        *(source.ljust(16, b"\0"), destination.ljust(16, b"\0"), b"curl"),
    )


def test_a_drop_is_told_with_the_kernels_own_words() -> None:
    seen = seen_of(record(1, 8), {8: "NETFILTER_DROP"})
    assert (seen.kind, seen.place, seen.reason) == ("drop", "gateway", "NETFILTER_DROP")
    assert (seen.source, seen.destination) == ("192.0.2.1:1234", "203.0.113.5:81")
    fields = fields_of(seen, Symbols([0x1000, 0x2000], ["nf_hook_slow", "other"]), UserSymbols())
    assert fields["function"] == "nf_hook_slow+0x10"
    page = Page(io.StringIO(), width=200)
    told = text_of({"kernel": fields}, page)
    assert "drop NETFILTER_DROP in nf_hook_slow+0x10 tcp 192.0.2.1:1234 -> 203.0.113.5:81" in told


def test_a_reason_that_this_kernel_does_not_name_is_told_as_its_number() -> None:
    assert seen_of(record(1, 77), {}).reason == "reason 77"
    assert seen_of(record(2, 2 << 16 | 7), {}).reason == "SYN_SENT -> CLOSE"
    assert seen_of(record(2, 99 << 16 | 7), {}).reason == "99 -> CLOSE"
    assert seen_of(record(1, 2, 6), {}).source == "[2001:db8::1]:1234"


def sent(address: str, protocol: int = 17, port: int = 443, kind: int = 2) -> bytes:
    to = ip_address(address)
    return SEEN.pack(
        *(5, 0, 7, 1, kind << 16 | 2, 7, 4 if to.version == 4 else 6, protocol, 1234, port),
        *(b"\x0a\xc8\0\x02".ljust(16, b"\0"), to.packed.ljust(16, b"\0"), b"pi\x1bng"),
    )


def test_a_send_that_no_hook_sees_names_process_socket_and_destination() -> None:
    fields = fields_of(seen_of(sent("192.0.2.1", 1, 0, 3), {}), Symbols([], []), UserSymbols())
    assert (fields["reason"], fields["protocol"]) == ("raw socket", "icmp")
    assert fields["destination"] == "192.0.2.1", "ICMP has no ports"
    told = text_of({"kernel": fields}, Page(io.StringIO(), width=200))
    assert told.endswith(
        'kernel  send by "pi\\x1bng" (pid 7), icmp raw socket -> 192.0.2.1: '
        "no hook sees it; the gateway refuses and counts it"
    )


@pytest.mark.parametrize(
    ("address", "protocol", "port", "is_refused"),
    [
        ("192.0.2.1", 17, 443, True),
        ("198.18.0.7", 17, 443, True),
        ("10.200.0.1", 17, 53, False),
        ("10.200.0.1", 17, 123, True),
        ("10.200.0.1", 136, 53, True),
        ("::ffff:10.200.0.1", 17, 53, False),
        ("10.200.0.2", 17, 443, False),
        ("127.0.0.1", 1, 0, False),
        ("::1", 58, 0, False),
        ("ff02::16", 58, 0, False),
        ("2001:db8::7", 58, 0, True),
    ],
)
def test_what_goes_to_the_resolver_or_stays_inside_is_not_told(
    address: str, protocol: int, port: int, *, is_refused: bool
) -> None:
    assert is_refused_later(seen_of(sent(address, protocol, port), {})) is is_refused


def test_a_stack_has_as_many_frames_as_the_kernel_gave() -> None:
    frames = [1, 2, *[0] * (FRAMES - 2), 3, *[0] * (FRAMES - 1)]
    seen = seen_of(record(5, 0, 0) + STACK.pack(16, 8, *frames), {})
    assert (seen.kernel, seen.user, seen.source) == ((1, 2), (3,), "")


def test_addresses_without_symbols_are_told_as_numbers() -> None:
    assert Symbols([], []).name_of(0x1234) == "0x1234"


def test_a_packet_of_nfts_trace_is_told_in_short() -> None:
    text = (
        'trace id 1f inet netns_runtime input packet: iif "gw0" ether saddr 02:c8:00:00:00:02 '
        "ether daddr 02:c8:00:00:00:01 ip saddr 10.200.0.2 ip daddr 203.0.113.5 ip dscp cs0 ip "
        "ttl 64 ip protocol tcp ip length 60 tcp sport 1234 tcp dport 81 tcp flags == syn tcp "
        "window 64240"
    )
    page = Page(io.StringIO(), width=200)
    told = text_of({"nft": {"text": text}}, page).strip()
    end = "id 1f inet netns_runtime input tcp 10.200.0.2:1234 -> 203.0.113.5:81 syn"
    assert told == f"nft     {end}"


def test_a_record_that_is_too_short_is_a_bug_and_not_a_guess() -> None:
    with pytest.raises(struct.error):
        seen_of(b"short", {})


def test_lines_that_nobody_reads_are_bounded_and_counted() -> None:
    waiting = Waiting()
    for number in range(WAITING + 7):
        waiting.put({"number": number})
    assert waiting.dropped() == 7
    assert [line["number"] for line in waiting.taken()] == list(range(WAITING))
    waiting.put({"number": -1})
    assert (waiting.dropped(), list(waiting.taken())) == (0, [{"number": -1}])
