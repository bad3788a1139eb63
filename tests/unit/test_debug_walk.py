"""Where a connection stops: by events, by the policy, and by both where they disagree."""

from __future__ import annotations

from typing import Any

import pytest

from netns_runtime.address import HostPort
from netns_runtime.debug.attempts import attempts_of
from netns_runtime.debug.foresee import Facts, Question
from netns_runtime.debug.steps import ORDER
from netns_runtime.debug.walk import Explanation, walk
from netns_runtime.owner import Owner
from netns_runtime.policy import Policy, decide, load_policy, parse_allow
from netns_runtime.policy.requests import Asked

TEXT = b"""\
network_policies:
  one:
    endpoints:
      - {host: api.test, port: 443, protocol: rest, rules: [{allow: {method: GET, path: /ok}}]}
      - {host: plain.test, ports: [80, 443]}
      - {host: "*.wild.test", port: 443}
  tool:
    binaries: [{path: /usr/bin/tool}]
    endpoints: [{host: tool.test, port: 443}]
"""
POLICY = load_policy(TEXT, "p.yaml")


def event(kind: str, second: int = 0, **fields: Any) -> dict[str, Any]:
    time = f"2026-01-01T00:00:{second:02}.000000Z"
    return {"event": kind, "time": time, "sandbox": "s", **fields}


def flow(host: str = "plain.test", port: int = 443, **fields: Any) -> dict[str, Any]:
    base: dict[str, Any] = {"flow": 1, "host": host, "port": port, "entry": "redirected"}
    return {**base, "address": "192.0.2.9", **fields}


def decided(**fields: Any) -> dict[str, Any]:
    return event("flow.decided", action="allow", rule="one (p.yaml:2)", said_by="policy") | fields


def explained(
    *events: dict[str, Any],
    host: str = "plain.test",
    port: int = 443,
    policy: Policy | None = POLICY,
    redirect: bool | None = True,
    report: bool = False,
    request: Asked | None = None,
    owner: Owner | None = None,
    now: str = "",
) -> Explanation:
    question = Question(HostPort(host, port), request, owner)
    return walk(question, Facts(policy, redirect, report, attempts_of(events), now))


def stops_of(found: Explanation) -> list[str]:
    return [step.step for step in found.steps if step.state == "stop"]


CLOSED = [
    ("connection_refused", "upstream", "plain.test (192.0.2.9) port 443 refused the connection"),
    ("connection_timeout", "upstream", "plain.test (192.0.2.9) port 443 did not answer"),
    ("connection_terminated", "upstream", "plain.test (192.0.2.9) port 443 reset the connection"),
    ("destination_ip_unroutable", "upstream", "plain.test (192.0.2.9) port 443 has no route"),
    ("dns_timeout", "upstream", "plain.test could not be resolved: no answer in time"),
    ("dns_error", "upstream", "plain.test could not be resolved: SERVFAIL"),
    ("tls_certificate_error", "upstream", "plain.test:443: its certificate has expired"),
    ("tls_alert_received", "upstream", "plain.test:443: refused the TLS handshake"),
    ("connection_timeout", "upstream", "plain.test:443: did not finish the TLS handshake in time"),
    ("connection_terminated", "upstream", "plain.test:443: ended ... of the TLS handshake"),
    ("client_tls_error", "sandbox", "the client refused the TLS handshake (alert unknown_ca)"),
    ("connection_terminated", "upstream", "Connection reset by peer"),
    ("http_protocol_error", "upstream", "plain.test: broken chunk"),
]
STEPS = [
    *("dial", "dial", "dial", "dial", "resolve", "resolve"),
    *("tls", "tls", "tls", "tls", "tls", "traffic", "traffic"),
]


@pytest.mark.parametrize(("told", "step"), list(zip(CLOSED, STEPS, strict=True)))
def test_a_failure_is_at_its_step_and_no_policy_helps(
    told: tuple[str, str, str], step: str
) -> None:
    reason, said_by, detail = told
    closed = event("flow.closed", 1, reason=reason, said_by=said_by, detail=detail, **flow())
    found = explained(decided(**flow()), closed)
    assert stops_of(found) == [step] == [found.stops_at]
    assert found.cause == detail
    assert found.changes == ()
    assert found.said_by == ("client" if said_by == "sandbox" else "upstream")
    assert all(s.state == "ok" for s in found.steps[: ORDER.index("decision") + 1])
    assert all(s.state == "unreached" for s in found.steps[ORDER.index(step) + 1 :])


@pytest.mark.parametrize("status", [401, 403, 404, 418, 429, 500, 503])
def test_upstreams_own_answer_is_upstreams(status: int) -> None:
    request = event(
        "http.request", 1, method="GET", path="/x", status=status, action="allow",
        said_by="upstream", **flow(protocol="https"),
    )  # fmt: skip
    found = explained(decided(**flow()), request, event("flow.closed", 2, **flow()))
    assert (found.stops_at, found.said_by, found.changes) == ("traffic", "upstream", ())
    assert f"upstream answered GET /x with status {status}" in found.cause
    assert found.advice


def test_a_flow_that_is_under_way_is_not_known_yet() -> None:
    found = explained(decided(**flow()), now="2026-01-01T00:00:07.500000Z")
    assert (found.stops_at, found.said_by) == (None, "unknown")
    assert "192.0.2.9:443, is under way for 7.5 s" in found.cause
    assert [s.state for s in found.steps[-3:]] == ["unknown"] * 3


def test_a_client_that_gave_up_is_not_upstreams_fault() -> None:
    closed = event(
        *("flow.closed", 3), reason="connection_terminated", said_by="sandbox", bytes_in=0,
        bytes_out=0, duration_ms=2500.0, **flow(),
    )  # fmt: skip
    found = explained(decided(**flow()), closed)
    assert (found.stops_at, found.said_by) == ("dial", "client")
    assert found.cause == "the client gave up after 2.5 s; upstream had not answered by then"


def test_a_success_after_a_failure_is_what_counts() -> None:
    failed = event(
        *("flow.closed", 1), reason="connection_refused", said_by="upstream", detail="x", **flow()
    )
    passed = event("flow.closed", 3, bytes_out=10, bytes_in=20, **flow(flow=2))
    found = explained(decided(**flow()), failed, decided(**flow(flow=2)), passed)
    assert found.stops_at is None
    assert found.said_by == "allowed"
    assert "10 bytes out, 20 in" in found.steps[-1].detail


def test_the_tunnel_around_a_refused_request_does_not_count_as_a_success() -> None:
    fields: dict[str, Any] = {"pid": 7, **flow("api.test", protocol="connect", entry="explicit")}
    inner = {
        **fields, "flow": 2, "protocol": "https", "action": "refuse", "said_by": "policy",
        "reason": "http_request_denied", "detail": "one (p.yaml:2) does not allow POST /no",
        "remedy": "add it",
    }  # fmt: skip
    del inner["address"]
    found = explained(
        decided(**fields),
        event("flow.decided", 1, **inner),
        event("http.request", 1, method="POST", path="/no", status=403, **inner),
        event("flow.closed", 2, bytes_in=0, bytes_out=0, **fields),
        host="api.test",
    )
    assert (found.stops_at, found.said_by) == ("traffic", "policy")
    assert found.changes == ("add it",)
    states = {step.step: (step.state, step.detail) for step in found.steps}
    assert states["screening"] == ("ok", "192.0.2.9 may be dialled")
    assert states["dial"] == ("ok", "connected to 192.0.2.9:443")


def test_a_direct_connect_is_the_hooks_or_the_gateways_by_who_counted_it() -> None:
    base: dict[str, Any] = {"address": "192.0.2.1", "port": 80, "protocol": "tcp"}
    base["entry"] = "direct"
    refused: dict[str, Any] = {
        **base,
        "action": "refuse",
        "said_by": "sandbox",
        "reason": "direct_tcp",
    }
    for counted, step in (("bpf", "hook"), ("nft", "gateway")):
        found = explained(
            event("connect.refused", counted_by=counted, remedy="--allow 192.0.2.1:80", **refused),
            host="192.0.2.1",
            port=80,
        )
        assert stops_of(found) == [step]
        assert found.changes == ("--allow 192.0.2.1:80",)


def test_redirect_off_is_named_where_a_virtual_address_was_refused() -> None:
    refused = event(
        *("connect.refused", 0), host="plain.test", address="198.18.0.1", port=443,
        protocol="tcp", entry="direct", action="refuse", said_by="sandbox", reason="direct_tcp",
        counted_by="bpf", remedy="--redirect on carries clients that ignore the proxy",
    )  # fmt: skip
    found = explained(refused, redirect=False)
    assert found.stops_at == "hook"
    assert "198.18.0.1:443 stands for plain.test" in found.cause
    assert found.changes[0].startswith("--redirect on")


def test_a_refusal_that_this_policy_would_not_make_is_told_as_old() -> None:
    refused = event(
        *("flow.decided", 0), action="refuse", reason="http_request_denied", said_by="policy",
        detail="no rule allows plain.test:443", **flow(),
    )  # fmt: skip
    found = explained(refused)
    assert found.stops_at is None
    assert "has changed since" in found.notes[0]
    assert explained(refused, policy=None).stops_at == "decision", "nothing says otherwise"


def test_report_mode_lets_pass_and_says_what_it_let_pass() -> None:
    found = explained(host="other.test", report=True)
    assert found.stops_at is None
    assert "--report lets it pass" in found.notes[0]


def test_without_any_evidence_and_any_policy_all_is_unknown() -> None:
    found = explained(policy=None, redirect=None)
    assert (found.stops_at, found.verdict) == (None, "unknown")
    assert {step.state for step in found.steps} == {"unknown"}
    assert "--policy FILE" in found.cause


@pytest.mark.parametrize(
    ("host", "port", "step"),
    [
        ("other.test", 443, "dns"),
        ("wild.test", 443, "dns"),
        ("plain.test", 8443, "decision"),
        ("a.wild.test", 80, "decision"),
        ("192.0.2.7", 443, "hook"),
        ("10.1.2.3", 443, "hook"),
    ],
)
def test_what_is_said_to_allow_it_does_and_is_no_wider(host: str, port: int, step: str) -> None:
    found = explained(host=host, port=port)
    assert found.stops_at == step
    flags = [change for change in found.changes if change.startswith("--allow ")]
    fields = [change for change in found.changes if "endpoints: [" in change]
    assert flags or fields
    for flag in flags:
        rule = parse_allow(flag.removeprefix("--allow "))
        wider = Policy.merged(POLICY, Policy((rule,)))
        assert explained(host=host, port=port, policy=wider).stops_at is None
        other = HostPort(host, port + 1)
        assert decide(wider, other).action == decide(POLICY, other).action
    for line in fields:
        text = "network_policies:\n  new:\n    " + line.partition(": ")[2]
        wider = Policy.merged(POLICY, load_policy(text.encode(), "new.yaml"))
        assert explained(host=host, port=port, policy=wider).stops_at is None


@pytest.mark.parametrize("host", ["127.0.0.1", "169.254.169.254", "10.200.0.9", "0.0.0.0"])
def test_what_is_never_dialled_is_said_to_be_so_or_needs_allowed_ips(host: str) -> None:
    found = explained(host=host, port=80)
    assert all("allowed_ips" in change for change in found.changes)


def test_an_executable_that_is_not_known_makes_the_decision_unknown() -> None:
    found = explained(host="tool.test")
    assert found.stops_at is None
    assert found.steps[3].state == "unknown"
    assert "--exe PATH" in found.steps[3].detail
    other = Owner(1, "curl", 5, 6, "/usr/bin/curl")
    refused = explained(host="tool.test", owner=other)
    assert refused.stops_at == "decision"


def test_a_request_is_judged_by_its_rules() -> None:
    found = explained(host="api.test", request=Asked("DELETE", "/ok"))
    assert (found.stops_at, found.is_observed) == ("traffic", False)
    assert "{method: DELETE, path: /ok}" in found.changes[0]
    assert explained(host="api.test", request=Asked("GET", "/ok")).stops_at is None


SOCKET = {**flow(), "protocol": "websocket", "method": "GET"}


def websocket(number: int, path: str, *ends: dict[str, Any], status: int = 101) -> list[Any]:
    """The events of one WebSocket, in order; `ends` are those after its handshake."""
    base = {**SOCKET, "flow": number, "path": path}
    request = event("http.request", number, status=status, said_by="upstream", **base)
    about = {key: base[key] for key in ("flow", "host", "port", "address", "protocol")}
    rest = [event(end["kind"], number, **about) | end for end in ends]
    return [decided(**about), request, *rest]


OPENED = {"kind": "ws.opened"}


def closed_with(code: int, said_by: str = "upstream", **more: Any) -> dict[str, Any]:
    return {"kind": "ws.closed", "code": code, "said_by": said_by, **more}


@pytest.mark.parametrize(
    ("ends", "outcome", "key", "value"),
    [
        ((OPENED, closed_with(4004, detail="no")), "failed", "code", 4004),
        ((OPENED, closed_with(1000)), "passed", "code", 1000),
        ((OPENED,), "open", "status", 101),
        (({"kind": "flow.closed", "reason": "connection_terminated"},), "failed", "status", 101),
    ],
    ids=["closed with a code", "ended well", "still open", "relayed, and cut"],
)
def test_a_websocket_is_one_attempt_with_its_own_path_and_end(
    ends: tuple[dict[str, Any], ...], outcome: str, key: str, value: int
) -> None:
    events = websocket(1, "/other", OPENED, closed_with(1006)) + websocket(2, "/mine", *ends)
    [_, mine] = attempts_of(events)
    assert (mine.outcome, mine.get(key)) == (outcome, value)
    assert (mine.get("method"), mine.get("path")) == ("GET", "/mine")
    assert mine.step == ("traffic" if outcome == "failed" else None)


def test_a_message_that_policy_refused_is_not_excused_by_its_handshake() -> None:
    """The policy allows the GET of the upgrade; what the message said is not on record."""
    refusal = {"action": "refuse", "reason": "http_request_denied", "rule": "one (p.yaml:2)"}
    ends = (OPENED, closed_with(1008, "policy", remedy="add a line", **refusal))
    found = explained(*websocket(1, "/x", *ends), request=Asked("GET", "/x", (), True))
    assert (found.stops_at, found.said_by, found.is_observed) == ("traffic", "policy", True)
    assert found.changes == ("add a line",)


def test_a_switch_that_upstream_made_wrongly_is_upstream_s_and_not_the_client_s_close() -> None:
    events = websocket(1, "/x", OPENED, closed_with(1006, "sandbox"))
    events[1] |= {"reason": "http_upgrade_failed", "detail": "no Sec-WebSocket-Accept"}
    found = explained(*events)
    assert (found.said_by, found.cause) == ("upstream", "no Sec-WebSocket-Accept")
