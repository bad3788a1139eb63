"""Values in responses: never passed on, in any spelling and any pieces; all else passes exactly."""

from __future__ import annotations

import base64
import gzip
import html
import json
import zlib
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netns_runtime.secret import Secret, Slot
from netns_runtime.wire import ProtocolError
from netns_runtime.wire.mask import Masker, accept_encoding, mask, mask_headers, response_masker
from tests.support.secrets import CUTS, VALUES, pieces_of, run, secret

P = "openshell:resolve:env:TOKEN"
VALUE = 'xoxb-123/Ab+cD"é 9'
SPELLINGS = [
    VALUE,
    quote(VALUE),
    quote(VALUE, safe=""),
    quote_plus(VALUE).lower().replace("xoxb-123%2fab%2bcd", "xoxb-123%2fAb%2bcD"),
    json.dumps(VALUE)[1:-1],
    json.dumps(VALUE, ensure_ascii=False)[1:-1].replace("/", "\\/"),
    html.escape(VALUE),
    "".join(f"%{octet:02X}" for octet in VALUE.encode()),
    "".join(f"\\u{ord(character):04x}" for character in VALUE),
]


def masked(data: bytes, *bound: Secret, cuts: list[int] | None = None) -> bytes:
    masker = Masker(bound)
    return run(masker.feed, masker.finish, pieces_of(data, cuts or []))


@pytest.mark.parametrize("spelt", SPELLINGS)
@given(cuts=CUTS)
def test_a_value_in_any_spelling_becomes_the_placeholder(spelt: str, cuts: list[int]) -> None:
    data = f"<{spelt}{spelt}> xoxb-12 {spelt[:-1]}".encode()
    expected = f"<{P}{P}> xoxb-12 {spelt[:-1]}".encode()
    assert masked(data, secret(VALUE), cuts=cuts) == expected


@given(VALUES, st.lists(st.sampled_from(["<V>", "a", "openshell", "\\", "%", "0"])), CUTS)
def test_any_pieces_give_the_same_and_no_value_is_left(
    value: str, words: list[str], cuts: list[int]
) -> None:
    value = f"z{value}z"
    data = "".join(words).replace("<V>", value).encode()
    done = masked(data, secret(value), cuts=cuts)
    assert done == data.replace(value.encode(), P.encode())
    assert value.encode() not in done


@given(
    st.lists(st.text("ab%2", min_size=1, max_size=5), min_size=1, max_size=3),
    st.text("ab%25", max_size=40),
    CUTS,
)
def test_values_within_values_are_cut_alike(values: list[str], text: str, cuts: list[int]) -> None:
    bound = [secret(value, name=f"N{number}") for number, value in enumerate(values)]
    assert masked(text.encode(), *bound, cuts=cuts) == masked(text.encode(), *bound)


def test_the_longer_of_two_values_is_masked_as_a_whole() -> None:
    bound = [secret("abcd"), secret("abcdef", name="LONG")]
    assert mask(b"abcdef abcde", bound) == b"openshell:resolve:env:LONG " + P.encode() + b"e"


@pytest.mark.parametrize("user", ["", "u", "us", "use", "user"])
@pytest.mark.parametrize("value", ["s3cr3t-value-1", "s3cr3t-value-12", "s3cr3t-value-123"])
@given(cuts=CUTS)
def test_basic_credentials_are_masked(user: str, value: str, cuts: list[int]) -> None:
    bound = secret(value, Slot("basic"))
    for credentials in (f"{user}:{value}", f"{value}:{user}", value, f"{user}-{value}-{user}:x"):
        data = b'"Basic ' + base64.b64encode(credentials.encode()) + b'"'
        done = masked(data, bound, cuts=cuts)
        assert P.encode() in done
        rest = done.replace(P.encode(), b"").removeprefix(b'"Basic ').rstrip(b'="')
        for start in range(4):
            left = base64.b64decode(b"A" * start + rest + b"A" * (-(len(rest) + start) % 4))
            assert value[1:-1].encode()[:4] not in left


@given(st.text("abcdefx%\\u0061\n", max_size=200), CUTS)
def test_what_is_held_back_does_not_depend_on_the_value(text: str, cuts: list[int]) -> None:
    """The same text under a value that it begins with, and under one that it has nothing of."""
    lengths = []
    for value in ("abcdef", "ghijkl"):
        masker = Masker([secret(value)])
        if value in text.replace("%61", "a").replace("\\u0061", "a"):
            return
        lengths.append([len(masker.feed(piece)) for piece in pieces_of(text.encode(), cuts)])
    assert lengths[0] == lengths[1]


def test_a_line_is_never_held_back() -> None:
    masker = Masker([secret("abcdef")])
    assert masker.feed(b"data: abc\n\n") == b"data: abc\n\n"
    assert masker.feed(b"data: abc") == b""
    assert masker.feed(b"def\n") == b"data: " + P.encode() + b"\n"
    assert masker.feed(b"abc") + masker.finish() == b"abc"


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=5), CUTS)
def test_a_grpc_message_is_never_held_back(contents: list[bytes], cuts: list[int]) -> None:
    bound = [secret("abcdefghijklmnop")]
    stream = b"".join(b"\0" + len(one).to_bytes(4, "big") + one for one in contents)
    masker, given = Masker(bound, framed=True), b""
    for piece in pieces_of(stream, cuts):
        given += masker.feed(piece)
    assert given == stream


def test_what_is_held_back_is_bounded() -> None:
    masker = Masker([secret("a" * 50 + "b")])
    given = sum(len(masker.feed(b"%61" * 100)) for _ in range(50))
    assert 100 * 3 * 50 - given <= masker.held_limit


def test_nothing_bound_changes_nothing() -> None:
    assert masked(b"any", *()) == b"any"
    assert mask(b"any", [secret("")]) == b"any"
    response = response_masker([(b"Content-Length", b"3"), (b"Content-Encoding", b"br")], ())
    assert response.may_change is False
    assert response.headers == [(b"Content-Length", b"3"), (b"Content-Encoding", b"br")]


def test_headers_are_masked_except_those_that_frame() -> None:
    headers = [
        (b"Location", b"https://evil.test/?t=" + quote(VALUE).encode()),
        (b"Content-Length", b"123"),
        (b"Set-Cookie", b"t=123"),
    ]
    bound = [secret(VALUE), secret("123", name="N")]
    assert mask_headers(headers, bound) == [
        (b"Location", b"https://evil.test/?t=" + P.encode()),
        (b"Content-Length", b"123"),
        (b"Set-Cookie", b"t=openshell:resolve:env:N"),
    ]


CODED = {
    "gzip": gzip.compress(VALUE.encode() * 3),
    "X-GZIP": gzip.compress(VALUE.encode()) + gzip.compress(VALUE.encode() * 2),
    "deflate": zlib.compress(VALUE.encode() * 3),
    "Deflate": zlib.compress(VALUE.encode() * 3)[2:-4],
}


@pytest.mark.parametrize("coding", CODED)
@given(cuts=CUTS)
def test_a_coded_response_is_opened_and_masked(coding: str, cuts: list[int]) -> None:
    headers = [(b"Content-Encoding", coding.encode()), (b"Content-Length", b"9"), (b"A", b"b")]
    response = response_masker(headers, [secret(VALUE)])
    assert (response.headers, response.may_change) == ([(b"A", b"b")], True)
    done = run(response.feed, response.finish, pieces_of(CODED[coding], cuts))
    assert done == P.encode() * 3


def test_a_whole_response_has_its_exact_length() -> None:
    headers = [(b"Content-Length", b"9"), (b"A", b"b")]
    expected = [(b"A", b"b"), (b"Content-Length", b"%d" % len(P))]
    assert response_masker(headers, [secret(VALUE)]).whole(VALUE.encode()) == (expected, P.encode())


@pytest.mark.parametrize("coding", [b"br", b"zstd", b"gzip, br", b"gzip, gzip", b"unheard-of"])
def test_a_coding_that_cannot_be_opened_is_upstreams_fault(coding: bytes) -> None:
    with pytest.raises(ProtocolError) as raised:
        response_masker([(b"content-encoding", coding)], [secret(VALUE)])
    assert raised.value.status == 502


def test_a_bomb_in_a_response_is_refused() -> None:
    response = response_masker([(b"content-encoding", b"gzip")], [secret(VALUE)])
    with pytest.raises(ProtocolError) as raised:
        response.feed(gzip.compress(bytes(16 << 20)))
    assert raised.value.status == 502


@pytest.mark.parametrize(
    ("asked", "asks"),
    [
        ([b"gzip, deflate, br, zstd"], b"gzip, deflate"),
        ([b"br;q=1.0, GZIP;q=0.5, *;q=0"], b"GZIP;q=0.5"),
        ([b"br", b"zstd"], b"identity"),
        ([b"br", b"gzip"], b"gzip"),
        ([], b"identity"),
    ],
)
def test_upstream_is_asked_only_for_what_can_be_opened(asked: list[bytes], asks: bytes) -> None:
    headers = [(b"A", b"b"), *((b"accept-encoding", value) for value in asked)]
    assert [(name.lower(), value) for name, value in accept_encoding(headers)] == [
        (b"a", b"b"),
        (b"accept-encoding", asks),
    ]


def test_a_range_is_asked_for_uncoded() -> None:
    headers = [(b"Accept-Encoding", b"gzip"), (b"Range", b"bytes=0-9")]
    assert accept_encoding(headers)[0] == (b"Accept-Encoding", b"identity")
