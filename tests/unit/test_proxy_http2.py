"""Streams of a terminated HTTP/2 flow: each judged, answered and carried for itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio
import trio.testing
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    InformationalResponseReceived,
    PingAckReceived,
    RemoteSettingsChanged,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.settings import SettingCodes

from netns_runtime.proxy import http2_side
from tests.support.http2_stage import head_of, play_http2, rules

if TYPE_CHECKING:
    from tests.support.http2_stage import Both


def test_each_stream_is_judged_and_a_refused_one_leaves_the_others_alone() -> None:
    async def scenario(both: Both) -> None:
        client, upstream = both.client, both.upstream
        client.ask(1, "POST", "/open/a", end=False)
        client.ask(3, path="/closed?key=hidden")
        refused = head_of(await client.until(ResponseReceived, 3))
        await client.until(StreamEnded, 3)
        assert refused[":status"] == "403"
        assert refused["proxy-status"].startswith("netns-runtime; error=http_request_denied;")
        assert refused["content-length"] == str(len(client.content(3)))
        assert b"rule: inspected" in client.content(3)
        client.say(1, b"content", end=True)
        asked = await upstream.until(RequestReceived)
        await upstream.until(StreamEnded)
        assert upstream.content(asked.stream_id) == b"content"
        upstream.answer(asked.stream_id)
        await client.until(StreamEnded, 1)
        assert client.content(1) == b"ok"
        assert len(upstream.of(RequestReceived)) == 1

    stage = play_http2(scenario, policy=rules())
    refused, allowed = stage.of("http.request")
    assert (refused["status"], refused["said_by"], refused["action"]) == (403, "policy", "refuse")
    assert (refused["method"], refused["path"]) == ("GET", "/closed?key")
    assert refused["rule"].startswith("inspected")
    assert (allowed["status"], allowed["said_by"], allowed["path"]) == (200, "upstream", "/open/a")
    assert allowed["protocol"] == "h2"
    [closed] = stage.of("flow.closed")
    assert closed["bytes_in"] > 0
    assert closed["bytes_out"] > len(b"content")


def test_what_only_enforcing_would_refuse_passes_and_is_noted() -> None:
    async def scenario(both: Both) -> None:
        assert await both.exchange(1, "/closed") == b"ok"

    [line] = play_http2(scenario, policy=rules(b"audit")).of("http.request")
    assert (line["action"], line["status"]) == ("allow", 200)
    assert line["detail"].startswith("would be refused: ")


def test_report_mode_lets_pass_what_policy_would_refuse() -> None:
    async def scenario(both: Both) -> None:
        assert await both.exchange(1, "/closed") == b"ok"

    [line] = play_http2(scenario, policy=rules(), report=True).of("http.request")
    assert line["detail"].startswith("would be refused: ")


def test_a_refusal_is_json_where_that_is_asked_for_and_has_no_content_for_head() -> None:
    async def scenario(both: Both) -> None:
        client = both.client
        client.ask(1, "GET", "/closed", ("accept", "application/json"))
        client.ask(3, "HEAD", "/closed")
        await client.until(StreamEnded, 1)
        await client.until(StreamEnded, 3)
        assert client.content(1).startswith(b'{"said_by": "policy"')
        assert client.content(3) == b""

    play_http2(scenario, policy=rules())


def test_a_refused_upload_is_told_to_stop_after_the_response() -> None:
    async def scenario(both: Both) -> None:
        client = both.client
        client.ask(1, "POST", "/closed", end=False)
        reset = await client.until(StreamReset, 1)
        assert reset.error_code == ErrorCodes.NO_ERROR
        kinds = [type(event) for event in client.events if getattr(event, "stream_id", 0) == 1]
        assert kinds == [ResponseReceived, DataReceived, StreamEnded, StreamReset]
        assert client.content(1)

    play_http2(scenario, policy=rules())


@pytest.mark.parametrize(
    "authority", ["other.test", "up.test:8443", "up.test.evil.test", "u@up.test"]
)
def test_a_request_for_another_host_is_misdirected(authority: str) -> None:
    async def scenario(both: Both) -> None:
        both.client.ask(1, authority=authority)
        answer = head_of(await both.client.until(ResponseReceived, 1))
        await both.client.until(StreamEnded, 1)
        assert answer[":status"] == "421"
        assert both.upstream.of(RequestReceived) == []

    [line] = play_http2(scenario).of("http.request")
    assert (line["status"], line["reason"]) == (421, "host_mismatch")


@pytest.mark.parametrize("authority", ["UP.test", "up.test:443", "up.test."])
def test_other_spellings_of_the_host_are_the_host_and_go_out_as_one(authority: str) -> None:
    async def scenario(both: Both) -> None:
        both.client.ask(1, "GET", "/", ("host", authority), authority=authority)
        asked = head_of(await both.upstream.until(RequestReceived))
        assert asked[":authority"] == "up.test"
        assert "host" not in asked
        both.upstream.answer(1)
        await both.client.until(StreamEnded, 1)

    play_http2(scenario)


def test_a_host_header_that_differs_from_the_authority_is_misdirected() -> None:
    async def scenario(both: Both) -> None:
        both.client.h2.config.validate_outbound_headers = False
        both.client.ask(1, "GET", "/", ("host", "evil.test"))
        answer = head_of(await both.client.until(ResponseReceived, 1))
        assert answer[":status"] == "421"

    play_http2(scenario)


def test_connect_is_refused_and_so_is_the_extended_one() -> None:
    async def scenario(both: Both) -> None:
        client = both.client
        assert SettingCodes.ENABLE_CONNECT_PROTOCOL not in {
            code
            for event in [await client.until(RemoteSettingsChanged)]
            for code, setting in event.changed_settings.items()
            if setting.new_value
        }
        client.h2.config.validate_outbound_headers = False
        client.h2.send_headers(1, [(":method", "CONNECT"), (":authority", "up.test:443")])
        client.ask(3, "CONNECT", "/chat", (":protocol", "websocket"), end=False)
        assert head_of(await client.until(ResponseReceived, 1))[":status"] == "403"
        assert head_of(await client.until(ResponseReceived, 3))[":status"] == "501"
        await client.until(StreamEnded, 3)
        assert b"HTTP/1.1" in client.content(3)
        assert await both.exchange(5) == b"ok"

    play_http2(scenario)


MALFORMED = {
    "an upper-case name": [("Accept", "x")],
    "a line feed in a value": [("a", "x\ny: z")],
    "a carriage return in a value": [("a", "x\r")],
    "a NUL in a value": [("a", "x\0y")],
    "a line feed in a name": [("a\nb", "x")],
    "a space before a value": [("a", " x")],
    "connection": [("connection", "close")],
    "transfer-encoding": [("transfer-encoding", "chunked")],
    "te beyond trailers": [("te", "gzip")],
    "a pseudo-header last": [("a", "b"), (":path", "/b")],
    "a pseudo-header twice": [(":path", "/b")],
    "an unknown pseudo-header": [(":status", "200")],
    "two hosts": [("host", "up.test"), ("host", "up.test")],
}


@pytest.mark.parametrize("more", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_request_is_answered_and_the_connection_lives(
    more: list[tuple[str, str]],
) -> None:
    async def scenario(both: Both) -> None:
        client = both.client
        client.h2.config.validate_outbound_headers = False
        client.h2.config.normalize_outbound_headers = False
        client.ask(1, "GET", "/", *more)
        assert head_of(await client.until(ResponseReceived, 1))[":status"] == "400"
        assert both.upstream.of(RequestReceived) == []
        assert await both.exchange(3) == b"ok"

    lines = play_http2(scenario).of("http.request")
    assert [line["reason"] for line in lines if line["status"] == 400] == ["http_request_error"]


def test_connection_headers_of_upstream_end_here() -> None:
    async def scenario(both: Both) -> None:
        upstream = both.upstream
        upstream.h2.config.validate_outbound_headers = False
        both.client.ask(1, "GET", "/", ("proxy-authorization", "Basic eDp5"))
        asked = head_of(await upstream.until(RequestReceived))
        assert "proxy-authorization" not in asked
        upstream.answer(1, 200, ("connection", "close"), ("x", "y"))
        answer = head_of(await both.client.until(ResponseReceived, 1))
        assert answer == {":status": "200", "x": "y"}

    play_http2(scenario)


def test_a_malformed_response_is_upstreams_fault_and_the_connection_lives() -> None:
    async def scenario(both: Both) -> None:
        upstream, client = both.upstream, both.client
        upstream.h2.config.validate_outbound_headers = False
        client.ask(1)
        await upstream.until(RequestReceived)
        upstream.answer(1, 200, ("x", "a\r\nb: c"), content=None)
        answer = head_of(await client.until(ResponseReceived, 1))
        assert answer[":status"] == "502"
        reset = await upstream.until(StreamReset, 1)
        assert reset.error_code == ErrorCodes.CANCEL
        assert await both.exchange(3) == b"ok"

    lines = play_http2(scenario).of("http.request")
    assert [(line["status"], line["said_by"]) for line in lines] == [
        (502, "upstream"),
        (200, "upstream"),
    ]


def test_grpc_streams_both_ways_with_trailers_and_half_closes() -> None:
    async def scenario(both: Both) -> None:
        client, upstream = both.client, both.upstream
        client.ask(
            1,
            "POST",
            "/s/Talk",
            ("te", "trailers"),
            ("content-type", "application/grpc"),
            end=False,
        )
        asked = await upstream.until(RequestReceived)
        assert head_of(asked)["te"] == "trailers"
        number = asked.stream_id
        upstream.answer(number, 200, ("content-type", "application/grpc"), content=None)
        await client.until(ResponseReceived, 1)
        for turn in range(3):
            client.say(1, b"ping%d" % turn)
            assert (await upstream.until(DataReceived, count=turn + 1)).data == b"ping%d" % turn
            upstream.say(number, b"pong%d" % turn)
            assert (await client.until(DataReceived, count=turn + 1)).data == b"pong%d" % turn
        client.h2.end_stream(1)
        client.flush()
        await upstream.until(StreamEnded)
        upstream.say(number, b"last")
        upstream.h2.send_headers(number, [("grpc-status", "0")], end_stream=True)
        upstream.flush()
        trailers = await client.until(TrailersReceived, 1)
        assert head_of(trailers) == {"grpc-status": "0"}
        assert client.content(1) == b"pong0pong1pong2last"

    play_http2(scenario)


def test_a_response_of_trailers_only_ends_the_stream_at_once() -> None:
    async def scenario(both: Both) -> None:
        both.client.ask(1, "POST", "/s/M", ("te", "trailers"), end=False)
        await both.upstream.until(RequestReceived)
        both.upstream.h2.send_headers(
            1, [(":status", "200"), ("grpc-status", "12")], end_stream=True
        )
        both.upstream.h2.reset_stream(1, ErrorCodes.NO_ERROR)
        both.upstream.flush()
        answer = await both.client.until(ResponseReceived, 1)
        assert head_of(answer)["grpc-status"] == "12"
        assert (await both.client.until(StreamReset, 1)).error_code == ErrorCodes.NO_ERROR

    play_http2(scenario)


def test_request_trailers_and_informational_responses_pass() -> None:
    async def scenario(both: Both) -> None:
        client, upstream = both.client, both.upstream
        client.ask(1, "POST", "/", end=False)
        await upstream.until(RequestReceived)
        upstream.h2.send_headers(1, [(":status", "103"), ("link", "</a>")])
        upstream.flush()
        assert head_of(await client.until(InformationalResponseReceived, 1))["link"] == "</a>"
        client.say(1, b"x")
        client.h2.send_headers(1, [("checksum", "1")], end_stream=True)
        client.flush()
        assert head_of(await upstream.until(TrailersReceived)) == {"checksum": "1"}
        assert upstream.content(1) == b"x"
        upstream.answer(1)
        await client.until(StreamEnded, 1)

    play_http2(scenario)


@pytest.mark.parametrize("code", [ErrorCodes.CANCEL, ErrorCodes.INTERNAL_ERROR])
def test_a_reset_crosses_with_its_code(code: ErrorCodes) -> None:
    async def scenario(both: Both) -> None:
        client, upstream = both.client, both.upstream
        client.ask(1, "POST", "/", end=False)
        client.ask(3, "POST", "/", end=False)
        await upstream.until(RequestReceived, count=2)
        client.h2.reset_stream(1, code)
        client.flush()
        assert (await upstream.until(StreamReset, 1)).error_code == code
        upstream.h2.reset_stream(3, code)
        upstream.flush()
        assert (await client.until(StreamReset, 3)).error_code == code
        assert await both.exchange(5) == b"ok"

    lines = play_http2(scenario).of("http.request")
    assert [(line["said_by"], line.get("code")) for line in lines] == [
        ("sandbox", int(code)),
        ("upstream", int(code)),
        ("upstream", None),
    ]


def test_an_early_response_does_not_stop_the_upload() -> None:
    async def scenario(both: Both) -> None:
        client, upstream = both.client, both.upstream
        client.ask(1, "POST", "/", end=False)
        await upstream.until(RequestReceived)
        upstream.answer(1, 200, content=b"early")
        await client.until(StreamEnded, 1)
        client.say(1, b"late", end=True)
        await upstream.until(StreamEnded, 1)
        assert upstream.content(1) == b"late"
        assert await both.exchange(3) == b"ok"

    play_http2(scenario)


def test_pings_are_answered_on_each_side_and_do_not_cross() -> None:
    async def scenario(both: Both) -> None:
        for end, data in ((both.client, b"client--"), (both.upstream, b"upstream")):
            end.h2.ping(data)
            end.flush()
            assert (await end.until(PingAckReceived)).ping_data == data
        assert len(both.client.of(PingAckReceived)) == len(both.upstream.of(PingAckReceived)) == 1

    play_http2(scenario)


def test_upstream_is_told_that_nothing_may_be_pushed() -> None:
    async def scenario(both: Both) -> None:
        told = await both.upstream.until(RemoteSettingsChanged)
        assert told.changed_settings[SettingCodes.ENABLE_PUSH].new_value == 0

    play_http2(scenario)


def test_a_hundred_streams_run_at_once_and_end_in_any_order() -> None:
    async def scenario(both: Both) -> None:
        client, upstream = both.client, both.upstream
        for index in range(100):
            client.ask(2 * index + 1, path=f"/{index}")
        await upstream.until(RequestReceived, count=100)
        for event in reversed(upstream.of(RequestReceived)):
            upstream.answer(event.stream_id, content=head_of(event)[":path"].encode())
        await client.until(StreamEnded, count=100)
        for index in range(100):
            assert client.content(2 * index + 1) == b"/%d" % index

    assert len(play_http2(scenario).of("http.request")) == 100


def test_streams_wait_for_the_room_that_upstream_has() -> None:
    async def scenario(both: Both) -> None:
        client, upstream = both.client, both.upstream
        upstream.h2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: 2})
        upstream.flush()
        await upstream.quiet()
        for number in (1, 3, 5, 7):
            client.ask(number, "POST", f"/{number}", end=False)
            client.say(number, b"content", end=True)
        await upstream.until(RequestReceived, count=2)
        await upstream.quiet()
        assert len(upstream.of(RequestReceived)) == 2
        client.h2.reset_stream(5, ErrorCodes.CANCEL)
        client.flush()
        await trio.testing.wait_all_tasks_blocked()
        upstream.answer(1)
        third = await upstream.until(RequestReceived, count=3)
        assert head_of(third)[":path"] == "/7"
        await upstream.until(StreamEnded, third.stream_id)
        assert upstream.content(third.stream_id) == b"content"
        upstream.answer(3)
        upstream.answer(third.stream_id)
        for number in (1, 3, 7):
            await client.until(StreamEnded, number)

    play_http2(scenario)


@pytest.mark.parametrize("is_upload", [False, True])
def test_ten_megabytes_arrive_whole_and_little_of_them_is_held(is_upload: bool) -> None:
    size, held = 10 * 1024 * 1024, [0]
    content = bytes(range(256)) * (size // 256)

    async def scenario(both: Both) -> None:
        source, sink = both.client, both.upstream
        both.client.ask(1, "POST" if is_upload else "GET", "/", end=not is_upload)
        await both.upstream.until(RequestReceived)
        if not is_upload:
            source, sink = sink, source
            source.answer(1, content=None)
        sent = 0
        while sent < size:
            source.hear()
            room = min(source.h2.local_flow_control_window(1), 16_384)
            if room <= 0:
                sink.hear()
                await trio.testing.wait_all_tasks_blocked()
                continue
            source.h2.send_data(1, content[sent : sent + room], end_stream=sent + room >= size)
            source.flush()
            sent += room
            got = sum(len(event.data) for event in sink.of(DataReceived))
            held[0] = max(held[0], sent - got)
        await sink.until(StreamEnded, 1)
        assert sink.content(1) == content
        if is_upload:
            source, sink = sink, source
            source.answer(1)
        await both.client.until(StreamEnded, 1)

    play_http2(scenario, limits=(1 << 16, 1 << 16))
    assert held[0] <= 2 * http2_side.STREAM_MOST


def test_a_stream_that_nobody_reads_does_not_stop_the_others() -> None:
    async def scenario(both: Both) -> None:
        client, upstream = both.client, both.upstream
        client.acknowledges = False
        for number in (1, 3, 5):
            client.ask(number)
        await upstream.until(RequestReceived, count=3)
        for number in (1, 3):
            upstream.answer(number, content=None)
            while (room := min(upstream.h2.local_flow_control_window(number), 16_384)) > 0:
                upstream.say(number, b"x" * room)
                await upstream.quiet()
        client.h2.increment_flow_control_window(1 << 20)
        client.flush()
        upstream.answer(5)
        await client.until(StreamEnded, 5)
        assert client.content(5) == b"ok"

    play_http2(scenario)
