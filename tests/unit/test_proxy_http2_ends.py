"""How a terminated HTTP/2 connection ends, and what those who are on it are told."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import trio
import trio.testing
from h2.errors import ErrorCodes
from h2.events import (
    ConnectionTerminated,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
)

from netns_runtime.address import HostPort
from netns_runtime.audit import AuditError
from netns_runtime.policy import Policy
from netns_runtime.proxy.admit import Client, begin
from netns_runtime.proxy.http2 import refuse_http2
from netns_runtime.proxy.http2_limits import goaway
from netns_runtime.proxy.refuse import Refusal
from netns_runtime.proxy.reload import swap_policy
from tests.support.http2_stage import End, Wire, head_of, play_http2, rules
from tests.support.proxy_stage import Stage

if TYPE_CHECKING:
    from tests.support.http2_stage import Both


def test_upstreams_goaway_lets_open_streams_finish_and_reaches_the_client() -> None:
    async def scenario(both: Both) -> None:
        client, upstream = both.client, both.upstream
        for number in (1, 3):
            client.ask(number)
        await upstream.until(RequestReceived, count=2)
        upstream.raw(goaway(1, ErrorCodes.NO_ERROR))
        assert (await client.until(StreamReset, 3)).error_code == ErrorCodes.REFUSED_STREAM
        told = await client.until(ConnectionTerminated)
        assert (told.error_code, told.last_stream_id) == (ErrorCodes.NO_ERROR, 3)
        upstream.answer(1, content=b"whole")
        while not client.wire.is_over:
            await trio.testing.wait_all_tasks_blocked()

    stage = play_http2(scenario)
    refused, answered = stage.of("http.request")
    assert refused["detail"] == "upstream is going away: NO_ERROR"
    assert answered["status"] == 200
    assert "reason" not in stage.of("flow.closed")[0]


def test_after_a_goaway_the_last_responses_content_still_arrives() -> None:
    async def scenario(both: Both) -> None:
        wire, upstream = both.client.wire, both.upstream
        both.client.ask(1)
        await upstream.until(RequestReceived)
        upstream.raw(goaway(1, ErrorCodes.NO_ERROR))
        await trio.testing.wait_all_tasks_blocked()
        upstream.answer(1, content=b"whole")
        upstream.hang_up()
        while not wire.is_over:
            await trio.testing.wait_all_tasks_blocked()
        assert b"whole" in bytes(wire.left)

    play_http2(scenario)


def test_the_clients_goaway_reaches_upstream_and_open_streams_finish() -> None:
    async def scenario(both: Both) -> None:
        client, upstream = both.client, both.upstream
        client.ask(1)
        await upstream.until(RequestReceived)
        client.raw(goaway(0, ErrorCodes.NO_ERROR))
        await trio.testing.wait_all_tasks_blocked()
        upstream.answer(1)
        await client.until(StreamEnded, 1)
        assert client.content(1) == b"ok"
        await upstream.until(ConnectionTerminated)

    assert "reason" not in play_http2(scenario).of("flow.closed")[0]


def test_a_swapped_policy_judges_the_next_stream() -> None:
    async def scenario(both: Both) -> None:
        assert await both.exchange(1, "/closed") == b"ok"
        swap_policy(both.stage.sandbox, rules())
        both.client.ask(3, path="/closed")
        assert head_of(await both.client.until(ResponseReceived, 3))[":status"] == "403"
        assert await both.exchange(5, "/open/a") == b"ok"

    play_http2(scenario)


def test_a_swapped_policy_that_refuses_the_host_cuts_the_flow_and_says_so() -> None:
    async def scenario(both: Both) -> None:
        client, upstream = both.client, both.upstream
        client.ask(1)
        client.ask(3)
        await upstream.until(RequestReceived, count=2)
        upstream.answer(1, content=None)
        await client.until(ResponseReceived, 1)
        assert swap_policy(both.stage.sandbox, Policy(())) == 1
        assert head_of(await client.until(ResponseReceived, 3))[":status"] == "403"
        await client.until(StreamReset, 1)
        await client.until(ConnectionTerminated)

    stage = play_http2(scenario)
    [closed] = stage.of("flow.closed")
    assert (closed["reason"], closed["action"]) == ("policy_changed", "refuse")
    assert closed["bytes_in"] > 0


def test_upstreams_end_answers_what_is_open_and_ends_the_connection() -> None:
    async def scenario(both: Both) -> None:
        client, upstream = both.client, both.upstream
        client.ask(1)
        client.ask(3)
        await upstream.until(RequestReceived, count=2)
        upstream.answer(1, content=None)
        await client.until(ResponseReceived, 1)
        upstream.hang_up()
        answer = head_of(await client.until(ResponseReceived, 3))
        assert answer[":status"] == "502"
        assert "error=connection_terminated" in answer["proxy-status"]
        assert (await client.until(StreamReset, 1)).error_code == ErrorCodes.INTERNAL_ERROR
        await client.until(ConnectionTerminated)

    stage = play_http2(scenario)
    [closed] = stage.of("flow.closed")
    assert (closed["reason"], closed["said_by"]) == ("connection_terminated", "upstream")


def test_an_idle_upstream_that_closes_ends_the_connection_without_a_fault() -> None:
    async def scenario(both: Both) -> None:
        assert await both.exchange(1) == b"ok"
        both.upstream.hang_up()
        told = await both.client.until(ConnectionTerminated)
        assert told.error_code == ErrorCodes.NO_ERROR

    assert "reason" not in play_http2(scenario).of("flow.closed")[0]


def test_an_idle_connection_ends_after_a_while_and_a_busy_one_does_not() -> None:
    clock = trio.testing.MockClock()

    async def scenario(both: Both) -> None:
        client = both.client
        client.ask(1)
        await both.upstream.until(RequestReceived)
        for _ in range(5):
            clock.jump(1000)
            await trio.testing.wait_all_tasks_blocked()
        both.upstream.answer(1)
        await client.until(StreamEnded, 1)
        for _ in range(3):
            clock.jump(301)
            await trio.testing.wait_all_tasks_blocked()
        await client.until(ConnectionTerminated)

    play_http2(scenario, clock=clock)


def test_a_client_that_says_nothing_is_not_waited_for() -> None:
    clock = trio.testing.MockClock()

    async def scenario(both: Both) -> None:
        both.client.wire.arrived.clear()
        await trio.testing.wait_all_tasks_blocked()
        clock.jump(31)
        await trio.testing.wait_all_tasks_blocked()
        assert both.client.wire.is_over

    [closed] = play_http2(scenario, clock=clock).of("flow.closed")
    assert closed["reason"] == "connection_timeout"


def test_once_the_audit_fails_nothing_more_goes_upstream() -> None:
    async def scenario(both: Both) -> None:
        audit = both.stage.sandbox.audit
        write = audit.write
        assert await both.exchange(1) == b"ok"

        def fail(event: str, **fields: Any) -> None:
            raise AuditError("cannot write the audit: No space left on device")

        audit.write = fail  # type: ignore[method-assign]
        assert await both.exchange(3) == b"ok"
        both.client.ask(5)
        assert head_of(await both.client.until(ResponseReceived, 5))[":status"] == "503"
        audit.write = write  # type: ignore[method-assign]
        assert await both.exchange(7) == b"ok"
        assert len(both.upstream.of(RequestReceived)) == 3
        both.stage.reports.clear()

    play_http2(scenario)


def test_progress_is_told_while_the_flow_is_open() -> None:
    async def scenario(both: Both) -> None:
        await both.exchange(1)
        [flow] = both.stage.sandbox.flows.values()
        assert flow.progress is not None
        assert dict(flow.progress())["bytes_in"] > 0

    play_http2(scenario)


def test_an_upstream_that_could_not_be_reached_is_told_to_the_first_request() -> None:
    stage = Stage()
    stage.sandbox.config = replace(stage.sandbox.config, policy=rules())

    async def run() -> None:
        wire = Wire()
        both_ends: Any = wire
        end = End(wire, is_client=True)
        client = Client.__new__(Client)
        client.owner, client.entry, client.sock = None, "explicit", both_ends
        client.scheme = "https"
        flow, _ = begin(stage.sandbox, client, HostPort("up.test", 443), "h2")
        refusal = Refusal("tls_certificate_error", "its certificate has expired")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refuse_http2, stage.sandbox, flow, both_ends, refusal)
            end.ask(1, path="/open/a")
            end.ask(3, path="/closed")
            answer = head_of(await end.until(ResponseReceived, 1))
            assert answer[":status"] == "502"
            assert "error=tls_certificate_error" in answer["proxy-status"]
            assert head_of(await end.until(ResponseReceived, 3))[":status"] == "403"
            await end.until(ConnectionTerminated)
            end.hang_up()

    trio.run(run)
    told, refused = stage.of("http.request")
    assert (told["said_by"], told["reason"]) == ("upstream", "tls_certificate_error")
    assert refused["said_by"] == "policy"
