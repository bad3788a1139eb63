"""WebSockets carried over loopback between a wsproto client and a wsproto server."""

from __future__ import annotations

import json
import os
import socket
import zlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing
from wsproto.extensions import Extension, PerMessageDeflate
from wsproto.frame_protocol import FrameProtocol, Opcode, ParseFailed

from netns_runtime.address import HostPort
from netns_runtime.policy import Decision, Policy
from netns_runtime.policy.requests import RequestDecision
from netns_runtime.proxy.flow import Ended, Flow
from netns_runtime.proxy.peer import Peer
from netns_runtime.proxy.websocket import GRACE, carry_websocket
from netns_runtime.proxy.websocket_examine import MASK_LIMIT, TEXT_LIMIT
from netns_runtime.secret import Binding, Secret, Slot
from netns_runtime.wire.websocket import FIN, RSV1, TEXT, write_frame
from tests.support.proxy_stage import BrokenAudit, Stage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Scenario = Callable[["Line"], Awaitable[None]]

IDENTIFY = Slot("websocket", "/d/token", ("/op", (2, 6)))
TOKEN = Secret(Binding("BOT_TOKEN", ("up.test",), (IDENTIFY,)), "the.real-value")
REST_ONLY = Secret(Binding("APP_TOKEN", ("up.test",), (Slot("header", "authorization"),)), "xapp-9")
FOREIGN = Secret(Binding("OTHER", ("other.test",), (IDENTIFY,)), "other-value")
DEFLATE = "permessage-deflate; client_max_window_bits=12; server_no_context_takeover"
RESET = (None, "reset")
ENDED = (None, "ended")


def login(op: int = 2, token: str = TOKEN.placeholder, **more: Any) -> str:
    return json.dumps({"op": op, "d": {"token": token, **more}})


class Rules:
    """The policy's, by words: `refuse` is refused, `note` would be; binary by `binary`."""

    rule = "test rule (policy.yaml:7)"

    def __init__(self, binary: str = "allow", *, needs_json: bool = False) -> None:
        self.needs_json = needs_json
        self.binary = binary
        self.seen: list[tuple[str, object]] = []

    def judge(self, text: str, document: object | None) -> RequestDecision:
        self.seen.append((text, document))
        return self._of("refuse" if "refuse" in text else "note" if "note" in text else "allow")

    def judge_binary(self) -> RequestDecision:
        return self._of(self.binary)

    def _of(self, word: str) -> RequestDecision:
        action: Any = "refuse" if word == "refuse" else "allow"
        why = "the test rule refuses it" if word != "allow" else ""
        return RequestDecision(
            action, "http_request_denied", self.rule, why, "mend it" if why else "", word == "note"
        )


class Talker:
    """One end: what it says is framed, and what it hears is read, by wsproto."""

    def __init__(self, sock: socket.socket, *, is_client: bool, deflate: str | None) -> None:
        extensions: list[Extension] = []
        if deflate:
            extension = PerMessageDeflate()
            extension.finalize(deflate)
            extensions.append(extension)
        self.stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        self.protocol = FrameProtocol(client=is_client, extensions=extensions)
        self.parts: list[Any] = []
        self.heard: list[tuple[Opcode | None, Any]] = []
        self.raw = b""

    async def say(self, *messages: str | bytes) -> None:
        await self.send(b"".join(bytes(self.protocol.send_data(part)) for part in messages))

    async def send(self, data: bytes | bytearray) -> None:
        await self.stream.send_all(bytes(data))

    async def close(self, code: int | None = None, reason: str | None = None) -> None:
        await self.send(self.protocol.close(code, reason))

    async def hear(self) -> tuple[Opcode | None, Any]:
        """The next message or control frame; RESET or ENDED."""
        while not self.heard:
            try:
                data = bytes(await self.stream.receive_some(65_536))
            except trio.BrokenResourceError:
                return RESET
            if not data:
                return ENDED
            self.raw += data
            self.protocol.receive_bytes(data)
            for frame in self.protocol.received_frames():
                if frame.opcode.iscontrol():
                    self.heard.append((frame.opcode, frame.payload))
                    continue
                self.parts.append(frame.payload)
                if frame.message_finished:
                    whole = (b"" if isinstance(frame.payload, bytes) else "").join(self.parts)
                    self.heard.append((frame.opcode, whole))
                    self.parts = []
        return self.heard.pop(0)

    async def until_end(self) -> list[tuple[Opcode | None, Any]]:
        found = [await self.hear()]
        while found[-1][0] is not None:
            found.append(await self.hear())
        return found


class Line:
    """A client, an upstream, and what carries between them; `ended` is what that returned."""

    client: Talker
    upstream: Talker
    scope: trio.CancelScope
    ended: Ended | None = None

    def __init__(self, stage: Stage, flow: Flow) -> None:
        self.stage = stage
        self.flow = flow
        self.done = trio.Event()

    @property
    def opened(self) -> dict[str, Any]:
        [line] = self.stage.of("ws.opened")
        return line

    @property
    def closed(self) -> dict[str, Any]:
        [line] = self.stage.of("ws.closed")
        return line


def pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    near.setblocking(False)
    far.setblocking(False)
    return near, far


@asynccontextmanager
async def carried(
    stage: Stage,
    *,
    rules: Any = None,
    bound: tuple[Secret, ...] = (),
    kept: dict[str, str] | None = None,
    deflate: str | None = None,
    headers: list[tuple[bytes, bytes]] | None = None,
    to_upstream: bytes = b"",
    to_client: bytes = b"",
) -> AsyncIterator[Line]:
    target = HostPort("up.test", 443)
    decision = Decision("allow", "allowed", "test rule", "")
    flow = Flow(1, target, "https", trio.current_time(), None, decision, Policy(()))
    line = Line(stage, flow)
    (client, near), (upstream, far) = pair(), pair()
    line.client = Talker(client, is_client=True, deflate=deflate)
    line.upstream = Talker(upstream, is_client=False, deflate=deflate)
    response = [] if not deflate else [(b"Sec-WebSocket-Extensions", deflate.encode())]

    async def carry() -> None:
        with near, far, trio.CancelScope() as line.scope:
            try:
                line.ended = await carry_websocket(
                    *(stage.sandbox, Peer(near), Peer(far), flow),
                    response_headers=response if headers is None else headers,
                    rules=rules,
                    bound=bound,
                    kept=kept or {},
                    to_upstream=to_upstream,
                    to_client=to_client,
                )
            finally:
                line.done.set()

    async with trio.open_nursery() as nursery, line.client.stream, line.upstream.stream:
        nursery.start_soon(carry)
        yield line
        nursery.cancel_scope.cancel()


def play(
    scenario: Scenario,
    *,
    stage: Stage | None = None,
    clock: trio.abc.Clock | None = None,
    secrets: tuple[Secret, ...] = (),
    **options: Any,
) -> Stage:
    stage = stage or Stage(secrets=secrets)

    async def run() -> None:
        with trio.fail_after(5 if clock is None else 10**9):
            async with carried(stage, **options) as line:
                await scenario(line)

    trio.run(run, clock=clock)
    return stage


@pytest.mark.parametrize("deflate", [None, DEFLATE, "permessage-deflate"])
def test_a_token_goes_up_in_its_slot_and_comes_down_as_its_placeholder(deflate: str | None) -> None:
    async def scenario(line: Line) -> None:
        client, upstream = line.client, line.upstream
        await client.say('{"op":1,"d":null}', login(), login(op=3), "prose: " + TOKEN.placeholder)
        assert await upstream.hear() == (Opcode.TEXT, '{"op":1,"d":null}')
        assert await upstream.hear() == (Opcode.TEXT, login(token=TOKEN.value))
        assert await upstream.hear() == (Opcode.TEXT, login(op=3))
        assert await upstream.hear() == (Opcode.TEXT, "prose: " + TOKEN.placeholder)
        said = "you said the.real-value, the.real-value"
        await upstream.say(said, "again", said.encode())
        masked = said.replace(TOKEN.value, TOKEN.placeholder)
        assert await client.hear() == (Opcode.TEXT, masked)
        assert await client.hear() == (Opcode.TEXT, "again")
        assert await client.hear() == (Opcode.BINARY, masked.encode())
        await client.close(4200, "resuming")
        assert await upstream.hear() == (Opcode.CLOSE, (4200, "resuming"))
        await upstream.close(4200, "resuming")
        assert await client.hear() == (Opcode.CLOSE, (4200, "resuming"))
        await upstream.stream.send_eof()
        assert await client.hear() == ENDED
        await client.stream.send_eof()
        await line.done.wait()
        assert line.ended == Ended(len(upstream.raw), line.closed["bytes_in"])
        assert TOKEN.value.encode() not in client.raw

    stage = play(scenario, secrets=(TOKEN,), bound=(TOKEN,), deflate=deflate)
    [substituted] = stage.of("secret.substituted")
    assert (substituted["secret"], substituted["slot"]) == ("BOT_TOKEN", str(IDENTIFY))
    [opened], [closed] = stage.of("ws.opened"), stage.of("ws.closed")
    assert opened.get("detail") == deflate
    assert opened["protocol"] == closed["protocol"] == "websocket"
    assert {key: closed[key] for key in ("code", "detail", "said_by", "count")} == {
        "code": 4200,
        "detail": "resuming",
        "said_by": "sandbox",
        "count": 1,
    }
    assert (closed["messages_out"], closed["messages_in"]) == (4, 3)
    assert "the.real-value" not in json.dumps(stage.events)


def test_a_placeholder_spelt_in_escapes_is_one_all_the_same() -> None:
    spelt = login().replace("openshell", "\\u006fpenshell")

    async def scenario(line: Line) -> None:
        await line.client.say(spelt)
        assert await line.upstream.hear() == (Opcode.TEXT, login(token=TOKEN.value))

    assert spelt != login()
    play(scenario, secrets=(TOKEN,), bound=(TOKEN,))


@pytest.mark.parametrize("kind", ["walked", "inspected"])
def test_a_close_code_arrives_exactly_and_is_upstreams(kind: str) -> None:
    async def scenario(line: Line) -> None:
        await line.upstream.close(4004, "Authentication failed \x1b[1m.")
        assert await line.client.hear() == (Opcode.CLOSE, (4004, "Authentication failed \x1b[1m."))
        await line.client.close(4004)
        assert await line.upstream.hear() == (Opcode.CLOSE, (4004, ""))

        await line.upstream.stream.aclose()
        assert await line.client.hear() == ENDED
        await line.client.stream.aclose()
        await line.done.wait()
        assert (line.closed["code"], line.closed["said_by"]) == (4004, "upstream")
        assert line.closed["detail"] == "Authentication failed \\x1b[1m."

    bound = (TOKEN,) if kind == "inspected" else ()
    play(scenario, secrets=bound, bound=bound)


def test_an_empty_close_frame_stays_empty() -> None:
    async def scenario(line: Line) -> None:
        await line.client.close()
        assert (await line.upstream.hear())[1][0] == 1005
        assert len(line.upstream.raw) == 6
        await line.upstream.stream.aclose()
        await line.client.stream.aclose()
        await line.done.wait()
        assert line.closed["code"] == 1005

    play(scenario)


def test_upstreams_close_is_heard_after_it_stopped_reading() -> None:
    async def scenario(line: Line) -> None:
        await line.upstream.close(4004, "no")
        await line.upstream.stream.aclose()
        await line.client.say("more")
        assert await line.client.hear() == (Opcode.CLOSE, (4004, "no"))

    play(scenario)


def test_pings_are_the_peers_to_answer() -> None:
    async def scenario(line: Line) -> None:
        ping = line.client.protocol.ping(b"1")
        await line.client.send(ping)
        assert await line.upstream.hear() == (Opcode.PING, b"1")
        assert line.upstream.raw == bytes(ping)
        await trio.testing.wait_all_tasks_blocked()
        await line.upstream.send(line.upstream.protocol.pong(b"1"))
        assert await line.client.hear() == (Opcode.PONG, b"1")
        assert len(line.client.raw) == 3

    play(scenario, secrets=(TOKEN,), bound=(TOKEN,))


def test_bytes_that_came_with_the_handshake_go_first() -> None:
    hello = FrameProtocol(client=False, extensions=[]).send_data("hello")
    early = FrameProtocol(client=True, extensions=[]).send_data(login())

    async def scenario(line: Line) -> None:
        await line.upstream.say("two")
        assert await line.client.hear() == (Opcode.TEXT, "hello")
        assert await line.client.hear() == (Opcode.TEXT, "two")
        assert await line.upstream.hear() == (Opcode.TEXT, login(token=TOKEN.value))

    options: dict[str, Any] = {"to_upstream": bytes(early), "to_client": bytes(hello)}
    play(scenario, secrets=(TOKEN,), bound=(TOKEN,), **options)


def test_nothing_is_timed_while_it_is_open() -> None:
    clock = trio.testing.MockClock()

    async def scenario(line: Line) -> None:
        await line.client.say("one")
        assert await line.upstream.hear() == (Opcode.TEXT, "one")
        clock.jump(30 * 86_400)
        await trio.testing.wait_all_tasks_blocked()
        await line.upstream.say("two")
        assert await line.client.hear() == (Opcode.TEXT, "two")

    play(scenario, clock=clock, secrets=(TOKEN,), bound=(TOKEN,))


@pytest.mark.parametrize("who", ["sandbox", "upstream"])
def test_an_end_without_a_close_frame_is_1006_of_who_vanished(who: str) -> None:
    async def scenario(line: Line) -> None:
        gone, stays = line.client, line.upstream
        if who == "upstream":
            gone, stays = stays, gone
        await gone.stream.aclose()
        assert await stays.hear() == ENDED
        await stays.stream.aclose()
        await line.done.wait()
        assert (line.closed["code"], line.closed["said_by"]) == (1006, who)
        assert line.closed["reason"] == "connection_terminated"
        assert line.ended is not None
        assert line.ended.said_by == who

    play(scenario)


@pytest.mark.parametrize("who", ["sandbox", "upstream"])
def test_a_reset_is_a_reset_on_the_other_side(who: str) -> None:
    async def scenario(line: Line) -> None:
        gone, stays = line.client, line.upstream
        if who == "upstream":
            gone, stays = stays, gone
        sock = gone.stream.socket
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()
        assert await stays.hear() == RESET
        await line.done.wait()
        assert (line.closed["code"], line.closed["said_by"]) == (1006, who)

    play(scenario)


def test_an_end_that_the_other_side_does_not_follow_is_not_waited_for_without_end() -> None:
    clock = trio.testing.MockClock()

    async def scenario(line: Line) -> None:
        await line.client.stream.send_eof()
        assert await line.upstream.hear() == ENDED
        await line.upstream.say("still talking")
        assert await line.client.hear() == (Opcode.TEXT, "still talking")
        clock.jump(GRACE + 1)
        await line.done.wait()

    play(scenario, clock=clock)


@pytest.mark.parametrize("deflate", [None, DEFLATE])
def test_a_refused_message_reaches_nobody_and_both_are_told(deflate: str | None) -> None:
    async def scenario(line: Line) -> None:
        await line.client.say("fine", "please refuse", "later")
        *before, close, end = await line.upstream.until_end()
        assert before == [(Opcode.TEXT, "fine")]
        assert close == (Opcode.CLOSE, (1001, ""))
        assert end == ENDED
        told = "refused by policy: test rule (policy.yaml:7)"
        assert await line.client.until_end() == [(Opcode.CLOSE, (1008, told)), ENDED]
        await line.client.stream.aclose()
        await line.upstream.stream.aclose()
        await line.done.wait()
        assert line.ended is not None
        assert (line.ended.action, line.ended.said_by) == ("refuse", "policy")

    stage = play(scenario, rules=Rules(), deflate=deflate)
    [refused], [closed] = stage.of("ws.message"), stage.of("ws.closed")
    assert (refused["action"], refused["remedy"]) == ("refuse", "mend it")
    assert (closed["code"], closed["said_by"], closed["action"]) == (1008, "policy", "refuse")
    assert closed["rule"] == Rules.rule
    assert closed["messages_out"] == 1
    assert "please" not in json.dumps(stage.events)


def test_rules_see_the_placeholder_and_the_document() -> None:
    rules = Rules(needs_json=True)

    async def scenario(line: Line) -> None:
        await line.client.say(login(), "no JSON")
        assert await line.upstream.hear() == (Opcode.TEXT, login(token=TOKEN.value))
        assert await line.upstream.hear() == (Opcode.TEXT, "no JSON")

    play(scenario, rules=rules, secrets=(TOKEN,), bound=(TOKEN,))
    assert rules.seen == [(login(), json.loads(login())), ("no JSON", None)]


@pytest.mark.parametrize("report", [False, True])
def test_what_is_only_noted_passes_and_is_told_once(report: bool) -> None:
    stage = Stage(report=report)

    async def scenario(line: Line) -> None:
        word = "refuse" if report else "note"
        await line.client.say(word, word, word)
        for _ in range(3):
            assert await line.upstream.hear() == (Opcode.TEXT, word)
        await line.client.stream.aclose()
        await line.upstream.stream.aclose()
        await line.done.wait()
        assert line.closed["suppressed"] == 2

    play(scenario, stage=stage, rules=Rules())
    [noted] = stage.of("ws.message")
    assert (noted["action"], noted["detail"]) == (
        *("allow", "would be refused: the test rule refuses it"),
    )


@pytest.mark.parametrize("size", [10, TEXT_LIMIT + 1])
@pytest.mark.parametrize("word", ["allow", "note", "refuse"])
def test_binary_messages_are_judged_without_a_look_into_them(word: str, size: int) -> None:
    data = b"\xff" * size

    async def scenario(line: Line) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(line.client.say, data)
            heard = await line.upstream.hear()
            nursery.cancel_scope.cancel()
        if word == "refuse":
            assert heard == (Opcode.CLOSE, (1001, ""))
        else:
            assert heard == (Opcode.BINARY, data)

    stage = play(scenario, rules=Rules(word))
    assert len(stage.of("ws.message")) == (word != "allow")


def test_a_message_too_long_to_be_judged_is_refused() -> None:
    async def scenario(line: Line) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(line.client.say, "x" * (TEXT_LIMIT + 1))
            [(opcode, (code, reason)), _] = await line.client.until_end()
            nursery.cancel_scope.cancel()
        assert (opcode, code) == (Opcode.CLOSE, 1009)
        assert "1 MiB" in reason

    stage = play(scenario, rules=Rules())
    assert stage.of("ws.closed")[0]["said_by"] == "proxy"


@pytest.mark.parametrize("deflate", [None, DEFLATE])
def test_long_messages_pass_where_only_secrets_concern_them(deflate: str | None) -> None:
    up = json.dumps({"op": 2, "pad": os.urandom(TEXT_LIMIT // 2 + 1).hex(), "d": TOKEN.placeholder})
    down = os.urandom(MASK_LIMIT).hex()

    async def scenario(line: Line) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(line.client.say, up, "small " + up[:40])
            nursery.start_soon(line.upstream.say, down + TOKEN.value + down, "small " + down[:40])
            assert await line.upstream.hear() == (Opcode.TEXT, up)
            assert await line.upstream.hear() == (Opcode.TEXT, "small " + up[:40])
            assert await line.client.hear() == (Opcode.TEXT, down + TOKEN.placeholder + down)
            assert await line.client.hear() == (Opcode.TEXT, "small " + down[:40])

    play(scenario, secrets=(TOKEN,), bound=(TOKEN,), deflate=deflate)


def test_a_stream_compressed_by_the_application_passes_untouched() -> None:
    packer = zlib.compressobj()
    parts = [
        packer.compress(text.encode()) + packer.flush(zlib.Z_SYNC_FLUSH)
        for text in ("hello", "the.real-value", "the.real-value")
    ]

    async def scenario(line: Line) -> None:
        await line.upstream.say(*parts)
        for part in parts:
            assert await line.client.hear() == (Opcode.BINARY, part)

    play(scenario, secrets=(TOKEN,), bound=(TOKEN,))


def test_a_placeholder_in_a_binary_message_or_of_another_host_stays() -> None:
    async def scenario(line: Line) -> None:
        await line.client.say(login().encode(), login(token=FOREIGN.placeholder))
        assert await line.upstream.hear() == (Opcode.BINARY, login().encode())
        assert await line.upstream.hear() == (Opcode.TEXT, login(token=FOREIGN.placeholder))

    stage = play(scenario, secrets=(TOKEN, FOREIGN), bound=(TOKEN,))
    assert [line["secret"] for line in stage.of("secret.withheld")] == ["OTHER"]
    assert stage.of("secret.substituted") == []


def test_a_secret_without_a_slot_here_is_masked_and_never_sent() -> None:
    async def scenario(line: Line) -> None:
        await line.client.say(login(token=REST_ONLY.placeholder))
        assert await line.upstream.hear() == (Opcode.TEXT, login(token=REST_ONLY.placeholder))
        await line.upstream.say("xapp-9")
        assert await line.client.hear() == (Opcode.TEXT, REST_ONLY.placeholder)

    play(scenario, secrets=(REST_ONLY,), bound=(REST_ONLY,))


def test_no_value_goes_without_a_record() -> None:
    stage = Stage(secrets=(TOKEN,))
    stage.sandbox.audit = BrokenAudit(None, "s")

    async def scenario(line: Line) -> None:
        await line.client.say(login())
        [(opcode, (code, _)), _] = await line.client.until_end()
        assert (opcode, code) == (Opcode.CLOSE, 1011)
        assert await line.upstream.until_end() == [(Opcode.CLOSE, (1001, "")), ENDED]

    play(scenario, stage=stage, bound=(TOKEN,))
    assert stage.reports


BROKEN = {
    "an opcode": (b"\x83\x80abcd", 1002),
    "a bit": (b"\xa1\x80abcd", 1002),
    "a length": (b"\x89\xfe\x00\x7eabcd", 1002),
    "text": (write_frame(FIN | TEXT, TOKEN.placeholder.encode() + b"\xff", masked=True), 1007),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_client_that_breaks_the_protocol_ends_both_sides(name: str) -> None:
    data, code = BROKEN[name]

    async def scenario(line: Line) -> None:
        await line.client.say("fine")
        await line.client.send(data)
        assert await line.upstream.hear() == (Opcode.TEXT, "fine")
        [(_, (told, _)), _] = await line.upstream.until_end()
        [(_, (mine, reason)), _] = await line.client.until_end()
        assert told == mine == code
        assert "the sandbox broke the protocol" in reason
        await line.client.stream.aclose()
        await line.upstream.stream.aclose()
        await line.done.wait()
        assert (line.closed["code"], line.closed["said_by"]) == (code, "proxy")
        assert line.closed["reason"] == "http_request_error"

    play(scenario, secrets=(TOKEN,), bound=(TOKEN,))


def test_an_upstream_that_breaks_the_protocol_is_named() -> None:
    async def scenario(line: Line) -> None:
        await line.upstream.send(b"\x81\x85abcdhello")
        [(_, (code, reason)), _] = await line.client.until_end()
        assert code == 1002
        assert "upstream broke the protocol" in reason
        assert line.stage.of("ws.closed") == []
        await line.client.stream.aclose()
        await line.upstream.stream.aclose()
        await line.done.wait()
        assert line.closed["reason"] == "http_protocol_error"

    play(scenario)


def test_a_refusal_waits_for_the_frame_that_is_on_its_way() -> None:
    async def scenario(line: Line) -> None:
        frame = bytes(line.upstream.protocol.send_data("y" * 1000))
        await line.upstream.send(frame[:500])
        while len(line.client.raw) < 500:
            line.client.raw += bytes(await line.client.stream.receive_some())
        line.client.protocol.receive_bytes(line.client.raw)
        await line.client.say("refuse")
        await line.upstream.hear()
        await trio.testing.wait_all_tasks_blocked()
        await line.upstream.send(frame[500:] + frame)
        [message, (opcode, (code, _)), _] = await line.client.until_end()
        assert message == (Opcode.TEXT, "y" * 1000)
        assert (opcode, code) == (Opcode.CLOSE, 1008)

    play(scenario, rules=Rules())


@pytest.mark.parametrize("secrets", [(), (TOKEN,)])
def test_an_extension_that_cannot_be_opened_ends_only_what_must_be_opened(
    secrets: tuple[Secret, ...],
) -> None:
    async def scenario(line: Line) -> None:
        frame = write_frame(FIN | 0x20 | TEXT, b"\xff", masked=True)
        if secrets:
            [(_, (code, reason)), _] = await line.client.until_end()
            assert code == 1002
            assert "x-other" in reason
            assert (await line.upstream.hear())[1][0] == 1002
        else:
            await line.client.send(frame)
            with pytest.raises(ParseFailed):
                await line.upstream.hear()
            assert line.upstream.raw == frame

    headers = [(b"sec-websocket-extensions", b"x-other")]
    play(scenario, secrets=secrets, bound=secrets, headers=headers)


def test_a_slow_reader_stops_its_sender_and_nothing_is_gathered() -> None:
    async def scenario(line: Line) -> None:
        frame = bytes(line.client.protocol.send_data("z" * 60_000))
        sent = 0

        async def flood() -> None:
            nonlocal sent
            while sent < 1 << 28:
                await line.client.send(frame)
                sent += len(frame)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert sent < 1 << 25, "only the kernel's buffers took it"
            nursery.cancel_scope.cancel()

    play(scenario, secrets=(TOKEN,), bound=(TOKEN,))


def test_a_cut_flow_is_told_and_stays_cancelled() -> None:
    async def scenario(line: Line) -> None:
        await trio.testing.wait_all_tasks_blocked()
        why = "the policy that replaced the one it was opened under refuses it"
        line.flow.cut_short = Ended(reason="http_request_denied", said_by="policy", detail=why)
        line.scope.cancel()
        await line.done.wait()
        assert line.scope.cancelled_caught
        assert line.ended is None
        assert (line.closed["code"], line.closed["said_by"]) == (1006, "policy")
        assert line.closed["detail"] == why

    play(scenario)


def test_a_bomb_of_upstreams_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import netns_runtime.wire.websocket_inspect as inspecting

    monkeypatch.setattr(inspecting, "INFLATED_LIMIT", 1 << 20)
    packer = zlib.compressobj(wbits=-15)
    packed = packer.compress(bytes(2 << 20)) + packer.flush(zlib.Z_SYNC_FLUSH)

    async def scenario(line: Line) -> None:
        await line.upstream.send(write_frame(FIN | RSV1 | TEXT, packed, masked=False))
        while (heard := await line.client.hear())[0] is not Opcode.CLOSE:
            assert heard[0] is not None
        assert heard[1][0] == 1009

    play(scenario, secrets=(TOKEN,), bound=(TOKEN,), deflate="permessage-deflate")
