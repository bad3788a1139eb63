"""Audit events as OCSF: each is what the published schema says of its class, and all of itself."""

from __future__ import annotations

import json
import os
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netns_runtime.audit import AuditLog
from netns_runtime.cli.options import parse_command_line
from netns_runtime.errors import UsageError
from netns_runtime.events import EVENTS, event_of
from netns_runtime.ocsf import NETWORK, VERSION, ocsf_of
from tests.support.ocsf import VERSIONS, faults

FULL: Final[dict[str, Any]] = {
    "pid": 7,
    "comm": "curl",
    "exe": "/usr/bin/curl",
    "host": "web.lab.test",
    "address": "192.0.2.10",
    "port": 443,
    "protocol": "https",
    "entry": "redirected",
    "flow": 3,
    "said_by": "policy",
    "rule": "lab (policy.yaml:3)",
}


def sample(event: str, **more: Any) -> dict[str, Any]:
    return event_of(event, "box", **{**FULL, **more})


KINDS: Final[dict[str, dict[str, Any]]] = {
    "bare": {},
    "full": FULL,
    "allowed": {**FULL, "action": "allow", "method": "GET", "status": 200, "path": "/a?b=1"},
    "refused": {**FULL, "action": "refuse", "reason": "http_request_denied", "detail": "no rule"},
    "over": {**FULL, "bytes_in": 1, "bytes_out": 2, "duration_ms": 12.6, "count": 3, "code": 1000},
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_event_is_valid_in_its_release_and_each_later_one(kind: str, version: str) -> None:
    for name in sorted(EVENTS):
        told = ocsf_of(event_of(name, "box", **KINDS[kind]))
        assert faults(told, version) == [], name
        assert told["metadata"]["version"] == VERSION


ODD: Final[list[dict[str, Any]]] = [
    {"method": "PATCH"},
    {"method": "get"},
    {"host": "_imap._tcp.lab.test"},
    {"host": "-", "port": 70000},
    {"host": "."},
    {"host": "2001:db8::1", "address": "2001:db8::1"},
    {"host": "192.0.2.1"},
    {"host": "fe80::1%" + "z" * 60},
    {"host": "a" * 300},
    {"protocol": "132"},
    {"protocol": "icmpv6", "port": 0},
    {"exe": "bash"},
    {"exe": "/tmp/\n\x1b"},
    {"status": 999},
]


@pytest.mark.parametrize("more", ODD, ids=str)
def test_what_the_schema_has_no_place_for_is_left_out(more: dict[str, Any]) -> None:
    for name in sorted(EVENTS):
        told = ocsf_of(sample(name, **more))
        assert faults(told) == [], name
        assert told["unmapped"].items() >= more.items()


@given(
    host=st.text(max_size=64),
    port=st.integers(),
    method=st.text(max_size=16),
    path=st.text(max_size=64),
    protocol=st.text(max_size=8),
    comm=st.text(max_size=16),
)
@settings(max_examples=10, deadline=None)
def test_no_value_that_is_the_attackers_makes_an_event_invalid(**fields: Any) -> None:
    for name in ("connect.refused", "dns.refused", "flow.decided", "http.request"):
        assert faults(ocsf_of(sample(name, **fields))) == []


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        ({"flow_number": 1}, "'flow_number' was unexpected"),
        ({"activity_id": 42}, "42 is not one of"),
        ({"severity_id": "3"}, "'3' is not of type 'integer'"),
        ({"activity_name": "Close"}, "network_activity.activity_name is 'Close', and 1 is 'Open'"),
        ({"type_uid": 400102}, "type_uid is not 400101"),
        ({"class_name": "Network"}, "class_name is not Network Activity"),
        ({"dst_endpoint": {"host": "x"}}, "dst_endpoint: Additional properties"),
        ({"dst_endpoint": {"port": 65536}}, "65536 is greater than the maximum of 65535"),
        ({"metadata": {"version": VERSION}}, "metadata: 'product' is a required property"),
    ],
)
def test_the_judge_finds(wrong: dict[str, Any], fault: str) -> None:
    told = {**ocsf_of(sample("flow.decided", action="allow")), **wrong}
    assert any(fault in line for line in faults(told)), faults(told)


@pytest.mark.parametrize("name", sorted(EVENTS))
def test_the_contracts_names_are_whole_in_unmapped(name: str) -> None:
    event = sample(name)
    assert ocsf_of(event)["unmapped"] == event


@pytest.mark.parametrize(
    ("name", "more", "class_uid", "activity"),
    [
        ("flow.decided", {"action": "allow"}, 4001, 1),
        ("flow.decided", {"action": "refuse", "reason": "http_request_denied"}, 4001, 5),
        ("connect.refused", {"action": "refuse"}, 4001, 5),
        ("flow.closed", {}, 4001, 2),
        ("flow.closed", {"reason": "connection_terminated"}, 4001, 3),
        ("flow.closed", {"reason": "connection_timeout"}, 4001, 4),
        ("flow.closed", {"reason": "connection_refused"}, 4001, 5),
        ("ws.closed", {"code": 1000}, 4001, 2),
        ("ws.message", {"action": "refuse"}, 4001, 5),
        ("secret.substituted", {"action": "allow"}, 4001, 6),
        ("http.request", {"method": "GET", "status": 200}, 4002, 3),
        ("http.request", {"method": "PATCH", "status": 200}, 4002, 99),
        ("dns.answered", {"action": "allow"}, 4003, 2),
        ("dns.refused", {"action": "refuse"}, 4003, 2),
        ("sandbox.started", {}, 6002, 3),
        ("sandbox.exited", {"code": 0}, 6002, 4),
    ],
)
def test_what_happened_has_its_class_and_activity(
    name: str, more: dict[str, Any], class_uid: int, activity: int
) -> None:
    told = ocsf_of(sample(name, **more))
    assert (told["class_uid"], told["activity_id"]) == (class_uid, activity)


def test_a_refusal_is_a_denied_action_with_its_rule() -> None:
    refused = {"action": "refuse", "reason": "http_request_denied", "detail": "no rule"}
    told = ocsf_of(sample("flow.decided", **refused))
    assert (told["action_id"], told["disposition_id"], told["status_id"]) == (2, 2, 2)
    assert told["firewall_rule"] == {"name": "lab (policy.yaml:3)"}
    assert told["status_code"] == "http_request_denied"
    assert told["metadata"]["profiles"] == ["security_control", "host"]


@pytest.mark.parametrize(
    ("host", "endpoint"),
    [
        ("web.lab.test", {"hostname": "web.lab.test"}),
        ("_imap._tcp.lab.test", {"name": "_imap._tcp.lab.test"}),
        ("2001:db8::1", {"ip": "2001:db8::1"}),
    ],
)
def test_a_host_is_told_where_the_schema_takes_it(host: str, endpoint: dict[str, str]) -> None:
    event = event_of("flow.decided", "box", host=host, port=443)
    assert ocsf_of(event)["dst_endpoint"] == {**endpoint, "port": 443}


@pytest.mark.parametrize(
    ("protocol", "number"), [("tcp", 6), ("https", 6), ("icmpv6", 58), ("132", 132)]
)
def test_a_protocol_is_told_by_its_number(protocol: str, number: int) -> None:
    told = ocsf_of(sample("connect.refused", protocol=protocol))
    assert told["connection_info"]["protocol_num"] == number


def test_what_report_mode_let_pass_is_no_failure() -> None:
    told = ocsf_of(sample("flow.decided", action="allow", reason="http_request_denied"))
    assert (told["action_id"], told["status_id"]) == (1, 1)


def test_the_process_is_the_actor() -> None:
    process = ocsf_of(sample("flow.decided"))["actor"]["process"]
    assert process["pid"] == 7
    assert process["file"] == {"name": "curl", "path": "/usr/bin/curl", "type_id": 1}


def test_time_is_milliseconds_since_1970() -> None:
    event = sample("flow.closed", duration_ms=12.6) | {"time": "2026-11-21T08:00:00.123456Z"}
    told = ocsf_of(event)
    assert (told["time"], told["duration"]) == (1795248000123, 13)


def test_the_log_writes_ocsf_and_tells_its_listener_the_contract() -> None:
    heard: list[dict[str, Any]] = []
    out, into = os.pipe()
    with os.fdopen(out) as reader, os.fdopen(into, "wb") as writer:
        log = AuditLog(writer.fileno(), "box", heard.append, "ocsf")
        log.write("flow.decided", host="web.lab.test", port=443, action="allow")
        told = json.loads(reader.readline())
    assert told["class_uid"] == NETWORK
    assert told["unmapped"] == heard[0]
    assert heard[0]["event"] == "flow.decided"


def test_the_format_is_one_of_two() -> None:
    spec = parse_command_line(["--audit", "x", "--audit-format", "ocsf", "true"])
    assert not isinstance(spec, str)
    assert spec.audit_format == "ocsf"
    with pytest.raises(UsageError, match="json or ocsf"):
        parse_command_line(["--audit-format", "xml", "true"])
