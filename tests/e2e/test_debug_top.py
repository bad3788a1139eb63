"""`netns-debug top`: one frame of it for what is known to happen, and the keys of the live one."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

from tests.e2e.test_debug_flows import CLIENT
from tests.support.run import NETNS_DEBUG, PYTHON, Running, environment, netns_debug
from tests.support.terminal import Person

if TYPE_CHECKING:
    from tests.support.lab import Lab

# Refused connects and echoed bytes, at a known pace, until its standard input ends.
BUSY = """
import select, socket, sys, time
sock = socket.create_connection(("web.lab.test", 7), 10)
print("busy", flush=True)
while not select.select([sys.stdin], [], [], 0.01)[0]:
    sock.sendall(b"x" * 1000); sock.recv(4000)
    try: socket.create_connection(("192.0.2.10", 9), 5)
    except ConnectionRefusedError: pass
"""


def test_a_frame_shows_the_flow_its_rate_and_the_refusals(lab: Lab) -> None:
    name = "debug-top"
    with Running(
        *("--name", name, "--allow", "web.lab.test:7"),
        cmd=[PYTHON, "-c", BUSY],
        lab=lab,
        stdin=subprocess.PIPE,
    ) as running:
        assert running.line() == "busy\n"
        shown = netns_debug("top", name, "--once", "--interval", "0.5")
        data = json.loads(netns_debug("top", "--interval", "0.5", "--json").stdout)
        assert running.wait(given=b"\n").status == 0
    lines = shown.stdout.splitlines()
    assert shown.returncode == 0, shown.stderr
    assert all(len(line) <= 80 for line in lines), shown.stdout
    assert [line.split()[0] for line in lines[1:4]] == ["refused", "out", "in"]
    (row,) = [line for line in lines if "web.lab.test:7" in line]
    assert "kB" in row
    assert row.split()[1].startswith("python3")
    assert "\x1b" not in shown.stdout
    assert 5 < data["per_second"]["refused"] < 110
    assert 5_000 < data["per_second"]["out"] < 110_000
    (flow,) = data["flows"]
    assert (flow["sandbox"], flow["host"]) == (name, "web.lab.test")
    assert flow["upstream"]["state"] == "established"


def test_the_live_screen_takes_keys_and_leaves_the_terminal_as_it_was(lab: Lab) -> None:
    name = "debug-top-live"
    with Running(
        *("--name", name, "--allow", "web.lab.test:7"),
        cmd=[PYTHON, CLIENT, "hold", "web.lab.test", "7"],
        lab=lab,
        stdin=subprocess.PIPE,
    ) as running:
        assert running.line() == "held\n"
        script = f"'{NETNS_DEBUG}' top {name} --interval 0.2; echo ended $?; stty -a | tr ';' '\\n'"
        env = environment({"TERM": "xterm", "COLUMNS": "100", "LINES": "30"})
        with Person(["/bin/sh", "-c", script], env, "/") as person:
            person.waits_for("web.lab.test:7")
            person.waits_for("by rate")
            person.types("a")
            person.waits_for("by age")
            person.types("i")
            person.waits_for("by age reversed")
            person.types("q")
            person.waits_for("ended 0")
            person.waits_for(r"[^-]icanon")
            person.waits_for(r"[^-]echo\b")
        running.wait(given=b"\n")


def test_without_a_terminal_it_says_what_to_do(lab: Lab) -> None:
    with Running(cmd=["sleep", "30"], lab=lab) as running:
        assert not running.process.poll()
        done = netns_debug("top")
    assert (done.returncode, len(done.stderr.splitlines())) == (125, 1)


def test_a_sort_key_that_is_none_is_one_line() -> None:
    done = netns_debug("top", "--once", "--sort", "colour")
    assert done.returncode == 125
    assert done.stderr.startswith("netns-debug: --sort colour: no such key: use rate, bytes")
