"""Where a bound secret is not put in all the same, and what the audit says of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from h2.events import RequestReceived
from wsproto.frame_protocol import Opcode

from netns_runtime.policy import EMPTY, Endpoint, Policy, Rule
from netns_runtime.secret import Binding, Secret, Slot, placeholder_of
from netns_runtime.wire.websocket import FIN, TEXT, write_frame
from tests.support.http2_stage import head_of, play_http2
from tests.support.proxy_stage import LOOPBACK, Stage, play, read_until
from tests.support.recorder import Recorder, policy_of
from tests.unit.test_proxy_inspect import FULL, HOLDER, JSON, VALUE, lines_of, played, request
from tests.unit.test_proxy_websocket import TOKEN, Line, Rules, login
from tests.unit.test_proxy_websocket import play as play_websocket

if TYPE_CHECKING:
    import trio

    from tests.support.http2_stage import Both

SLOTS = (Slot("header", "authorization"), Slot("json", "/token"))
REFUSED = "the policy would refuse this"
CLEAR = "it would leave unencrypted: use https, or `plain_http: true` for TOKEN"
STRAY = "no slot of TOKEN is there: it goes into header authorization, json /token"
BEARER = f"Authorization: Bearer {HOLDER}"
ONLY_A = "protocol: rest, rules: [{allow: {method: GET, path: /a}}]"
UNSCREENED = Policy((Rule("other", (Endpoint("other.test", None, LOOPBACK),)),))


def secret(*, plain_http: bool = True) -> tuple[Secret, ...]:
    return (Secret(Binding("TOKEN", ("up.test",), SLOTS, plain_http=plain_http), VALUE),)


def withheld(stage: Stage) -> list[Any]:
    return list(lines_of(stage, "secret.withheld", "secret", "action", "detail"))


def given(upstream: Recorder) -> str:
    [seen] = upstream.requests
    return seen["authorization"]


def test_with_report_a_request_that_rules_would_refuse_gets_no_value() -> None:
    upstream = Recorder()
    body = json.dumps({"token": HOLDER}).encode()
    stage = played(
        upstream,
        request("POST", "/b", BEARER, JSON, body=body),
        policy=policy_of(ONLY_A),
        secrets=secret(),
        report=True,
    )
    assert given(upstream) == f"Bearer {HOLDER}"
    assert upstream.requests[0].body == body
    assert withheld(stage) == [("TOKEN", "refuse", REFUSED)]
    assert stage.of("secret.substituted") == []
    assert VALUE.encode() not in upstream.raw


def test_with_report_a_request_that_rules_allow_gets_the_value() -> None:
    upstream = Recorder()
    stage = played(
        *(upstream, request("GET", "/a", BEARER)),
        policy=policy_of(ONLY_A),
        secrets=secret(),
        report=True,
    )
    assert given(upstream) == f"Bearer {VALUE}"
    assert withheld(stage) == []


def test_with_report_a_request_for_another_host_gets_no_value() -> None:
    upstream = Recorder()
    said = request("GET", "/a", BEARER).replace(b"HOST", b"other.test")
    stage = played(upstream, said, secrets=secret(), report=True)
    assert given(upstream) == f"Bearer {HOLDER}"
    assert withheld(stage) == [("TOKEN", "refuse", REFUSED)]


@pytest.mark.parametrize("report", [False, True])
def test_a_request_that_is_allowed_for_the_audit_s_sake_gets_the_value(report: bool) -> None:
    upstream = Recorder()
    stage = played(
        *(upstream, request("GET", "/b", BEARER)),
        policy=policy_of(f"enforcement: audit, {ONLY_A}"),
        secrets=secret(),
        report=report,
    )
    assert given(upstream) == f"Bearer {VALUE}"
    assert "would be refused" in stage.of("http.request")[0]["detail"]
    assert withheld(stage) == []


def test_over_plain_http_no_value_leaves() -> None:
    upstream = Recorder()
    body = json.dumps({"token": HOLDER}).encode()
    stage = played(
        *(upstream, request("POST", "/", BEARER, JSON, body=body)),
        secrets=secret(plain_http=False),
    )
    assert given(upstream) == f"Bearer {HOLDER}"
    assert VALUE.encode() not in upstream.raw
    assert withheld(stage) == [("TOKEN", "refuse", CLEAR)]


def test_over_plain_http_a_value_leaves_where_the_binding_says_so() -> None:
    upstream = Recorder()
    stage = played(upstream, request("GET", "/", BEARER), secrets=secret())
    assert given(upstream) == f"Bearer {VALUE}"
    assert withheld(stage) == []


def test_what_comes_back_is_masked_all_the_same() -> None:
    told: list[bytes] = []
    body = f"you said {VALUE}".encode()
    upstream = Recorder(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    played(upstream, request("GET", "/", BEARER), told=told, secrets=secret(plain_http=False))
    assert told[0].endswith(f"you said {HOLDER}".encode())


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ((f"X-Other: {HOLDER}",), b""),
        ((f"X-Other: {HOLDER}", "Content-Type: text/plain"), HOLDER.encode()),
        (("Content-Type: text/plain",), b"my token is " + HOLDER.encode()),
        ((JSON,), json.dumps({"text": HOLDER, "more": HOLDER}).encode()),
    ],
)
def test_a_placeholder_outside_its_slots_is_told_once(
    headers: tuple[str, ...], body: bytes
) -> None:
    upstream = Recorder()
    said = request("POST", "/", *headers, body=body)
    stage = played(upstream, said, secrets=secret())
    assert upstream.requests[0].body == body
    assert withheld(stage) == [("TOKEN", "refuse", STRAY)]
    assert stage.of("secret.substituted") == []


def test_a_placeholder_in_its_slots_is_not_told_as_astray() -> None:
    upstream = Recorder()
    body = json.dumps({"token": HOLDER}).encode()
    stage = played(upstream, request("POST", "/", BEARER, JSON, body=body), secrets=secret())
    assert json.loads(upstream.requests[0].body) == {"token": VALUE}
    assert withheld(stage) == []
    assert len(stage.of("secret.substituted")) == 2


def asked_over_http2(**config: Any) -> tuple[list[dict[str, str]], Stage]:
    """What upstream got of one request, and the stage."""
    heads: list[dict[str, str]] = []

    async def scenario(both: Both) -> None:
        holder = placeholder_of("TOKEN")
        both.client.ask(1, "GET", "/b", ("authorization", f"Bearer {holder}"))
        heads.append(head_of(await both.upstream.until(RequestReceived)))

    return heads, play_http2(scenario, secrets=secret(plain_http=False), **config)


def test_over_http2_a_request_that_is_only_reported_gets_no_value() -> None:
    [head], stage = asked_over_http2(policy=policy_of(ONLY_A), report=True)
    assert head["authorization"] == f"Bearer {HOLDER}"
    assert withheld(stage) == [("TOKEN", "refuse", REFUSED)]


def test_over_http2_a_flow_that_is_only_reported_gets_no_value() -> None:
    [head], stage = asked_over_http2(policy=EMPTY, report=True)
    assert head["authorization"] == f"Bearer {HOLDER}"
    assert withheld(stage) == [("TOKEN", "refuse", REFUSED)]


def test_over_http2_an_allowed_request_gets_the_value() -> None:
    [head], stage = asked_over_http2(policy=policy_of(FULL), report=True)
    assert head["authorization"] == f"Bearer {VALUE}"
    assert withheld(stage) == []


def test_a_message_that_is_only_reported_gets_no_value() -> None:
    async def scenario(line: Line) -> None:
        await line.client.say(login(text="refuse"), login(text="note"))
        assert await line.upstream.hear() == (Opcode.TEXT, login(text="refuse"))
        assert await line.upstream.hear() == (Opcode.TEXT, login(token=TOKEN.value, text="note"))

    stage = Stage(report=True, secrets=(TOKEN,))
    play_websocket(scenario, stage=stage, rules=Rules(), bound=(TOKEN,))
    assert withheld(stage) == [("BOT_TOKEN", "refuse", REFUSED)]


def test_an_upgrade_that_is_only_reported_lets_no_message_have_the_value() -> None:
    async def scenario(line: Line) -> None:
        await line.client.say(login(), login())
        for _ in range(2):
            assert await line.upstream.hear() == (Opcode.TEXT, login())

    kept = {"BOT_TOKEN": REFUSED}
    stage = play_websocket(scenario, secrets=(TOKEN,), bound=(TOKEN,), kept=kept)
    assert withheld(stage) == [("BOT_TOKEN", "refuse", REFUSED)]


def test_a_placeholder_outside_its_slots_in_a_message_is_told_once() -> None:
    async def scenario(line: Line) -> None:
        await line.client.say(login(), "prose: " + TOKEN.placeholder, login(op=3))
        assert await line.upstream.hear() == (Opcode.TEXT, login(token=TOKEN.value))
        for said in ("prose: " + TOKEN.placeholder, login(op=3)):
            assert await line.upstream.hear() == (Opcode.TEXT, said)

    stage = play_websocket(scenario, secrets=(TOKEN,), bound=(TOKEN,))
    detail = "no slot of BOT_TOKEN is there: it goes into websocket /d/token"
    assert withheld(stage) == [("BOT_TOKEN", "refuse", detail)]


@pytest.mark.parametrize("is_told", [False, True])
def test_over_plain_ws_no_value_leaves_unless_the_binding_says_so(is_told: bool) -> None:
    slots = (Slot("websocket", "/d/token"),)
    bound = Secret(Binding("TOKEN", ("up.test",), slots, plain_http=is_told), VALUE)
    message = json.dumps({"d": {"token": HOLDER}}).encode()
    wanted = message.replace(HOLDER.encode(), VALUE.encode()) if is_told else message
    got = b""

    async def upstream(stream: trio.SocketStream) -> None:
        nonlocal got
        await read_until(stream, b"\r\n\r\n")
        await stream.send_all(
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
        )
        head = await stream.receive_some(2)
        key = await stream.receive_some(4)
        masked = b""
        while len(masked) < head[1] & 0x7F:
            masked += await stream.receive_some()
        got = bytes(byte ^ key[at % 4] for at, byte in enumerate(masked))
        await stream.send_all(write_frame(FIN | TEXT, b"over", masked=False))

    async def scenario(stage: Stage, nursery: trio.Nursery) -> None:
        port = await stage.upstream(nursery, upstream)
        said = request(
            *("GET", "/ws", "Connection: Upgrade", "Upgrade: websocket"),
            *("Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
        )
        async with stage.redirected(port) as client:
            await client.send_all(said.replace(b"HOST", b"up.test:%d" % port))
            await read_until(client, b"\r\n\r\n")
            await client.send_all(write_frame(FIN | TEXT, message, masked=True))
            await read_until(client, b"over")

    stage = play(scenario, policy=policy_of("protocol: websocket, access: full"), secrets=(bound,))
    assert got == wanted
    assert withheld(stage) == ([] if is_told else [("TOKEN", "refuse", CLEAR)])


def test_a_refused_port_80_of_a_bound_host_says_use_https() -> None:
    async def scenario(stage: Stage, _nursery: trio.Nursery) -> None:
        for host in (b"up.test", b"else.test"):
            said = b"GET http://%b/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % host
            await stage.ask(said)

    stage = play(scenario, policy=UNSCREENED, secrets=secret())
    bound, other = (line["remedy"] for line in stage.of("http.request"))
    assert bound == "use https://up.test/"
    assert "https" not in other
