"""The seed's case: an unmodified Bolt in Socket Mode, whose WebSocket knows of no proxy.

Its sockets last seconds (a reconnect takes Bolt five), so all ways run at once, in a sandbox each.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.support.clients import node, node_version
from tests.support.lab_slack import HOST, SOCKET_HOSTS
from tests.support.run import NODE_MODULES, Running

if TYPE_CHECKING:
    from tests.support.lab import Lab
    from tests.support.run import Result

ALLOWED = ("--allow", f"{HOST}:443", "--allow", f"*.{HOST}:443")
ENVIRONMENT = {"NODE_PATH": NODE_MODULES}

LIVED = [
    *("auth.test", "open 1", "ack envelope-1", "closed after refresh"),
    *("open 2", "ack envelope-2", "broken off"),
    *("open 3", "ack envelope-3", "closed"),
]


@dataclass(frozen=True)
class Way:
    """A version of Bolt and how its WebSocket gets out. Bolt 4 uses `ws`, Bolt 5 undici."""

    bolt: str
    entry: str

    def command(self, name: str) -> list[str]:
        told = ["by-proxy"] if self.entry == "explicit" else []
        return [*node("bolt_app.js"), self.bolt, name, *told]


WAYS = [
    Way(bolt, entry)
    for bolt, since in (("bolt4", 18), ("bolt5", 20))
    if node_version()[0] >= since
    for entry in ("redirected", "explicit")
]


@dataclass(frozen=True)
class Life:
    """How an app's run ended and what Slack saw of it."""

    result: Result
    transcript: list[str]


@pytest.fixture(scope="module")
def lives(lab_of_all: Lab) -> dict[Way, Life]:
    names = {way: f"{way.bolt}-{way.entry}-{os.getpid()}" for way in WAYS}
    with ExitStack() as stack:
        running = {
            way: stack.enter_context(
                Running(*ALLOWED, cmd=way.command(name), lab=lab_of_all, env=ENVIRONMENT)
            )
            for way, name in names.items()
        }
        results = {way: app.wait(60) for way, app in running.items()}
    return {
        way: Life(
            result,
            [
                *lab_of_all.transcript_of(f"xoxb-{names[way]}"),
                *lab_of_all.transcript_of(f"xapp-{names[way]}"),
            ],
        )
        for way, result in results.items()
    }


every_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: f"{way.bolt} {way.entry}")


@every_way
def test_hears_and_acks_events_through_a_refresh_and_a_break(
    lives: dict[Way, Life], way: Way
) -> None:
    life = lives[way]
    assert life.transcript == LIVED, life.result.told()
    assert life.result.status == 0, life.result.told()
    heard = [line for line in life.result.stdout.splitlines() if line.startswith("heard")]
    assert heard == ["heard event 1", "heard event 2", "heard event 3"], life.result.told()
    assert life.result.stdout.endswith("stopped\n"), life.result.told()


@every_way
def test_each_socket_is_told_with_its_entry_and_its_process(
    lives: dict[Way, Life], way: Way
) -> None:
    result = lives[way].result
    sockets = [event for event in result.events("flow.decided") if event["host"] in SOCKET_HOSTS]
    assert [event["host"] for event in sockets] == list(SOCKET_HOSTS), result.told()
    for event in sockets:
        assert event["entry"] == way.entry, result.told()
        assert event["action"] == "allow", result.told()
        assert f"*.{HOST}" in event["rule"], result.told()
        assert event["exe"].endswith("/node"), result.told()
        assert event["pid"] > 1, result.told()
    assert result.events("connect.refused") == []
    assert result.events("dns.refused") == []


@every_way
def test_each_socket_is_told_when_it_ends_with_what_it_carried(
    lives: dict[Way, Life], way: Way
) -> None:
    result = lives[way].result
    closed = [event for event in result.events("flow.closed") if event["host"] in SOCKET_HOSTS]
    assert len(closed) == len(SOCKET_HOSTS), result.told()
    for event in closed:
        assert event["bytes_in"] > 500, result.told()
        assert event["bytes_out"] > 500, result.told()


def test_its_websocket_ignores_the_proxy_variables_that_it_has(lives: dict[Way, Life]) -> None:
    result = lives[Way("bolt4", "redirected")].result
    assert result.stdout.startswith("https_proxy=http://10.200.0.1:3128\n"), result.told()
    # What Node 24 makes of the variable in its own https module is REST's, and not the socket's.
    names = {event["host"] for event in result.events("dns.answered")}
    assert names - {HOST} == set(SOCKET_HOSTS), result.told()


def told_until(word: str, lab: Lab, *options: str) -> Result:
    """Run Bolt, which never gives up, until it says `word`."""
    command = [*node("bolt_app.js"), "bolt4", f"refused-{os.getpid()}"]
    with Running(
        *options, cmd=command, lab=lab, env=ENVIRONMENT, stderr=subprocess.STDOUT
    ) as running:
        while word not in (line := running.line()):
            assert line, running.wait().told()
        running.process.terminate()
        return running.wait()


def test_a_socket_host_that_is_not_listed_is_refused_by_name(lab: Lab) -> None:
    said = f"getaddrinfo ENOTFOUND {SOCKET_HOSTS[0]}"
    result = told_until(said, lab, "--allow", f"{HOST}:443")
    refused = result.events("dns.refused", host=SOCKET_HOSTS[0])[0]
    assert refused["exe"].endswith("/node"), result.told()
    assert refused["remedy"] == f"--allow {SOCKET_HOSTS[0]}", result.told()
    assert result.events("flow.decided", action="refuse") == []


def test_without_redirect_it_is_told_which_flag_would_carry_it(lab: Lab) -> None:
    result = told_until("ECONNREFUSED", lab, "--redirect", "off", *ALLOWED)
    assert result.events("dns.answered", host=HOST), result.told()
    refused = result.events("connect.refused")
    assert refused, result.told()
    for event in refused:
        assert "--redirect on" in event["remedy"], result.told()
        assert event["host"] == HOST, result.told()
        assert event["exe"].endswith("/node"), result.told()
