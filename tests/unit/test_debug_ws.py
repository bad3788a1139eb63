"""How `netns-debug ws` explains what no lab server can do in time, and what evidence lacks."""

from __future__ import annotations

from typing import Any

import pytest

from netns_runtime.debug.evidence import Evidence
from netns_runtime.debug.wsexplain import explain
from netns_runtime.debug.wslives import Life, is_failure, lives_of, opaque_tunnels
from netns_runtime.debug.wstables import CODES, STATUSES
from netns_runtime.debug.wswords import Explanation, as_fields

BASE: dict[str, Any] = {
    "time": "2026-11-21T08:00:00.000000Z",
    "sandbox": "box",
    "host": "ws.test",
    "port": 443,
    "address": "192.0.2.1",
    "pid": 7,
    "comm": "node",
}


def event(name: str, flow: int | None = 1, **fields: Any) -> dict[str, Any]:
    found = {"event": name, **BASE, **fields}
    return found if flow is None else {**found, "flow": flow}


def upgrade(flow: int = 1, status: int = 101, **fields: Any) -> dict[str, Any]:
    said = {"protocol": "websocket", "method": "GET", "path": "/s", "status": status}
    return event(
        "http.request", flow, **{"said_by": "upstream", "action": "allow", **said, **fields}
    )


def socket(
    flow: int = 1, request: dict[str, Any] | None = None, **end: Any
) -> list[dict[str, Any]]:
    counts = {"messages_in": 1, "messages_out": 1, "duration_ms": 5000.0}
    return [
        upgrade(flow, **(request or {})),
        event("ws.opened", flow),
        event("ws.closed", flow, **{**counts, **end}),
        event("flow.closed", flow),
    ]


def lives(*events: dict[str, Any]) -> list[Life]:
    return lives_of(Evidence("audit", events))


def told(*events: dict[str, Any]) -> list[Explanation]:
    found = lives(*events)
    return [explain(life, found) for life in found]


def the_one(*events: dict[str, Any]) -> Explanation:
    [found] = told(*events)
    return found


@pytest.mark.parametrize("status", [*STATUSES, 418, 599])
def test_every_status_has_a_cause_and_a_remedy(status: int) -> None:
    found = the_one(upgrade(status=status))
    assert found.key == f"handshake-{status}"
    assert found.who.startswith("upstream (ws.test:443 at 192.0.2.1)")
    assert found.usually
    assert found.do


@pytest.mark.parametrize("said_by", ["sandbox", "upstream"])
@pytest.mark.parametrize("code", [*sorted(set(CODES) - {1006}), 2999, 3000, 4004, 4401])
def test_every_code_names_who_said_it(code: int, said_by: str) -> None:
    found = the_one(*socket(code=code, said_by=said_by))
    assert found.key == f"close-{code}"
    assert found.who.startswith("the client" if said_by == "sandbox" else "upstream")


def test_services_that_publish_their_codes_are_known() -> None:
    found = the_one(
        *({**line, "host": "gateway.discord.gg"} for line in socket(code=4004, said_by="upstream"))
    )
    assert "token sent with IDENTIFY is not valid" in found.usually
    chosen: dict[str, Any] = {"chosen": "graphql-transport-ws"}
    found = the_one(*socket(request=chosen, code=4401, said_by="upstream"))
    assert "connection_init" in found.usually
    found = the_one(*socket(code=4999, said_by="upstream"))
    assert "service's documentation" in found.usually


def test_an_expected_token_that_was_not_put_in_is_evidence() -> None:
    withheld = event("secret.withheld", secret="TOKEN", action="refuse")
    found = the_one(upgrade(status=401), withheld)
    assert "not bound to this host" in found.usually
    assert any("TOKEN" in line for line in found.evidence)


@pytest.mark.parametrize(
    ("idle", "hop"), [(60.02, "nginx"), (100.4, "Cloudflare"), (350.0, "AWS's network balancer")]
)
def test_a_silence_as_long_as_a_known_limit_names_the_hop(idle: float, hop: str) -> None:
    end: dict[str, Any] = {
        "code": 1006,
        "said_by": "upstream",
        "detail": "upstream ended without a close frame",
    }
    found = the_one(*socket(request={"server": "edge"}, idle_ms=idle * 1000, **end))
    assert found.key == "idle-timeout"
    assert any(hop in line for line in found.evidence)
    assert "it calls itself edge" in found.usually
    assert "ping" in found.do


def test_one_cut_after_a_long_silence_is_told_as_likely_and_not_as_certain() -> None:
    end: dict[str, Any] = {"code": 1006, "said_by": "upstream", "detail": "upstream is gone: reset"}
    found = the_one(*socket(idle_ms=44_000, **end))
    assert found.key == "idle-timeout"
    assert "a crash after a silence looks the same" in found.usually


def test_cuts_after_different_short_silences_are_no_idle_limit() -> None:
    end: dict[str, Any] = {
        "code": 1006,
        "said_by": "upstream",
        "detail": "upstream is gone: Connection reset",
    }
    found = told(*socket(1, idle_ms=3000, **end), *socket(2, idle_ms=9000, **end))
    assert [one.key for one in found] == ["cut", "cut"]


def test_the_clients_own_ping_timeout_is_the_clients() -> None:
    end: dict[str, Any] = {"code": 1011, "said_by": "sandbox", "detail": "keepalive ping timeout"}
    found = the_one(*socket(idle_ms=20_000, **end))
    assert found.key == "idle-timeout"
    assert found.who == "the client, node (pid 7)"
    assert "client's own limit" in found.usually


def test_a_client_that_was_given_none_of_its_subprotocols() -> None:
    end: dict[str, Any] = {
        "code": 1006,
        "said_by": "sandbox",
        "messages_in": 0,
        "messages_out": 0,
        "idle_ms": 2,
    }
    found = the_one(*socket(request={"offered": "chat"}, detail="sandbox is gone: reset", **end))
    assert found.key == "no-subprotocol"


@pytest.mark.parametrize(
    ("reason", "key"),
    [
        ("connection_timeout", "upstream-timeout"),
        ("destination_ip_unroutable", "upstream-timeout"),
        ("dns_error", "upstream-name"),
        ("tls_alert_received", "tls-failed"),
        ("client_tls_error", "client-tls"),
        ("connection_refused", "upstream-refused"),
        ("something_new", "failed"),
    ],
)
def test_what_failed_before_an_upgrade_is_not_claimed_to_be_a_websocket(
    reason: str, key: str
) -> None:
    decided = event("flow.decided", action="allow", protocol="tls")
    closed = event("flow.closed", reason=reason, said_by="upstream", protocol="tls")
    found = the_one(decided, closed)
    assert found.key == key
    assert any("whether this was to be a WebSocket is unknown" in line for line in found.evidence)


def test_attempts_alike_are_one_with_a_count() -> None:
    refused = [event("dns.refused", None, action="refuse") for _ in range(3)]
    refused.append(event("dns.refused", None, action="refuse", count=5))
    [life] = lives(*refused)
    assert life.count == 8
    assert any("8 times" in line for line in explain(life).evidence)


def test_without_its_end_it_is_open_and_no_failure() -> None:
    [life] = lives(upgrade(), event("ws.opened"))
    assert explain(life).key == "open"
    assert not is_failure(life)


def test_without_its_handshake_the_end_is_explained_all_the_same() -> None:
    found = the_one(*socket(code=1011, said_by="upstream")[1:])
    assert found.key == "close-1011"


def test_an_end_of_a_newer_version_is_unknown() -> None:
    found = the_one(*socket(code="new", said_by="elsewhere"))
    assert (found.key, found.who) == ("unknown", "unknown")


def test_frames_that_nobody_saw_have_no_code() -> None:
    found = the_one(upgrade(), event("flow.closed"))
    assert found.key == "relayed"
    assert found.who.startswith("unknown")
    assert "protocol: websocket" in found.do


def test_tunnels_that_ended_in_order_are_counted_and_not_explained() -> None:
    events = (event("flow.decided", action="allow"), event("flow.closed", protocol="tls"))
    assert lives(*events) == []
    assert len(opaque_tunnels(Evidence("audit", events))) == 1


def test_an_ordinary_request_is_none_of_it() -> None:
    request = event("http.request", method="GET", path="/", status=500, protocol="https")
    assert lives(event("flow.decided", action="allow"), request, event("flow.closed")) == []


def test_what_the_sandbox_chose_never_reaches_a_terminal_raw() -> None:
    hostile = "\x1b]0;owned\x07\n"
    events = [
        {**line, "host": hostile, "comm": hostile, "path": hostile, "detail": hostile}
        for line in socket(request={"origin": hostile, "server": hostile}, code=1008, said_by="x")
    ]
    for found in told(*events, event("dns.refused", None, host=hostile, remedy="r")):
        for text in (found.who, *found.evidence, found.usually, found.do):
            assert text.isprintable(), text
            assert text.isascii(), text


def test_fields_are_the_contracts() -> None:
    [life] = lives(*socket(code=1008, said_by="upstream", detail="no"))
    fields = as_fields(life, explain(life))
    assert (fields["host"], fields["code"], fields["said_by"]) == ("ws.test", 1008, "upstream")
    assert fields["kind"] == "close-1008"
