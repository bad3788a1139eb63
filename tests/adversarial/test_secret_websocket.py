"""The token is asked for in a WebSocket: only a text's declared pointer, with its op, is a slot.

`ws.lab.test` repeats what it gets, so what went up is in `lab.messages_seen` and what came back in
the client's output, which may hold placeholders only.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.run import CLIENT_PYTHON
from tests.support.search import says
from tests.support.secret_policy import TOKEN, policy_in
from tests.support.secret_run import Told, placeholder, run_with_secrets, value_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.lab import Lab

HELD = placeholder(TOKEN)
TALK = """
import json, sys
from websockets.sync.client import connect

def sent(item):
    kind, *parts = item
    if kind == "text":
        return parts[0]
    if kind == "binary":
        return parts[0].encode()
    return parts

with connect(sys.argv[1], max_size=None) as socket:
    for item in json.loads(sys.argv[2]):
        socket.send(sent(item))
        got = socket.recv(timeout=10)
        kind = "text" if isinstance(got, str) else "binary"
        print(json.dumps([kind, got if kind == "text" else got.decode()]), flush=True)
"""
DEFLATED = pytest.mark.parametrize("path", ["/plain", "/deflate"])


@pytest.fixture
def policy(tmp_path: Path) -> str:
    return policy_in(tmp_path)


def talk(lab: Lab, policy: str, path: str, *items: Any, value: str | None = None) -> Told:
    """Send each item (`[kind, text...]`, kind: text, binary, fragments) and print what comes."""
    values = {TOKEN: value or value_of(TOKEN)}
    words = [CLIENT_PYTHON, "-c", TALK, f"wss://ws.lab.test{path}", json.dumps(items)]
    told = run_with_secrets(lab, values, "--policy", policy, cmd=words)
    assert told.result.status == 0, told.result.told()
    return told


def upstream(lab: Lab) -> str:
    return "".join(text for _, text in lab.messages_seen())


def answers(told: Told) -> list[list[str]]:
    return [json.loads(line) for line in told.result.stdout.splitlines()]


def identify(token: str = HELD, op: Any = 2) -> str:
    return json.dumps({"op": op, "d": {"token": token, "intents": 1, "text": token}})


@DEFLATED
@pytest.mark.parametrize("op", [2, 6])
def test_the_declared_pointer_gets_the_value_and_the_echo_the_placeholder(
    lab: Lab, policy: str, path: str, op: int
) -> None:
    value = value_of(TOKEN)
    told = talk(lab, policy, path, ["text", identify(op=op)], value=value)
    assert json.loads(upstream(lab)) == {
        "op": op,
        "d": {"token": value, "intents": 1, "text": HELD},
    }
    assert json.loads(answers(told)[0][1]) == json.loads(identify(op=op))
    assert told.substituted() == {(TOKEN, "websocket /d/token", "ws.lab.test")}


MESSAGES = {
    "another op": ["text", identify(op=1)],
    "an op that is text": ["text", identify(op="2")],
    "an op that is true": ["text", json.dumps({"op": True, "d": {"token": HELD}})],
    "no op": ["text", json.dumps({"d": {"token": HELD}})],
    "a chat message": ["text", json.dumps({"op": 2, "d": {"content": HELD}})],
    "a deeper namesake": ["text", json.dumps({"op": 2, "d": {"x": {"token": HELD}}})],
    "a list": ["text", json.dumps([{"op": 2, "d": {"token": HELD}}])],
    "text that is no JSON": ["text", f"token {HELD}"],
    "JSON behind something": ["text", "x" + identify()],
    "a binary frame": ["binary", identify()],
    "a longer name": ["text", identify(HELD + "_2")],
}


@DEFLATED
@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES)
def test_anything_else_passes_untouched(
    lab: Lab, policy: str, path: str, message: list[str]
) -> None:
    told = talk(lab, policy, path, message)
    assert upstream(lab) == message[1], told.result.told()
    assert answers(told) == [message], told.result.told()
    assert told.substituted() == set(), told.result.told()


@DEFLATED
@pytest.mark.parametrize("size", [1, 5, 64])
def test_fragments_are_read_as_one_message(lab: Lab, policy: str, path: str, size: int) -> None:
    value = value_of(TOKEN)
    text = identify()
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    told = talk(lab, policy, path, ["fragments", *pieces], ["text", "and on"], value=value)
    assert says(upstream(lab), value), told.result.told()
    last = "".join(said for _, said in answers(told))
    assert last.endswith("and on"), told.result.told()
    assert says(last, HELD), told.result.told()


def test_a_duplicate_member_does_not_open_another_place(lab: Lab, policy: str) -> None:
    """Whichever of the two the server takes, the message beside the slot keeps its placeholder."""
    text = '{"op": 2, "d": {"text": "@", "token": "@"}, "op": 1}'.replace("@", HELD)
    value = value_of(TOKEN)
    talk(lab, policy, "/plain", ["text", text], value=value)
    parts = upstream(lab).split('"token"')
    assert not says(parts[0], value), upstream(lab)


def test_a_binary_frame_that_repeats_the_value_is_masked(lab: Lab, policy: str) -> None:
    """The lab repeats a binary frame as it is: one that holds no slot never had the value in it."""
    value = value_of(TOKEN)
    told = talk(lab, policy, "/plain", ["binary", f"\0{HELD}\0"], value=value)
    assert not says(upstream(lab), value), told.result.told()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500])
def test_a_handshake_that_upstream_refuses_is_the_clients_to_read_and_to_fall_back_from(
    lab: Lab, policy: str, status: int
) -> None:
    script = f"""
url=https://web.lab.test/upgrade/{status}
curl -sS -i --suppress-connect-headers --http1.1 -H 'Connection: Upgrade' -H 'Upgrade: websocket' \
  -H 'Sec-WebSocket-Version: 13' -H 'Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==' $url \
  --next -sS -i --suppress-connect-headers --http1.1 $url
"""
    told = run_with_secrets(
        *(lab, {TOKEN: value_of(TOKEN)}, "--policy", policy), cmd=["sh", "-ec", script]
    )
    text = told.result.stdout.replace("\r\n", "\n").lower()
    refused, _, served = text.partition(f"no socket here: {status}\n")
    assert refused.startswith(f"http/1.1 {status} "), told.result.told()
    assert "x-lab: handshake" in refused, told.result.told()
    assert "www-authenticate: lab" in refused, told.result.told()
    assert "proxy-status" not in text, told.result.told()
    assert served.startswith("http/1.1 200"), told.result.told()
    assert served.endswith("served without a socket\n"), told.result.told()
    told_of = told.result.events("http.request", status=status)
    assert [line["said_by"] for line in told_of] == ["upstream"], told.result.told()
    assert told.result.events("ws.opened") == []
