"""Policy files: what loads, and the one line about what does not."""

from __future__ import annotations

import contextlib
from ipaddress import ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netns_runtime.address import parse_authority
from netns_runtime.errors import UsageError
from netns_runtime.policy import Policy, decide, load_policy, parse_allow

OPENSHELL = b"""\
version: 1

filesystem_policy:
  include_workdir: true
  read_only: [/usr, /etc]
  read_write: [/tmp]
landlock:
  compatibility: best_effort
process:
  run_as_user: "1500"

network_policies:
  rest_api:
    name: rest-api
    endpoints:
      - host: api.example.test
        port: 443
        protocol: rest
        enforcement: enforce
        access: full
      - host: "*.cdn.example.test"
        ports: [80, 443]
        tls: skip
      - { host: audit.example.test, port: 443, protocol: rest, enforcement: audit,
          rules: [{allow: {method: GET, path: /v1/**}}], deny_rules: [{method: POST, path: /x}] }
      - host: "**.internal.example.test"
        port: 5432
        protocol: tcp
        allowed_ips: [10.20.0.0/16, "fd00::5", "::ffff:10.30.0.0/112"]
    binaries:
      - path: /usr/bin/curl
      - { path: /usr/local/bin/*, harness: true }
  everyone:
    endpoints:
      - { host: open.example.test, port: 443, request_body_credential_rewrite: true }
"""


def load(text: str | bytes) -> Policy:
    return load_policy(text.encode() if isinstance(text, str) else text, "p.yaml")


def endpoint(fields: str) -> str:
    return f"network_policies:\n  r:\n    endpoints:\n      - {{{fields}}}\n"


def test_an_openshell_policy_loads_unchanged() -> None:
    policy = load(OPENSHELL)
    first, second = policy.rules
    assert first.text == "rest-api (p.yaml:13)"
    assert second.text == "everyone (p.yaml:33)"
    assert [item.host for item in first.endpoints] == [
        "api.example.test",
        "*.cdn.example.test",
        "audit.example.test",
        "**.internal.example.test",
    ]
    assert first.endpoints[1].ports == (80, 443)
    assert first.endpoints[3].allowed_ips == tuple(
        map(ip_network, ("10.20.0.0/16", "fd00::5/128", "10.30.0.0/16"))
    )
    assert [binary.path for binary in first.binaries or ()] == ["/usr/bin/curl", "/usr/local/bin/*"]
    assert second.binaries is None
    inspection = first.endpoints[0].inspection
    assert inspection is not None
    assert (inspection.protocol, inspection.access) == ("rest", "full")


def test_says_in_notes_what_it_does_not_enforce() -> None:
    notes = "\n".join(load(OPENSHELL).notes)
    for said in (
        "p.yaml:3: `filesystem_policy`",
        "p.yaml:7: `landlock`",
        "p.yaml:9: `process`",
        "p.yaml:35: `request_body_credential_rewrite`",
    ):
        assert said in notes


def test_a_star_in_a_file_is_one_label_as_in_openshell() -> None:
    policy = load(endpoint('host: "*.example.test", port: 443'))
    assert decide(policy, parse_authority("a.example.test:443")).is_allowed
    refused = decide(policy, parse_authority("a.b.example.test:443"))
    assert not refused.is_allowed
    assert "**.example.test" in refused.detail


def test_a_file_may_allow_nothing() -> None:
    assert load("network_policies: {}").rules == ()
    assert load("version: 1\nnetwork_policies:\n").rules == ()


def test_a_byte_order_mark_and_crlf_are_no_trouble() -> None:
    text = endpoint("host: a.test, port: 443").replace("\n", "\r\n")
    assert load(b"\xef\xbb\xbf" + text.encode()).rules[0].text == "r (p.yaml:2)"


def test_anchors_work_within_bounds() -> None:
    text = "network_policies:\n  a: &rule\n    endpoints: [{host: a.test, port: 443}]\n  b: *rule\n"
    assert [rule.text for rule in load(text).rules] == ["a (p.yaml:2)", "b (p.yaml:4)"]


BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 10)}]\n" for n in range(9)
)

BAD = {
    "an unknown top-level key": ("network_polices: {}", "p.yaml:1: key `network_polices`", "polic"),
    "an unknown rule key": ("network_policies: {r: {endpoint: []}}", "key `endpoint`", "endpoints"),
    "an unknown endpoint key": (endpoint("hots: a, port: 1"), "p.yaml:4: key `hots`", "`host`"),
    "an unknown binary key": ("network_policies: {r: {binaries: [{pat: /x}]}}", "`pat`", "`path`"),
    "an unknown matcher key": (
        endpoint("host: a, port: 1, protocol: rest, rules: [{allow: {metod: GET}}]"),
        "key `metod`",
        "`method`",
    ),
    "an unknown key in a section that is not ours": ("landlock: {compat: x}", "`compat`", ""),
    "a key twice": ("version: 1\nversion: 1", "p.yaml:2: key `version`: given twice", "line 1"),
    "a rule twice": ("network_policies:\n  r: {}\n  r: {}\n", "p.yaml:3: key `r`", "line 2"),
    "a merge key": ("<<: {a: b}", "key `<<`", ""),
    "a key that is a list": ("? [a]\n: b\n", "p.yaml:1", "plain text"),
    "another version": ("version: 2", "key `version`", "1"),
    "a list at the top": ("- a", "a mapping, not a list", ""),
    "text at the top": ("hello", "a mapping, not text", ""),
    "rules in a list": ("network_policies: [a]", "must be a mapping", ""),
    "endpoints in a mapping": ("network_policies: {r: {endpoints: {}}}", "must be a list", ""),
    "port 0": (endpoint("host: a, port: 0"), "key `port`: 0", "65535"),
    "port 65536": (endpoint("host: a, port: 65536"), "key `port`: 65536", "65535"),
    "a huge port": (endpoint("host: a, port: " + "9" * 5000), "key `port`", "65535"),
    "an octal port": (endpoint("host: a, port: 0443"), "key `port`: 0443", "decimal"),
    "a sexagesimal port": (endpoint("host: a, port: 22:22"), "key `port`", ""),
    "a quoted port": (endpoint("host: a, port: '443'"), "key `port`: must be a number", ""),
    "a port that is true": (endpoint("host: a, port: true"), "key `port`: must be a number", ""),
    "no port": (endpoint("host: a"), "key `port`: is missing", "`ports`"),
    "no ports": (endpoint("host: a, ports: []"), "is missing", ""),
    "port and ports": (endpoint("host: a, port: 1, ports: [2]"), "key `ports`", "one of them"),
    "no host": (endpoint("port: 1"), "key `host`: is missing", "allowed_ips"),
    "an empty host": (endpoint("host: '', port: 1"), "key `host`: is empty", ""),
    "a host that is a number": (
        endpoint("host: 1.5, port: 1"),
        "key `host`: must be text",
        "quote",
    ),
    "a host with a port": (
        endpoint("host: 'a.test:443', port: 443"),
        "a.test:443 is more than a host",
        "ports go in `port`",
    ),
    "a host with a scheme": (
        endpoint("host: 'https://a.test/x', port: 443"),
        "https://a.test/x is more than a host",
        "give the host alone",
    ),
    "an endpoint that is text": (
        "network_policies: {r: {endpoints: [a.test]}}",
        "must be a mapping, not text",
        "write `- {host: api.example.com, port: 443}`",
    ),
    "a rule without `allow`": (
        endpoint("host: a, port: 1, protocol: rest, rules: [{method: GET, path: /}]"),
        "p.yaml:4: key `method`: a rule wraps its matcher in `allow`",
        "write `- allow: {method: GET",
    ),
    "rest without rules": (
        endpoint("host: a, port: 1, protocol: rest"),
        "`rest` needs `access` or `rules`",
        "add `access: read-only`",
    ),
    "access and rules": (
        endpoint("host: a, port: 1, access: full, rules: [{allow: {method: GET, path: /}}]"),
        "cannot be combined",
        "keep `rules`",
    ),
    "a skip of what is judged": (
        endpoint("host: a, port: 1, protocol: rest, access: full, tls: skip"),
        "`skip` cannot be combined",
        "remove `tls: skip`",
    ),
    "a host that is every host": (endpoint("host: '*', port: 1"), "matches every host", ""),
    "a short IPv4 form": (endpoint("host: '127.1', port: 1"), "key `host`", "decimal"),
    "host bits in a network": (
        endpoint("host: a, port: 1, allowed_ips: [10.0.0.1/8]"),
        "10.0.0.1/8: host bits",
        "10.0.0.0/8",
    ),
    "a network of nonsense": (
        endpoint("host: a, port: 1, allowed_ips: [ten]"),
        "`allowed_ips`",
        "",
    ),
    "a network with a zone": (
        endpoint("host: a, port: 1, allowed_ips: ['fe80::1%eth0']"),
        "`allowed_ips`",
        "",
    ),
    "a relative binary": (
        "network_policies: {r: {binaries: [{path: curl}]}}",
        "`path`",
        "absolute",
    ),
    "a binary with dots": ("network_policies: {r: {binaries: [{path: /a/../b}]}}", "`path`", ""),
    "a binary without a path": ("network_policies: {r: {binaries: [{}]}}", "no `path`", ""),
    "an unknown protocol": (endpoint("host: a, port: 1, protocol: rst"), "rst", "`rest`"),
    "an unknown access": (endpoint("host: a, port: 1, access: ful"), "ful", "`full`"),
    "a tag for Python": ("version: !!python/object/apply:os.system [id]", "key `version`", ""),
    "two documents": ("version: 1\n---\nversion: 1\n", "p.yaml:2", "document"),
    "a tab": ("network_policies:\n\tr: {}\n", "p.yaml:2: a tab", "spaces"),
    "a control character": ("version: 1\nname: \x07\n", "p.yaml:2", ""),
    "NUL": ("\0", "p.yaml:1", ""),
    "no end": ("network_policies: {", "p.yaml:", ""),
    "nothing": ("", "p.yaml: the policy is empty", "network_policies"),
    "only a comment": ("# allow nothing\n", "the policy is empty", ""),
    "too deep": ("[" * 3000, "p.yaml:1: more than 24 levels", ""),
    "an alias to itself": ("network_policies: &a {r: *a}", "p.yaml:1", ""),
    "an alias to itself in free form": (
        endpoint("host: a, port: 1, mcp: &m {x: *m}"),
        "refers to itself",
        "",
    ),
    "an alias bomb": (
        endpoint("host: a, port: 1, mcp: {" + BOMB.strip().replace("\n", ", ") + "}"),
        "aliases expand",
        "",
    ),
    "a thousand aliases": (
        "network_policies: {r: &r {}, " + ", ".join(f"r{n}: *r" for n in range(300)) + "}",
        "aliases",
        "",
    ),
}


@pytest.mark.parametrize(("text", "where", "remedy"), BAD.values(), ids=BAD)
def test_refuses_with_file_line_and_key(text: str, where: str, remedy: str) -> None:
    with pytest.raises(UsageError) as caught:
        load(text)
    message = str(caught.value)
    assert message.startswith("p.yaml")
    assert where in message
    assert remedy in message
    assert message.isprintable()


def test_refuses_what_is_not_utf_8_with_its_line() -> None:
    with pytest.raises(UsageError, match=r"^p\.yaml:2: not UTF-8"):
        load(b"version: 1\nname: \xff\xfe\n")


def test_refuses_a_huge_file_without_reading_it_as_yaml() -> None:
    with pytest.raises(UsageError, match="larger than 4 MiB"):
        load(b"#" * (5 << 20))


def test_a_file_name_never_reaches_a_message_raw() -> None:
    with pytest.raises(UsageError) as caught:
        load_policy(b"", "/tmp/\x1b[31mp\n.yaml")
    assert str(caught.value).isprintable()


NOT_ENFORCED = {
    "an MCP endpoint": ("protocol: mcp, mcp: {versions: [2025-11-25]}", "protocol"),
    "MCP tools": ("protocol: mcp, rules: [{allow: {method: tools/call, tool: x}}]", "rules"),
    "JSON-RPC methods": ("protocol: json-rpc, rules: [{allow: {method: a.b}}]", "rules"),
    "SQL commands": ("protocol: sql, rules: [{allow: {command: SELECT}}]", "rules"),
    "GraphQL reads": ("protocol: graphql, access: read-only", "access"),
    "GraphQL operations": ("protocol: graphql, rules: [{allow: {operation_type: query}}]", "rules"),
    "GraphQL denials": (
        "protocol: graphql, access: full, deny_rules: [{operation_type: mutation}]",
        "deny_rules",
    ),
    "GraphQL over a WebSocket": (
        "protocol: websocket, rules: [{allow: {method: GET, path: /}}, "
        "{allow: {operation_type: query}}]",
        "rules",
    ),
    "an access beside `tls: skip`": ("tls: skip, access: read-only", "access"),
    "a path beside `tls: skip`": ("tls: skip, path: /v1/**", "path"),
}


@pytest.mark.parametrize(("fields", "key"), NOT_ENFORCED.values(), ids=NOT_ENFORCED)
def test_an_endpoint_whose_restriction_cannot_be_applied_allows_nothing_and_says_so(
    fields: str, key: str
) -> None:
    policy = load(endpoint(f"host: a.test, port: 443, {fields}"))
    assert [note for note in policy.notes if note.startswith("p.yaml:4: this version cannot")]
    decision = decide(policy, parse_authority("a.test:443"))
    assert not decision.is_allowed
    assert f"`{key}`" in decision.detail
    assert decision.remedy == "--allow a.test:443 allows every request"


@pytest.mark.parametrize(("fields", "key"), NOT_ENFORCED.values(), ids=NOT_ENFORCED)
def test_what_cannot_be_applied_is_allowed_in_audit_mode_and_says_so(fields: str, key: str) -> None:
    policy = load(endpoint(f"host: a.test, port: 443, {fields}, enforcement: audit"))
    assert [note for note in policy.notes if "in audit mode, is not evaluated" in note]
    assert decide(policy, parse_authority("a.test:443")).is_allowed


ENFORCED = {
    "read-only access": "protocol: rest, access: read-only",
    "read-only access without a protocol": "access: read-only",
    "read-write access": "protocol: rest, enforcement: enforce, access: read-write",
    "rules": "protocol: rest, rules: [{allow: {method: GET, path: /v1/**}}]",
    "deny rules": "protocol: rest, access: full, deny_rules: [{method: POST, path: /x}]",
    "a path": "protocol: rest, access: full, path: /v1/**",
    "a WebSocket": "protocol: websocket, rules: [{allow: {method: GET, path: /}}]",
    "a refused upgrade": "websocket: refuse",
}


@pytest.mark.parametrize("fields", ENFORCED.values(), ids=ENFORCED)
def test_an_endpoint_with_request_rules_allows_the_flow_that_carries_the_requests(
    fields: str,
) -> None:
    policy = load(endpoint(f"host: a.test, port: 443, {fields}"))
    assert decide(policy, parse_authority("a.test:443")).is_allowed
    assert policy.rules[0].endpoints[0].requests is not None
    assert policy.rules[0].endpoints[0].unenforced is None


def test_says_that_rules_are_enforced_where_openshell_would_only_audit() -> None:
    silent = load(endpoint("host: a.test, port: 443, protocol: rest, access: full"))
    assert silent.notes == ()
    noted = load(endpoint("host: a.test, port: 443, protocol: rest, access: read-only"))
    assert (
        "p.yaml:4: rules on requests are enforced where `enforcement` is missing"
        in (noted.notes[0])
    )


def test_says_so_once_for_a_file() -> None:
    rules = "port: 443, protocol: rest, access: read-only"
    text = endpoint(f"host: a.test, {rules}") + f"      - {{host: b.test, {rules}}}\n"
    assert len(load(text).notes) == 1


def test_says_that_rules_for_messages_match_nothing_where_no_upgrade_is_allowed() -> None:
    message = "{allow: {message: {pointer: /op, in: [1]}}}"
    judged = "host: a.test, port: 443, protocol: rest, enforcement: enforce"
    (note,) = load(endpoint(f"{judged}, rules: [{message}]")).notes
    assert "rules for messages match nothing" in note
    upgrade = "{allow: {method: GET, path: /ws}}"
    assert load(endpoint(f"{judged}, rules: [{upgrade}, {message}]")).notes == ()
    refusing = f"{judged}, websocket: refuse, rules: [{upgrade}, {message}]"
    assert len(load(endpoint(refusing)).notes) == 1


def test_a_flow_with_request_rules_of_one_endpoint_counts_every_other_one_too() -> None:
    policy = load(endpoint("host: a.test, port: 443, protocol: rest, access: read-only"))
    both = Policy.merged(policy, Policy((parse_allow("a.test"),)))
    decision = decide(both, parse_authority("a.test:443"))
    assert [rule.text for rule, _ in decision.matching] == ["r (p.yaml:2)", "--allow a.test"]


@pytest.mark.parametrize(
    "fields",
    [
        "protocol: rest, access: full",
        "access: full, tls: skip",
        "protocol: websocket, access: full, websocket_credential_rewrite: true",
        "protocol: rest, rules: [{allow: {method: '*', path: /**}}]",
        "protocol: rest, access: full, path: /**",
        "protocol: rest, enforcement: audit, access: read-only",
        "protocol: tcp",
    ],
)
def test_loads_an_endpoint_that_restricts_no_request(fields: str) -> None:
    policy = load(endpoint(f"host: a.test, port: 443, {fields}"))
    assert decide(policy, parse_authority("a.test:443")).is_allowed


RULE = "host: a.test, port: 443, protocol: rest, rules: [{allow: {%s}}]"
BAD_RULES = {
    "no method": ("path: /x", "has no `method`", "method: GET"),
    "no path": ("method: GET", "has no `path`", "path: /**"),
    "a method of two words": ("method: GET POST, path: /x", "key `method`", "* for any"),
    "a method with a star in it": ("method: G*, path: /x", "key `method`", "* for any"),
    "a path without a slash": ("method: GET, path: v1", "key `path`", "/**"),
    "a star for a path": ("method: GET, path: '*'", "key `path`", "/**"),
    "a path with dots": ("method: GET, path: /a/../b", "key `path`: /a/../b", "lead to"),
    "a path with a query": ("method: GET, path: '/a?b=c'", "no part of a path", "`query`"),
    "an open bracket": ("method: GET, path: '/a[b'", "bracket is not closed", "%5B"),
    "an empty range": ("method: GET, path: '/[z-a]'", "the range z-a is empty", ""),
    "a query as text": ("method: GET, path: /x, query: a=b", "key `query`: must be a map", ""),
    "a query value as a number": ("method: GET, path: /x, query: {a: 1}", "must be text", "quote"),
    "a query of two matchers": (
        "method: GET, path: /x, query: {a: {any: [x], glob: y}}",
        "key `a`: takes a glob",
        "",
    ),
    "an empty any": ("method: GET, path: /x, query: {a: {any: []}}", "key `any`: is empty", "**"),
    "a tool": ("method: GET, path: /x, tool: y", "key `tool`: matches no request", "remove"),
    "an operation": ("method: GET, path: /x, command: y", "key `command`", "remove"),
    "a message with another method": (
        "method: GET, message: {pointer: /op, in: [1]}",
        "key `method`: a rule with `message`",
        "WEBSOCKET_TEXT",
    ),
    "a message without a pointer": ("message: {in: [1]}", "has no `pointer`", "/op"),
    "a message without a test": ("message: {pointer: /op}", "takes one of", "in: [1]"),
    "a message with two tests": (
        "message: {pointer: /op, in: [1], present: true}",
        "takes one of",
        "",
    ),
    "a message with a bad pointer": ("message: {pointer: $.op, in: [1]}", "`pointer`", "/op"),
    "a message with no values": ("message: {pointer: /op, in: []}", "key `in`: is empty", "[1, 2]"),
    "a message with a mapping": ("message: {pointer: /op, in: [{}]}", "key `in`: takes texts", ""),
    "no messages": ("message: []", "key `message`: is empty", "in: [1]"),
    "a message with an unknown test": (
        "message: {pointer: /op, is: 1}",
        "key `is`: unknown key",
        "in, matches",
    ),
    "what must be absent": ("message: {pointer: /op, present: false}", "key `present`", ""),
}


@pytest.mark.parametrize(("rule", "where", "remedy"), BAD_RULES.values(), ids=BAD_RULES)
def test_refuses_a_rule_that_could_not_mean_what_it_says(
    rule: str, where: str, remedy: str
) -> None:
    with pytest.raises(UsageError) as caught:
        load(endpoint(RULE % rule))
    message = str(caught.value)
    assert message.startswith("p.yaml:4: key `")
    assert where in message
    assert remedy in message


CONTRADICTIONS = {
    "access beside rules": "protocol: rest, access: full, rules: [{allow: {method: GET, path: /}}]",
    "rest without rules": "protocol: rest",
    "tcp with access": "protocol: tcp, access: full",
    "deny rules without a protocol": "deny_rules: [{method: GET, path: /}]",
    "skip beside inspection": "protocol: rest, access: full, tls: skip",
    "a rule without allow": "protocol: rest, rules: [{}]",
    "`websocket: refuse` on a WebSocket": "protocol: websocket, access: full, websocket: refuse",
    "`websocket: refuse` beside skip": "tls: skip, websocket: refuse",
    "`websocket: refuse` on plain TCP": "protocol: tcp, websocket: refuse",
}


@pytest.mark.parametrize("fields", CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_refuses_what_openshell_refuses(fields: str) -> None:
    with pytest.raises(UsageError, match=r"^p\.yaml:4: key"):
        load(endpoint(f"host: a.test, port: 443, {fields}"))


def test_refuses_middleware_that_would_not_run() -> None:
    with pytest.raises(UsageError, match="network_middlewares"):
        load("network_middlewares: {redact: {middleware: x}}")


def test_empty_binaries_are_noted_and_match_nobody() -> None:
    policy = load("network_policies: {r: {endpoints: [{host: a.test, port: 1}], binaries: []}}")
    assert policy.rules[0].binaries == ()
    assert "none may use it" in policy.notes[0]


@settings(max_examples=80, deadline=None, database=None)
@given(
    st.one_of(
        st.binary(max_size=60), st.text(alphabet="abk:-[]{}&*!|>'\" \n\t#?,0%@`", max_size=60)
    )
)
def test_ends_in_a_policy_or_a_usage_error_and_nothing_else(data: bytes | str) -> None:
    with contextlib.suppress(UsageError):
        assert load(data).rules is not None
