"""`--dry-run` on a policy: what becomes of each endpoint's requests and TLS."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from netns_runtime.cli.dry_policy import policy_lines
from netns_runtime.policy import load_policy, parse_allow
from netns_runtime.policy.rules import Policy

if TYPE_CHECKING:
    from netns_runtime.request import Request


def lines_of(*endpoints: str, after: str = "", allow: str = "", **spec: bool) -> list[str]:
    text = "network_policies:\n  r:\n    endpoints:\n"
    text += "".join(f"      - {{{endpoint}}}\n" for endpoint in endpoints) + after
    policy = load_policy(text.encode(), "p.yaml")
    if allow:
        policy = Policy.merged(policy, Policy((parse_allow(allow),)))
    supplied = SimpleNamespace(bindings=policy.secrets) if policy.secrets else None
    asked = SimpleNamespace(**{"report": False, "inspect": False, **spec})
    request = SimpleNamespace(policy=policy, supplied=supplied, spec=asked)
    return policy_lines(cast("Request", request))


SECRET = "secrets:\n  TOKEN: {hosts: [a.test], slots: [{header: authorization}]}\n"
RULES = "rules: [{allow: {method: GET, path: /x}}, {allow: {method: PUT, path: /y}}]"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            f"protocol: rest, {RULES}",
            "protocol rest, 2 rules, enforcement enforce, TLS terminated (its requests are judged)",
        ),
        (
            "protocol: rest, access: read-only, enforcement: audit",
            "protocol rest, access read-only, enforcement audit, TLS terminated "
            "(its requests are judged)",
        ),
        ("tls: terminate", "every request, TLS terminated (`tls: terminate`)"),
        ("tls: skip", "every request, TLS tunnelled (`tls: skip`)"),
        ("protocol: tcp", "protocol tcp, TLS tunnelled (`protocol: tcp`)"),
        ("tls: passthrough", "every request, TLS tunnelled"),
    ],
)
def test_an_endpoint_says_what_it_allows_and_what_becomes_of_tls(fields: str, said: str) -> None:
    assert lines_of(f"host: a.test, port: 443, {fields}") == [
        f"allow a.test 443 by r (p.yaml:2): {said}"
    ]


def test_what_cannot_be_enforced_is_refused() -> None:
    (line,) = lines_of("host: a.test, port: 443, protocol: mcp, access: read-only")
    assert line.startswith("refuse a.test 443")
    assert "refused because not enforceable: a restriction on requests (`access`)" in line


def test_a_bound_secret_terminates_and_a_skip_says_that_it_is_not_put_in() -> None:
    (line,) = lines_of("host: a.test, port: 443", after=SECRET)
    assert line.endswith("TLS terminated (for TOKEN)")
    (line,) = lines_of("host: a.test, port: 443, tls: skip", after=SECRET)
    assert line.endswith("TLS tunnelled (`tls: skip`): TOKEN is not put in")


def test_another_endpoint_with_rules_for_the_same_host_terminates_a_wider_one_does_not() -> None:
    judged = "protocol: rest, access: read-only"
    skip = "host: a.test, port: 443, tls: skip"
    first, _ = lines_of(skip, f"host: a.test, port: 443, {judged}")
    assert first.endswith("TLS terminated (r (p.yaml:2) judges its requests)")
    first, _ = lines_of(skip, f"host: '*.test', port: 443, {judged}")
    assert first.endswith("TLS tunnelled (`tls: skip`)")
    first, _ = lines_of("host: a.test, port: 443", f"host: '*.test', port: 8443, {judged}")
    assert first.endswith("TLS tunnelled")


def test_executables_that_are_not_there_are_missing() -> None:
    binaries = "    binaries: [{path: /nonexistent/curl}]\n"
    (line,) = lines_of("host: a.test, port: 443", after=binaries)
    assert line.endswith("for /nonexistent/curl, missing /nonexistent/curl")
    assert not os.path.exists("/nonexistent")


def test_options_that_change_every_line_are_told() -> None:
    _, last = lines_of("host: a.test, port: 443", report=True)
    assert last.startswith("--report: ")
    _, last = lines_of("host: a.test, port: 443", allow="192.0.2.1:22")
    assert last == "allow 192.0.2.1 22 by --allow 192.0.2.1:22: every request, TLS tunnelled"
