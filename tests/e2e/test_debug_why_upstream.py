"""`netns-debug why` when a real upstream dies or its packets are lost: that is named, and no other.

The upstream is a process that the test starts in the lab's internet and kills. Packets are lost in
the lab's own uplink, where the kernel gives a connect up after as many seconds as the test says.
"""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import world
from tests.support.debug_shell import CURL, Shell
from tests.support.run import PYTHON

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.lab import Lab

PORT = 7100
# Accepts, says what it was told to say, and waits to be killed.
SERVER = """
import socket, sys, time
server = socket.create_server((sys.argv[1], int(sys.argv[2])))
print("up", flush=True)
conn, _ = server.accept()
if sys.argv[3] == "reset":
    conn.send(b"hello")
    conn.recv(1)
    conn.recv(1 << 16, socket.MSG_PEEK)
else:
    conn.recv(1 << 16)
    conn.send(b"HTTP/1.1 200 OK\\r\\nContent-Length: 1000\\r\\n\\r\\nbegun")
print("served", flush=True)
time.sleep(60)
"""
# Two sends, of which the second lies unread at the server: killing that makes its kernel reset.
CLIENT = """
import socket, sys, time
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
sock.recv(5)
sock.send(b"x" + bytes(1000))
try: print("end", len(sock.recv(1 << 16)))
except OSError as error: print(type(error).__name__)
"""


@contextmanager
def upstream(lab: Lab, how: str) -> Iterator[subprocess.Popen[str]]:
    words = [PYTHON, "-u", "-c", SERVER, world.WEB_IPV4, str(PORT), how]
    with subprocess.Popen(
        ["nsenter", f"--net={lab.internet}", *words], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "up\n"
            yield process
        finally:
            process.kill()


@pytest.fixture
def shell(lab: Lab) -> Iterator[Shell]:
    name = f"why-upstream-{os.getpid()}"
    with Shell(lab, name, "--allow", f"v4.lab.test:{PORT}", "--allow", "v4.lab.test:80") as one:
        yield one


def states(found: dict[str, Any]) -> dict[str, str]:
    return {step["step"]: step["state"] for step in found["steps"]}


@pytest.mark.parametrize(
    ("how", "command", "reason", "words"),
    [
        ("cut", f"{CURL} http://v4.lab.test:{PORT}/", "http_response_incomplete", ""),
        (
            "reset",
            f"{PYTHON} client.py v4.lab.test {PORT}",
            "connection_terminated",
            "Connection reset by peer",
        ),
    ],
)
def test_an_upstream_killed_in_the_middle_is_told_from_one_that_is_not_there_any_more(
    lab: Lab, shell: Shell, how: str, command: str, reason: str, words: str
) -> None:
    (lab.work / "client.py").write_text(CLIENT)
    question = f"v4.lab.test:{PORT}"
    with upstream(lab, how) as process:
        shell.running.tell(f"{command} </dev/null")
        assert process.stdout is not None
        assert process.stdout.readline() == "served\n"
        before = shell.why(question)
        assert before["stops_at"] is None, "it lives, and nothing stops it"
        process.send_signal(signal.SIGKILL)
        process.wait()
        while not shell.running.line().startswith("done"):
            pass
    found = shell.why(question)
    assert (found["stops_at"], found["said_by"], found["reason"]) == ("traffic", "upstream", reason)
    assert words in found["cause"], found
    assert "see its log" in found["advice"]
    assert states(found)["dial"] == "ok", "it had been reached"
    assert found["changes"] == []

    shell.do(f"{CURL} http://v4.lab.test:{PORT}/")
    after = shell.why(question)
    assert (after["stops_at"], after["reason"]) == ("dial", "connection_refused"), after
    assert "nothing listens there" in after["advice"]
    assert len(after["attempts"]) == 2
    shell.do(f"{CURL} http://v4.lab.test/")
    assert shell.why("v4.lab.test:80")["stops_at"] is None, "another port's fault"


def test_lost_packets_end_as_a_timeout_of_the_dial_and_not_as_a_refusal(
    fresh_lab: Lab,
) -> None:
    # Instead of the proxy's 30 s: this uplink's kernel sends a SYN twice and then gives up.
    short = ("sysctl", "-qw", "net.ipv4.tcp_syn_retries=1", "net.ipv4.tcp_syn_linear_timeouts=0")
    assert fresh_lab.in_uplink(*short).returncode == 0
    name = f"why-lost-{os.getpid()}"
    with Shell(fresh_lab, name, "--allow", "v4.lab.test:80") as shell:
        assert shell.do(f"{CURL} -f http://v4.lab.test/") == 0
        # On the internet's side: the uplink's own output hook would tell the proxy (EPERM).
        drop = (
            "add table inet lost; add chain inet lost in { type filter hook input priority 0; }; "
            f"add rule inet lost in ip daddr {world.WEB_IPV4} tcp dport 80 drop"
        )
        entered = ["nsenter", f"--net={fresh_lab.internet}"]
        subprocess.run([*entered, "nft", drop], check=True)
        assert shell.do(f"{CURL} -f http://v4.lab.test/") != 0
        found = shell.why("v4.lab.test:80")
        assert (found["stops_at"], found["said_by"]) == ("dial", "upstream"), found
        assert found["reason"] == "connection_timeout"
        assert f"({world.WEB_IPV4}) port 80 did not answer" in found["cause"]
        assert "a firewall on the way drops packets" in found["advice"]
        after_dial = {step: states(found)[step] for step in ("screening", "dial", "tls")}
        assert after_dial == {"screening": "ok", "dial": "stop", "tls": "unreached"}
        subprocess.run([*entered, "nft", "delete table inet lost"], check=True)
        assert shell.do(f"{CURL} -f http://v4.lab.test/") == 0
        assert shell.why("v4.lab.test:80")["stops_at"] is None
