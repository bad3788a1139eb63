"""Slack's own clients, unpatched, with placeholders as their only credentials.

Bolt 4 (its socket is `ws`), Bolt 5 (undici) and slack_sdk reach a Slack that takes the real tokens
only, live through a refresh and a break, and never hold a token. All run at once.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.support.clients import node, node_version, python
from tests.support.lab_slack import APP_TOKEN, BOT_TOKEN, REAL_HOST, REAL_SOCKET_HOSTS
from tests.support.run import NODE_MODULES
from tests.support.secret_run import (
    Bot,
    Told,
    finish_bot,
    placeholder,
    plain_value_of,
    started,
    value_of,
)

if TYPE_CHECKING:
    from tests.support.lab import Lab

NO_PROXY = ("env", "-u", "https_proxy", "-u", "HTTPS_PROXY", "-u", "http_proxy", "-u", "HTTP_PROXY")
OPTIONS = ("--preset", "slack")
BOTS = [
    *(
        Bot(bolt, (*node("secret_bolt.js"), bolt), {"NODE_PATH": NODE_MODULES})
        for bolt, since in (("bolt4", 18), ("bolt5", 20))
        if node_version()[0] >= since
    ),
    Bot("slack_sdk redirected", (*NO_PROXY, *python("secret_slack.py"))),
    Bot("slack_sdk explicit", python("secret_slack.py")),
]
SHOWN = {"bolt4": "form, header", "bolt5": "form, header"}
SOCKETS = [
    *("open 1 by header", "ack envelope-1", "open 2 by header", "ack envelope-2", "broken off"),
    *("open 3 by header", "ack envelope-3", "closed"),
]


@dataclass(frozen=True)
class Life:
    """A bot's run, what Slack saw of its two tokens, and the placeholders that reached Slack."""

    told: Told
    bot: list[str]
    app: list[str]


@pytest.fixture(scope="module")
def lives(lab_of_all: Lab) -> dict[str, Life]:
    lab = lab_of_all
    lab.forget()
    # One of them has tokens as awkward as header, form and JSON allow.
    make = dict.fromkeys([bot.name for bot in BOTS], plain_value_of) | {"bolt4": value_of}
    all_values = {
        bot.name: {name: make[bot.name](name) for name in (BOT_TOKEN, APP_TOKEN)} for bot in BOTS
    }
    for values in all_values.values():
        for name, value in values.items():
            lab.accept(name, value)
    with ExitStack() as stack:
        running = {
            bot.name: stack.enter_context(
                started(
                    lab,
                    all_values[bot.name],
                    OPTIONS,
                    bot.command,
                    # A copy under another name is a secret as well.
                    {**bot.environment, "A_COPY": all_values[bot.name][BOT_TOKEN]},
                    stdin=-1,
                )
            )
            for bot in BOTS
        }
        told = {name: finish_bot(lab, *one, all_values[name]) for name, one in running.items()}
    return {
        name: Life(
            told[name],
            lab.transcript_of(values[BOT_TOKEN]),
            lab.transcript_of(values[APP_TOKEN]),
        )
        for name, values in all_values.items()
    }


@pytest.fixture(scope="module")
def placeholders(lab_of_all: Lab, lives: dict[str, Life]) -> list[tuple[str, str]]:
    return lab_of_all.placeholders_seen()


every_bot = pytest.mark.parametrize("name", [bot.name for bot in BOTS])


@every_bot
def test_a_bot_with_placeholders_lives_its_day(lives: dict[str, Life], name: str) -> None:
    life = lives[name]
    by = SHOWN.get(name, "header")
    assert life.bot == [f"auth.test by {by}", "chat.postMessage by header"], life.told.result.told()
    # When the old socket is closed is the client's choice.
    seen = [line for line in life.app if line != "closed after refresh"]
    assert seen == SOCKETS, life.told.result.told()
    assert life.told.result.status == 0, life.told.result.told()
    assert life.told.result.stdout.endswith("posted true\n"), life.told.result.told()


@every_bot
def test_what_the_bot_holds_are_placeholders(lives: dict[str, Life], name: str) -> None:
    told = lives[name].told
    held = f"tokens {placeholder(BOT_TOKEN)} {placeholder(APP_TOKEN)}\n"
    assert held in told.result.stdout, told.result.told()


@every_bot
def test_no_trace_of_a_token_is_inside_the_sandbox(lives: dict[str, Life], name: str) -> None:
    told = lives[name].told
    assert told.in_proxy, "the search does not even find the value where it is"
    assert told.traces == (), told.traces


@every_bot
def test_nothing_that_was_said_holds_a_token(lives: dict[str, Life], name: str) -> None:
    told = lives[name].told
    assert told.leaks() == [], told.result.told()


@every_bot
def test_each_use_of_a_token_is_told_with_slot_and_host(lives: dict[str, Life], name: str) -> None:
    told = lives[name].told
    used = {(secret, host) for secret, _, host in told.substituted()}
    assert used == {(BOT_TOKEN, REAL_HOST), (APP_TOKEN, REAL_HOST)}, told.result.told()
    slots = {slot for secret, slot, _ in told.substituted() if secret == BOT_TOKEN}
    wanted = {"header authorization"}
    wanted |= {"form token"} if "form" in SHOWN.get(name, "") else set()
    assert slots == wanted, told.result.told()
    # What it wrote about its token in a message stays a placeholder, and that is said.
    withheld = [line["detail"] for line in told.result.events("secret.withheld")]
    assert all(detail.startswith("no slot of ") for detail in withheld), told.result.told()


@every_bot
def test_each_socket_is_told_with_its_end_and_its_messages(
    lives: dict[str, Life], name: str
) -> None:
    result = lives[name].told.result
    opened = result.events("ws.opened")
    assert [event["host"] for event in opened] == list(REAL_SOCKET_HOSTS), result.told()
    closed = result.events("ws.closed")
    assert len(closed) == len(opened), result.told()
    for event in closed:
        assert event["messages_in"] >= 2, result.told()
        assert event["messages_out"] >= 1, result.told()


def test_no_placeholder_reached_slack_but_in_prose(placeholders: list[tuple[str, str]]) -> None:
    # Each bot posts one, in the text of a message: not a slot, so it passes as it is.
    assert {where for where, _ in placeholders} == {f"POST {REAL_HOST} body"}, placeholders
    for _, what in placeholders:
        assert "text=my" in what or '"text"' in what, placeholders


def test_a_wrong_token_is_told_by_slack_and_not_by_us(lab: Lab) -> None:
    values = {name: plain_value_of(name) for name in (BOT_TOKEN, APP_TOKEN)}
    command = [*node("secret_bolt.js"), "bolt4"]
    with started(lab, values, OPTIONS, command, {"NODE_PATH": NODE_MODULES}, stdin=-1) as (
        running,
        status,
    ):
        told = finish_bot(lab, running, status, values)
    assert told.result.status == 1, told.result.told()
    assert "invalid_auth" in told.result.stderr, told.result.told()
    assert told.leaks() == [], told.result.told()
