"""What `netns-debug learn` writes: the smallest readable policy that carries all that was seen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netns_runtime.debug.evidence import Evidence
from netns_runtime.debug.learned import Learned, seen_of
from netns_runtime.debug.learnjudge import refusals_of, unused_of
from netns_runtime.debug.learnpaths import MOST, globs_for
from netns_runtime.debug.learnpolicy import comments_on, policy_for, text_of
from netns_runtime.policy import load_policy
from netns_runtime.policy.globs import path_fault, path_matches

if TYPE_CHECKING:
    from netns_runtime.policy import Policy

NOTED = {"action": "allow", "reason": "http_request_denied", "detail": "would be refused: no rule"}
_numbers = iter(range(1, 1_000_000))


def flow(host: str, port: int, *requests: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    """The events of one flow of a run with --report."""
    bytes_out = fields.pop("bytes_out", 10)
    base = {"sandbox": "box", "flow": next(_numbers), "host": host, "port": port}
    base |= {"exe": "/usr/bin/curl", "comm": "curl"}
    events = [{"event": "flow.decided", **base, **NOTED, **fields}]
    events += [
        {"event": "http.request", **base, **NOTED, "status": 200, **request} for request in requests
    ]
    return [*events, {"event": "flow.closed", **base, "bytes_out": bytes_out, "bytes_in": 0}]


def get(path: str, method: str = "GET", **more: Any) -> dict[str, Any]:
    return {"method": method, "path": path, **more}


def learned(*flows: list[dict[str, Any]]) -> Learned:
    return seen_of(Evidence("audit", tuple(event for one in flows for event in one)))


def policy_text(found: Learned, *, binaries: bool = False) -> str:
    return text_of(policy_for(found, binaries=binaries))


def loaded(text: str) -> Policy:
    return load_policy(text.encode("ascii"), "learned.yaml")


def test_a_connection_that_nobody_looked_into_is_a_host_and_a_port() -> None:
    text = policy_text(learned(flow("web.test", 443)))
    assert "      - {host: web.test, port: 443}\n" in text


def test_requests_are_told_by_method_and_path() -> None:
    found = learned(flow("web.test", 80, get("/a"), get("/b", "POST"), get("/a")))
    lines = [line.strip() for line in policy_text(found).splitlines()]
    assert lines[-5:] == [
        "port: 80",
        "protocol: rest",
        "rules:",
        "- allow: {method: GET, path: /a}",
        "- allow: {method: POST, path: /b}",
    ]


def test_ports_with_the_same_rules_are_one_endpoint() -> None:
    text = policy_text(learned(flow("web.test", 443), flow("web.test", 8443)))
    assert "{host: web.test, ports: [443, 8443]}" in text


def test_an_unseen_connection_beside_requests_asks_for_the_whole_port() -> None:
    text = policy_text(learned(flow("web.test", 443, get("/a")), flow("web.test", 443)))
    assert "{host: web.test, port: 443}" in text
    assert "rules" not in text


def test_a_connection_that_was_never_used_widens_nothing() -> None:
    unused = flow("web.test", 443, bytes_out=0)
    assert "path: /a" in policy_text(learned(flow("web.test", 443, get("/a")), unused))


def test_a_websocket_that_sent_nothing_may_send_nothing() -> None:
    def socket(messages: int) -> list[dict[str, Any]]:
        events = flow("ws.test", 443, get("/s", protocol="websocket", status=101))
        closed = {**events[0], "event": "ws.closed", "messages_out": messages, "code": 1000}
        return [*events[:2], closed, events[2]]

    assert "WEBSOCKET_TEXT" not in policy_text(learned(socket(0)))
    text = policy_text(learned(socket(2)))
    assert "protocol: websocket" in text
    assert "- allow: {method: WEBSOCKET_TEXT, path: /s}" in text


def test_what_could_not_be_looked_into_is_tcp() -> None:
    raw = flow("old.test", 443, reason="sni_missing")
    assert "{host: old.test, port: 443, protocol: tcp}" in policy_text(learned(raw))


def test_a_name_that_was_only_looked_up_is_in_the_policy() -> None:
    answered = {"event": "dns.answered", "sandbox": "box", "host": "name.test", **NOTED}
    found = learned([answered])
    assert "host: name.test" in policy_text(found)
    assert refusals_of(loaded(policy_text(found)), found.seen) == []


def test_binaries_tie_each_part_to_who_used_it() -> None:
    other = [{**event, "exe": "/usr/bin/wget"} for event in flow("other.test", 443)]
    both = [{**event, "exe": "/usr/bin/wget"} for event in flow("web.test", 443)]
    text = policy_text(learned(flow("web.test", 443), other, both), binaries=True)
    assert text.index("curl:") < text.index("- {path: /usr/bin/curl}")
    assert text.index("wget:") < text.index("- {path: /usr/bin/wget}")
    found = loaded(text)
    assert refusals_of(found, learned(other, both).seen) == []
    [(refused, _)] = refusals_of(found, learned(flow("other.test", 443)).seen)
    assert (refused.host, refused.exe) == ("other.test", "/usr/bin/curl")


def test_without_binaries_anybody_may() -> None:
    assert "binaries" not in policy_text(learned(flow("web.test", 443)))


def test_what_was_refused_all_the_same_is_a_comment_and_allowed_by_nothing() -> None:
    refused = [
        {"event": "connect.refused", "address": "203.0.113.1", "port": 9, "remedy": "--allow x"},
        {**flow("p.test", 80)[0], "action": "refuse", "reason": "destination_ip_prohibited"},
        {**flow("f.test", 443)[0], "reason": "sni_mismatch"},
    ]
    found = learned(refused, flow("web.test", 443))
    assert loaded(policy_text(found)).hosts == ("web.test",)
    comments = "\n".join(comments_on(found))
    for part in ("203.0.113.1:9", "p.test:80: destination_ip_prohibited", "f.test:443"):
        assert part in comments


def test_what_the_sandbox_chose_cannot_break_out_of_the_file() -> None:
    hostile = "/a\n- {host: evil.test}\x1b[31m: #{}"
    found = learned(
        flow("web.test", 80, get("/"), get(hostile, "G'ET: {")),
        flow("bad host\n", 80),
        [{"event": "connect.refused", "comm": "x\ny: z", "address": "192.0.2.1", "port": 1}],
    )
    text = text_of(policy_for(found), (), comments_on(found))
    assert loaded(text).hosts == ("web.test",)
    assert text.isascii()
    assert all(line.isprintable() for line in text.splitlines())


@pytest.mark.parametrize(
    ("paths", "wanted"),
    [
        (["/users/1", "/users/23"], {"/users/*"}),
        (["/o/0b4e8a1c-11d2-4f60-9d4b-0a1b2c3d4e5f/x"], {"/o/*/x"}),
        (["/c/9f8e7d6c5b4a39281706"], {"/c/*"}),
        (["/day/2026-11-21"], {"/day/*"}),
        (["/v1/models", "/v1/chat"], {"/v1/models", "/v1/chat"}),
        (["/bot" + "openshell:resolve:env:TOKEN" + "/getMe"], {"/*/getMe"}),
        ([f"/pkg/{name}/" for name in "abcde"], {"/pkg/*/"}),
        ([f"/pkg/{name}/" for name in "abcd"], {f"/pkg/{name}/" for name in "abcd"}),
        (["/", "/a"], {"/", "/a"}),
        (["*"], {"/**"}),
    ],
)
def test_ids_and_many_siblings_become_a_star(paths: list[str], wanted: set[str]) -> None:
    assert set(globs_for(paths).values()) == wanted


def test_a_long_list_becomes_what_lies_under_its_first_segments() -> None:
    paths = [f"/{first}/{'/'.join(str(depth) * depth)}x" for first in "ab" for depth in range(1, 9)]
    assert set(globs_for(paths).values()) == {"/a/**", "/b/**"}


_segments = st.text("ab1-*?[]%._~:", max_size=6)


@given(st.lists(st.lists(_segments, max_size=4).map(lambda parts: "/" + "/".join(parts))))
def test_every_glob_is_valid_and_covers_its_path(paths: list[str]) -> None:
    found = globs_for(paths)
    assert len(set(found.values())) <= MOST
    for path, glob in found.items():
        assert path_fault(glob) is None, glob
        assert path_matches(glob, path), (glob, path)


_events = st.builds(
    flow,
    st.sampled_from(["a.test", "b.test", "192.0.2.1"]),
    st.sampled_from([80, 443]),
    st.builds(
        get,
        st.lists(_segments, max_size=3).map(lambda parts: "/" + "/".join(parts)),
        st.sampled_from(["GET", "POST", "OPTIONS", "HEAD"]),
        protocol=st.sampled_from(["https", "websocket"]),
        status=st.sampled_from([101, 200]),
    ),
    reason=st.sampled_from(["http_request_denied", "sni_missing"]),
    bytes_out=st.sampled_from([0, 5]),
)


@given(st.lists(_events, max_size=6), st.booleans())
def test_the_policy_carries_everything_that_was_seen(
    flows: list[list[dict[str, Any]]], binaries: bool
) -> None:
    found = learned(*flows)
    text = policy_text(found, binaries=binaries)
    assert refusals_of(loaded(text), found.seen) == []


POLICY = """\
version: 1
network_policies:
  web:
    endpoints:
      - host: web.test
        port: 80
        protocol: rest
        rules:
          - allow: {method: GET, path: /a}
          - allow: {method: GET, path: /never}
  spare:
    endpoints:
      - {host: spare.test, port: 443}
"""


def test_a_difference_names_what_is_missing_and_what_is_unused() -> None:
    policy = loaded(POLICY)
    found = learned(flow("web.test", 80, get("/a"), get("/b")), flow("new.test", 443))
    missing = refusals_of(policy, found.seen)
    assert [(seen.host, seen.request and seen.request.path) for seen, _ in missing] == [
        ("web.test", "/b"),
        ("new.test", None),
    ]
    assert "path: /b" in missing[0][1]
    assert missing[1][1] == "--allow new.test:443"
    assert unused_of(policy, found.seen) == [
        "web (learned.yaml:3): web.test:80: GET /never (at learned.yaml:10)",
        "spare (learned.yaml:11): spare.test:443 (line 13)",
    ]


def test_a_policy_learned_from_a_run_differs_from_it_in_nothing() -> None:
    found = learned(flow("web.test", 80, get("/a"), get("/b/1")), flow("new.test", 443))
    policy = loaded(policy_text(found))
    assert refusals_of(policy, found.seen) == []
    assert unused_of(policy, found.seen) == []
