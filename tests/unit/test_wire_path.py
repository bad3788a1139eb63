"""Normal targets: what is judged is what is forwarded, and no second spelling gets past."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netns_runtime.wire import ProtocolError
from netns_runtime.wire.path import MAX_PAIRS, MAX_PATH, NormalTarget, normalise_target

NORMAL = {
    "the root": ("/", "/"),
    "a plain path": ("/api/v10/users/@me", "/api/v10/users/@me"),
    "a query as it was sent": ("/a?x=%zz&y=a+b&;=/../", "/a?x=%zz&y=a+b&;=/../"),
    "an empty query": ("/a?", "/a?"),
    "a second question mark": ("/a?b?c", "/a?b?c"),
    "a dot segment": ("/a/./b", "/a/b"),
    "two dots": ("/a/../b", "/b"),
    "two dots at the end": ("/a/b/..", "/a/"),
    "one dot at the end": ("/a/b/.", "/a/b/"),
    "back to the root": ("/a/..", "/"),
    "encoded dots": ("/a/%2e%2E/b", "/b"),
    "half-encoded dots": ("/a/.%2e/b", "/b"),
    "dots behind two slashes, which count": ("/a//../b", "/a/b"),
    "unreserved characters decoded": ("/%7Eme/%41%2d", "/~me/A-"),
    "other escapes in upper case": ("/%e2%82%ac/%40me", "/%E2%82%AC/%40me"),
    "reserved characters as sent": ("/a:b@c;d=e,f", "/a:b@c;d=e,f"),
    "doubled slashes as sent": ("//a//b", "//a//b"),
    "raw characters that no path has, encoded": (
        '/a"<>^`{|}[]',
        "/a%22%3C%3E%5E%60%7B%7C%7D%5B%5D",
    ),
    "characters beyond ASCII as UTF-8": ("/é?é", "/%C3%A9?%C3%A9"),
    "bytes that were kept as surrogates": ("/\udce9", "/%E9"),
    "three dots": ("/.../b", "/.../b"),
    "a hidden file": ("/.well-known/x", "/.well-known/x"),
    "an encoded percent sign": ("/100%25/x", "/100%25/x"),
    "an encoded percent sign before letters": ("/a%25zz", "/a%25zz"),
    "an encoded question mark": ("/a%3fb", "/a%3Fb"),
    "an encoded number sign": ("/a%23b", "/a%23b"),
}

REFUSED = {
    "no slash first": "a/b",
    "nothing": "",
    "an asterisk": "*",
    "a whole URL": "http://a.test/",
    "a fragment": "/a#b",
    "a fragment in the query": "/a?b#c",
    "an encoded slash": "/v1/..%2fadmin",
    "an encoded slash in upper case": "/v1/a%2Fb",
    "an encoded backslash": "/v1/..%5cadmin",
    "a backslash": "/v1/..\\admin",
    "a slash encoded twice": "/v1/..%252fadmin",
    "a slash encoded three times": "/v1/a%25252fb",
    "dots encoded twice": "/v1/%252e%252e/admin",
    "a dot encoded twice beside one": "/v1/.%252e/admin",
    "dots before parameters": "/v1/..;/admin",
    "dots before encoded parameters": "/v1/..%3B/admin",
    "encoded dots before parameters": "/v1/%2e%2e;x=y/admin",
    "one dot before parameters": "/v1/.;/admin",
    "dots before an encoded space": "/v1/..%20/admin",
    "an overlong slash": "/v1/..%c0%afadmin",
    "an overlong dot": "/v1/%c0%ae%c0%ae/admin",
    "an overlong slash in three bytes": "/v1/..%e0%80%afadmin",
    "an overlong slash in four bytes": "/v1/..%f0%80%80%afadmin",
    "NUL": "/a%00.png",
    "NUL encoded twice": "/a%2500",
    "a newline": "/a%0d%0aX: y",
    "a raw newline": "/a\r\nX: y",
    "a raw newline in the query": "/a?b\r\nX: y",
    "a space": "/a b",
    "a space in the query": "/a?b HTTP/1.1",
    "a broken escape": "/a%zz",
    "an escape cut short": "/a%2",
    "a lone percent sign": "/a%",
    "an escape of IIS": "/v1/..%u002fadmin",
    "above the root": "/..",
    "above the root in the end": "/a/../../b",
    "above the root in code": "/%2e%2e/b",
    "a lone surrogate": "/\ud800",
    "encoded over and over": "/%" + "25" * 20 + "41",
    "too long": "/" + "a" * MAX_PATH,
    "too long once it is encoded": "/" + '"' * (MAX_PATH // 2),
    "too many parameters": "/?" + "&" * MAX_PAIRS,
}


@pytest.mark.parametrize(("raw", "normal"), NORMAL.values(), ids=NORMAL)
def test_gives_the_normal_form_of(raw: str, normal: str) -> None:
    assert normalise_target(raw).raw == normal


@pytest.mark.parametrize("raw", REFUSED.values(), ids=REFUSED)
def test_refuses(raw: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        normalise_target(raw)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("raw", ["/a%2fb", "/a%5cb", "/a\\b"])
def test_a_refused_slash_comes_with_what_would_take_it(raw: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        normalise_target(raw)
    assert "`allow_encoded_slash: true`" in caught.value.remedy


def test_takes_encoded_slashes_where_they_are_allowed() -> None:
    assert normalise_target("/@types%2fnode", allow_encoded_slash=True).path == "/@types%2Fnode"
    assert normalise_target("/a%5cb", allow_encoded_slash=True).path == "/a%5Cb"


@pytest.mark.parametrize(
    "raw", ["/a/..%2fb", "/a/%2e%2e%2fb", "/a%2f..%2fb", "/a/..%5cb", "/a%2f..", "/a/..%252fb"]
)
def test_refuses_dots_around_encoded_slashes_even_where_those_are_allowed(raw: str) -> None:
    with pytest.raises(ProtocolError):
        normalise_target(raw, allow_encoded_slash=True)


@pytest.mark.parametrize("raw", ["/a%00", "/a\\b", "/a%0a", "/%zz"])
def test_allowing_slashes_allows_nothing_else(raw: str) -> None:
    with pytest.raises(ProtocolError):
        normalise_target(raw, allow_encoded_slash=True)


def test_decodes_the_pairs_of_a_query_in_order() -> None:
    target = normalise_target("/a?x=1&y=%20+&x=%C3%A9&z&=e&&k=a=b")
    assert target.pairs == (("x", "1"), ("y", "  "), ("x", "é"), ("z", ""), ("", "e"), ("k", "a=b"))


def test_shows_no_value_of_a_query() -> None:
    assert normalise_target("/a?token=secret&x=2&y").shown == "/a?token&x&y"
    assert normalise_target("/a").shown == "/a"


def test_a_path_that_is_too_long_is_told_as_414() -> None:
    with pytest.raises(ProtocolError) as caught:
        normalise_target("/" + "a" * MAX_PATH)
    assert caught.value.status == 414


HOSTILE = st.lists(
    st.sampled_from(
        [
            "/",
            "//",
            ".",
            "..",
            "%2e",
            "%2E",
            "%2f",
            "%5c",
            "\\",
            ";",
            "%3b",
            "a",
            "B",
            "%41",
            "%25",
            "%252e",
            "%c0%af",
            "%00",
            "%zz",
            "?",
            "&",
            "=",
            "#",
            "%",
            "é",
            "�",
            "�",
            " ",
            "{",
            "%C3%A9",
            "\n",
        ]
    ),
    max_size=14,
).map("".join)


@settings(max_examples=200, deadline=None, database=None)
@given(st.one_of(st.text(max_size=40), HOSTILE.map(lambda text: "/" + text)), st.booleans())
def test_ends_in_a_target_or_a_protocol_error_and_is_idempotent(raw: str, slashes: bool) -> None:
    target: NormalTarget | None = None
    with contextlib.suppress(ProtocolError):
        target = normalise_target(raw, allow_encoded_slash=slashes)
    if target is None:
        return
    assert target.raw.isascii()
    assert target.raw.isprintable()
    assert " " not in target.raw
    again = normalise_target(target.raw, allow_encoded_slash=slashes)
    assert again == target
    segments = target.path.split("/")
    assert not {".", ".."} & set(segments)
    if not slashes:
        assert "%2F" not in target.path
        assert "%5C" not in target.path
