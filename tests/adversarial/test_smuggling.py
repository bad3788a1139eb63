"""Request smuggling: what upstream reads is what was judged, one request for one.

The policy lets GET and POST to /v1/** pass and nothing else. Each attack tries to have upstream
read a request for /admin that the proxy did not judge; upstream's raw bytes are the witness.
"""

from __future__ import annotations

import pytest
import trio

from tests.support.proxy_stage import Stage, outcome_of, play, read_until
from tests.support.recorder import OK, Recorder, policy_of

RULES = (
    "protocol: rest, rules: [{allow: {method: GET, path: /v1/**}}, "
    "{allow: {method: POST, path: /v1/**}}]"
)
ADMIN = b"GET /admin HTTP/1.1\r\nHost: up.test\r\n\r\n"
HEAD = b"POST /v1/x HTTP/1.1\r\nHost: up.test:%d\r\n"
ENTRIES = ("explicit", "tunnel", "redirected")


def attacked(
    words: bytes, entry: str = "redirected", upstream: Recorder | None = None, *, step: int = 65_536
) -> tuple[Stage, bytes, Recorder]:
    """Say `words` on one connection and end it; what the client was told and upstream read."""
    upstream = upstream or Recorder()
    told = b""

    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        nonlocal told
        port = await stage.upstream(nursery, upstream)
        said = words.replace(b":%d", b":%d" % port)
        if entry == "explicit":
            said = said.replace(b" /v1", b" http://up.test:%d/v1" % port)
            said = said.replace(b" /admin", b" http://up.test:%d/admin" % port)
            opened = stage.client()
        else:
            opened = getattr(stage, entry)(port)
        async with opened as client:
            try:
                for at in range(0, len(said), step):
                    await client.send_all(said[at : at + step])
                await client.send_eof()
            except trio.BrokenResourceError:
                pass
            told = await outcome_of(client)
        await stage.settled()

    stage = play(scenario, policy=policy_of(RULES))
    assert stage.reports == []
    return stage, told, upstream


AMBIGUOUS = {
    "a length and chunks": HEAD
    + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    + ADMIN,
    "chunks and a length": HEAD
    + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n"
    + ADMIN,
    "two lengths": HEAD + b"Content-Length: 0\r\nContent-Length: 40\r\n\r\n" + ADMIN,
    "two equal lengths": HEAD + b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok" + ADMIN,
    "a list of lengths": HEAD + b"Content-Length: 0, 40\r\n\r\n" + ADMIN,
    "a length with a sign": HEAD + b"Content-Length: +0\r\n\r\n" + ADMIN,
    "a length in hexadecimal": HEAD + b"Content-Length: 0x28\r\n\r\n" + ADMIN,
    "two Hosts": HEAD + b"Host: other.test\r\n\r\n",
    "a folded line": HEAD + b"X-A: b\r\n Content-Length: 40\r\n\r\n" + ADMIN,
    "a folded first line": b"POST /v1/x HTTP/1.1\r\n Host: up.test\r\n\r\n",
    "chunked, chunked": HEAD + b"Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
    "identity": HEAD + b"Transfer-Encoding: identity\r\n\r\n" + ADMIN,
    "chunked and more": HEAD + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + ADMIN,
    "a coding before chunked": HEAD + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked with a parameter": HEAD + b"Transfer-Encoding: chunked;a=b\r\n\r\n0\r\n\r\n",
    "chunked in quotes": HEAD + b'Transfer-Encoding: "chunked"\r\n\r\n0\r\n\r\n' + ADMIN,
    "xchunked": HEAD + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + ADMIN,
    "two Transfer-Encodings": HEAD
    + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "a vertical tab before chunked": HEAD + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": HEAD + b"Content-Length : 40\r\n\r\n" + ADMIN,
    "a tab before the colon": HEAD + b"Transfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n" + ADMIN,
    "no name": HEAD + b": chunked\r\n\r\n" + ADMIN,
    "a lone LF": HEAD + b"X: y\nContent-Length: 40\r\n\r\n" + ADMIN,
    "a lone CR": HEAD + b"X: y\rContent-Length: 40\r\n\r\n" + ADMIN,
    "a head that ends with LF LF": HEAD + b"X: y\n\n" + ADMIN,
    "NUL in a value": HEAD + b"X: \0\r\n\r\n",
    "a space in the target": b"GET /v1/x HTTP/1.1 /admin HTTP/1.1\r\nHost: up.test:%d\r\n\r\n",
    "chunks of HTTP/1.0": HEAD.replace(b"1.1", b"1.0")
    + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    + ADMIN,
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("case", AMBIGUOUS)
def test_a_head_that_two_servers_read_differently_is_refused_and_goes_nowhere(
    case: str, entry: str
) -> None:
    _, told, upstream = attacked(AMBIGUOUS[case], entry)
    assert told.startswith(b"HTTP/1.1 400 ")
    assert told.count(b"HTTP/1.1 ") == 1
    assert upstream.raw == b""


@pytest.mark.parametrize("step", [1, 65_536])
def test_chunk_extensions_and_odd_sizes_are_not_passed_on(step: int) -> None:
    words = (
        HEAD
        + b"Transfer-Encoding: chunked\r\n\r\n"
        + b'0004;a="b;GET /admin"\r\nabcd\r\n00001\r\ne\r\n0;x=y\r\n\r\n'
    )
    _, told, upstream = attacked(words, step=step)
    assert told.endswith(b"ok")
    assert [request.body for request in upstream.requests] == [b"abcde"]
    assert b"/admin" not in upstream.raw
    assert b";" not in upstream.raw


BAD_CHUNKS = {
    "a sign": b"+5\r\nhello\r\n0\r\n\r\n",
    "0x": b"0x5\r\nhello\r\n0\r\n\r\n",
    "LF for an end": b"5\nhello\n0\n\n",
    "more than its size": b"5\r\nhelloworld\r\n0\r\n\r\n",
    "a size without an end": b"f" * 30 + b"\r\n",
    "no size": b"\r\nhello\r\n0\r\n\r\n",
    "a size that ends with CR CR LF": b"5\r\r\nhello\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("case", BAD_CHUNKS)
def test_a_bad_chunk_ends_the_request_and_what_follows_is_not_read(case: str) -> None:
    words = HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + BAD_CHUNKS[case] + ADMIN
    _, told, upstream = attacked(words)
    assert told.count(b"HTTP/1.1 ") <= 1
    assert b"/admin" not in upstream.raw
    assert upstream.requests == []


def test_a_trailer_cannot_say_what_frames_or_routes_a_request() -> None:
    words = HEAD + (
        b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\nHost: other.test\r\n"
        b"Content-Length: 40\r\nTransfer-Encoding: chunked\r\nX-Sum: 1\r\n\r\n"
    )
    _, _, upstream = attacked(words)
    assert upstream.raw.endswith(b"0\r\nX-Sum: 1\r\n\r\n")


def test_pipelined_requests_are_judged_one_by_one() -> None:
    first = b"GET /v1/a HTTP/1.1\r\nHost: up.test:%d\r\n\r\n"
    admin = ADMIN.replace(b"up.test", b"up.test:%d")
    stage, told, upstream = attacked(first + admin + first)
    assert [request.target for request in upstream.requests] == ["/v1/a", "/v1/a"]
    assert [line["status"] for line in stage.of("http.request")] == [200, 403, 200]
    assert told.count(b"HTTP/1.1 403 ") == 1


def test_content_beyond_its_length_is_the_next_request_and_judged() -> None:
    words = HEAD + b"Content-Length: 2\r\n\r\nok" + ADMIN.replace(b"up.test", b"up.test:%d")
    stage, _, upstream = attacked(words)
    assert [request.body for request in upstream.requests] == [b"ok"]
    assert b"/admin" not in upstream.raw
    assert [line["status"] for line in stage.of("http.request")] == [200, 403]


UPGRADE = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n"


def test_data_after_an_upgrade_that_upstream_refuses_is_judged_as_requests() -> None:
    words = b"GET /v1/ws HTTP/1.1\r\nHost: up.test:%d\r\n" + UPGRADE
    words += ADMIN.replace(b"up.test", b"up.test:%d")
    answer = b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 2\r\n\r\nno"
    stage, told, upstream = attacked(words, upstream=Recorder(answer))
    assert told.startswith(b"HTTP/1.1 426 Upgrade Required\r\n")
    assert b"/admin" not in upstream.raw
    assert [line["status"] for line in stage.of("http.request")] == [426, 403]


def test_data_after_an_upgrade_that_policy_refuses_goes_nowhere() -> None:
    words = b"GET /ws HTTP/1.1\r\nHost: up.test:%d\r\n" + UPGRADE
    words += ADMIN.replace(b"up.test", b"up.test:%d") + b"\x81\x85hello"
    stage, told, upstream = attacked(words)
    assert upstream.raw == b""
    assert [line["status"] for line in stage.of("http.request")] == [403, 403]
    assert told.count(b"HTTP/1.1 403 ") == 2


def test_an_upgrade_with_content_is_no_upgrade() -> None:
    words = b"GET /v1/ws HTTP/1.1\r\nHost: up.test:%d\r\nContent-Length: 5\r\n" + UPGRADE
    _, _, upstream = attacked(words + b"hello")
    [request] = upstream.requests
    assert request.body == b"hello"
    assert "upgrade" not in request


def test_a_101_that_nobody_asked_for_is_an_error_of_upstream() -> None:
    answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"
    _, told, upstream = attacked(
        b"GET /v1/x HTTP/1.1\r\nHost: up.test:%d\r\n\r\n" + ADMIN, upstream=Recorder(answer)
    )
    assert told.startswith(b"HTTP/1.1 502 ")
    assert b"/admin" not in upstream.raw


def test_a_response_that_nobody_asked_for_is_nobodys() -> None:
    """Response splitting: two responses to one request, the second for the next client's."""
    upstream = Recorder(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil")
    told = b""

    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        nonlocal told
        port = await stage.upstream(nursery, upstream)
        async with stage.redirected(port) as client:
            for _ in range(2):
                await client.send_all(b"GET /v1/x HTTP/1.1\r\nHost: up.test:%d\r\n\r\n" % port)
                told += await read_until(client, b"ok")

    play(scenario, policy=policy_of(RULES))
    assert b"evil" not in told
    assert upstream.connections == 2


def test_dot_segments_are_judged_as_what_they_lead_to_and_forwarded_so() -> None:
    host = b" HTTP/1.1\r\nHost: up.test:%d\r\n\r\n"
    _, told, upstream = attacked(
        b"GET /v1/../admin" + host + b"GET /v1/%2e%2E/admin" + host + b"GET /v1/a/../b" + host
    )
    assert [request.target for request in upstream.requests] == ["/v1/b"]
    assert told.count(b"HTTP/1.1 403 ") == 2


@pytest.mark.parametrize("path", [b"/v1/..%2fadmin", b"/v1/%00", b"/v1/..%5cadmin", b"/v1/%c0%ae"])
def test_a_path_that_servers_read_differently_is_refused(path: bytes) -> None:
    _, told, upstream = attacked(b"GET " + path + b" HTTP/1.1\r\nHost: up.test:%d\r\n\r\n")
    assert told.startswith(b"HTTP/1.1 4")
    assert upstream.raw == b""
