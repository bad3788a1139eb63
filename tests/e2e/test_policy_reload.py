"""`netns-debug policy SANDBOX --set FILE`: what opens, what closes, and what stays."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

from tests.support.run import PYTHON, Running, netns_debug

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.lab import Lab

# Opens a tunnel when told `open HOST PORT`, and says for `ask N` whether tunnel N still answers.
CLIENT = r"""
import socket, sys
tunnels = []
for line in sys.stdin:
    words = line.split()
    if words[0] == "open":
        sock = socket.create_connection(("10.200.0.1", 3128), timeout=10)
        sock.sendall(f"CONNECT {words[1]}:{words[2]} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += sock.recv(1) or b"\r\n\r\n"
        tunnels.append(sock)
        print(answer.split()[1].decode(), flush=True)
    else:
        sock = tunnels[int(words[1])]
        try:
            sock.sendall(b"ping\n")
            print("answers" if sock.recv(64) else "closed", flush=True)
        except OSError:
            print("closed", flush=True)
"""


def policy_file(path: Path, *hosts: str) -> Path:
    endpoints = "".join(f"      - {{host: {host}, port: 7}}\n" for host in hosts)
    path.write_text(f"network_policies:\n  swap:\n    endpoints:\n{endpoints}", encoding="ascii")
    return path


def told(running: Running, line: str) -> str:
    running.tell(line)
    return running.line().strip()


def test_a_swap_opens_closes_and_leaves_what_the_new_policy_says(lab: Lab, tmp_path: Path) -> None:
    name = "reload-test"
    with Running(
        *("--name", name, "--allow", "web.lab.test:7", "--allow", "api.lab.test:7"),
        cmd=[PYTHON, "-c", CLIENT],
        lab=lab,
        stdin=subprocess.PIPE,
    ) as running:
        assert told(running, "open web.lab.test 7") == "200"
        assert told(running, "open api.lab.test 7") == "200"
        assert told(running, "open other.test 7") == "403"

        broken = tmp_path / "broken.yaml"
        broken.write_text("network_policies: {x: {endpoints: [{hots: a}]}}\n", encoding="ascii")
        refused = netns_debug("policy", name, "--set", str(broken))
        assert refused.returncode == 125
        assert "broken.yaml:1" in refused.stderr
        assert told(running, "ask 0") == "answers"
        assert told(running, "ask 1") == "answers"

        swapped = netns_debug(
            "policy",
            name,
            "--set",
            str(policy_file(tmp_path / "new.yaml", "web.lab.test", "other.test")),
        )
        assert swapped.returncode == 0, swapped.stderr
        assert "closed 1 flow" in swapped.stdout
        assert told(running, "ask 0") == "answers"
        assert told(running, "ask 1") == "closed"
        assert told(running, "open other.test 7") == "200"
        assert told(running, "open api.lab.test 7") == "403"
        result = running.wait(given=b"")
    closed = [event for event in result.events("flow.closed") if event["host"] == "api.lab.test"]
    assert [event["said_by"] for event in closed] == ["policy"], result.told()


def test_flows_shows_what_is_open_with_its_process(lab: Lab) -> None:
    name = "flows-test"
    with Running(
        *("--name", name, "--allow", "web.lab.test:7"),
        cmd=[PYTHON, "-c", CLIENT],
        lab=lab,
        stdin=subprocess.PIPE,
    ) as running:
        assert told(running, "open web.lab.test 7") == "200"
        assert told(running, "ask 0") == "answers"
        flows = json.loads(netns_debug("flows", name, "--json").stdout)
        assert [(flow["host"], flow["port"], flow["entry"]) for flow in flows] == [
            ("web.lab.test", 7, "explicit")
        ]
        assert flows[0]["exe"].startswith("/usr/bin/python3")
        assert (flows[0]["bytes_out"], flows[0]["bytes_in"]) == (5, 5)
        shown = netns_debug("flows", name)
        assert "web.lab.test:7" in shown.stdout
        assert running.wait(given=b"").status == 0


def test_a_sandbox_that_is_not_there_is_one_line() -> None:
    answer = netns_debug("policy", "nobody-here", "--set", "/etc/passwd")
    assert answer.returncode == 125
    assert answer.stderr == (
        "netns-debug: no sandbox called nobody-here is running: see netns-debug list; of one that "
        "has gone, its --audit file tells\n"
    )
