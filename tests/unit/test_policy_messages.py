"""WebSocket messages: text rules as in OpenShell, and rules that look into JSON by pointer."""

from __future__ import annotations

import contextlib
import json
import pickle
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netns_runtime.address import parse_authority
from netns_runtime.policy import Policy, load_policy, parse_allow
from netns_runtime.policy.pointers import certain_value, pointer_fault, possible_values
from netns_runtime.policy.requests import Asked, decide_request

if TYPE_CHECKING:
    from netns_runtime.policy.messages import RequestDecision, WebSocketRules

HOST = "network_policies:\n  r:\n    endpoints:\n"
UP = "{allow: {method: GET, path: /ws}}"
TEXT = "{allow: {method: WEBSOCKET_TEXT, path: /ws}}"
OPS = "{allow: {message: {pointer: /op, in: [1, 2]}}}"
NO_EIGHT = "deny_rules: [{message: {pointer: /op, in: [8]}}]"


def policy_of(*fields: str) -> Policy:
    lines = (f"      - {{host: a.test, port: 443, {item}}}\n" for item in fields)
    return load_policy((HOST + "".join(lines)).encode(), "p.yaml")


def upgrade(policy: Policy, path: str = "/ws", **query: str) -> RequestDecision:
    asked = Asked("GET", path, tuple(query.items()), True)
    return decide_request(policy, parse_authority("a.test:443"), None, asked)


def rules_of(*fields: str) -> WebSocketRules:
    decision = upgrade(policy_of(*fields))
    assert decision.is_allowed
    assert decision.websocket is not None
    return decision.websocket


def judged(rules: WebSocketRules, text: str) -> RequestDecision:
    document: Any = None
    with contextlib.suppress(ValueError, RecursionError):
        document = json.loads(text)
    return rules.judge(text, document if rules.needs_json else None)


def websocket(*rules: str, more: str = "") -> str:
    return f"protocol: websocket, rules: [{', '.join((UP, *rules))}]" + (more and f", {more}")


@pytest.mark.parametrize(
    "fields",
    [
        "protocol: websocket, access: full",
        "protocol: websocket, access: read-write",
        "protocol: rest, access: full",
        "protocol: rest, rules: [{allow: {method: GET, path: /**}}]",
        websocket(TEXT),
        "protocol: websocket, rules: [{allow: {method: '*', path: /ws}}]",
    ],
)
def test_messages_that_nothing_restricts_are_not_judged(fields: str) -> None:
    decision = upgrade(policy_of(fields))
    assert decision.is_allowed
    assert decision.websocket is None


@pytest.mark.parametrize(
    "fields",
    ["protocol: websocket, access: read-only", "protocol: rest, access: read-only", websocket()],
)
def test_an_upgrade_alone_allows_no_message(fields: str) -> None:
    rules = rules_of(fields)
    assert not rules.needs_json
    for decision in (rules.judge("hello", None), rules.judge_binary()):
        assert not decision.is_allowed
        assert decision.rule == "r (p.yaml:2)"
        assert decision.remedy


def test_a_text_rule_is_for_the_path_of_the_upgrade() -> None:
    fields = (
        "protocol: websocket, rules: [{allow: {method: GET, path: '/*'}}, "
        "{allow: {method: WEBSOCKET_TEXT, path: /ws}}]"
    )
    assert upgrade(policy_of(fields)).websocket is None
    other = upgrade(policy_of(fields), "/other")
    assert other.websocket is not None
    assert not other.websocket.judge("x", None).is_allowed


def test_a_denied_text_leaves_the_upgrade_alone() -> None:
    deny = "deny_rules: [{method: WEBSOCKET_TEXT, path: /ws}]"
    rules = rules_of(f"protocol: websocket, access: full, {deny}")
    assert not rules.judge("x", None).is_allowed
    assert upgrade(policy_of(f"protocol: websocket, access: full, {deny}"), "/x").websocket is None


ALLOWED = {
    "a listed number": '{"op": 1}',
    "a listed number beside more": '{"op": 2, "d": {"token": "x", "op": 9}}',
    "the same number with a point": '{"op": 1.0}',
}
REFUSED = {
    "another number": '{"op": 8}',
    "a text like it": '{"op": "1"}',
    "true, which is no 1": '{"op": true}',
    "nothing there": '{"x": 1}',
    "a list": '[{"op": 1}]',
    "no JSON": "hello",
    "broken JSON": '{"op": 1',
    "a name twice": '{"op": 1, "op": 8}',
    "a name twice further in": '{"op": 1, "d": {"a": 1, "a": 2}}',
    "a name in two cases": '{"op": 1, "OP": 8}',
    "a byte order mark": '\ufeff{"op": 1}',
    "another case alone": '{"Op": 1}',
    "null": "null",
    "nothing": "",
    "too deep": '{"op": 1, "d": ' + "[" * 100000,
}


@pytest.mark.parametrize("text", ALLOWED.values(), ids=ALLOWED)
def test_allows_by_pointer(text: str) -> None:
    assert judged(rules_of(websocket(OPS)), text).is_allowed


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_refuses_by_pointer(text: str) -> None:
    decision = judged(rules_of(websocket(OPS)), text)
    assert not decision.is_allowed
    assert decision.rule == "r (p.yaml:2)"
    assert (decision.detail + decision.remedy).isprintable()


DENIED = {
    "the number": '{"op": 8}',
    "the number with a point": '{"op": 8.0}',
    "a name in another case": '{"OP": 8}',
    "a name twice": '{"op": 8, "op": 1}',
    "a name twice the other way": '{"op": 1, "op": 8}',
    "broken JSON": "{'op': 8}",
    "a byte order mark": '\ufeff{"op": 8}',
}


@pytest.mark.parametrize("text", DENIED.values(), ids=DENIED)
def test_denies_by_pointer_in_every_reading(text: str) -> None:
    rules = rules_of(f"protocol: websocket, access: full, {NO_EIGHT}")
    decision = judged(rules, text)
    assert not decision.is_allowed
    assert "p.yaml:4" in decision.remedy


def test_a_deny_rule_lets_everything_else_pass() -> None:
    rules = rules_of(f"protocol: websocket, access: full, {NO_EIGHT}")
    for text in ('{"op": 1}', "ping", "2", "", '[1, {"op": 8}]'):
        assert judged(rules, text).is_allowed


def test_a_binary_message_passes_only_where_no_rule_looks_into_messages() -> None:
    assert not rules_of(websocket(OPS)).judge_binary().is_allowed
    assert not rules_of(websocket(TEXT, more=NO_EIGHT)).judge_binary().is_allowed
    explicit = "{allow: {method: WEBSOCKET_BINARY, path: /ws}}"
    assert rules_of(websocket(OPS, explicit)).judge_binary().is_allowed
    assert rules_of(websocket(OPS, explicit, more=NO_EIGHT)).judge_binary().is_allowed
    assert not judged(rules_of(websocket(OPS, explicit)), "x").is_allowed


def test_the_recommended_line_names_the_value() -> None:
    fields = websocket(OPS)
    remedy = judged(rules_of(fields), '{"op": 8}').remedy
    assert "message: {pointer: /op, in: [8]}" in remedy
    line = remedy.split("`- ")[1].split("`")[0]
    widened = fields.replace("rules: [", "rules: [{" + line + "}, ")
    assert judged(rules_of(widened), '{"op": 8}').is_allowed
    assert not judged(rules_of(widened), '{"op": 9}').is_allowed


def test_the_recommended_line_of_a_preset_is_a_wider_preset() -> None:
    rules = rules_of("protocol: websocket, access: read-only")
    assert rules.judge("x", None).remedy == "write `access: read-write` at p.yaml:4"


def test_conditions_hold_together_and_globs_match_texts() -> None:
    rules = rules_of(
        websocket(
            "{allow: {message: [{pointer: /type, matches: [sub*, ping]}, "
            "{pointer: /ids/0, present: true}]}}"
        )
    )
    assert judged(rules, '{"type": "subscribe", "ids": [0]}').is_allowed
    assert not judged(rules, '{"type": "subscribe", "ids": []}').is_allowed
    assert not judged(rules, '{"type": "publish", "ids": [1]}').is_allowed
    assert not judged(rules, '{"type": 5, "ids": [1]}').is_allowed


def test_audit_notes_a_message_that_it_would_refuse() -> None:
    rules = rules_of(websocket(OPS) + ", enforcement: audit")
    decision = judged(rules, '{"op": 8}')
    assert decision.is_allowed
    assert decision.noted
    assert "/op is 8" in decision.detail
    assert not judged(rules, '{"op": 1}').noted


def test_message_rules_hold_beside_a_rest_endpoint_and_an_allow_flag_lifts_all_but_denials() -> (
    None
):
    both = policy_of(websocket(OPS), "protocol: rest, access: full")
    decision = upgrade(both)
    assert decision.websocket is not None
    assert not judged(decision.websocket, '{"op": 8}').is_allowed
    flag = Policy((parse_allow("a.test"),))
    assert upgrade(Policy.merged(policy_of(websocket(OPS)), flag)).websocket is None
    denied = policy_of(f"protocol: websocket, access: full, {NO_EIGHT}")
    rules = upgrade(Policy.merged(denied, flag)).websocket
    assert rules is not None
    assert not judged(rules, '{"op": 8}').is_allowed
    assert judged(rules, '{"op": 1}').is_allowed


def test_who_may_read_and_by_another_rule_do_everything_may_do_everything() -> None:
    policy = policy_of("protocol: rest, access: read-only", "protocol: rest, access: full")
    assert upgrade(policy).websocket is None


def test_the_rules_of_a_connection_survive_pickling() -> None:
    rules = rules_of(websocket(OPS))
    assert pickle.loads(pickle.dumps(rules)) == rules


@pytest.mark.parametrize("pointer", ["op", "$.op", "/a~", "/a~2b", "", "/a\x00"])
def test_a_pointer_of_another_syntax_is_a_fault(pointer: str) -> None:
    assert pointer_fault(pointer) is not None


def test_pointers_are_read_as_rfc_6901_says() -> None:
    document = {"a/b": 1, "m~n": 2, "": {"": 3}, "l": [4, [5]], "01": 6}
    for pointer, value in (("/a~1b", 1), ("/m~0n", 2), ("//", 3), ("/l/1/0", 5), ("/01", 6)):
        assert certain_value(document, pointer) == (value,)
        assert possible_values(document, pointer) == [value]
    for pointer in ("/l/00", "/l/-", "/l/2", "/l/+1", "/x", "/l/0/0"):
        assert certain_value(document, pointer) == ()
        assert possible_values(document, pointer) == []


JSON: st.SearchStrategy[Any] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 9), st.sampled_from(["1", "op", ""])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["op", "OP", "d", "0"]), inner, max_size=3),
    ),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, database=None)
@given(JSON)
def test_what_an_allow_rule_is_sure_of_a_deny_rule_finds_possible(document: Any) -> None:
    text = json.dumps(document)
    allowing = rules_of(websocket(OPS))
    denying = rules_of(
        "protocol: websocket, access: full, deny_rules: [{message: {pointer: /op, in: [1, 2]}}]"
    )
    if judged(allowing, text).is_allowed:
        assert document["op"] in {1, 2}
        assert not judged(denying, text).is_allowed
