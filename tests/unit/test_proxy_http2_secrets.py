"""Secrets over HTTP/2: substituted, withheld, and masked on the way back."""

from __future__ import annotations

import gzip
from typing import TYPE_CHECKING

from h2.events import (
    RequestReceived,
    ResponseReceived,
    StreamEnded,
)

from netns_runtime.secret import Binding, Secret, Slot, placeholder_of
from tests.support.http2_stage import head_of, play_http2

if TYPE_CHECKING:
    from netns_runtime.secret import SlotKind
    from tests.support.http2_stage import Both


VALUE = "s3cr3t-value-0123456789"


def secret(*slots: tuple[SlotKind, str], hosts: tuple[str, ...] = ("up.test",)) -> Secret:
    declared = tuple(Slot(kind, name) for kind, name in slots)
    return Secret(Binding("TOKEN", hosts, declared, codings=("gzip",)), VALUE)


def test_a_secret_is_put_into_its_slots_and_masked_where_it_comes_back() -> None:
    placeholder = placeholder_of("TOKEN")

    async def scenario(both: Both) -> None:
        client, upstream = both.client, both.upstream
        client.ask(
            *(1, "POST", f"/a?key={placeholder}"),
            ("authorization", f"Bearer {placeholder}"),
            ("x-other", placeholder),
            ("content-type", "application/json"),
            ("content-length", str(len(placeholder) + 12)),
            end=False,
        )
        content = b'{"token":"%b"}' % placeholder.encode()
        for at in range(0, len(content), 7):
            client.say(1, content[at : at + 7], end=at + 7 >= len(content))
        asked = head_of(await upstream.until(RequestReceived))
        assert asked["authorization"] == f"Bearer {VALUE}"
        assert asked[":path"] == f"/a?key={VALUE}"
        assert asked["x-other"] == placeholder
        assert "content-length" not in asked
        await upstream.until(StreamEnded, 1)
        assert upstream.content(1) == b'{"token":"%b"}' % VALUE.encode()
        upstream.answer(
            1,
            200,
            ("location", f"/b?key={VALUE}"),
            ("content-length", str(len(VALUE) + 4)),
            content=None,
        )
        upstream.say(1, b"<<" + VALUE[:5].encode())
        upstream.say(1, VALUE[5:].encode() + b">>", end=True)
        answer = head_of(await client.until(ResponseReceived, 1))
        await client.until(StreamEnded, 1)
        assert answer["location"] == f"/b?key={placeholder}"
        assert "content-length" not in answer
        assert client.content(1) == b"<<" + placeholder.encode() + b">>"

    given = secret(("header", "authorization"), ("query", "key"), ("json", "/token"))
    stage = play_http2(scenario, secrets=(given,))
    assert {line["slot"] for line in stage.of("secret.substituted")} >= {
        "header authorization",
        "query key",
    }
    assert VALUE not in repr(stage.events)


def test_a_gzipped_response_is_opened_masked_and_passes_whole() -> None:
    async def scenario(both: Both) -> None:
        client, upstream = both.client, both.upstream
        client.ask(1, "GET", "/", ("accept-encoding", "br, gzip"))
        asked = head_of(await upstream.until(RequestReceived))
        assert asked["accept-encoding"] == "gzip"
        upstream.answer(
            1, 200, ("content-encoding", "gzip"), content=gzip.compress(VALUE.encode() * 3)
        )
        answer = head_of(await client.until(ResponseReceived, 1))
        await client.until(StreamEnded, 1)
        assert "content-encoding" not in answer
        assert client.content(1) == placeholder_of("TOKEN").encode() * 3

    play_http2(scenario, secrets=(secret(("header", "authorization")),))


def test_a_response_that_cannot_be_searched_for_the_secret_does_not_pass() -> None:
    async def scenario(both: Both) -> None:
        client, upstream = both.client, both.upstream
        client.ask(1)
        await upstream.until(RequestReceived)
        upstream.answer(1, 200, ("content-encoding", "br"), content=b"?")
        assert head_of(await client.until(ResponseReceived, 1))[":status"] == "502"
        assert await both.exchange(3) == b"ok"

    play_http2(scenario, secrets=(secret(("header", "authorization")),))


def test_what_a_small_response_expands_to_is_not_held() -> None:
    bomb = gzip.compress(bytes(64 << 20))

    async def scenario(both: Both) -> None:
        client, upstream = both.client, both.upstream
        client.acknowledges = False
        client.ask(1)
        await upstream.until(RequestReceived)
        upstream.answer(1, 200, ("content-encoding", "gzip"), content=None)
        room = min(upstream.h2.local_flow_control_window(1), len(bomb))
        for at in range(0, room, 16_384):
            upstream.say(1, bomb[at : min(at + 16_384, room)])
        await client.quiet()
        assert len(client.content(1)) == 65_535

    play_http2(scenario, secrets=(secret(("header", "authorization")),))


def test_a_secret_of_another_host_is_withheld_and_told() -> None:
    async def scenario(both: Both) -> None:
        both.client.ask(1, "GET", "/", ("authorization", placeholder_of("TOKEN")))
        asked = head_of(await both.upstream.until(RequestReceived))
        assert asked["authorization"] == placeholder_of("TOKEN")

    given = secret(("header", "authorization"), hosts=("else.test",))
    [line] = play_http2(scenario, secrets=(given,)).of("secret.withheld")
    assert line["secret"] == "TOKEN"


def test_content_that_cannot_be_opened_is_the_clients_fault() -> None:
    async def scenario(both: Both) -> None:
        client = both.client
        kind = ("content-type", "application/json")
        client.ask(1, "POST", "/", kind, ("content-encoding", "gzip"), end=False)
        client.say(1, b"this is not gzip", end=True)
        assert head_of(await client.until(ResponseReceived, 1))[":status"] == "400"
        assert await both.exchange(3) == b"ok"

    play_http2(scenario, secrets=(secret(("json", "/token")),))
