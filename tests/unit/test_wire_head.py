"""Request heads: whole, byte by byte, with trailing bytes; and everything that is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netns_runtime.wire import NEED_DATA, ProtocolError
from netns_runtime.wire.head import HEAD_LIMIT, HeadReader, RequestHead

GOOD = {
    b"CONNECT h.test:443 HTTP/1.0\r\n\r\n": ("CONNECT", "h.test:443", (1, 0)),
    b"CONNECT h.test:443 HTTP/1.1\r\nHost: h.test\r\n\r\n": ("CONNECT", "h.test:443", (1, 1)),
    b"CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: [2001:db8::1]:443\r\n\r\n": (
        "CONNECT",
        "[2001:db8::1]:443",
        (1, 1),
    ),
    b"\r\n\r\nGET http://h.test/ HTTP/1.1\r\nhost:h.test\r\nX:  a b\t\r\n\r\n": (
        "GET",
        "http://h.test/",
        (1, 1),
    ),
    "CONNECT b\u00fccher.test:443 HTTP/1.1\r\n\r\n".encode(): (
        "CONNECT",
        "b\u00fccher.test:443",
        (1, 1),
    ),
    b"CONNECT h.test:1 HTTP/1.1\r\nContent-Length: 0\r\n\r\n": ("CONNECT", "h.test:1", (1, 1)),
}

BAD = {
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n": 400,
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n": 400,
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 1\r\n\r\n": 400,
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: +1\r\n\r\n": 400,
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n": 400,
    b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: \xb2\r\n\r\n": 400,
    b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"
    b"transfer-encoding: chunked\r\n\r\n": 400,
    b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n": 400,
    b"GET / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n": 400,
    b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n": 400,
    b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n": 400,
    b"GET / HTTP/1.1\r\n\r\n": 400,
    b"GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n": 400,
    b"GET / HTTP/1.1\r\nHost : a\r\n\r\n": 400,
    b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n": 400,
    b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n": 400,
    b"GET / HTTP/1.1\r\nHost: a\r\nX: a\nY: b\r\n\r\n": 400,
    b"GET / HTTP/1.1\nHost: a\n\n": 400,
    b"GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n": 400,
    b"GET / HTTP/1.1\r\nHost: a\r\nnocolon\r\n\r\n": 400,
    b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n": 400,
    b"GET / HTTP/1.1 \r\nHost: a\r\n\r\n": 400,
    b"GET /\r\n\r\n": 400,
    b"GET / HTTP/2.0\r\n\r\n": 505,
    b"GET / HTTP/1.2\r\nHost: a\r\n\r\n": 505,
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n": 505,
    b"CONNECT a:1 HTTP/1.1\r\nContent-Length: 5\r\n\r\n": 400,
    b"CONNECT a:1 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n": 400,
    b"CONNECT \xff:1 HTTP/1.1\r\n\r\n": 400,
    b"\x16\x03\x01\x02\x00\x01": 400,
    b"\x05\x01\x00": 400,
    b" GET / HTTP/1.1\r\n\r\n": 400,
}


def read(data: bytes, step: int) -> tuple[RequestHead | None, bytes]:
    reader = HeadReader()
    head: RequestHead | None = None
    for start in range(0, len(data), step):
        reader.feed(data[start : start + step])
        if head is None:
            found = reader.next()
            head = None if found is NEED_DATA else found
    return head, reader.rest()


@pytest.mark.parametrize("step", [1, 2, 7, 10_000])
@pytest.mark.parametrize("raw", GOOD)
@pytest.mark.parametrize("trailing", [b"", b"\x16\x03\x01", b"\n\r\n\r\n", b"GET / HTTP"])
def test_a_head_reads_the_same_in_pieces_and_leaves_what_follows(
    raw: bytes, step: int, trailing: bytes
) -> None:
    head, rest = read(raw + trailing, step)
    assert head is not None
    assert (head.method, head.target, head.version) == GOOD[raw]
    assert rest == trailing


@pytest.mark.parametrize("step", [1, 3, 10_000])
@pytest.mark.parametrize("raw", BAD)
def test_refuses_what_two_programs_could_read_differently(raw: bytes, step: int) -> None:
    with pytest.raises(ProtocolError) as error:
        read(raw, step)
    assert error.value.status == BAD[raw]


def test_tls_spoken_to_the_proxy_is_named() -> None:
    with pytest.raises(ProtocolError, match="use http://"):
        read(b"\x16\x03\x01", 1)


def test_two_heads_in_one_piece_come_one_after_the_other() -> None:
    reader = HeadReader()
    reader.feed(b"CONNECT a:1 HTTP/1.1\r\n\r\nCONNECT b:2 HTTP/1.1\r\n\r\n")
    assert [reader.next().target for _ in range(2)] == ["a:1", "b:2"]  # type: ignore[union-attr]
    assert reader.next() is NEED_DATA
    assert not reader


@pytest.mark.parametrize("step", [1000, 70_000])
def test_a_head_past_the_limit_is_refused_with_431(step: int) -> None:
    raw = b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: yyyyyyyyyyyyyyyy\r\n" * 4000 + b"\r\n"
    assert len(raw) > HEAD_LIMIT
    with pytest.raises(ProtocolError) as error:
        read(raw, step)
    assert error.value.status == 431


def test_a_head_just_within_the_limit_is_read() -> None:
    start = b"GET / HTTP/1.1\r\nHost: a\r\nX: "
    raw = start + b"y" * (HEAD_LIMIT - len(start) - 4) + b"\r\n\r\n"
    head, rest = read(raw, 4096)
    assert head is not None
    assert rest == b""


LIKELY = st.lists(
    st.sampled_from(
        b"GET,CONNECT,HTTP/1.1,Host,Content-Length,5,Transfer-Encoding,chunked,http://,a".split(
            b","
        )
        + b"_ _:_\r\n_\n_\r_\x00_\xff_\t".split(b"_")
    ),
    max_size=30,
).map(b"".join)


@given(LIKELY | st.binary(max_size=200), st.integers(1, 50))
def test_anything_but_protocol_error_is_a_bug(data: bytes, step: int) -> None:
    def outcome(step: int) -> object:
        try:
            head, rest = read(data, step)
        except ProtocolError:
            return ProtocolError
        return (head, rest)

    in_pieces, whole = outcome(step), outcome(10_000)
    # In pieces a bad head may be refused before its end has come; never the other way round.
    assert in_pieces == whole
