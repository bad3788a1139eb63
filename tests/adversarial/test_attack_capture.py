"""What was tried against a capture, with hostile code in the sandbox that it looks at."""

from __future__ import annotations

import os
import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.capture import Capture, fields
from tests.support.run import NETNS_DEBUG, PYTHON, Running, environment, netns_debug
from tests.support.secret_policy import TOKEN, policy_in
from tests.support.secret_run import plain_value_of, started

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.lab import Lab

SHELL = ["sh", "-c", 'while read -r line; do eval "$line"; echo; echo done; done']


@pytest.fixture
def name() -> str:
    return f"attack-capture-{os.getpid()}"


def do(running: Running, command: str) -> str:
    running.tell(command)
    said = ""
    while (line := running.line()) not in ("done\n", ""):
        said += line
    return said


def test_root_inside_cannot_read_the_values_out_of_the_file(
    lab: Lab, name: str, tmp_path: Path
) -> None:
    """Uid 0 without capabilities owns what a capture by root makes in its working directory."""
    options = ("--policy", policy_in(tmp_path), "--name", name, "--user", "root")
    values = {TOKEN: plain_value_of(TOKEN)}
    words = ("--seconds", "0.3", "--with-secrets")
    with started(lab, values, options, SHELL, stdin=subprocess.PIPE) as (running, _):
        do(running, ":")
        seen = lab.work / "seen.pcapng"
        done = netns_debug("capture", name, "-o", str(seen), *words)
        assert done.returncode == 125, done.stderr
        assert "CMD runs as root, sees that directory" in done.stderr
        assert not seen.exists()
        hidden = tmp_path / "hidden.pcapng"
        assert do(running, f"test -e {tmp_path} && echo it is seen") == "\n"
        done = netns_debug("capture", name, "-o", str(hidden), *words)
        assert done.returncode == 0, done.stderr
        placeholders = netns_debug("capture", name, "-o", str(seen), "--seconds", "0.3")
        assert placeholders.returncode == 0, placeholders.stderr
        assert "pcapng" in do(running, "head -c 4 seen.pcapng > /dev/null && echo pcapng")
        seen.unlink()
        running.tell("exit 0")
        running.process.wait(10)


def test_a_relative_name_leads_nowhere_else_either(lab: Lab, name: str, tmp_path: Path) -> None:
    with Running("--name", name, cmd=SHELL, lab=lab, stdin=subprocess.PIPE) as running:
        do(running, f"rm -rf out; ln -s {tmp_path} out")
        done = subprocess.run(
            [NETNS_DEBUG, "capture", name, "-o", "out/f.pcapng", "--seconds", "0.2"],
            cwd=lab.work,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        do(running, "rm -f out")
        running.tell("exit 0")
        running.process.wait(10)
    assert done.returncode == 125, done.stdout
    assert "a link is on the way" in done.stderr
    assert not list(tmp_path.iterdir())


POLICY = """\
version: 1
network_policies:
  lab:
    endpoints:
      - {host: web.lab.test, port: 443, protocol: rest, access: full}
secrets:
  LAB_TOKEN:
    hosts: [web.lab.test]
    slots: [{header: authorization}]
    expose: endpoint
    binaries: [{path: /usr/bin/curl}]
"""


def test_a_policy_that_takes_the_value_back_leaves_it_with_cmd(
    lab: Lab, name: str, tmp_path: Path
) -> None:
    path, later = tmp_path / "policy.yaml", tmp_path / "later.yaml"
    path.write_text(POLICY)
    later.write_text(re.sub(r"    (expose|binaries):.*\n", "", POLICY))
    for each in (path, later):
        each.chmod(0o644)
    values = {TOKEN: plain_value_of(TOKEN)}
    options = ("--secret", TOKEN, "--policy", str(path), "--name", name)
    file = tmp_path / "f.pcapng"
    with Running(*options, cmd=SHELL, lab=lab, env=values, stdin=subprocess.PIPE) as running:
        do(running, ":")
        swapped = netns_debug("policy", name, "--set", str(later))
        assert swapped.returncode == 0, swapped.stderr
        done = netns_debug("capture", name, "-o", str(file), "--seconds", "0.2")
        running.tell("exit 0")
        running.process.wait(10)
    assert done.returncode == 125, done.stdout
    assert f"CMD can have the value of {TOKEN} itself" in done.stderr
    assert not file.exists()


TWO = """
import ctypes, os, socket, sys, time
ctypes.CDLL(None).prctl(15, sys.argv[1].encode(), 0, 0, 0)
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind((sys.argv[2], 5000))
for _ in range(6):
    sock.sendto(sys.argv[1].encode(), ("127.0.0.1", 6000))
    time.sleep(0.1)
time.sleep(float(sys.argv[3]))
"""


def test_one_port_at_two_addresses_or_times_has_its_own_owners(
    lab: Lab, name: str, tmp_path: Path
) -> None:
    (lab.work / "two.py").write_text(TWO)
    file = tmp_path / "f.pcapng"
    with Running("--name", name, cmd=SHELL, lab=lab, stdin=subprocess.PIPE) as running:
        do(running, ":")
        with Capture(name, file) as capture:
            do(running, f"{PYTHON} two.py good 127.0.0.1 2 & sleep 0.3; "
                        f"{PYTHON} two.py evil 127.0.0.2 1; wait")  # fmt: skip
            do(running, f"{PYTHON} two.py later 127.0.0.1 1")
            running.tell("exit 0")
            capture.end()
    found = fields(file, "udp.dstport == 6000 and not icmp", "udp.payload", "frame.comment")
    assert len(found) == 18
    for payload, comment in found:
        who = bytes.fromhex(payload.replace(":", "")).decode()
        assert comment.startswith((f"{who} (pid ", "unknown ->")), (who, comment)
    assert sum(comment.startswith("unknown") for _, comment in found) <= 3
