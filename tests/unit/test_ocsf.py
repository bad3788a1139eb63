"""Audit events as OCSF: each has what any 1.x release requires of its class, and all of itself."""

from __future__ import annotations

import json
import os
from typing import Any, Final

import pytest

from netns_runtime.audit import AuditLog
from netns_runtime.cli.options import parse_command_line
from netns_runtime.errors import UsageError
from netns_runtime.events import EVENTS, event_of
from netns_runtime.ocsf import DNS, HTTP, LIFECYCLE, NETWORK, ocsf_of
from tests.support.ocsf import REQUIRED, value_at

TYPES: Final[dict[str, type]] = {
    **dict.fromkeys(("activity_id", "category_uid", "class_uid", "type_uid", "time"), int),
    **dict.fromkeys(("severity_id", "status_id", "action_id", "disposition_id", "count"), int),
    **dict.fromkeys(("duration", "rcode_id"), int),
    **dict.fromkeys(("message", "status_detail", "status_code", "activity_name"), str),
}
ACTIVITIES: Final = {
    NETWORK: {1, 2, 3, 4, 5, 6},
    HTTP: {1, 2, 3, 4, 5, 6, 7, 8, 99},
    DNS: {1, 2, 6},
    LIFECYCLE: {3, 4},
}
# Attributes that a class, its base and the two profiles know; anything else is not OCSF.
KNOWN: Final = {
    *("activity_id", "activity_name", "category_uid", "category_name", "class_uid", "class_name"),
    *("type_uid", "type_name", "time", "severity_id", "severity", "message", "metadata"),
    *("status", "status_id", "status_code", "status_detail", "duration", "count", "unmapped"),
    *("action", "action_id", "disposition", "disposition_id", "firewall_rule", "actor"),
    *("src_endpoint", "dst_endpoint", "connection_info", "app_name", "traffic", "app"),
    *("http_request", "http_response"),
    *("query", "query_time", "response_time", "rcode", "rcode_id", "answers"),
}
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


@pytest.mark.parametrize("name", sorted(EVENTS))
@pytest.mark.parametrize("fields", [FULL, {}], ids=["full", "bare"])
def test_every_event_has_all_attributes_that_its_class_requires(
    name: str, fields: dict[str, Any]
) -> None:
    told = ocsf_of(event_of(name, "box", **fields))
    for path in REQUIRED[told["class_uid"]]:
        assert value_at(told, path) not in (None, ""), path
    assert told["type_uid"] == told["class_uid"] * 100 + told["activity_id"]
    assert told["category_uid"] == told["class_uid"] // 1000
    assert told["activity_id"] in ACTIVITIES[told["class_uid"]]
    assert told.keys() <= KNOWN, told.keys() - KNOWN
    for key, kind in TYPES.items():
        assert isinstance(told.get(key, kind()), kind), key


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
