"""Flows as values: the kernel's answers, rates, closed lives, and the page they make."""

from __future__ import annotations

import errno
import struct

import pytest

from netns_runtime.debug import flows, sockdiag
from netns_runtime.debug.flowlist import Sample, closed_of, rows_of
from netns_runtime.debug.text import Page
from netns_runtime.errors import UsageError

ENDS4 = ["10.200.0.1", 3128, "10.200.0.2", 40000]
ENDS6 = ["2001:db8::1", 40000, "2001:db8::10", 443]
OPEN = {
    "flow": 7,
    "host": "web.lab.test",
    "port": 443,
    "address": "192.0.2.10",
    "protocol": "websocket",
    "entry": "redirected",
    "pid": 12,
    "comm": "node",
    "duration_ms": 4000,
    "bytes_in": 1000,
    "bytes_out": 500,
}


def answer(state: int, info: bytes) -> bytes:
    body = struct.pack("=BBBB", 2, state, 0, 0) + bytes(48) + struct.pack("=IIIII", 0, 3, 9, 0, 0)
    body += struct.pack("=HH", 4 + 1, 8) + b"\0" + bytes(3)  # another attribute, padded
    body += struct.pack("=HH", 4 + len(info), sockdiag.INET_DIAG_INFO) + info
    return struct.pack("=IHHII", 16 + len(body), 20, 0, 1, 0) + body


def tcp_info(size: int = 240) -> bytes:
    info = bytearray(size)
    for offset, value in ((68, 12_500), (72, 250), (100, 3), (60, 1500)):
        struct.pack_into("=I", info, offset, value)
    if size > 152:
        struct.pack_into("=I", info, 148, 0xFFFFFFFF)
    return bytes(info)


def test_a_request_names_both_ends_in_network_order() -> None:
    data = sockdiag.request_of(ENDS4, 1)
    assert len(data) == 16 + 8 + 48
    assert data[24:28] == (3128).to_bytes(2, "big") + (40000).to_bytes(2, "big")
    assert data[28:32] == bytes((10, 200, 0, 1))
    assert data[44:48] == bytes((10, 200, 0, 2))
    assert len(sockdiag.request_of(ENDS6, 2)) == len(data)


def test_an_answer_gives_milliseconds_and_retransmits() -> None:
    info = sockdiag.info_of(answer(1, tcp_info()))
    assert info is not None
    assert (info.state, info.rtt_ms, info.rttvar_ms) == ("established", 12.5, 0.25)
    assert (info.retransmits, info.pmtu, info.min_rtt_ms) == (3, 1500, None)
    assert (info.receive_queue, info.send_queue) == (3, 9)


def test_a_shorter_tcp_info_of_an_older_kernel_leaves_out_what_it_has_not() -> None:
    info = sockdiag.info_of(answer(1, tcp_info(104)))
    assert info is not None
    assert (info.rtt_ms, info.retransmits, info.delivery_rate) == (12.5, 3, None)


def test_a_listener_is_no_answer() -> None:
    assert sockdiag.info_of(answer(sockdiag.LISTEN, tcp_info())) is None


@pytest.mark.parametrize("data", [b"", b"\0" * 15, struct.pack("=IHHIIi", 20, 2, 0, 1, 0, -2)])
def test_a_socket_that_has_gone_is_none(data: bytes) -> None:
    assert sockdiag.info_of(data) is None


def test_another_refusal_is_an_error() -> None:
    refused = struct.pack("=IHHIIi", 20, 2, 0, 1, 0, -errno.EOPNOTSUPP)
    with pytest.raises(OSError, match="sock_diag"):
        sockdiag.info_of(refused)


def test_rates_are_what_moved_between_two_looks() -> None:
    before = Sample(10.0, ({**OPEN, "bytes_in": 200, "bytes_out": 500},))
    (row,) = rows_of(Sample(12.0, (OPEN,)), before)
    assert (row["rate_in"], row["rate_out"], row["state"]) == (400.0, 0.0, "open")


def test_a_flow_that_is_new_is_rated_over_its_own_life() -> None:
    (row,) = rows_of(Sample(12.0, ({**OPEN, "duration_ms": 500},)), Sample(10.0, ()))
    assert row["rate_in"] == 2000.0


def test_a_single_look_claims_no_rate_and_shows_no_socket_s_ends() -> None:
    (row,) = rows_of(Sample(12.0, ({**OPEN, "client_socket": ENDS4},)))
    assert not {"rate_in", "rate_out", "client_socket"} & row.keys()


def test_closed_flows_come_newest_first_with_their_websocket_s_end() -> None:
    events = [
        {"event": "flow.decided", "flow": 1},
        {"event": "ws.closed", "flow": 1, "code": 1006, "messages_in": 4, "messages_out": 2},
        {"event": "flow.closed", "flow": 1, "host": "a.test", "reason": "connection_terminated"},
        {"event": "flow.closed", "flow": 2, "host": "b.test"},
        {"event": "something.newer", "flow": 3},
    ]
    rows = closed_of(events)
    assert [row["host"] for row in rows] == ["b.test", "a.test"]
    assert (rows[1]["websocket"], rows[1]["code"], rows[1]["messages_in"]) == ("closed", 1006, 4)
    assert "websocket" not in rows[0]


def test_the_page_fits_and_says_what_is_known() -> None:
    row = {
        **OPEN,
        "rate_in": 1200.0,
        "rate_out": 0.0,
        "client": {"state": "established", "rtt_ms": 0.05, "retransmits": 0},
        "upstream": {"state": "close-wait", "rtt_ms": 12.5, "retransmits": 3},
        "websocket": "open",
        "messages_out": 5,
        "messages_in": 6,
        "ping_ms": 3000,
        "ping_by": "upstream",
    }
    text = flows.page_of([row], [], Page(width=80, colour=False))
    flat = " ".join(text.split())
    assert "1 open flow 7 web.lab.test:443 node (pid 12)" in flat
    assert "upstream rtt 12.5 ms, 3 retransmitted, close-wait" in flat
    assert "websocket open: 5 messages out, 6 in" in flat
    assert "last ping 3.0s ago by upstream" in flat
    assert max(map(len, text.splitlines())) <= 80


def test_what_the_sandbox_chose_cannot_steer_the_terminal() -> None:
    row = {**OPEN, "comm": "\x1b[2Jx", "host": "a\u202etest"}
    text = flows.page_of([row], [{**row, "detail": "\x07"}], Page(width=80, colour=False))
    assert text.isascii()
    assert text.replace("\n", "").isprintable()


def test_a_row_that_knows_nothing_is_shown_all_the_same() -> None:
    text = flows.page_of([{}], [{}], Page(width=80, colour=False), "a note")
    assert "an unknown process" in text
    assert text.endswith("a note")


@pytest.mark.parametrize(
    "words",
    [
        ["--interval"],
        ["--interval", "-1"],
        ["--interval", "61"],
        ["--interval", "nan"],
        ["--closed", "many"],
        ["--colour"],
        ["one", "two"],
    ],
)
def test_bad_words_are_refused(words: list[str]) -> None:
    with pytest.raises(UsageError):
        flows.parsed(words)
