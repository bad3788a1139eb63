"""Requests under rules and with secrets, as upstream, the client and the audit see them."""

from __future__ import annotations

import gzip
import json
from base64 import b64encode
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from netns_runtime.policy import Policy
from netns_runtime.proxy.reload import swap_policy
from netns_runtime.secret import Binding, Secret, Slot
from tests.support.proxy_stage import BrokenAudit, Stage, outcome_of, play, read_until
from tests.support.recorder import OK, Recorder, policy_of

if TYPE_CHECKING:
    from collections.abc import Sequence

VALUE = "s3cret/value+1"
HOLDER = "openshell:resolve:env:TOKEN"
OTHER = "openshell:resolve:env:OTHER"
SLOTS = (
    Slot("header", "authorization"),
    Slot("basic", "password"),
    Slot("query", "key"),
    Slot("path", "1"),
    Slot("json", "/token"),
    Slot("form", "token"),
)
SECRETS = (
    Secret(Binding("TOKEN", ("up.test",), SLOTS, codings=("gzip",), plain_http=True), VALUE),
    Secret(Binding("OTHER", ("other.test",), SLOTS, plain_http=True), "another-value"),
)
FULL = "protocol: rest, access: full"


def played(
    upstream: Recorder, *requests: bytes, told: list[bytes] | None = None, **config: Any
) -> Stage:
    """Say each request on one redirected connection, which the last one's answer ends."""
    said = [request.replace(b"HOST", b"up.test:%d") for request in requests]

    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        port = await stage.upstream(nursery, upstream)
        async with stage.redirected(port) as client:
            for request in said:
                await client.send_all(request.replace(b"%d", b"%d" % port))
            await client.send_eof()
            answer = await outcome_of(client)
            if told is not None:
                told.append(answer)
        await stage.settled()

    stage = Stage(**({"policy": policy_of(FULL), "secrets": SECRETS} | config))
    play(scenario, stage=stage)
    assert stage.reports == []
    return stage


def request(method: str, target: str, *headers: str, body: bytes = b"") -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: HOST", *headers]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def lines_of(stage: Stage, event: str, *fields: str) -> Sequence[Any]:
    return [tuple(line.get(field) for field in fields) for line in stage.of(event)]


def leaks(stage: Stage) -> bool:
    return VALUE in json.dumps(stage.events) or "s3cret%2F" in json.dumps(stage.events)


def test_a_header_slot_carries_the_value_and_the_audit_says_so() -> None:
    upstream = Recorder()
    stage = played(upstream, request("GET", "/a", f"Authorization: Bearer {HOLDER}"))
    assert upstream.requests[0]["authorization"] == f"Bearer {VALUE}"
    assert lines_of(stage, "secret.substituted", "secret", "slot") == [
        ("TOKEN", "header authorization")
    ]
    events = [line["event"] for line in stage.events]
    assert events.index("flow.decided") < events.index("secret.substituted")
    assert not leaks(stage)


def test_basic_credentials_carry_the_value() -> None:
    upstream = Recorder()
    word = b64encode(f"user:{HOLDER}".encode()).decode()
    played(upstream, request("GET", "/a", f"Authorization: Basic {word}"))
    assert (
        upstream.requests[0]["authorization"]
        == "Basic " + b64encode(f"user:{VALUE}".encode()).decode()
    )


def test_path_and_query_slots_are_filled_and_the_audit_shows_the_placeholder() -> None:
    upstream = Recorder()
    stage = played(upstream, request("GET", f"/bot/{HOLDER}/send?key={HOLDER}&q=hello"))
    assert (
        upstream.requests[0].target == "/bot/s3cret%2Fvalue%2B1/send?key=s3cret%2Fvalue%2B1&q=hello"
    )
    [line] = stage.of("http.request")
    assert line["path"] == f"/bot/{HOLDER}/send?key&q"
    assert not leaks(stage)


@pytest.mark.parametrize("path", [f"/bot/{VALUE}/x", "/bot/s3cret%2fvalue%2B1/x", f"/?{VALUE}"])
def test_a_value_that_the_client_knows_is_not_written_to_the_audit(path: str) -> None:
    stage = played(Recorder(), request("GET", path))
    assert HOLDER in stage.of("http.request")[0]["path"]
    assert not leaks(stage)


def test_outside_of_a_slot_the_placeholder_passes_untouched() -> None:
    upstream = Recorder()
    body = json.dumps({"content": f"my token is {HOLDER}"}).encode()
    stage = played(
        upstream,
        request("POST", f"/x?q={HOLDER}", f"X-Other: {HOLDER}", body=body)[: -len(body)].replace(
            b"\r\n\r\n", b"\r\nContent-Type: application/json\r\n\r\n"
        )
        + body,
    )
    [seen] = upstream.requests
    assert (seen.target, seen["x-other"], seen.body) == (f"/x?q={HOLDER}", HOLDER, body)
    assert stage.of("secret.substituted") == []


def test_a_placeholder_in_a_header_name_is_untouched() -> None:
    upstream = Recorder()
    stage = played(upstream, request("GET", "/", f"{HOLDER}: x"))
    assert upstream.requests[0]["openshell"] == "resolve:env:TOKEN: x"
    assert stage.of("secret.substituted") == []


def test_another_hosts_secret_is_withheld_and_the_request_goes_on() -> None:
    upstream = Recorder()
    stage = played(upstream, request("GET", "/a", f"Authorization: Bearer {OTHER}"))
    assert upstream.requests[0]["authorization"] == f"Bearer {OTHER}"
    [(secret, action, said_by)] = lines_of(stage, "secret.withheld", "secret", "action", "said_by")
    assert (secret, action, said_by) == ("OTHER", "refuse", "policy")


JSON = "Content-Type: application/json"
DOCUMENT = json.dumps({"token": HOLDER, "text": HOLDER}).encode()
FILLED = json.dumps({"token": VALUE, "text": HOLDER}).encode()


@pytest.mark.parametrize("expect", [(), ("Expect: 100-continue",)])
def test_small_content_gets_its_exact_new_length(expect: tuple[str, ...]) -> None:
    upstream = Recorder()
    stage = played(upstream, request("POST", "/", JSON, *expect, body=DOCUMENT))
    [seen] = upstream.requests
    assert json.loads(seen.body) == json.loads(FILLED)
    assert seen["content-length"] == str(len(seen.body))
    assert "expect" not in seen
    assert lines_of(stage, "secret.substituted", "slot") == [("json /token",)]


def test_a_client_that_waits_for_100_before_small_content_is_told_to_go_on() -> None:
    upstream = Recorder()

    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        port = await stage.upstream(nursery, upstream)
        async with stage.redirected(port) as client:
            whole = request("POST", "/", JSON, "Expect: 100-continue", body=DOCUMENT)
            head, _, body = whole.replace(b"HOST", b"up.test:%d" % port).partition(b"\r\n\r\n")
            await client.send_all(head + b"\r\n\r\n")
            assert await read_until(client, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            assert upstream.raw == b""
            await client.send_all(body)
            await read_until(client, b"ok")

    play(scenario, policy=policy_of(FULL), secrets=SECRETS)
    assert json.loads(upstream.requests[0].body)["token"] == VALUE


def test_chunked_content_stays_chunked() -> None:
    upstream = Recorder()
    half = len(DOCUMENT) // 2
    chunks = b"".join(
        b"%x\r\n%b\r\n" % (len(part), part) for part in (DOCUMENT[:half], DOCUMENT[half:], b"")
    )
    played(upstream, request("POST", "/", JSON, "Transfer-Encoding: chunked") + chunks)
    [seen] = upstream.requests
    assert json.loads(seen.body) == json.loads(FILLED)
    assert seen["transfer-encoding"] == "chunked"


def test_large_content_streams_in_chunks() -> None:
    upstream = Recorder()
    document = b'{"pad": "' + b"x" * (1 << 20) + b'", "token": "' + HOLDER.encode() + b'"}'
    played(upstream, request("POST", "/", JSON, body=document))
    [seen] = upstream.requests
    assert seen["transfer-encoding"] == "chunked"
    assert "content-length" not in seen
    assert json.loads(seen.body)["token"] == VALUE


def test_compressed_content_is_opened_where_declared() -> None:
    upstream = Recorder()
    body = gzip.compress(DOCUMENT)
    played(upstream, request("POST", "/", JSON, "Content-Encoding: gzip", body=body))
    [seen] = upstream.requests
    assert json.loads(gzip.decompress(seen.body)) == json.loads(FILLED)
    assert seen["content-length"] == str(len(seen.body))


def test_compressed_content_that_is_broken_is_a_400_and_goes_nowhere() -> None:
    told: list[bytes] = []
    upstream = Recorder()
    body = gzip.compress(DOCUMENT)[:-4]
    played(upstream, request("POST", "/", JSON, "Content-Encoding: gzip", body=body), told=told)
    assert told[0].startswith(b"HTTP/1.1 400 ")
    assert upstream.requests == []


def test_content_without_a_slot_keeps_its_length_and_is_watched_for_other_secrets() -> None:
    upstream = Recorder()
    body = b"prose with " + OTHER.encode()
    stage = played(upstream, request("POST", "/", "Content-Type: text/plain", body=body))
    [seen] = upstream.requests
    assert (seen.body, seen["content-length"]) == (body, str(len(body)))
    assert lines_of(stage, "secret.withheld", "secret") == [("OTHER",)]


def test_requests_pipelined_after_rewritten_content_are_read_where_they_begin() -> None:
    upstream = Recorder()
    first = request("POST", "/1", JSON, body=DOCUMENT)
    chunked = request("POST", "/2", JSON, "Transfer-Encoding: chunked")
    chunked += b"%x\r\n%b\r\n0\r\n\r\n" % (len(DOCUMENT), DOCUMENT)
    stage = played(upstream, first + chunked + first.replace(b" /1 ", b" /3 "))
    assert [seen.target for seen in upstream.requests] == ["/1", "/2", "/3"]
    assert {seen.body for seen in upstream.requests} == {upstream.requests[0].body}
    assert len(stage.of("secret.substituted")) == 3


def test_without_an_audit_no_secret_leaves() -> None:
    class OnlySecretsFail(BrokenAudit):
        def write(self, event: str, **fields: Any) -> None:
            if event.startswith("secret."):
                super().write(event, **fields)

    upstream = Recorder()
    told = b""

    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        nonlocal told
        stage.sandbox.audit = OnlySecretsFail(None, "s")
        port = await stage.upstream(nursery, upstream)
        async with stage.redirected(port) as client:
            said = request("GET", "/", f"Authorization: {HOLDER}")
            await client.send_all(said.replace(b"HOST", b"up.test:%d" % port))
            told = await outcome_of(client)

    play(scenario, policy=policy_of(FULL), secrets=SECRETS)
    assert told.startswith(b"HTTP/1.1 503 ")
    assert upstream.raw == b""


def reflected(response: bytes, *, version: str = "1.1", method: str = "GET") -> bytes:
    """What the client gets of an upstream's response."""
    told: list[bytes] = []
    upstream = Recorder(response)
    upstream.closes = b"ength" not in response and b"chunked" not in response
    said = request(method, "/").replace(b"HTTP/1.1", f"HTTP/{version}".encode())
    played(upstream, said, told=told)
    return told[0]


def test_a_reflected_value_comes_back_as_the_placeholder_with_an_exact_length() -> None:
    body = f"you said {VALUE}".encode()
    answer = b"HTTP/1.1 400 No %b\r\nX-Echo: %b\r\nContent-Length: %d\r\n\r\n%b"
    told = reflected(answer % (VALUE.encode(), VALUE.encode(), len(body), body))
    head, _, got = told.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 400 No {HOLDER}\r\n".encode())
    assert f"X-Echo: {HOLDER}\r\n".encode() in head
    assert got == f"you said {HOLDER}".encode()
    assert b"Content-Length: %d" % len(got) in head


def test_a_reflected_value_in_gzip_comes_back_as_the_placeholder() -> None:
    body = gzip.compress(f"you said {VALUE}".encode())
    told = reflected(
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
        + body
    )
    assert told.endswith(f"\r\n\r\nyou said {HOLDER}".encode())
    assert b"gzip" not in told


def test_a_coding_that_cannot_be_opened_is_upstreams_error() -> None:
    told = reflected(b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\nContent-Length: 2\r\n\r\nxx")
    assert told.startswith(b"HTTP/1.1 502 ")


@pytest.mark.parametrize("split", range(1, len(VALUE), 4))
def test_a_value_split_over_chunks_is_masked(split: int) -> None:
    parts = [b"<" + VALUE[:split].encode(), VALUE[split:].encode() + b">"]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts)
    told = reflected(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    )
    assert VALUE.encode() not in told.replace(b"\r\n", b"")
    assert HOLDER.encode() in told


def test_an_http_1_0_client_gets_masked_content_that_ends_with_the_connection() -> None:
    chunk = b"%x\r\n%b\r\n" % (len(VALUE), VALUE.encode())
    told = reflected(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk + b"0\r\n\r\n",
        version="1.0",
    )
    assert told.endswith(b"Connection: close\r\n\r\n" + HOLDER.encode())
    assert b"chunked" not in told


def test_large_masked_content_is_sent_in_chunks() -> None:
    body = b"x" * (1 << 20) + VALUE.encode()
    told = reflected(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    assert b"Transfer-Encoding: chunked" in told
    assert b"Content-Length" not in told
    assert HOLDER.encode() in told
    assert VALUE.encode() not in told


def test_where_too_much_is_held_already_content_is_streamed_instead(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("netns_runtime.proxy.sandbox.GATHERED_LIMIT", 10)
    body = f"you said {VALUE}".encode()
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    told: list[bytes] = []
    upstream = Recorder(answer)
    stage = played(upstream, request("POST", "/", JSON, body=DOCUMENT), told=told)
    assert json.loads(upstream.requests[0].body) == json.loads(FILLED)
    assert upstream.requests[0]["transfer-encoding"] == "chunked"
    assert b"Transfer-Encoding: chunked" in told[0]
    assert VALUE.encode() not in told[0]
    assert stage.sandbox.gathered == 0


def test_what_was_held_is_given_back() -> None:
    body = gzip.compress(b"x" * 3_000_000)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
    told: list[bytes] = []
    said = request("POST", "/", JSON, body=DOCUMENT)
    stage = played(Recorder(head + body), said, said, told=told)
    assert told[0].count(b"Transfer-Encoding: chunked") == 2
    assert stage.sandbox.gathered == 0


@pytest.mark.parametrize(
    ("method", "response"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\nX: %b\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\nX: %b\r\nX-Length: 0\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\nX: %b\r\n\r\n"),
    ],
)
def test_a_response_without_content_is_masked_in_its_head_alone(
    method: str, response: bytes
) -> None:
    told = reflected(response % VALUE.encode(), method=method)
    assert told == response % HOLDER.encode()


def test_an_error_text_of_upstreams_bad_http_does_not_quote_a_value() -> None:
    told = reflected(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nX " + VALUE.encode() + b"\r\n\r\n")
    assert told.startswith(b"HTTP/1.1 502 ")
    assert VALUE.encode() not in told


def test_server_sent_events_are_not_delayed() -> None:
    go_on = trio.Event()

    async def server(stream: trio.SocketStream) -> None:
        await read_until(stream, b"\r\n\r\n")
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
        await stream.send_all(head + b"Transfer-Encoding: chunked\r\n\r\n9\r\ndata: 1\n\n\r\n")
        await go_on.wait()
        await stream.send_all(b"9\r\ndata: 2\n\n\r\n0\r\n\r\n")

    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        port = await stage.upstream(nursery, server)
        async with stage.redirected(port) as client:
            await client.send_all(request("GET", "/").replace(b"HOST", b"up.test:%d" % port))
            await read_until(client, b"data: 1\n\n")
            go_on.set()
            await read_until(client, b"data: 2\n\n")

    play(scenario, policy=policy_of(FULL), secrets=SECRETS)


GET_ONLY = "protocol: rest, rules: [{allow: {method: GET, path: /v1/**}}]"


def test_a_refused_request_is_answered_with_its_rule_and_remedy_and_the_next_goes_on() -> None:
    told: list[bytes] = []
    upstream = Recorder()
    said = (request("POST", "/v1/a", body=b"hello"), request("GET", "/v1/a?token=x"))
    stage = played(upstream, *said, told=told, policy=policy_of(GET_ONLY))
    refused, _, passed = told[0].partition(b"HTTP/1.1 200 OK")
    assert refused.startswith(b"HTTP/1.1 403 Forbidden\r\nProxy-Status: netns-runtime; error=")
    assert b"rule: r (p.yaml" in refused
    assert b"remedy: " in refused
    assert passed.endswith(b"ok")
    assert [seen.target for seen in upstream.requests] == ["/v1/a?token=x"]
    lines = lines_of(stage, "http.request", "method", "path", "status", "action", "said_by")
    assert lines == [
        ("POST", "/v1/a", 403, "refuse", "policy"),
        ("GET", "/v1/a?token", 200, "allow", "upstream"),
    ]
    assert stage.of("http.request")[0]["detail"]


@pytest.mark.parametrize(
    ("config", "rules"),
    [({"report": True}, GET_ONLY), ({}, GET_ONLY + ", enforcement: audit")],
)
def test_where_nothing_is_enforced_the_line_says_what_would_be_refused(
    config: dict[str, Any], rules: str
) -> None:
    upstream = Recorder()
    stage = played(upstream, request("GET", "/other"), policy=policy_of(rules), **config)
    assert len(upstream.requests) == 1
    [line] = stage.of("http.request")
    assert (line["action"], line["status"]) == ("allow", 200)
    assert line["detail"].startswith("would be refused: ")
    assert line["remedy"]


def test_report_mode_never_lifts_a_secrets_binding() -> None:
    upstream = Recorder()
    said = request("GET", "/", f"Authorization: {OTHER}")
    played(upstream, said, policy=policy_of(GET_ONLY), report=True)
    assert upstream.requests[0]["authorization"] == OTHER


def test_a_policy_that_changes_while_content_is_waited_for_is_asked_again() -> None:
    upstream = Recorder()

    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        port = await stage.upstream(nursery, upstream)
        async with stage.redirected(port) as client:
            said = request("POST", "/", JSON, body=DOCUMENT).replace(b"HOST", b"up.test:%d" % port)
            await client.send_all(said[:-1])
            await trio.testing.wait_all_tasks_blocked(0.005)
            swap_policy(stage.sandbox, policy_of(GET_ONLY))
            await client.send_all(said[-1:])
            assert b"403 Forbidden" in await read_until(client, b"remedy")
        await stage.settled()

    play(scenario, policy=policy_of(FULL), secrets=SECRETS)
    assert upstream.raw == b""


UPGRADE = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: k")


def test_a_refused_upgrade_is_a_clean_403_and_the_connection_stays_usable() -> None:
    told: list[bytes] = []
    upstream = Recorder()
    rules = "protocol: rest, access: full, websocket: refuse"
    said = (request("GET", "/ws", *UPGRADE), request("GET", "/poll"))
    played(upstream, *said, told=told, policy=policy_of(rules), secrets=())
    assert told[0].startswith(b"HTTP/1.1 403 Forbidden\r\n")
    assert b"websocket" in told[0].lower()
    assert [seen.target for seen in upstream.requests] == ["/poll"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500])
@pytest.mark.parametrize("secrets", [(), SECRETS])
def test_upstreams_refusal_of_a_handshake_is_passed_on_exactly(
    status: int, secrets: tuple[Secret, ...]
) -> None:
    answer = b"HTTP/1.1 %d Told So\r\nContent-Length: 4\r\nX-Why: because\r\n\r\nmine" % status
    told: list[bytes] = []
    upstream = Recorder(OK, ws=answer)
    said = (request("GET", "/ws", *UPGRADE), request("GET", "/poll"))
    stage = played(upstream, *said, told=told, secrets=secrets)
    first, second = told[0].split(b"mine")
    lines = sorted(answer.removesuffix(b"\r\n\r\nmine").split(b"\r\n"))
    assert sorted(first.removesuffix(b"\r\n\r\n").split(b"\r\n")) == lines
    assert second.endswith(b"ok")
    assert upstream.connections == 1
    assert lines_of(stage, "http.request", "status", "said_by") == [
        (status, "upstream"),
        (200, "upstream"),
    ]


def test_rules_of_one_host_say_nothing_of_an_unruled_one() -> None:
    upstream = Recorder()
    played(upstream, request("GET", "/a/%2e%2e/%2f"), policy=Policy(policy_of("tls: skip").rules))
    assert upstream.requests[0].target == "/a/%2e%2e/%2f"
