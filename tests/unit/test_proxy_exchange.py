"""Absolute-form HTTP/1.1 through the explicit proxy, on loopback."""

from __future__ import annotations

import pytest
import trio

from tests.support.proxy_stage import Stage, play, read_all, read_until


class Upstream:
    """Answers from a list, one response to each head it reads, and keeps the heads."""

    def __init__(self, *responses: bytes, close: bool = False, body: bytes = b"") -> None:
        self.responses = list(responses)
        self.heads: list[bytes] = []
        self.connections = 0
        self.close = close
        self.body = body

    async def __call__(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        async with stream:
            while self.responses:
                head = b""
                while not head.endswith(b"\r\n\r\n" + self.body):
                    part = await stream.receive_some(1)
                    if not part:
                        return
                    head += part
                self.heads.append(head)
                await stream.send_all(self.responses.pop(0))
                if self.close:
                    return


def ok(body: bytes, *headers: str) -> bytes:
    lines = ("HTTP/1.1 200 OK", f"Content-Length: {len(body)}", *headers)
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def get(
    port: int, path: str = "/", *headers: str, method: str = "GET", host: str = "up.test"
) -> bytes:
    lines = (f"{method} http://{host}:{port}{path} HTTP/1.1", "Host: liar.test", *headers)
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def test_two_requests_share_both_connections_and_each_is_decided() -> None:
    upstream = Upstream(ok(b"one"), ok(b"two"))

    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        port = await stage.upstream(nursery, upstream)
        async with stage.client() as client:
            await client.send_all(get(port, "/a?k=v", "Connection: X-Gone", "X-Gone: 1"))
            assert (await read_until(client, b"one")).startswith(b"HTTP/1.1 200 OK\r\n")
            await client.send_all(get(port, "/b"))
            await read_until(client, b"two")
        await stage.settled()
        assert upstream.heads[0] == f"GET /a?k=v HTTP/1.1\r\nHost: up.test:{port}\r\n\r\n".encode()

    stage = play(scenario)
    assert upstream.connections == 1
    assert len(stage.of("flow.decided")) == 2
    assert [line["path"] for line in stage.of("http.request")] == ["/a?k", "/b"]
    assert [line["status"] for line in stage.of("http.request")] == [200, 200]
    [closed] = stage.of("flow.closed")
    assert closed["bytes_out"] == sum(map(len, upstream.heads))


def test_a_kept_connection_does_not_lend_its_decision_to_the_next_request() -> None:
    upstream = Upstream(ok(b"one"), ok(b"two"))

    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        port = await stage.upstream(nursery, upstream)
        async with stage.client() as client:
            await client.send_all(get(port))
            await read_until(client, b"one")
            await client.send_all(get(port, host="evil.test"))
            assert b"403 Forbidden" in await read_until(client, b"remedy")
            await client.send_all(get(port))
            await read_until(client, b"two")

    stage = play(scenario)
    assert [line["action"] for line in stage.of("flow.decided")] == ["allow", "refuse", "allow"]
    assert len(upstream.heads) == 2


def test_pipelined_requests_are_answered_in_order() -> None:
    upstream = Upstream(ok(b"one"), ok(b"two"))

    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        port = await stage.upstream(nursery, upstream)
        answer = await stage.ask(get(port, "/1") + get(port, "/2", "Connection: close"))
        assert answer.index(b"one") < answer.index(b"two")

    play(scenario)


@pytest.mark.parametrize("step", [1, 10_000])
def test_a_chunked_body_passes_both_ways(step: int) -> None:
    chunked = b"5\r\nhello\r\n0\r\n\r\n"
    response = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;ext=1\r\nworld\r\n0\r\n\r\n"

    async def server(stream: trio.SocketStream) -> None:
        request = await read_until(stream, b"\r\n0\r\n\r\n")
        body = request.partition(b"\r\n\r\n")[2].split(b"\r\n")
        assert b"".join(body[1::2]) == b"hello"
        await stream.send_all(response)

    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        port = await stage.upstream(nursery, server)
        request = get(port, "/", "Transfer-Encoding: chunked", method="POST") + chunked
        async with stage.client() as client:
            for start in range(0, len(request), step):
                await client.send_all(request[start : start + step])
            answer = await read_until(client, b"0\r\n\r\n")
            assert b"world" in answer
            assert b"ext" not in answer

    play(scenario)


def test_a_bad_chunk_is_refused_and_upstream_is_cut() -> None:
    upstream = Upstream(b"", body=b"never")

    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        port = await stage.upstream(nursery, upstream)
        request = get(port, "/", "Transfer-Encoding: chunked", method="POST") + b"zz\r\nhello"
        assert (await stage.ask(request, end=True)).startswith(b"HTTP/1.1 400 ")
        await stage.settled()

    stage = play(scenario)
    assert stage.of("flow.closed")[0]["reason"] == "http_request_error"
    assert stage.reports == []


def test_expect_100_continue_is_upstreams_to_answer() -> None:
    async def server(stream: trio.SocketStream) -> None:
        head = await read_until(stream, b"\r\n\r\n")
        assert b"Expect: 100-continue" in head
        await stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
        assert await read_until(stream, b"body") == b"body"
        await stream.send_all(ok(b"done"))

    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        port = await stage.upstream(nursery, server)
        async with stage.client() as client:
            headers = ("Content-Length: 4", "Expect: 100-continue")
            await client.send_all(get(port, "/", *headers, method="PUT"))
            assert b"100 " in await read_until(client, b"\r\n\r\n")
            await client.send_all(b"body")
            await read_until(client, b"done")

    play(scenario)


@pytest.mark.parametrize(
    ("method", "response"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\n\r\n"),
    ],
)
def test_responses_without_a_body_leave_the_connection_usable(method: str, response: bytes) -> None:
    upstream = Upstream(response, ok(b"next"))

    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        port = await stage.upstream(nursery, upstream)
        async with stage.client() as client:
            await client.send_all(get(port, method=method))
            await read_until(client, b"\r\n\r\n")
            await client.send_all(get(port))
            await read_until(client, b"next")
        assert upstream.connections == 1

    play(scenario)


def test_a_websocket_upgrade_in_absolute_form_becomes_a_tunnel() -> None:
    async def server(stream: trio.SocketStream) -> None:
        head = await read_until(stream, b"\r\n\r\n")
        assert b"Upgrade: websocket" in head
        assert b"Sec-WebSocket-Key: k" in head
        await stream.send_all(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Accept: a\r\n\r\nserver first"
        )
        await read_until(stream, b"client frame")
        await stream.send_all(b"bye")

    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        port = await stage.upstream(nursery, server)
        async with stage.client() as client:
            request = get(
                port, "/s", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: k"
            )
            await client.send_all(request.replace(b"http://", b"ws://"))
            answer = await read_until(client, b"server first")
            assert answer.startswith(b"HTTP/1.1 101 ")
            assert b"Sec-WebSocket-Accept: a" in answer
            await client.send_all(b"client frame")
            await read_until(client, b"bye")
        await stage.settled()

    stage = play(scenario)
    assert stage.of("flow.closed")[0]["protocol"] == "websocket"
    assert stage.reports == []


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (b"", b"connection_terminated"),
        (b"SSH-2.0-server\r\n", b"http_protocol_error"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            b"http_protocol_error",
        ),
    ],
)
def test_an_upstream_that_breaks_http_is_a_502(response: bytes, error: bytes) -> None:
    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        port = await stage.upstream(nursery, Upstream(response, close=True))
        answer = await stage.ask(get(port))
        assert answer.startswith(b"HTTP/1.1 502 ")
        assert b"error=" + error in answer

    stage = play(scenario)
    assert stage.of("flow.closed")[0]["said_by"] == "upstream"
    assert stage.of("http.request")[0]["status"] == 502


def test_a_cut_response_is_not_made_to_look_whole() -> None:
    response = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\npart"

    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        port = await stage.upstream(nursery, Upstream(response, close=True))
        async with stage.client() as client:
            await client.send_all(get(port))
            await read_until(client, b"part")
            with pytest.raises(trio.BrokenResourceError):
                await read_all(client)

    stage = play(scenario)
    assert stage.of("flow.closed")[0]["reason"] == "http_response_incomplete"


def test_what_upstream_refuses_is_passed_on_unaltered() -> None:
    response = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\nX-Mine: 1\r\n\r\nmine"

    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        port = await stage.upstream(nursery, Upstream(response))
        answer = await stage.ask(get(port, "/", "Connection: close"))
        assert answer.endswith(b"\r\n\r\nmine")
        assert b"Proxy-Status" not in answer

    assert play(scenario).of("http.request")[0]["said_by"] == "upstream"


def test_an_http_1_0_client_gets_a_response_that_ends_with_the_connection() -> None:
    response = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"

    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        port = await stage.upstream(nursery, Upstream(response))
        answer = await stage.ask(f"GET http://up.test:{port}/ HTTP/1.0\r\n\r\n".encode())
        assert answer.endswith(b"\r\n\r\nhello")

    play(scenario)


def test_a_kept_upstream_that_ended_meanwhile_is_dialled_again() -> None:
    upstream = Upstream(ok(b"one"), ok(b"two"), close=True)

    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        port = await stage.upstream(nursery, upstream)
        async with stage.client() as client:
            await client.send_all(get(port))
            await read_until(client, b"one")
            await client.send_all(get(port))
            await read_until(client, b"two")

    play(scenario)
    assert upstream.connections == 2


def test_the_path_of_an_audit_line_holds_no_control_characters() -> None:
    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        await stage.ask(
            b"GET http://evil.test/\xc2\x9b31m HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
        )

    [request] = play(scenario).of("http.request")
    assert request["path"] == "/%C2%9B31m"
    assert request["status"] == 403
