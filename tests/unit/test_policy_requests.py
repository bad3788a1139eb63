"""What the policy decides about requests: the names of these tests are its specification."""

from __future__ import annotations

import pickle
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netns_runtime.address import parse_authority
from netns_runtime.owner import Owner
from netns_runtime.policy import Policy, decide, load_policy, parse_allow
from netns_runtime.policy.requests import (
    Asked,
    RequestDecision,
    decide_request,
    inspects,
    takes_encoded_slash,
    terminates,
)
from netns_runtime.wire import ProtocolError
from netns_runtime.wire.path import normalise_target

HOST = "network_policies:\n  r:\n    endpoints:\n"


def load(text: str) -> Policy:
    return load_policy(text.encode(), "p.yaml")


def endpoints(*fields: str, host: str = "a.test") -> Policy:
    lines = (f"      - {{host: {host!r}, port: 443, {item}}}\n" for item in fields)
    return load(HOST + "".join(lines))


def asked(text: str, *, slashes: bool = False) -> Asked:
    """`GET /path?query`, or `WS /path`."""
    method, _, raw = text.partition(" ")
    target = normalise_target(raw, allow_encoded_slash=slashes)
    is_websocket = method == "WS"
    return Asked("GET" if is_websocket else method, target.path, target.pairs, is_websocket)


def judged(policy: Policy, text: str, host: str = "a.test", **options: bool) -> RequestDecision:
    return decide_request(policy, parse_authority(f"{host}:443"), None, asked(text, **options))


V1 = "protocol: rest, rules: [{allow: {method: '*', path: /v1/**}}]"
GET_V1 = "protocol: rest, rules: [{allow: {method: GET, path: /v1/**}}]"
QUERY = (
    "protocol: rest, rules: [{allow: {method: GET, path: /d, query: {os: {any: [linux-*, mac]}}}}]"
)
NO_ADMIN = "protocol: rest, access: full, deny_rules: [{method: '*', path: /v1/admin}]"
NO_FORCE = (
    "protocol: rest, access: full, "
    "deny_rules: [{method: DELETE, path: /**, query: {force: 'true', all: '*'}}]"
)

ALLOWED = {
    "a method and a path": (GET_V1, "GET /v1/x"),
    "HEAD where GET is": (GET_V1, "HEAD /v1/x"),
    "a method in lower case": (GET_V1, "get /v1/x"),
    "what a dot segment leads to": (GET_V1, "GET /x/../v1/y"),
    "reads by read-only": ("protocol: rest, access: read-only", "OPTIONS /x"),
    "writes by read-write": ("protocol: rest, access: read-write", "PATCH /x"),
    "everything by full": ("protocol: rest, access: full", "DELETE /x"),
    "a query beside no matcher": (GET_V1, "GET /v1/x?y=1"),
    "a query value": (QUERY, "GET /d?os=linux-x64"),
    "a repeated query value, each covered": (QUERY, "GET /d?os=linux-x64&os=mac"),
    "another parameter too": (QUERY, "GET /d?os=mac&v=2"),
    "beside a deny rule": (NO_ADMIN, "GET /v1/admins"),
    "a deny rule's query in part": (NO_FORCE, "DELETE /x?force=true"),
    "a path that the endpoint selects": ("protocol: rest, access: full, path: /v1/**", "GET /v1"),
    "rules without a protocol": ("access: read-only", "GET /x"),
    "a percent-encoded reserved character": (
        "protocol: rest, rules: [{allow: {method: GET, path: /users/@me}}]",
        "GET /users/%40me",
    ),
    "every GraphQL request by full": ("protocol: graphql, access: full", "POST /graphql"),
    "an upgrade by a WebSocket's GET": (
        "protocol: websocket, rules: [{allow: {method: GET, path: /ws}}]",
        "WS /ws",
    ),
    "an HTTP fallback by a WebSocket's GET": ("protocol: websocket, access: full", "POST /x"),
    "a request beside `websocket: refuse`": ("websocket: refuse", "DELETE /x"),
    "parameters that lead nowhere else": (V1, "GET /v1/a;b=c/d"),
    "doubled slashes within": (V1, "GET /v1//a"),
}

REFUSED = {
    "another method": (GET_V1, "POST /v1/x"),
    "another path": (GET_V1, "GET /v2/x"),
    "the bare prefix": (GET_V1, "GET /v1"),
    "another case": (V1, "GET /V1/x"),
    "traversal": (V1, "GET /v1/../admin"),
    "traversal in code": (V1, "GET /v1/%2e%2e/admin"),
    "traversal behind two slashes": (V1, "GET /v1//../../admin"),
    "a slash before": (V1, "GET //v1/x"),
    "parameters that end the prefix": (V1, "GET /v1;/x"),
    "an allowed ending in a parameter": (
        "protocol: rest, rules: [{allow: {method: GET, path: '/f/*.png'}}]",
        "GET /f/secret;.png",
    ),
    "an allowed ending in an encoded parameter": (
        "protocol: rest, rules: [{allow: {method: GET, path: '/f/*.png'}}]",
        "GET /f/secret%3B.png",
    ),
    "writes by read-only": ("protocol: rest, access: read-only", "POST /x"),
    "DELETE by read-write": ("protocol: rest, access: read-write", "DELETE /x"),
    "one query value of two": (QUERY, "GET /d?os=mac&os=windows"),
    "no query value": (QUERY, "GET /d"),
    "a query name in another case": (QUERY, "GET /d?OS=mac"),
    "what a deny rule names": (NO_ADMIN, "GET /v1/admin"),
    "a denied path in another case": (NO_ADMIN, "GET /V1/Admin"),
    "a denied path with slashes merged": (NO_ADMIN, "GET //v1///admin"),
    "a denied path with parameters": (NO_ADMIN, "GET /v1/admin;x=y"),
    "a denied path with parameters before": (NO_ADMIN, "GET /v1;x/admin"),
    "a denied path with an empty segment of parameters": (NO_ADMIN, "GET /v1/;/admin"),
    "a denied path by HEAD": (
        "protocol: rest, access: full, deny_rules: [{method: GET, path: /x}]",
        "HEAD /x",
    ),
    "a denied query": (NO_FORCE, "DELETE /x?force=false&force=true&all="),
    "a denied query behind a semicolon": (NO_FORCE, "DELETE /x?y=1;force=true&all=1"),
    "a path that the endpoint does not select": (
        "protocol: rest, access: full, path: /v1/**",
        "GET /v2",
    ),
    "an upgrade by `websocket: refuse`": ("websocket: refuse", "WS /x"),
    "an upgrade by `websocket: refuse` beside rest": (
        "protocol: rest, access: full, websocket: refuse",
        "WS /x",
    ),
    "an upgrade on GraphQL": ("protocol: graphql, access: full", "WS /graphql"),
    "POST by a WebSocket's read-write": ("protocol: websocket, access: read-write", "POST /x"),
    "another upgrade": (
        "protocol: websocket, rules: [{allow: {method: GET, path: /ws}}]",
        "WS /other",
    ),
}


@pytest.mark.parametrize(("fields", "request_"), ALLOWED.values(), ids=ALLOWED)
def test_allows(fields: str, request_: str) -> None:
    decision = judged(endpoints(fields), request_)
    assert (decision.action, decision.reason, decision.noted) == ("allow", "allowed", False)
    assert decision.rule == "r (p.yaml:2)"


@pytest.mark.parametrize(("fields", "request_"), REFUSED.values(), ids=REFUSED)
def test_refuses(fields: str, request_: str) -> None:
    decision = judged(endpoints(fields), request_)
    assert (decision.action, decision.reason) == ("refuse", "http_request_denied")
    assert decision.rule == "r (p.yaml:2)"
    assert "p.yaml:" in decision.detail
    assert (decision.detail + decision.remedy).isprintable()
    assert decision.remedy


def test_a_write_that_asks_for_an_upgrade_is_a_write() -> None:
    policy = endpoints("protocol: rest, access: read-only")
    target = parse_authority("a.test:443")
    written = decide_request(policy, target, None, Asked("POST", "/x", (), is_websocket=True))
    assert not written.is_allowed
    extended = decide_request(policy, target, None, Asked("CONNECT", "/x", (), is_websocket=True))
    assert extended.is_allowed
    plain = decide_request(policy, target, None, Asked("CONNECT", "/x"))
    assert not plain.is_allowed


TRAVERSALS = [
    "/v1/..%2fadmin",
    "/v1/%2e%2e%2fadmin",
    "/v1/..%252fadmin",
    "/v1/%252e%252e/admin",
    "/v1/..;/admin",
    "/v1/..%3b/admin",
    "/v1/..%5cadmin",
    "/v1/..\\admin",
    "/v1/%c0%ae%c0%ae/admin",
    "/v1/..%c0%afadmin",
    "/v1/../admin",
    "/v1/./../admin",
    "/v1/%2e%2e/admin",
    "/v1/x/../../admin",
    "/v1//../../admin",
    "/v1/.%2e/admin",
    "/%76%31/../admin",
    "/v1/..%00/admin",
    "/v1/..%20/admin",
    "//v1/../admin",
    "/v1/../../admin",
]


@pytest.mark.parametrize("slashes", [False, True])
@pytest.mark.parametrize("raw", TRAVERSALS)
def test_no_spelling_of_a_traversal_escapes_a_prefix(raw: str, slashes: bool) -> None:
    try:
        request_ = asked(f"GET {raw}", slashes=slashes)
    except ProtocolError:
        return
    decision = decide_request(endpoints(V1), parse_authority("a.test:443"), None, request_)
    assert not decision.is_allowed
    assert "admin" in request_.path


def test_a_deny_rule_reads_an_encoded_slash_as_a_slash() -> None:
    policy = endpoints(NO_ADMIN + ", allow_encoded_slash: true")
    assert not judged(policy, "GET /v1%2fadmin", slashes=True).is_allowed
    assert not judged(policy, "GET /v1%2f%2fadmin", slashes=True).is_allowed
    assert judged(policy, "GET /@types%2fnode", slashes=True).is_allowed


def test_rules_of_one_host_and_port_add_up() -> None:
    policy = endpoints(GET_V1, "protocol: rest, rules: [{allow: {method: POST, path: /v2/*}}]")
    assert judged(policy, "GET /v1/x").is_allowed
    assert judged(policy, "POST /v2/x").is_allowed
    assert not judged(policy, "POST /v1/x").is_allowed


def test_a_deny_rule_of_one_rule_wins_over_what_another_allows() -> None:
    policy = Policy.merged(
        endpoints("protocol: rest, access: full"), endpoints(NO_ADMIN, host="*.test")
    )
    assert not judged(policy, "GET /v1/admin").is_allowed
    assert judged(policy, "GET /v1/other").is_allowed


def test_the_more_specific_host_decides() -> None:
    wide = endpoints("protocol: rest, access: full", host="*.b.test")
    narrow = endpoints("protocol: rest, access: read-only", host="a.b.test")
    for policies in ((wide, narrow), (narrow, wide)):
        policy = Policy.merged(*policies)
        assert not judged(policy, "POST /x", "a.b.test").is_allowed
        assert judged(policy, "POST /x", "c.b.test").is_allowed


def test_the_more_specific_path_of_an_endpoint_decides() -> None:
    fields = ["protocol: rest, access: read-only", "protocol: rest, access: full, path: /w/**"]
    for given_ in (fields, fields[::-1]):
        policy = endpoints(*given_)
        assert judged(policy, "POST /w/x").is_allowed
        assert not judged(policy, "POST /x").is_allowed
    policy = endpoints("protocol: rest, access: full", "access: read-only, path: /w/**")
    for path in ("/w/x", "//w/x", "/w;a/x", "/W/x", "/x/../w/x"):
        assert not judged(policy, f"POST {path}").is_allowed
    assert judged(policy, "POST /x").is_allowed


def test_an_endpoint_without_rules_adds_nothing_beside_one_with_rules() -> None:
    policy = load(
        HOST
        + "      - {host: a.test, port: 443}\n"
        + f"      - {{host: a.test, port: 443, {GET_V1}}}\n"
    )
    assert judged(policy, "GET /v1/x").is_allowed
    assert not judged(policy, "GET /v2").is_allowed


def test_an_allow_flag_adds_everything_that_no_rule_denies() -> None:
    policy = Policy.merged(endpoints(NO_ADMIN + ", path: /v1/**"), Policy((parse_allow("a.test"),)))
    assert judged(policy, "POST /x").rule == "--allow a.test"
    assert not judged(policy, "GET /v1/admin").is_allowed


def test_an_allow_flag_for_a_wildcard_does_not_open_a_host_that_has_rules() -> None:
    policy = Policy.merged(endpoints(GET_V1, host="a.b.test"), Policy((parse_allow("*.b.test"),)))
    assert not judged(policy, "POST /v1/x", "a.b.test").is_allowed
    assert judged(policy, "POST /v1/x", "c.b.test").is_allowed


def test_rules_for_other_executables_and_ports_do_not_count() -> None:
    policy = load(
        HOST
        + f"      - {{host: a.test, port: 443, {GET_V1}}}\n"
        + "      - {host: a.test, port: 8443, protocol: rest, access: full}\n"
        + "  other:\n    endpoints: [{host: a.test, port: 443, protocol: rest, access: full}]\n"
        + "    binaries: [{path: /usr/bin/curl}]\n"
    )
    assert not judged(policy, "POST /v1/x").is_allowed
    owner = Owner(7, "x", 5, 5, "/usr/bin/other")
    target = parse_authority("a.test:443")
    assert not decide_request(policy, target, owner, asked("POST /v1/x")).is_allowed


def test_audit_notes_what_it_would_refuse() -> None:
    decision = judged(endpoints(GET_V1 + ", enforcement: audit"), "POST /v1/x")
    assert decision.is_allowed
    assert decision.noted
    assert decision.reason == "http_request_denied"
    assert "POST /v1/x" in decision.detail
    assert decision.remedy
    denied = judged(endpoints(NO_ADMIN + ", enforcement: audit"), "GET /v1/admin")
    assert denied.noted


def test_audit_of_one_endpoint_does_not_open_another() -> None:
    policy = endpoints(GET_V1 + ", enforcement: audit", GET_V1)
    assert not judged(policy, "POST /v1/x").is_allowed
    policy = endpoints(NO_ADMIN + ", enforcement: audit", NO_ADMIN)
    assert not judged(policy, "GET /v1/admin").is_allowed


def test_graphql_operations_on_a_path_are_refused_and_not_left_to_wider_rules() -> None:
    policy = endpoints(
        "protocol: rest, access: full",
        "protocol: graphql, path: /graphql, rules: [{allow: {operation_type: query}}]",
    )
    assert judged(policy, "POST /x").is_allowed
    for path in ("/graphql", "//graphql", "/graphql;x", "/GraphQL"):
        decision = judged(policy, f"POST {path}")
        assert not decision.is_allowed
        assert "cannot apply" in decision.detail


def remedied(fields: str, remedy: str) -> Policy:
    """The policy with the line that a refusal recommends."""
    rule = re.search(r"`- (allow: \{.*\})` to `rules`", remedy)
    if rule is not None:
        return endpoints(fields.replace("rules: [", "rules: [{" + rule[1] + "}, "))
    line = re.search(r"`(- \{.*\})` to `endpoints`", remedy)
    assert line is not None, remedy
    return load(HOST + f"      - {{host: a.test, port: 443, {fields}}}\n      {line[1]}\n")


REMEDIED = {
    name: case
    for name, case in REFUSED.items()
    if not any(word in case[0] for word in ("deny_rules", "websocket: refuse", "graphql"))
}


@pytest.mark.parametrize(("fields", "request_"), REMEDIED.values(), ids=REMEDIED)
def test_the_line_that_a_refusal_recommends_allows_what_was_refused(
    fields: str, request_: str
) -> None:
    remedy = judged(endpoints(fields), request_).remedy
    policy = remedied(fields, remedy)
    decision = judged(policy, request_)
    if not decision.is_allowed:
        # Another reading of the path is still refused, and has a line of its own.
        assert decision.remedy != remedy
        assert any(sign in request_ for sign in ("//", ";", "%3B"))
    assert not judged(policy, "DELETE /other/thing").is_allowed


@settings(max_examples=100, deadline=None, database=None)
@given(st.text(alphabet="ab/*[]{},:#'\"%@é -?", max_size=20))
def test_the_recommended_line_loads_whatever_the_path(path: str) -> None:
    try:
        request_ = asked("POST /" + path.replace("%", "%25"))
    except ProtocolError:
        return
    target = parse_authority("a.test:443")
    decision = decide_request(endpoints(GET_V1), target, None, request_)
    assert not decision.is_allowed
    policy = remedied(GET_V1, decision.remedy)
    again = decide_request(policy, target, None, request_)
    assert again.is_allowed or (again.remedy != decision.remedy and "//" in request_.path)


def test_names_the_line_of_a_deny_rule_and_of_a_refused_upgrade() -> None:
    text = (
        HOST
        + "      - host: a.test\n        port: 443\n        protocol: rest\n        access: full\n"
        + "        websocket: refuse\n        deny_rules:\n          - {method: GET, path: /x}\n"
    )
    denied = judged(load(text), "GET /x")
    assert "p.yaml:10" in denied.detail
    assert "p.yaml:10" in denied.remedy
    assert judged(load(text), "WS /y").remedy == "remove `websocket: refuse` at p.yaml:8"


def test_a_policy_with_request_rules_survives_pickling() -> None:
    policy = endpoints(NO_ADMIN)
    judged(policy, "GET /x")
    copy = pickle.loads(pickle.dumps(policy))
    assert copy == policy
    assert not judged(copy, "GET /v1/admin").is_allowed


def test_what_is_put_together_stays_bounded() -> None:
    policy = endpoints(GET_V1)
    for pid in range(1200):
        owner = Owner(pid, "x")
        decide_request(policy, parse_authority("a.test:443"), owner, asked("GET /v1/x"))
    assert len(policy.united) <= 512


TERMINATED = {
    "request rules": ("protocol: rest, access: full", False, True),
    "a WebSocket": ("protocol: websocket, access: full", False, True),
    "rules without a protocol": ("access: read-only", False, True),
    "`websocket: refuse`": ("websocket: refuse", False, True),
    "a secret": ("allow_encoded_slash: false", True, True),
    "`tls: terminate`": ("tls: terminate", False, True),
    "nothing said": ("allow_encoded_slash: false", False, False),
    "`tls: skip` with a secret": ("tls: skip", True, False),
    "`protocol: tcp` with a secret": ("protocol: tcp", True, False),
}


@pytest.mark.parametrize(("fields", "has_secrets", "wanted"), TERMINATED.values(), ids=TERMINATED)
def test_terminates_for(fields: str, has_secrets: bool, wanted: bool) -> None:
    decision = decide(endpoints(fields), parse_authority("a.test:443"))
    assert terminates(decision, has_secrets) is wanted


def test_an_allow_flag_alone_terminates_for_a_secret_only() -> None:
    decision = decide(Policy((parse_allow("a.test"),)), parse_authority("a.test:443"))
    assert not terminates(decision, False)
    assert terminates(decision, True)
    assert not inspects(decision)


def test_a_skip_does_not_lift_the_rules_of_the_same_host() -> None:
    skip, rules = endpoints("tls: skip"), endpoints("protocol: rest, access: read-only")
    for policies in ((skip, rules), (rules, skip)):
        decision = decide(Policy.merged(*policies), parse_authority("a.test:443"))
        assert terminates(decision, False)


def test_a_skip_of_a_narrower_host_lifts_the_rules_of_a_wider_one() -> None:
    policy = Policy.merged(
        endpoints("tls: skip", host="a.b.test"),
        endpoints("protocol: rest, access: read-only", host="*.b.test"),
    )
    assert not terminates(decide(policy, parse_authority("a.b.test:443")), False)
    assert terminates(decide(policy, parse_authority("c.b.test:443")), False)


def test_encoded_slashes_are_taken_where_an_endpoint_says_so_or_none_judges_paths() -> None:
    target = parse_authority("a.test:443")
    assert not takes_encoded_slash(decide(endpoints(GET_V1), target))
    assert takes_encoded_slash(decide(endpoints(GET_V1 + ", allow_encoded_slash: true"), target))
    assert takes_encoded_slash(decide(Policy((parse_allow("a.test"),)), target))
