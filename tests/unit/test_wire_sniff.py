"""What a client speaks, by its first bytes: whole, byte by byte, and while it is undecided."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netns_runtime.wire import NEED_DATA, ProtocolError
from netns_runtime.wire.clienthello import ClientHello
from netns_runtime.wire.sniff import Kind, Patience, Sniffer
from tests.support.hellos import SSL2, real_hello

if TYPE_CHECKING:
    from netns_runtime.wire import NeedData

UP = ClientHello("up.test")
CASES: dict[bytes, ClientHello | Kind] = {
    real_hello("up.test"): UP,
    SSL2: Kind.SSL2,
    b"GET / HTTP/1.1\r\n": Kind.HTTP1,
    b"GET http://up.test/ HTTP/1.1\r\n": Kind.HTTP1,
    b"CONNECT up.test:80 HTTP/1.1\r\n": Kind.HTTP1,
    b"OPTIONS * HTTP/1.1\r\n": Kind.HTTP1,
    b"GET /\r\n": Kind.HTTP1,
    b"\r\n\r\nGET / HTTP/1.1\r\n": Kind.HTTP1,
    b" \tGET / HTTP/1.1\r\n": Kind.HTTP1,
    b"GET\t/\tHTTP/1.1\r\n": Kind.HTTP1,
    b"GET  / HTTP/1.1\n": Kind.HTTP1,
    b"get / http/1.1\r\n": Kind.HTTP1,
    b"BREW /pot HTTP/1.1\r\n": Kind.HTTP1,
    b"X" * 5000 + b" / HTTP/1.1\r\n": Kind.HTTP1,
    b"BREW /" + b"a" * 5000 + b" HTTP/1.1   \r\n": Kind.HTTP1,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n": Kind.HTTP2,
    b"SSH-2.0-OpenSSH_9.2\r\n": Kind.OPAQUE,
    b"EHLO client.test\r\n": Kind.OPAQUE,
    b"USER anonymous\r\n": Kind.OPAQUE,
    b"PING\r\n": Kind.OPAQUE,
    b"*1\r\n$4\r\nPING\r\n": Kind.OPAQUE,
    b'CONNECT {"verbose":false}\r\n': Kind.OPAQUE,
    b"OPTIONS rtsp://up.test/ RTSP/1.0\r\n": Kind.OPAQUE,
    b"get key\r\n": Kind.OPAQUE,
    b"a1 LOGIN me secret\r\n": Kind.OPAQUE,
    b"\0\0\0\x08\x04\xd2\x16\x2f": Kind.OPAQUE,
    b"\x16\x01\0\0\x07\0\0\0\0\0\0\0\xdd\x07\0\0": Kind.OPAQUE,
    b"\x80\x00\x05": Kind.OPAQUE,
    b"\x05\x01\x00": Kind.OPAQUE,
    b"{}": Kind.OPAQUE,
}


def first_of(data: bytes, step: int) -> ClientHello | Kind | NeedData:
    sniffer = Sniffer()
    for at in range(0, len(data), step):
        first = sniffer.feed(data[at : at + step])
        if first is not NEED_DATA:
            return first
    return NEED_DATA


@pytest.mark.parametrize("data", CASES)
@pytest.mark.parametrize("step", [1, 3, 100_000])
def test_first_bytes_are_known_however_they_are_cut(data: bytes, step: int) -> None:
    assert first_of(data, step) == CASES[data]
    assert first_of(data + b"more and more\r\n", step) == CASES[data]


PATIENCE = {
    b"G": Patience.MOMENT,
    b"GET": Patience.MOMENT,
    b"GET ": Patience.MOMENT,
    b"\r\n": Patience.MOMENT,
    b"E": Patience.NONE,
    b"early": Patience.NONE,
    b"hello world": Patience.NONE,
    b"\x16": Patience.DEADLINE,
    b"\x16\x03\x01\x02\x00\x01": Patience.DEADLINE,
    b"\x80": Patience.NONE,
}


@pytest.mark.parametrize("data", PATIENCE)
def test_undecided_bytes_are_held_as_long_as_what_they_may_become_needs(data: bytes) -> None:
    sniffer = Sniffer()
    assert sniffer.feed(data) is NEED_DATA
    assert sniffer.patience is PATIENCE[data]


def test_a_line_without_end_is_watched_with_constant_memory() -> None:
    sniffer = Sniffer()
    for _ in range(100):
        assert sniffer.feed(b"word " * 2000) is NEED_DATA
    held = sum(len(getattr(sniffer, name) or b"") for name in ("_start", "_word", "_tail"))
    assert held < 100
    assert sniffer.feed(b"x HT") is NEED_DATA
    assert sniffer.feed(b"TP/1.1\r\n") is Kind.HTTP1


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=80), st.sampled_from([*CASES, b""]), st.integers(1, 90))
def test_any_bytes_give_a_kind_need_data_or_a_protocol_error(
    noise: bytes, head: bytes, step: int
) -> None:
    with suppress(ProtocolError):
        first_of(head[: len(noise)] + noise, step)
