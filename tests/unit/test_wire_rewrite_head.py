"""The slots of a request's head: what is filled in, and everything that must not be."""

from __future__ import annotations

import base64
from urllib.parse import parse_qsl, unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netns_runtime.secret import Slot
from netns_runtime.wire.rewrite import Hit, rewrite_head
from tests.support.secrets import VALUES, secret

P = "openshell:resolve:env:TOKEN"
AUTHORIZATION = Slot("header", "authorization")


def basic(credentials: str) -> bytes:
    return b"Basic " + base64.b64encode(credentials.encode())


def credentials_of(value: bytes) -> str:
    return base64.b64decode(value.removeprefix(b"Basic ")).decode()


def test_fills_in_a_header_within_its_value() -> None:
    headers = [(b"Authorization", f"Bearer {P}".encode()), (b"X-Note", P.encode())]
    head = rewrite_head(b"/", headers, [secret("s3cr3t", AUTHORIZATION)], [])
    assert head.headers == [(b"Authorization", b"Bearer s3cr3t"), (b"X-Note", P.encode())]
    assert head.substituted == (Hit("TOKEN", "header authorization"),)
    assert head.withheld == ()


@pytest.mark.parametrize("tail", ["_2", "2", "a", "_"])
def test_a_longer_name_is_another_secret(tail: str) -> None:
    headers = [(b"authorization", f"{P}{tail}".encode())]
    head = rewrite_head(b"/", headers, [secret("s3cr3t", AUTHORIZATION)], [])
    assert head.headers == headers
    both = [secret("one", AUTHORIZATION), secret("two", AUTHORIZATION, name=f"TOKEN{tail}")]
    assert rewrite_head(b"/", headers, both, []).headers == [(b"authorization", b"two")]


@pytest.mark.parametrize("tail", ["-x", ".", ":", ",", " ", "é"])
def test_a_name_ends_where_its_characters_end(tail: str) -> None:
    headers = [(b"authorization", f"{P}{tail}".encode())]
    head = rewrite_head(b"/", headers, [secret("one", AUTHORIZATION)], [])
    assert head.headers == [(b"authorization", f"one{tail}".encode())]


@pytest.mark.parametrize("control", ["\r", "\n", "\0", "\r\nX: y", "\x7f", "\x1b"])
def test_a_value_with_control_characters_never_splits_a_header(control: str) -> None:
    headers = [(b"authorization", P.encode())]
    slots = (AUTHORIZATION, Slot("basic", "password"))
    head = rewrite_head(b"/", headers, [secret(f"a{control}b", *slots)], [])
    assert head.headers == headers
    assert (head.substituted, head.withheld) == ((), ("TOKEN",))


@pytest.mark.parametrize("name", ["host", "content-length", "transfer-encoding", "connection"])
def test_framing_headers_are_never_a_slot(name: str) -> None:
    headers = [(name.encode(), P.encode())]
    assert rewrite_head(b"/", headers, [secret("x", Slot("header", name))], []).headers == headers


@pytest.mark.parametrize(
    ("slot", "sent", "arrives"),
    [
        ("password", f"bot:{P}", 'bot:v:"é'),
        ("password", f"{P}:{P}", f'{P}:v:"é'),
        ("", f"{P}", 'v:"é'),
        ("", f"bot:{P}", 'bot:v:"é'),
        ("user", f"bot:{P}", f"bot:{P}"),
        ("user", f"{P}:x", f"{P}:x"),  # the value has a colon, which would move the border
    ],
)
def test_fills_in_basic_credentials(slot: str, sent: str, arrives: str) -> None:
    bound = [secret('v:"é', Slot("basic", slot))]
    head = rewrite_head(b"/", [(b"Authorization", basic(sent))], bound, [])
    assert credentials_of(head.headers[0][1]) == arrives


def test_a_basic_user_is_filled_in_before_its_colon() -> None:
    bound = [secret("plain", Slot("basic", "user"))]
    head = rewrite_head(b"/", [(b"authorization", basic(f"{P}:x-oauth"))], bound, [])
    assert credentials_of(head.headers[0][1]) == "plain:x-oauth"


def test_basic_without_a_basic_slot_passes_unchanged() -> None:
    headers = [(b"authorization", basic(f"bot:{P}"))]
    assert rewrite_head(b"/", headers, [secret("v", AUTHORIZATION)], []).headers == headers


def test_basic_that_is_not_touched_keeps_its_spelling() -> None:
    headers = [(b"authorization", b"basic  Ym90OnBhc3M")]
    bound = [secret("v", Slot("basic", "password"))]
    assert rewrite_head(b"/", headers, bound, []).headers == headers


@pytest.mark.parametrize("spelt", [P, P.replace(":", "%3A"), P.replace(":", "%3a"), "%6f" + P[1:]])
def test_fills_in_telegrams_path(spelt: str) -> None:
    bound = [secret("123:AB/c?#", Slot("path", "0"))]
    head = rewrite_head(f"/bot{spelt}/getMe?q={spelt}".encode(), [], bound, [])
    assert head.target == f"/bot123:AB%2Fc%3F%23/getMe?q={spelt}".encode()


def test_a_numbered_segment_is_only_that_segment() -> None:
    bound = [secret("v", Slot("path", "1"))]
    assert rewrite_head(f"/{P}/{P}/{P}".encode(), [], bound, []).target == f"/{P}/v/{P}".encode()


def test_any_segment_and_the_absolute_form() -> None:
    bound = [secret("v", Slot("path"))]
    head = rewrite_head(f"http://up.test/{P}/x-{P}".encode(), [], bound, [])
    assert head.target == b"http://up.test/v/x-v"


@given(VALUES)
def test_a_query_parameter_parses_to_exactly_the_value(value: str) -> None:
    bound = [secret(value, Slot("query", "to ken"))]
    encoded = P.replace(":", "%3A")
    target = f"/p?a={encoded}&to+ken=x{encoded}&to%20ken={P}%2B&%74o%20ken=1#f".encode()
    head = rewrite_head(target, [], bound, [])
    pairs = parse_qsl(urlsplit(head.target.decode()).query)
    assert pairs == [("a", P), ("to ken", f"x{value}"), ("to ken", f"{value}+"), ("to ken", "1")]
    assert head.target.startswith(f"/p?a={encoded}&".encode())


@given(VALUES)
def test_a_segment_decodes_to_exactly_the_value(value: str) -> None:
    head = rewrite_head(f"/a/{P}/b?c".encode(), [], [secret(value, Slot("path", "1"))], [])
    assert [unquote(part) for part in head.target.decode().partition("?")[0].split("/")] == [
        "",
        "a",
        value,
        "b",
    ]


@pytest.mark.parametrize(
    ("target", "headers"),
    [
        (f"/{P}", []),
        (f"/?x={P.replace(':', '%3a')}", []),
        ("/", [(b"x", f"ask {P} now".encode())]),
        ("/", [(b"authorization", basic(f"u:{P}"))]),
        ("/", [(b"cookie", P.replace(":", "%3A").encode())]),
    ],
)
def test_what_is_not_bound_is_withheld_and_passes(
    target: str, headers: list[tuple[bytes, bytes]]
) -> None:
    head = rewrite_head(target.encode(), headers, [], [secret("v", AUTHORIZATION)])
    assert (head.target, head.headers) == (target.encode(), headers)
    assert (head.substituted, head.withheld) == ((), ("TOKEN",))


def test_a_bound_placeholder_outside_its_slot_is_not_withheld() -> None:
    bound = [secret("v", AUTHORIZATION)]
    head = rewrite_head(f"/{P}?q={P}".encode(), [(b"x", P.encode())], bound, [])
    assert (head.substituted, head.withheld) == ((), ())


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_any_head_passes_without_an_error(target: bytes, value: bytes) -> None:
    slots = (AUTHORIZATION, Slot("basic"), Slot("query", "a"), Slot("path"))
    bound = [secret("v", *slots)]
    headers = [(b"authorization", value), (b"authorization", b"Basic " + value)]
    head = rewrite_head(target, headers, bound, [secret("o", name="OTHER")])
    assert (head.target, head.headers) == (target, headers)
