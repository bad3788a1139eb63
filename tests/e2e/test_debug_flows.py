"""`netns-debug flows`: what is open and what has closed, with what the kernel knows of it."""

from __future__ import annotations

import json
import re
import subprocess
import time
from typing import TYPE_CHECKING, Any

from tests.support import world
from tests.support.lab import CHECKOUT
from tests.support.run import PYTHON, Running, netns_debug

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.lab import Lab

CLIENT = str(CHECKOUT / "tests/support/debug_client.py")
POLICY = """
version: 1
network_policies:
  sockets:
    endpoints:
      - {host: web.lab.test, port: 443, protocol: websocket, access: full}
"""


def flows(name: str, *words: str) -> list[dict[str, Any]]:
    done = netns_debug("flows", name, "--json", *words)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_shows_rates_and_round_trip_times_of_both_sockets(lab: Lab) -> None:
    name = "debug-flows"
    with Running(
        *("--name", name, "--allow", "web.lab.test:7"),
        cmd=[PYTHON, CLIENT, "hold", "web.lab.test", "7"],
        lab=lab,
        stdin=subprocess.PIPE,
    ) as running:
        assert running.line() == "held\n"
        (row,) = flows(name)
        assert (row["state"], row["host"], row["entry"]) == ("open", "web.lab.test", "redirected")
        assert (row["bytes_out"], row["bytes_in"]) == (5, 5)
        assert (row["rate_out"], row["rate_in"]) == (0.0, 0.0)
        for side in ("client", "upstream"):
            assert row[side]["state"] == "established"
            assert 0 < row[side]["rtt_ms"] < 1000, row
            assert row[side]["retransmits"] == 0
        told = netns_debug("flows", name)
        assert "1 open flow\n" in told.stdout
        assert "web.lab.test:7" in told.stdout
        assert all(len(line) <= 80 for line in told.stdout.splitlines()), told.stdout
        running.tell("close")
        assert running.line() == "closed\n"
        (row,) = flows(name)
        assert (row["state"], row["flow"], row["bytes_out"]) == ("closed", 1, 5)
        assert flows(name, "--closed", "0") == []
        assert running.wait(given=b"").status == 0


def test_shows_a_websocket_s_messages_and_last_ping(lab: Lab, tmp_path: Path) -> None:
    name = "debug-flows-ws"
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    with Running(
        *("--name", name, "--policy", str(policy)),
        cmd=[PYTHON, CLIENT, "websocket", "web.lab.test", "443"],
        lab=lab,
        stdin=subprocess.PIPE,
    ) as running:
        assert running.line() == "held\n", running.wait(given=b"").told()
        (row,) = flows(name)
        assert (row["protocol"], row["websocket"]) == ("websocket", "open")
        assert (row["messages_out"], row["messages_in"]) == (1, 1)
        assert (row["pings"], row["ping_by"]) == (1, "sandbox")
        assert row["ping_ms"] < 20_000
        assert {"client", "upstream"} <= row.keys()
        told = netns_debug("flows", name).stdout
        assert "websocket open: 1 messages out, 1 in" in told.replace("\n      ", " ")
        running.tell("close")
        assert running.line() == "closed\n"
        (row,) = flows(name)
        assert (row["state"], row["websocket"], row["code"]) == ("closed", "closed", 1000)
        assert running.wait(given=b"").status == 0


# Echoes a line of its own over one connection for each line that it is given.
TALKER = """
import socket, sys
sock = socket.create_connection(("v4.lab.test", 7), 10)
for line in sys.stdin:
    sock.sendall(line.encode())
    print(sock.recv(100).decode().strip(), flush=True)
"""


def test_counts_what_had_to_be_sent_again_and_on_which_side(lab: Lab) -> None:
    """Packets to the server are lost in the lab for a moment; the sandbox's side loses none."""
    name = "debug-flows-lost"
    into = ["nsenter", f"--net={lab.internet}", "nft"]
    lose = (
        "add table inet lost; add chain inet lost in { type filter hook input priority 0; }; "
        f"add rule inet lost in ip daddr {world.WEB_IPV4} tcp dport {world.ECHO_PORT} drop"
    )
    with Running(
        *("--name", name, "--allow", "v4.lab.test:7"),
        cmd=[PYTHON, "-u", "-c", TALKER],
        lab=lab,
        stdin=subprocess.PIPE,
    ) as running:
        running.tell("first")
        assert running.line() == "first\n"
        assert retransmits(name) == (0, 0)
        subprocess.run([*into, lose], check=True)
        try:
            running.tell("second")
            deadline = time.monotonic() + 10
            while retransmits(name)[1] < 2:
                assert time.monotonic() < deadline
        finally:
            subprocess.run([*into, "delete table inet lost"], check=True)
        assert running.line() == "second\n", "it arrived in the end"
        client, upstream = retransmits(name)
        assert (client, upstream >= 2) == (0, True)
        told = netns_debug("flows", name).stdout.replace("\n      ", " ")
        assert re.search(rf"upstream rtt [\d.]+ ms, {upstream} retransmitted", told), told
        assert told.count("retransmitted") == 1
        assert running.wait(given=b"").status == 0


def retransmits(name: str) -> tuple[int, int]:
    """Towards the client and towards upstream."""
    (row,) = flows(name, "--interval", "0")
    return row["client"]["retransmits"], row["upstream"]["retransmits"]


def test_a_bad_interval_is_one_line() -> None:
    done = netns_debug("flows", "--interval", "soon")
    assert done.returncode == 125
    assert done.stderr.startswith("netns-debug: --interval soon: not a time in seconds: ")
    assert len(done.stderr.splitlines()) == 1
