"""HTTP/2 peers that attack: each is told to calm down, is audited, and costs bounded memory."""

from __future__ import annotations

import struct
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
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
from h2.settings import SettingCodes
from hpack import Encoder
from hyperframe.frame import SettingsFrame
from hypothesis import given, settings
from hypothesis import strategies as st

from netns_runtime.proxy import http2_limits, http2_side
from netns_runtime.proxy.http2_limits import (
    BURST,
    PER_SECOND,
    PREFACE,
    Budget,
    FrameReader,
    GoAway,
    TooMuch,
    goaway,
)
from netns_runtime.proxy.http2_side import GRANTS, WINDOW
from tests.support.http2_stage import play_http2

if TYPE_CHECKING:
    from tests.support.http2_stage import Both

DATA, HEADERS, PRIORITY, RST, SETTINGS, PING, WINDOW_UPDATE, CONTINUATION = 0, 1, 2, 3, 4, 6, 8, 9

HEAD = [(":method", "GET"), (":scheme", "https"), (":authority", "up.test"), (":path", "/")]


def frame(kind: int, flags: int = 0, number: int = 0, content: bytes = b"") -> bytes:
    size = len(content)
    return struct.pack(">HBBBL", size >> 8, size & 255, kind, flags, number) + content


def reader(now: float = 0.0) -> tuple[Budget, FrameReader]:
    budget = Budget(now)
    return budget, FrameReader(budget, is_server=False)


def parts_of(frames: FrameReader) -> list[bytes | GoAway]:
    found = []
    while (part := frames.next()) is not None:
        found.append(part)
    return found


@pytest.mark.parametrize("step", [1, 7, 9, 10_000])
def test_frames_come_whole_however_they_were_cut(step: int) -> None:
    data = frame(SETTINGS) + frame(PING, 0, 0, b"12345678") + frame(DATA, 0, 1, b"x" * 300)
    _, frames = reader()
    seen = b""
    for at in range(0, len(data), step):
        frames.feed(data[at : at + step])
        for part in parts_of(frames):
            assert isinstance(part, bytes)
            seen += part
    assert seen == data


def test_a_goaway_is_taken_out_in_its_place() -> None:
    _, frames = reader()
    before, after = frame(PING, 0, 0, b"12345678"), frame(SETTINGS)
    frames.feed(before + goaway(5, ErrorCodes.NO_ERROR) + after)
    assert parts_of(frames) == [before, GoAway(5, 0), after]


def test_a_frame_is_refused_by_its_header_alone() -> None:
    _, frames = reader()
    frames.feed(struct.pack(">HBBBL", 16_385 >> 8, 16_385 & 255, DATA, 0, 1))
    with pytest.raises(TooMuch) as raised:
        frames.next()
    assert raised.value.code is ErrorCodes.FRAME_SIZE_ERROR


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\rX"])
def test_what_does_not_begin_with_the_preface_is_no_http2(data: bytes) -> None:
    frames = FrameReader(Budget(0), is_server=True)
    frames.feed(data)
    with pytest.raises(TooMuch, match="not HTTP/2"):
        frames.next()


def test_the_preface_may_come_byte_by_byte() -> None:
    frames = FrameReader(Budget(0), is_server=True)
    for index in range(len(PREFACE)):
        assert frames.next() is None
        frames.feed(PREFACE[index : index + 1])
    assert frames.next() == PREFACE


def test_a_budget_comes_back_with_time_and_never_beyond_the_burst() -> None:
    budget = Budget(0)
    budget.spend(BURST, "PING")
    with pytest.raises(TooMuch, match="PING"):
        budget.spend(1, "PING")
    budget.refill(1_000_000)
    budget.spend(BURST, "PING")
    with pytest.raises(TooMuch):
        budget.spend(1, "PING")


@given(st.lists(st.binary(max_size=200), max_size=8))
@settings(max_examples=100, deadline=None)
def test_any_bytes_are_frames_or_too_much(pieces: list[bytes]) -> None:
    for is_server in (True, False):
        frames = FrameReader(Budget(0), is_server=is_server)
        try:
            for piece in pieces:
                frames.feed(piece)
                parts_of(frames)
        except TooMuch:
            pass


FLOODS = {
    "SETTINGS": frame(SETTINGS),
    "PING": frame(PING, 0, 0, b"12345678"),
    "PING answers": frame(PING, 1, 0, b"12345678"),
    "PRIORITY": frame(PRIORITY, 0, 9, struct.pack(">LB", 1, 9)),
    "WINDOW_UPDATE": frame(WINDOW_UPDATE, 0, 0, struct.pack(">L", 1)),
    "empty DATA": frame(DATA, 0, 1),
    "padding": frame(DATA, 8, 1, b"\x03\0\0\0"),
    "RST_STREAM": frame(RST, 0, 1, struct.pack(">L", 8)),
    "unknown frames": frame(0xBE, 0, 0, b"x"),
}


@pytest.mark.parametrize("flood", FLOODS)
@pytest.mark.parametrize("is_client", [True, False])
def test_a_flood_ends_its_connection_and_is_told(flood: str, *, is_client: bool) -> None:
    async def scenario(both: Both) -> None:
        client, upstream = both.client, both.upstream
        client.ask(1, "POST", end=False)
        await upstream.until(RequestReceived)
        upstream.answer(1, content=None)
        await client.until(ResponseReceived)
        attacker = client if is_client else upstream
        attacker.raw(FLOODS[flood] * 4_000)
        told = await attacker.until(ConnectionTerminated)
        assert told.error_code == ErrorCodes.ENHANCE_YOUR_CALM
        if not is_client:
            await client.until(StreamReset, 1)

    stage = play_http2(scenario)
    [closed] = stage.of("flow.closed")
    assert "ENHANCE_YOUR_CALM" in closed["detail"]
    if is_client:
        assert (closed["said_by"], closed["action"]) == ("proxy", "refuse")
    else:
        assert (closed["said_by"], closed["reason"]) == ("upstream", "http_protocol_error")


def resets_since(begun: float) -> float:
    """The resets that a budget, full at `begun` (time.monotonic) or later, has paid by now."""
    points = BURST + PER_SECOND * (time.monotonic() - begun)
    return points / http2_limits.CLIENT_RESET


def test_rapid_resets_end_the_connection_before_upstream_sees_many() -> None:
    seen = []
    begun = time.monotonic()

    async def scenario(both: Both) -> None:
        client, upstream = both.client, both.upstream
        for number in range(1, 4_000, 2):
            client.h2.send_headers(
                number,
                HEAD,
                end_stream=True,
            )
            client.h2.reset_stream(number, ErrorCodes.CANCEL)
        client.flush()
        told = await client.until(ConnectionTerminated)
        assert told.error_code == ErrorCodes.ENHANCE_YOUR_CALM
        await upstream.quiet()
        seen.append(len(upstream.of(RequestReceived)))

    stage = play_http2(scenario)
    assert seen[0] <= resets_since(begun)
    assert "RST_STREAM" in stage.of("flow.closed")[0]["detail"]


def test_rapid_resets_one_by_one_end_the_connection_too() -> None:
    begun = time.monotonic()

    async def scenario(both: Both) -> None:
        client, upstream = both.client, both.upstream
        for number in range(1, 1_000, 2):
            if client.wire.is_over:
                break
            client.ask(number)
            await trio.testing.wait_all_tasks_blocked()
            client.h2.reset_stream(number, ErrorCodes.CANCEL)
            client.flush()
            await trio.testing.wait_all_tasks_blocked()
        client.hear()
        assert client.of(ConnectionTerminated)
        upstream.hear()
        assert len(upstream.of(RequestReceived)) <= resets_since(begun) + 1

    play_http2(scenario)


def test_requests_that_are_finished_may_be_cancelled_as_often() -> None:
    async def scenario(both: Both) -> None:
        client, upstream = both.client, both.upstream
        for number in range(1, 900, 4):
            await both.exchange(number)
            client.ask(number + 2)
            client.h2.reset_stream(number + 2, ErrorCodes.CANCEL)
            client.flush()
        assert not client.of(ConnectionTerminated)
        upstream.hear()

    play_http2(scenario)


def test_a_server_that_is_made_to_reset_is_not_made_to_for_long() -> None:
    async def scenario(both: Both) -> None:
        client = both.client
        for number in range(1, 1_000, 2):
            if client.wire.is_over:
                break
            client.h2.send_headers(
                number,
                HEAD,
                end_stream=True,
            )
            # CVE-2025-8671: an overflow of the stream's window, for which we reset it.
            overflow = frame(WINDOW_UPDATE, 0, number, struct.pack(">L", 0x7FFF_FFFF))
            client.raw(client.h2.data_to_send() + overflow)
            await trio.testing.wait_all_tasks_blocked()
        assert client.wire.is_over

    stage = play_http2(scenario)
    assert "ENHANCE_YOUR_CALM" in stage.of("flow.closed")[0]["detail"]


@pytest.mark.parametrize("size", [0, 16, 16_000])
def test_a_header_block_without_an_end_is_cut_short(size: int) -> None:
    async def scenario(both: Both) -> None:
        client = both.client
        client.raw(frame(HEADERS, 0, 1, b"x" * size))
        for _ in range(6_000_000 // max(size, 16) // 100):
            client.raw(frame(CONTINUATION, 0, 1, b"x" * size) * 100)
            await trio.testing.wait_all_tasks_blocked()
            if client.wire.is_over:
                break
        told = await client.until(ConnectionTerminated)
        assert told.error_code == ErrorCodes.ENHANCE_YOUR_CALM

    stage = play_http2(scenario)
    assert "header block" in stage.of("flow.closed")[0]["detail"]


def test_a_hundred_megabytes_of_headers_are_not_read() -> None:
    taken = 0

    async def scenario(both: Both) -> None:
        nonlocal taken
        client = both.client
        number, block = 1, b""
        for index in range(14):
            name, value = b"h%d" % index, b"v" * 4_000
            block += b"\0" + bytes([len(name)]) + name + b"\x7f" + _integer(4_000 - 127) + value
        while not client.wire.is_over and taken < 100 << 20:
            client.raw(frame(HEADERS, 1, number, block[:16_000]))
            for at in range(16_000, len(block), 16_000):
                ends = at + 16_000 >= len(block)
                client.raw(frame(CONTINUATION, 4 if ends else 0, number, block[at : at + 16_000]))
            taken += len(block)
            number += 2
            await trio.testing.wait_all_tasks_blocked()

    play_http2(scenario)
    assert taken < 3 << 20


def _integer(value: int) -> bytes:
    """The rest of an HPACK integer."""
    out = b""
    while value >= 128:
        out += bytes([value & 127 | 128])
        value >>= 7
    return out + bytes([value])


@pytest.mark.parametrize("is_client", [True, False])
def test_a_bomb_of_header_compression_is_not_unpacked(*, is_client: bool) -> None:
    # One entry of 4 KiB, and 10,000 references to it: 40 MB out of 14 KB.
    encoder = Encoder()
    head = {":method": "GET", ":scheme": "https", ":authority": "up.test", ":path": "/"}
    fields = list(head.items()) if is_client else [(":status", "200")]
    block = encoder.encode([*fields, ("x", "y" * 3_900)]) + b"\xbe" * 10_000

    async def scenario(both: Both) -> None:
        client, upstream = both.client, both.upstream
        attacker = client
        if not is_client:
            attacker = upstream
            client.ask(1)
            await upstream.until(RequestReceived)
        attacker.raw(frame(HEADERS, 4, 1, block))
        told = await attacker.until(ConnectionTerminated)
        assert told.error_code == ErrorCodes.ENHANCE_YOUR_CALM
        if not is_client:
            await client.until(ResponseReceived, 1)

    [closed] = play_http2(scenario).of("flow.closed")
    assert "larger than 65536" in closed["detail"]


def test_a_table_of_any_size_that_a_peer_allows_is_not_filled() -> None:
    async def scenario(both: Both) -> None:
        upstream, client = both.upstream, both.client
        upstream.h2.update_settings({SettingCodes.HEADER_TABLE_SIZE: 0xFFFF_FFFF})
        upstream.flush()
        await upstream.quiet()
        for index in range(40):
            number = 2 * index + 1
            client.ask(number, "GET", "/", (f"x{index}", "y" * 900))
            await upstream.until(RequestReceived, count=index + 1)
            upstream.answer(number)
            await client.until(StreamEnded, number)
        assert upstream.h2.decoder.header_table_size == 4_096

    play_http2(scenario)


def test_streams_beyond_the_limit_are_refused_one_by_one() -> None:
    async def scenario(both: Both) -> None:
        client, upstream = both.client, both.upstream
        client.h2.remote_settings.update({SettingCodes.MAX_CONCURRENT_STREAMS: 1_000})
        client.h2.remote_settings.acknowledge()
        for index in range(110):
            client.ask(2 * index + 1, "POST", end=False)
        await client.until(StreamReset, count=10)
        codes = {event.error_code for event in client.of(StreamReset)}
        assert codes == {ErrorCodes.REFUSED_STREAM}
        await upstream.until(RequestReceived, count=100)
        await upstream.quiet()
        assert len(upstream.of(RequestReceived)) == 100
        upstream.answer(1)
        await client.until(StreamEnded, 1)

    play_http2(scenario)


def test_a_client_that_never_opens_its_window_is_held_little_and_then_ended() -> None:
    clock = trio.testing.MockClock()
    most = []

    async def scenario(both: Both) -> None:
        client, upstream = both.client, both.upstream
        client.acknowledges = False
        client.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
        client.flush()
        for index in range(50):
            client.ask(2 * index + 1)
        await upstream.until(RequestReceived, count=50)
        sent = 0
        for index in range(50):
            number = 2 * index + 1
            upstream.answer(number, content=None)
            while (room := min(upstream.h2.local_flow_control_window(number), 16_384)) > 0:
                upstream.say(number, b"x" * room)
                sent += room
                await upstream.quiet()
        most.append(sent)
        for _ in range(6):
            clock.jump(301)
            await trio.testing.wait_all_tasks_blocked()
        told = await client.until(ConnectionTerminated)
        assert told.error_code == ErrorCodes.ENHANCE_YOUR_CALM

    stage = play_http2(scenario, clock=clock)
    assert most[0] <= WINDOW
    [closed] = stage.of("flow.closed")
    assert closed["said_by"] == "sandbox"
    assert "not taken in time" in closed["detail"]


def test_an_upstream_that_never_opens_its_window_holds_little_of_an_upload() -> None:
    clock = trio.testing.MockClock()

    async def scenario(both: Both) -> None:
        client, upstream = both.client, both.upstream
        upstream.acknowledges = False
        client.ask(1, "POST", end=False)
        await upstream.until(RequestReceived)
        sent = 0
        while (room := min(client.h2.local_flow_control_window(1), 16_384)) > 0:
            client.say(1, b"x" * room)
            sent += room
            await client.quiet()
            upstream.hear()
        assert sent <= 2 * 65_535 + 65_536
        for _ in range(6):
            clock.jump(301)
            await trio.testing.wait_all_tasks_blocked()
        told = await upstream.until(ConnectionTerminated)
        assert told.error_code == ErrorCodes.ENHANCE_YOUR_CALM

    [closed] = play_http2(scenario, clock=clock).of("flow.closed")
    assert closed["said_by"] == "upstream"


def test_answers_to_pings_that_nobody_reads_do_not_pile_up() -> None:
    async def scenario(both: Both) -> None:
        client = both.client
        await client.quiet()
        client.wire.limit = 0
        client.raw(frame(PING, 0, 0, b"12345678") * 400)
        await trio.testing.wait_all_tasks_blocked()
        assert not client.wire.arrived
        client.wire.limit = 1 << 30
        client.wire.changed()

    play_http2(scenario)


def test_what_is_owed_to_a_client_that_does_not_read_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full, unread = 100_000, []
    monkeypatch.setattr(http2_side, "OUT_FULL", full)

    async def scenario(both: Both) -> None:
        client, upstream = both.client, both.upstream
        plain = partial(Encoder.encode, upstream.h2.encoder, huffman=False)
        monkeypatch.setattr(upstream.h2.encoder, "encode", plain)
        await client.quiet()
        client.wire.limit = 0
        for index in range(60):
            client.ask(2 * index + 1)
        await upstream.until(RequestReceived, count=60)
        for event in upstream.of(RequestReceived):
            upstream.answer(event.stream_id, 200, ("x", "y" * 8_000), content=None)
        await trio.testing.wait_all_tasks_blocked()
        unread.append(len(upstream.wire.arrived))
        client.wire.limit = 1 << 30
        client.wire.changed()
        await client.until(ResponseReceived, count=60)

    play_http2(scenario)
    assert unread[0] >= 60 * 8_000 - full - 3 * 65_536


def test_a_promise_that_was_not_asked_for_ends_upstreams_connection() -> None:
    async def scenario(both: Both) -> None:
        client, upstream = both.client, both.upstream
        client.ask(1)
        await upstream.until(RequestReceived)
        promise = struct.pack(">L", 2) + Encoder().encode([(":method", "GET")])
        upstream.raw(frame(5, 4, 1, promise))
        told = await upstream.until(ConnectionTerminated)
        assert told.error_code == ErrorCodes.PROTOCOL_ERROR
        await client.until(ResponseReceived, 1)

    play_http2(scenario)


def test_the_pool_gets_back_what_a_connection_had() -> None:
    before = GRANTS.left
    lowest = []

    async def scenario(both: Both) -> None:
        client, upstream = both.client, both.upstream
        client.ask(1)
        await upstream.until(RequestReceived)
        upstream.answer(1, content=None)
        sent = 0
        while sent < 4 << 20:
            upstream.hear()
            client.hear()
            room = min(upstream.h2.local_flow_control_window(1), 16_384)
            if room > 0:
                upstream.say(1, b"x" * room)
                sent += room
            else:
                await trio.testing.wait_all_tasks_blocked()
        lowest.append(GRANTS.left)

    play_http2(scenario)
    assert lowest[0] < before
    assert GRANTS.left == before


def test_without_the_pool_bytes_flow_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2_side, "GRANTS", http2_side.Grants(0))

    async def scenario(both: Both) -> None:
        assert await both.exchange(1) == b"ok"

    play_http2(scenario)


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=60)), max_size=6))
@settings(max_examples=60, deadline=None)
def test_whatever_either_side_sends_ends_without_a_bug(pieces: list[tuple[bool, bytes]]) -> None:
    async def scenario(both: Both) -> None:
        client, upstream = both.client, both.upstream
        client.ask(1, "POST", end=False)
        await upstream.until(RequestReceived)
        for is_client, piece in pieces:
            kind, rest = (piece[:1] or b"\0")[0] % 12, piece[1:]
            (client if is_client else upstream).raw(frame(kind, len(rest) % 64, 1, rest))
            await trio.testing.wait_all_tasks_blocked()

    play_http2(scenario)


def test_settings_of_a_peer_are_acknowledged_and_its_own() -> None:
    async def scenario(both: Both) -> None:
        first: Any = SettingsFrame(0, {SettingCodes.MAX_FRAME_SIZE: 32_768})
        both.client.raw(first.serialize())
        both.upstream.hear()
        assert await both.exchange(1) == b"ok"
        assert both.upstream.h2.max_outbound_frame_size == 16_384

    play_http2(scenario)
