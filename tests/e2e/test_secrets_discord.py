"""discord.js and discord.py, unpatched and redirected, with a placeholder as their only token.

Discord takes the real token only: in REST, in IDENTIFY (deflated by discord.js, plain text by
discord.py) and in RESUME, which goes to a host that only READY names. Both run at once.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.support.clients import node, python
from tests.support.lab_discord import REAL, TOKEN
from tests.support.run import NODE_MODULES
from tests.support.secret_run import Bot, Told, finish_bot, placeholder, plain_value_of, started

if TYPE_CHECKING:
    from tests.support.lab import Lab

OPTIONS = ("--preset", "discord")
BOTS = [
    Bot("discord.js", node("secret_discord.js"), {"NODE_PATH": NODE_MODULES}),
    Bot("discord.py", python("secret_discord.py")),
]
FRAMES = {"discord.js": "deflated", "discord.py": "plain"}
FIRST = {
    "discord.js": ["GET /gateway/bot"],
    "discord.py": ["GET /users/@me", "GET /oauth2/applications/@me"],
}


@dataclass(frozen=True)
class Life:
    """A bot's run and what Discord saw of its token."""

    told: Told
    transcript: list[str]


@pytest.fixture(scope="module")
def lives(lab_of_all: Lab) -> dict[str, Life]:
    lab = lab_of_all
    lab.forget()
    values = {bot.name: {TOKEN: plain_value_of(TOKEN)} for bot in BOTS}
    for one in values.values():
        lab.accept(TOKEN, one[TOKEN])
    with ExitStack() as stack:
        running = {
            bot.name: stack.enter_context(
                started(lab, values[bot.name], OPTIONS, bot.command, bot.environment, stdin=-1)
            )
            for bot in BOTS
        }
        told = {name: finish_bot(lab, *one, values[name]) for name, one in running.items()}
    return {name: Life(told[name], lab.transcript_of(one[TOKEN])) for name, one in values.items()}


@pytest.fixture(scope="module")
def placeholders(lab_of_all: Lab, lives: dict[str, Life]) -> list[tuple[str, str]]:
    return lab_of_all.placeholders_seen()


every_bot = pytest.mark.parametrize("name", [bot.name for bot in BOTS])


@every_bot
def test_a_bot_with_a_placeholder_is_ready_and_resumes(lives: dict[str, Life], name: str) -> None:
    life = lives[name]
    how = FRAMES[name]
    beats = life.transcript.count("HEARTBEAT")
    seen = [line for line in life.transcript if line != "HEARTBEAT"]
    assert seen == [
        *FIRST[name],
        f"IDENTIFY {how} at {REAL.gateway}",
        "closed after RECONNECT",
        f"RESUME {how} at {REAL.resume}",
        "broken off",
        f"RESUME {how} at {REAL.resume}",
        "POST /channels/1/messages",
        "closed",
    ], life.told.result.told()
    assert beats >= 4, life.transcript
    assert life.told.result.status == 0, life.told.result.told()
    assert "ready as lab\n" in life.told.result.stdout, life.told.result.told()
    assert life.told.result.stdout.count("resumed\n") == 2, life.told.result.told()


@every_bot
def test_what_the_bot_holds_is_a_placeholder(lives: dict[str, Life], name: str) -> None:
    told = lives[name].told
    assert told.result.stdout.startswith(f"token {placeholder(TOKEN)}\n"), told.result.told()
    # What it said of itself came back as it had said it.
    assert f"posted my token is {placeholder(TOKEN)}\n" in told.result.stdout, told.result.told()


@every_bot
def test_no_trace_of_the_token_is_inside_the_sandbox(lives: dict[str, Life], name: str) -> None:
    told = lives[name].told
    assert told.in_proxy, "the search does not even find the value where it is"
    assert told.traces == (), told.traces


@every_bot
def test_nothing_that_was_said_holds_the_token(lives: dict[str, Life], name: str) -> None:
    told = lives[name].told
    assert told.leaks() == [], told.result.told()


@every_bot
def test_each_use_of_the_token_is_told_with_slot_and_host(
    lives: dict[str, Life], name: str
) -> None:
    told = lives[name].told
    assert told.substituted() == {
        (TOKEN, "header authorization", REAL.api),
        (TOKEN, "websocket /d/token", REAL.gateway),
        (TOKEN, "websocket /d/token", REAL.resume),
    }, told.result.told()
    withheld = [line["detail"] for line in told.result.events("secret.withheld")]
    assert all(detail.startswith("no slot of ") for detail in withheld), told.result.told()


@every_bot
def test_each_socket_is_redirected_and_told_with_its_code(
    lives: dict[str, Life], name: str
) -> None:
    result = lives[name].told.result
    hosts = [REAL.gateway, REAL.resume, REAL.resume]
    assert [event["host"] for event in result.events("ws.opened")] == hosts, result.told()
    flows = [event for event in result.events("flow.decided") if event["host"] in hosts]
    assert {event["entry"] for event in flows} == {"redirected"}, result.told()
    closed = {event["host"]: event for event in result.events("ws.closed")}
    assert closed[REAL.gateway]["messages_out"] >= 3, result.told()
    if name == "discord.js":
        # What discord.js closes with before it resumes.
        assert closed[REAL.gateway]["code"] == 4200, result.told()


def test_no_placeholder_reached_discord_but_in_prose(placeholders: list[tuple[str, str]]) -> None:
    assert {where for where, _ in placeholders} == {f"POST {REAL.api} body"}, placeholders
    assert all('"content"' in what for _, what in placeholders), placeholders


def test_a_wrong_token_closes_with_discords_own_code(lab: Lab) -> None:
    script = """
        const { WebSocket } = require("ws");
        const socket = new WebSocket("wss://gateway.discord.gg/?v=10&encoding=json");
        const token = process.env.DISCORD_BOT_TOKEN;
        socket.on("message", () => socket.send(JSON.stringify({ op: 2, d: { token } })));
        socket.on("close", (code, reason) => console.log(code, String(reason)));
        socket.on("error", (error) => console.log(error.message));
    """
    values = {TOKEN: plain_value_of(TOKEN)}
    with started(lab, values, OPTIONS, ["node", "-e", script], {"NODE_PATH": NODE_MODULES}) as (
        running,
        _,
    ):
        result = running.wait()
    assert result.stdout == "4004 Authentication failed.\n", result.told()
    closed = result.event("ws.closed")
    assert (closed["code"], closed["said_by"]) == (4004, "upstream"), result.told()
