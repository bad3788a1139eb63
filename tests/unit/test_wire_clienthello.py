"""ClientHellos: real ones, every way to cut them, and everything that is refused."""

from __future__ import annotations

import ssl
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netns_runtime.wire import NEED_DATA, ProtocolError
from netns_runtime.wire.clienthello import (
    HELLO_LIMIT,
    ClientHello,
    ClientHelloReader,
    parse_client_hello,
)
from tests.support.hellos import (
    ECH,
    GREASE,
    PADDING,
    POST_QUANTUM,
    alpn,
    hello,
    real_hello,
    records,
    server_name,
)

UP = server_name("up.test")
GOOD = {
    "real": (real_hello("up.test"), ClientHello("up.test")),
    "real without a name": (real_hello(None), ClientHello()),
    "real TLS 1.2": (
        real_hello("up.test", maximum_version=ssl.TLSVersion.TLSv1_2),
        ClientHello("up.test"),
    ),
    "no extensions": (records(hello()), ClientHello()),
    "grease and padding": (records(hello(GREASE, UP, PADDING)), ClientHello("up.test")),
    "post-quantum": (records(hello(POST_QUANTUM, UP)), ClientHello("up.test")),
    "post-quantum in pieces": (records(hello(POST_QUANTUM, UP), 100), ClientHello("up.test")),
    "many small records": (records(hello(UP), 1), ClientHello("up.test")),
    "ech": (records(hello(UP, ECH)), ClientHello("up.test", has_ech=True)),
    "protocols": (
        records(hello(UP, alpn(b"h2", b"http/1.1", b"\xff"))),
        ClientHello("up.test", protocols=("h2", "http/1.1", "\xff")),
    ),
    "trailing dot and case": (records(hello(server_name("UP.test."))), ClientHello("UP.test.")),
    "the largest": (
        records(hello(UP, (65_000, bytes(60_000)))),
        ClientHello("up.test"),
    ),
}

BAD = {
    "two names": records(hello(server_name("up.test", "other.test"))),
    "two server_names": records(hello(UP, server_name("other.test"))),
    "a name of another type": records(hello(server_name("up.test", kind=1))),
    "an empty name": records(hello(server_name(""))),
    "a name with NUL": records(hello(server_name("up.test\0.other.test"))),
    "a name beyond ASCII": records(hello(server_name("b\xfccher.test"))),
    "an empty list of names": records(hello((0, b"\0\0"))),
    "bytes after the list": records(hello((0, UP[1] + b"x"))),
    "no protocol in ALPN": records(hello(UP, alpn())),
    "an empty protocol": records(hello(UP, alpn(b"h2", b""))),
    "bytes after the protocols": records(hello(UP, (16, alpn(b"h2")[1] + b"x"))),
    "a protocol that is cut": records(hello(UP, (16, b"\0\3\5h2"))),
    "any extension twice": records(hello(UP, GREASE, GREASE)),
    "no cipher suite": records(hello(UP, suites=b"")),
    "half a cipher suite": records(hello(UP, suites=b"\x13")),
    "something after it in its record": records(hello(UP) + hello(UP)),
    "an empty record": b"\x16\x03\x01\0\0" + records(hello(UP)),
    "a record too long": b"\x16\x03\x01\xff\xff" + bytes(100),
    "an alert first": b"\x15\x03\x01\0\x02\x01\0",
    "an alert between": records(hello(UP)[:20]) + b"\x15\x03\x01\0\x02\x01\0",
    "a server's hello": records(b"\x02" + hello(UP)[1:]),
    "another major version": b"\x16\x02\x00" + records(hello(UP))[3:],
    "longer than the limit": records(b"\x01" + (HELLO_LIMIT + 1).to_bytes(3, "big") + bytes(9)),
}


@pytest.mark.parametrize("case", GOOD)
@pytest.mark.parametrize("step", [1, 7, 100_000])
def test_a_hello_is_read_however_it_is_cut(case: str, step: int) -> None:
    data, expected = GOOD[case]
    if step == 1 and len(data) > 10_000:
        step = 1000
    reader = ClientHelloReader()
    for at in range(0, len(data), step):
        assert reader.next() is NEED_DATA
        reader.feed(data[at : at + step])
    assert reader.next() == expected


@pytest.mark.parametrize("case", GOOD)
def test_what_follows_the_hello_is_not_looked_at(case: str) -> None:
    data, expected = GOOD[case]
    reader = ClientHelloReader()
    reader.feed(data + b"\x14\x03\x03\0\x01\x01 and early data")
    assert reader.next() == expected


@pytest.mark.parametrize("case", BAD)
def test_a_hello_that_two_servers_could_read_differently_is_refused(case: str) -> None:
    reader = ClientHelloReader()

    def read() -> None:
        for at in range(0, len(BAD[case]), 50):
            reader.feed(BAD[case][at : at + 50])
            assert reader.next() is NEED_DATA

    with pytest.raises(ProtocolError):
        read()


def test_nothing_is_kept_beyond_the_limit() -> None:
    reader = ClientHelloReader()
    fed = 0

    def read() -> None:
        nonlocal fed
        while True:
            reader.feed(records(b"\x01\x00\xff\xf0" + bytes(16_380) if not fed else bytes(16_384)))
            fed += 16_384
            assert reader.next() is NEED_DATA

    with pytest.raises(ProtocolError):
        read()
    assert fed <= HELLO_LIMIT + 2 * 16_384


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.integers(0, 516), st.integers(1, 300))
def test_any_damage_gives_a_value_need_data_or_a_protocol_error(
    noise: bytes, at: int, step: int
) -> None:
    real = GOOD["real"][0]
    damaged = real[:at] + noise + real[at + len(noise) :]
    reader = ClientHelloReader()
    try:
        for start in range(0, len(damaged), step):
            reader.feed(damaged[start : start + step])
            if reader.next() is not NEED_DATA:
                break
    except ProtocolError:
        pass


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_any_body_gives_a_value_or_a_protocol_error(body: bytes) -> None:
    with suppress(ProtocolError):
        parse_client_hello(body)
