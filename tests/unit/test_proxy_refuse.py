"""Refusals and failures as clients see them."""

from __future__ import annotations

import json

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netns_runtime.proxy.refuse import TABLE, Refusal, proxy_status_of, quoted, response_of
from netns_runtime.wire.head import parse_head

HEAD = "GET http://h.test/ HTTP/1.1\r\nHost: h.test\r\n{}\r\n"


def parsed(raw: bytes) -> tuple[h11.Response, bytes]:
    connection = h11.Connection(h11.CLIENT)
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "h")]))
    connection.send(h11.EndOfMessage())
    connection.receive_data(raw)
    response = connection.next_event()
    assert isinstance(response, h11.Response)
    body = connection.next_event()
    assert isinstance(body, h11.Data)
    assert isinstance(connection.next_event(), h11.EndOfMessage)
    return response, bytes(body.data)


def test_a_policy_refusal_is_403_and_names_rule_reason_and_remedy() -> None:
    refusal = Refusal(
        "http_request_denied", "no rule allows h.test:443", "--allow h.test:443", "h.test", 443
    )
    response, body = parsed(response_of(refusal))
    assert response.status_code == 403
    assert dict(response.headers)[b"proxy-status"] == (
        b'netns-runtime; error=http_request_denied; details="no rule allows h.test:443"'
    )
    for fact in (b"h.test", b"443", b"none matched", b"http_request_denied", b"--allow h.test:443"):
        assert fact in body


@pytest.mark.parametrize("reason", TABLE)
def test_a_failure_of_upstream_is_never_a_403(reason: str) -> None:
    refusal = Refusal(reason, "d")
    assert (refusal.status == 403) == (refusal.said_by == "policy")
    if refusal.said_by == "upstream":
        assert refusal.status in {502, 504}
        assert b"policy did not refuse" in parsed(response_of(refusal))[1]


def test_json_where_accept_prefers_it() -> None:
    refusal = Refusal("http_request_denied", "d", "r", "h.test", 443, "a rule (f:1)")
    head = parse_head(HEAD.format("Accept: application/json, */*\r\n").encode())
    response, body = parsed(response_of(refusal, head))
    assert dict(response.headers)[b"content-type"] == b"application/json"
    facts = json.loads(body)
    assert facts["rule"] == "a rule (f:1)"
    assert facts["reason"] == "http_request_denied"
    plain = parse_head(HEAD.format("Accept: text/html, application/json\r\n").encode())
    assert b"text/plain" in response_of(refusal, plain)


def test_a_head_request_is_answered_without_a_body() -> None:
    head = parse_head(HEAD.format("").replace("GET", "HEAD").encode())
    assert response_of(Refusal("http_request_denied", "d"), head).endswith(b"\r\n\r\n")


def test_an_unknown_reason_is_a_bug() -> None:
    with pytest.raises(ValueError, match="no_such_error"):
        Refusal("no_such_error", "d")


@given(st.text(max_size=80), st.text(max_size=80))
def test_no_text_of_a_client_leaves_its_place_in_the_response(detail: str, host: str) -> None:
    response, body = parsed(response_of(Refusal("http_request_denied", detail, host, host)))
    assert body.isascii()
    assert all(line.isascii() and line.decode().isprintable() for line in body.split(b"\n"))
    assert {name for name, _ in response.headers} == {
        *(b"proxy-status", b"content-type", b"content-length", b"cache-control", b"connection")
    }
    status = proxy_status_of(Refusal("dns_error", detail))
    assert status.isascii()
    assert status.isprintable()


def test_quotes_and_backslashes_are_escaped() -> None:
    assert quoted('a"b\\c\r\n') == '"a\\"b\\\\c\\\\r\\\\n"'
