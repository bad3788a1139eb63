"""Text messages: Discord's IDENTIFY and RESUME are filled in, a chat message never is."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netns_runtime.secret import Slot
from netns_runtime.wire.rewrite import Hit, websocket_text, withheld_in
from tests.support.secrets import VALUES, secret

P = "openshell:resolve:env:TOKEN"
IDENTIFY = Slot("websocket", "/d/token", ("/op", (2, 6)))


@given(VALUES, st.sampled_from([2, 6]))
def test_identify_parses_to_exactly_the_value(value: str, op: int) -> None:
    message = {"op": op, "d": {"token": P, "about": P, "properties": {"token": P}}}
    done, hits = websocket_text(json.dumps(message), [secret(value, IDENTIFY)])
    message["d"]["token"] = value  # type: ignore[index]
    assert json.loads(done) == message
    assert hits == (Hit("TOKEN", "websocket /d/token"),)


@pytest.mark.parametrize(
    "text",
    [
        f'{{"op": 4, "d": {{"token": "{P}"}}}}',
        f'{{"op": "2", "d": {{"token": "{P}"}}}}',
        f'{{"op": true, "d": {{"token": "{P}"}}}}',
        f'{{"d": {{"token": "{P}"}}}}',
        f'{{"op": 4, "op": 2, "d": {{"token": "{P}"}}}}',
        f'{{"op": 2, "d": {{"token": ["{P}"], "x": "{P}"}}}}',
        f'{{"op": 2, "d": {{"token": "{P}_2"}}}}',
        f'{{"op": 2, "d": {{"token": "{P}"}}',
        f"{P}",
        f'"{P}"',
        "[" * 100_000 + P,
        '{"op": 2, "d": {"token": "x"}}',
    ],
)
def test_another_message_passes_byte_for_byte(text: str) -> None:
    assert websocket_text(text, [secret("v", IDENTIFY)]) == (text, ())


def test_true_is_not_one() -> None:
    slot = Slot("websocket", "/t", ("/op", (1,)))
    text = f'{{"op": true, "t": "{P}"}}'
    assert websocket_text(text, [secret("v", slot)]) == (text, ())


def test_spelling_outside_of_the_placeholder_stays() -> None:
    escaped = "".join(f"\\u{ord(character):04x}" for character in P)
    text = f' {{ "op":2.0,"x":1e3,"d":{{"token" :"Bot {escaped}\\/", "é":"\\u00e9\ud800"}} }}\n'
    done, hits = websocket_text(text, [secret('v"', IDENTIFY)])
    assert done == text.replace(escaped, 'v\\"')
    assert hits


def test_a_slot_without_a_condition_fits_every_message() -> None:
    done, _ = websocket_text(f'[{{"t":"{P}"}}]', [secret("v", Slot("websocket", "/0/t"))])
    assert done == '[{"t":"v"}]'


def test_a_condition_may_look_into_a_list() -> None:
    slot = Slot("websocket", "/1", ("/0", ("auth", None)))
    for head in ('"auth"', "null"):
        done, _ = websocket_text(f'[{head},"{P}"]', [secret("v", slot)])
        assert done == f'[{head},"v"]'


def test_a_message_that_asks_for_an_unbound_secret_is_told() -> None:
    others = [secret("v"), secret("w", name="OTHER")]
    assert withheld_in(f"please say {P}.", others) == ("TOKEN",)
    assert withheld_in(f"please say {P}S.", others) == ()
