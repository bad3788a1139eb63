"""An unmodified discord.js: its gateway socket knows of no proxy, resumes, and beats in time."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.support.clients import node
from tests.support.lab_discord import GATEWAY_HOST, HOST, RESUME_HOST
from tests.support.run import NODE_MODULES, Running, netns_run

if TYPE_CHECKING:
    from tests.support.lab import Lab
    from tests.support.run import Result

ALLOWED = ("--allow", f"{HOST}:443", "--allow", f"*.{HOST}:443")
ENVIRONMENT = {"NODE_PATH": NODE_MODULES}


@dataclass(frozen=True)
class Life:
    """How the bot's run ended and what Discord saw of it."""

    result: Result
    transcript: list[str]


@pytest.fixture(scope="module")
def life(lab_of_all: Lab) -> Life:
    token = f"lab-{os.getpid()}"
    command = [*node("discord_bot.js"), token]
    result = netns_run(*ALLOWED, cmd=command, lab=lab_of_all, env=ENVIRONMENT)
    return Life(result, lab_of_all.transcript_of(token))


def test_identifies_beats_and_becomes_ready(life: Life) -> None:
    assert life.transcript[:4] == [
        "GET /gateway/bot",
        f"IDENTIFY deflated at {GATEWAY_HOST}",
        "HEARTBEAT",
        "HEARTBEAT",
    ], life.result.told()
    assert life.result.stdout.startswith("ready as lab\n"), life.result.told()


def test_resumes_at_another_host_when_told_to_and_after_a_break(life: Life) -> None:
    rest = [line for line in life.transcript[4:] if line != "HEARTBEAT"]
    assert rest == [
        "closed after RECONNECT",
        f"RESUME deflated at {RESUME_HOST}",
        "broken off",
        f"RESUME deflated at {RESUME_HOST}",
        "GET /users/@me",
        "closed",
    ], life.result.told()
    assert life.result.stdout == "ready as lab\nresumed\nresumed\ngoodbye lab\n"
    assert life.result.status == 0, life.result.told()


def test_beats_on_every_socket(life: Life) -> None:
    sockets = 1 + sum(line.startswith("RESUME") for line in life.transcript)
    assert sockets == 3
    assert life.transcript.count("HEARTBEAT") >= sockets + 1, life.transcript


def test_every_socket_is_told_as_redirected_with_its_process(life: Life) -> None:
    result = life.result
    sockets = [
        event
        for event in result.events("flow.decided")
        if event["host"] in (GATEWAY_HOST, RESUME_HOST)
    ]
    hosts = [event["host"] for event in sockets]
    assert hosts == [GATEWAY_HOST, RESUME_HOST, RESUME_HOST], result.told()
    for event in sockets:
        assert (event["entry"], event["action"]) == ("redirected", "allow"), result.told()
        assert event["exe"].endswith("/node"), result.told()
        assert event["rule"].startswith("--allow"), result.told()
    assert result.events("connect.refused") == []
    assert result.events("dns.refused") == []


def test_a_resume_host_that_is_not_listed_is_refused_by_name(lab: Lab) -> None:
    command = [*node("discord_bot.js"), f"lab-unlisted-{os.getpid()}"]
    allowed = ("--allow", f"{HOST}:443", "--allow", f"{GATEWAY_HOST}:443")
    with Running(
        *allowed, cmd=command, lab=lab, env=ENVIRONMENT, stderr=subprocess.STDOUT
    ) as running:
        assert running.line() == "ready as lab\n"
        assert running.line() == f"getaddrinfo ENOTFOUND {RESUME_HOST}\n"
        running.process.terminate()
        result = running.wait()
    refused = result.events("dns.refused", host=RESUME_HOST)[0]
    assert refused["exe"].endswith("/node"), result.told()
    assert refused["remedy"] == f"--allow {RESUME_HOST}", result.told()
