"""OpenShell's globs, as its schema reference tells them."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netns_runtime.policy.globs import (
    path_fault,
    path_matches,
    path_matches_any_case,
    selector_matches,
    selector_specificity,
    value_matches,
)

COVERED = {
    "every path": ("/**", "/"),
    "every deep path": ("**", "/a/b"),
    "a path under a prefix": ("/repos/**", "/repos/a/b"),
    "the prefix with its slash": ("/repos/**", "/repos/"),
    "one segment": ("/repos/*/x", "/repos/a/x"),
    "an empty star": ("/a*", "/a"),
    "a star inside": ("/v*/x", "/v10/x"),
    "two stars inside": ("/a*b*c", "/aXbYbc"),
    "two stars beside text, as one": ("/**secret**", "/a-secret-b"),
    "segments in the middle": ("/a/**/z", "/a/b/c/z"),
    "the shortest middle": ("/a/**/z", "/a/b/z"),
    "a repeated end": ("/a/**/z", "/a/z/z"),
    "two middles": ("/a/**/b/**/c", "/a/x/b/y/b/z/c"),
    "any segments first": ("**/x", "/a/b/x"),
    "one character": ("/a?", "/ab"),
    "one character in UTF-8": ("/a?", "/a%E2%82%AC"),
    "a set": ("/v[0-9]", "/v3"),
    "a negated set": ("/v[!0-9]", "/vx"),
    "a reserved character in code": ("/users/@me", "/users/%40me"),
    "a reserved character raw": ("/users/%40me", "/users/@me"),
    "an unreserved escape in a rule": ("/%7eme", "/~me"),
    "a rule in UTF-8": ("/é", "/%C3%A9"),
    "a space in a rule": ("/a b", "/a%20b"),
    "a literal star": ("/a%2Ab", "/a*b"),
}

NOT_COVERED = {
    "the bare prefix": ("/repos/**", "/repos"),
    "a longer prefix": ("/repos/**", "/reposx/a"),
    "two segments for one star": ("/repos/*/x", "/repos/a/b/x"),
    "a slash under beside-text stars": ("/**secret**", "/a/secret"),
    "no segment for a middle": ("/a/**/z", "/a/z"),
    "another case": ("/v1/**", "/V1/x"),
    "what only begins alike": ("/v1/x", "/v1/x/y"),
    "a trailing slash": ("/v1/x", "/v1/x/"),
    "a slash for one character": ("/a?b", "/a/b"),
    "a set's other": ("/v[0-9]", "/vx"),
    "a slash for a negated set": ("/v[!0-9]x", "/v/x"),
    "a path with a newline at its end": ("/a", "/a\n"),
    "a dot that is any character": ("/a.b", "/axb"),
}


@pytest.mark.parametrize(("pattern", "path"), COVERED.values(), ids=COVERED)
def test_covers(pattern: str, path: str) -> None:
    assert path_matches(pattern, path)
    assert path_matches_any_case(pattern, path)


@pytest.mark.parametrize(("pattern", "path"), NOT_COVERED.values(), ids=NOT_COVERED)
def test_does_not_cover(pattern: str, path: str) -> None:
    assert not path_matches(pattern, path)


def test_what_denies_ignores_the_case_of_letters() -> None:
    assert path_matches_any_case("/admin/**", "/ADMIN/x")
    assert path_matches_any_case("/Admin", "/admin")


def test_dots_separate_query_values_as_in_openshell() -> None:
    assert value_matches("1.*", "1.2")
    assert not value_matches("1.*", "1.2.3")
    assert value_matches("github.**", "github.search.code")
    assert value_matches("**", "a.b")
    assert value_matches("linux-*", "linux-x64")
    assert not value_matches("*", "a.b")
    assert value_matches("a@b+c d", "a@b+c d")


def test_an_endpoints_path_covers_its_own_prefix_and_crosses_slashes() -> None:
    assert selector_matches("/v1/**", "/v1")
    assert selector_matches("/v1/**", "/v1/a/b")
    assert not selector_matches("/v1/**", "/v10")
    assert selector_matches("/a/*/z", "/a/b/c/z")
    assert selector_matches("/**", "/")


def test_the_narrower_path_of_an_endpoint_ranks_higher() -> None:
    ranked = [None, "/**", "/v1/**", "/v1/admin/**", "/v1/admin"]
    keys = [selector_specificity(path) for path in ranked]
    assert keys == sorted(keys)
    assert keys[0] == keys[1] < keys[2] < keys[3] < keys[4]


@pytest.mark.parametrize(
    "pattern", ["v1", "*", "/a/../b", "/a/%2e%2e", "/a[b", "/a#b", "/a?b=c", "/a[z-a]"]
)
def test_a_glob_that_matches_no_path_is_a_fault_with_a_remedy(pattern: str) -> None:
    fault = path_fault(pattern)
    assert fault is not None
    assert all(fault)


@pytest.mark.parametrize(
    "pattern", ["/**/a/**/a/**/a/**/b", "/*a*a*a*a*a*a*b", "/**/*a*a*a/**/*a*a*b", "**/a*a*a*b"]
)
def test_a_hostile_path_costs_no_time(pattern: str) -> None:
    started = time.perf_counter()
    for path in ("/" + "a" * 8000, "/a" * 4000, "/" + "a/" * 4000):
        assert not path_matches(pattern, path)
    assert time.perf_counter() - started < 0.2


def by_the_book(pattern: list[str], path: list[str]) -> bool:
    """The definition, slowly."""
    if not pattern:
        return not path
    if pattern[0] == "**":
        return bool(path) and (by_the_book(pattern[1:], path[1:]) or by_the_book(pattern, path[1:]))
    return bool(path) and one_segment(pattern[0], path[0]) and by_the_book(pattern[1:], path[1:])


def one_segment(pattern: str, text: str) -> bool:
    if not pattern:
        return not text
    if pattern[0] == "*":
        return one_segment(pattern[1:], text) or bool(text and one_segment(pattern, text[1:]))
    return bool(text) and pattern[0] == text[0] and one_segment(pattern[1:], text[1:])


SEGMENTS = st.sampled_from(["a", "b", "ab", "ba", "aab", "abab"])
WILD = st.sampled_from(["**", "**", "*", "a*", "*b", "a*b", "*a*", "a", "b", "*a*b*"])


@settings(max_examples=200, deadline=None, database=None)
@given(st.lists(WILD, min_size=1, max_size=5), st.lists(SEGMENTS, min_size=1, max_size=6))
def test_agrees_with_the_definition(pattern: list[str], path: list[str]) -> None:
    matched = path_matches("/" + "/".join(pattern), "/" + "/".join(path))
    assert matched == by_the_book(pattern, path)
