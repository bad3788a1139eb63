"""`netns-debug why --url wss://…`: each way a WebSocket of one host ended is told by its own URL.

All of them happen in one sandbox, one after another, and one of them ends well: what is said of one
must be nothing of another's. Asked live, and again from the audit alone.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.clients import python
from tests.support.debug_shell import why
from tests.support.run import Running, netns_debug

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.lab import Lab

NAME = "why-websockets"
POLICY = """\
version: 1
network_policies:
  sockets:
    endpoints:
      - {host: ws.lab.test, port: 443, protocol: websocket, access: full}
      - {host: v4.lab.test, port: 80}
      - host: api.lab.test
        port: 443
        protocol: websocket
        rules:
          - allow: {method: GET, path: /fail/**}
          - allow: {method: WEBSOCKET_TEXT, path: /fail/**, message: {pointer: /op, in: [1]}}
"""
BY_POLICY = "sockets ({policy}:3)"


@dataclass(frozen=True)
class End:
    """How one WebSocket is opened, and what is to be said of its end."""

    url: str
    said_by: str
    words: str
    advice: str = ""
    then: str = "wait"
    change: str = ""


ENDS = [
    End(
        "wss://ws.lab.test/fail/status/403",
        "upstream",
        "upstream answered GET /fail/status/403 with status 403",
        "upstream knows who asks and says no",
    ),
    End(
        "wss://ws.lab.test/fail/close/4004/who",
        "upstream",
        "the WebSocket was closed with 4004 by upstream: who",
        "the service's documentation",
    ),
    End(
        "wss://ws.lab.test/fail/reset",
        "upstream",
        "the WebSocket was closed with 1006 by upstream: upstream is gone: Connection reset",
        "the connection was cut without a close frame",
    ),
    End(
        "wss://ws.lab.test/fail/close/1009",
        "upstream",
        "the WebSocket was closed with 1009 by upstream: no reason given",
        "a message is longer than the limit",
    ),
    End(
        "wss://ws.lab.test/fail/listen/4321",
        "client",
        "the WebSocket was closed with 4321 by sandbox: as told",
        "the service's documentation",
        then="close 4321",
    ),
    End(
        "wss://ws.lab.test/fail/frame/reserved-opcode",
        "proxy",
        "the WebSocket was closed with 1002 by proxy: upstream broke the protocol: opcode 0x3",
        "",
    ),
    End(
        "wss://ws.lab.test/fail/accept/wrong",
        "upstream",
        "does not answer",
        "did not agree to the WebSocket",
    ),
    End(
        "wss://api.lab.test/fail/listen/x",
        "policy",
        "the WebSocket was closed with 1008 by policy: sockets",
        then='send {"op": 2}',
        change="op",
    ),
    End("ws://v4.lab.test/fail/reset", "upstream", "Connection reset", "see its log"),
]
WELL = "wss://ws.lab.test/fail/close/1000/bye"
NEVER = "wss://ws.lab.test/fail/never/opened"


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("why-ws") / "policy.yaml"
    file.write_text(POLICY)
    return file


@pytest.fixture(scope="module")
def running(lab_of_all: Lab, policy: Path) -> Iterator[Running]:
    urls = [(end.url, end.then) for end in ENDS] + [(WELL, "wait")]
    items = json.dumps([{"url": url, "then": then} for url, then in urls])
    command = f"{' '.join(python('ws_fail.py'))} <<< '{items}'; read line"
    with Running(
        *("--policy", str(policy), "--name", NAME),
        cmd=["bash", "-c", command],
        lab=lab_of_all,
        stdin=subprocess.PIPE,
    ) as one:
        said = [one.line() for _ in urls]
        assert all(said), said
        yield one
        assert one.wait(given=b"\n").status == 0


@pytest.fixture(scope="module")
def audit(running: Running, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("why-ws") / "audit.jsonl"
    file.write_text("".join(json.dumps(event) + "\n" for event in running.audit()))
    return file


def check(found: dict[str, Any], end: End) -> None:
    told = json.dumps(found, indent=1)
    assert (found["stops_at"], found["said_by"]) == ("traffic", end.said_by), told
    assert [step["step"] for step in found["steps"] if step["state"] == "stop"] == ["traffic"]
    assert found["is_observed"], told
    assert end.words in found["cause"], told
    assert end.advice in found["advice"], told
    assert len(found["attempts"]) == 1, told
    assert found["attempts"][0]["comm"] == "python"
    if end.said_by != "policy":
        assert found["changes"] == [], told


@pytest.mark.parametrize("end", ENDS, ids=lambda end: f"{end.url} {end.then}")
def test_a_websocket_s_own_end_is_told_by_its_url(running: Running, audit: Path, end: End) -> None:
    live = why("--url", end.url, "--sandbox", NAME)
    check(live, end)
    assert any(end.change in change for change in live["changes"]) or not end.change, live
    check(why("--url", end.url, "--from", str(audit)), end)
    page = netns_debug("why", "--url", end.url, "--sandbox", NAME).stdout
    assert "stops at HTTP/WebSocket" in page
    assert all(len(line) <= 80 for line in page.splitlines() if " " in line.strip()), page


def test_one_that_ended_well_is_blamed_for_none_of_them(running: Running) -> None:
    found = why("--url", WELL, "--sandbox", NAME)
    assert (found["stops_at"], found["said_by"], found["is_observed"]) == (None, "allowed", True)
    assert [attempt["code"] for attempt in found["attempts"]] == [1000]


def test_one_that_nobody_opened_is_said_to_be_untried(running: Running) -> None:
    found = why("--url", NEVER, "--sandbox", NAME)
    assert (found["stops_at"], found["is_observed"]) == (None, False), found
    assert found["attempts"] == []


def test_the_rule_that_refused_a_message_is_named_by_its_line(
    running: Running, policy: Path
) -> None:
    found = why("--url", "wss://api.lab.test/fail/listen/x", "--sandbox", NAME)
    [stop] = [step for step in found["steps"] if step["state"] == "stop"]
    assert stop["rule"] == BY_POLICY.format(policy=policy)
    assert POLICY.splitlines()[2].strip() == "sockets:"
