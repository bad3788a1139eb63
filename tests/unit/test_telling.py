"""What `-v` says on stderr: every refusal once, with what is known and what would help."""

from __future__ import annotations

from typing import Any

from netns_runtime.proxy.telling import Telling
from netns_runtime.supervise import refusal_line

WHO = {"comm": "curl", "pid": 7, "host": "web.test", "port": 443, "flow": 3}


def told(*events: dict[str, Any]) -> list[str]:
    telling = Telling()
    taken = (event for event in events if telling.takes(event))
    return [line for line in map(refusal_line, taken) if line is not None]


def test_a_withheld_secret_is_named_with_the_reason() -> None:
    event = {"event": "secret.withheld", **WHO, "secret": "TOKEN", "action": "refuse"}
    assert told({**event, "detail": "it is not bound to web.test"}) == [
        "TOKEN was not put in on the way to web.test:443 for curl (pid 7): "
        "it is not bound to web.test"
    ]


def test_a_secret_refused_at_the_endpoint_was_given_to_nobody() -> None:
    event = {"event": "secret.withheld", "comm": "curl", "pid": 7, "secret": "TOKEN"}
    said = {"action": "refuse", "reason": "http_request_denied", "detail": "not listed"}
    assert told({**event, **said, "remedy": "list it"}) == [
        "TOKEN was not given to curl (pid 7): not listed; list it"
    ]


def test_a_client_that_distrusts_us_is_told_with_detail_and_remedy() -> None:
    event = {"event": "flow.closed", **WHO, "reason": "client_tls_error", "said_by": "sandbox"}
    assert told({**event, "detail": "it may not trust us", "remedy": "point it there"}) == [
        "closed curl (pid 7) to web.test:443: client_tls_error; it may not trust us; point it there"
    ]


def test_a_client_that_only_ends_its_connection_is_told_what_may_be_wrong() -> None:
    event = {"event": "flow.closed", **WHO, "detail": "ended before its first request"}
    assert told({**event, "remedy": "point it there"}) == [
        "closed curl (pid 7) to web.test:443: ended before its first request; point it there"
    ]


def test_a_bad_certificate_of_upstreams_is_told_once_and_not_as_the_502_too() -> None:
    said = {"reason": "tls_certificate_error", "said_by": "upstream", "detail": "it has expired"}
    lines = told(
        {"event": "flow.closed", **WHO, **said},
        {"event": "http.request", **WHO, **said, "status": 502},
    )
    assert lines == ["closed curl (pid 7) to web.test:443: tls_certificate_error; it has expired"]


def test_a_flow_that_ended_as_usual_is_not_told() -> None:
    closed = {"event": "flow.closed", **WHO}
    assert told(closed, {**closed, "reason": "connection_terminated", "said_by": "upstream"}) == []


def test_a_refused_message_is_told_once_although_the_audit_has_three_lines() -> None:
    said = {**WHO, "action": "refuse", "reason": "http_request_denied", "detail": "/op is 9"}
    ends = [{"event": name, **said} for name in ("ws.message", "ws.closed", "flow.closed")]
    assert told(*ends) == ["refused curl (pid 7) to web.test:443: http_request_denied"]
    assert len(told(*ends, *ends)) == 2, "the next flow of that number is another one"


def test_an_end_of_a_websocket_that_no_message_brought_about_is_told() -> None:
    said = {**WHO, "action": "refuse", "reason": "http_request_denied", "detail": "policy changed"}
    assert len(told({"event": "ws.closed", **said}, {"event": "flow.closed", **said})) == 1


def test_a_request_that_is_none_is_told_with_what_is_wrong() -> None:
    said = {"action": "refuse", "reason": "http_request_error", "detail": "an encoded slash"}
    assert told({"event": "flow.decided", **WHO, **said, "remedy": "allow it"}) == [
        "refused curl (pid 7) to web.test:443: http_request_error; an encoded slash; allow it"
    ]


def test_what_is_allowed_is_not_told() -> None:
    assert told({"event": "flow.decided", **WHO, "action": "allow"}) == []
