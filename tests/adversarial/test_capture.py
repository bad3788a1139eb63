"""A capture of hostile programs: no value in the file, no keys for CMD, nobody held up."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import search
from tests.support.capture import Capture, fields, tshark
from tests.support.run import PYTHON, Running, netns_debug
from tests.support.secret_policy import TOKEN, policy_in
from tests.support.secret_run import placeholder, plain_value_of, started, value_of

if TYPE_CHECKING:
    from tests.support.lab import Lab

HELD = placeholder(TOKEN)
HEADER = f"-H 'Authorization: Bearer {HELD}'"
SHELL = ["sh", "-c", 'while read -r line; do eval "$line"; echo; echo done; done']
REFLECTING = (
    f"curl -sS -m 5 --compressed --http1.1 {HEADER} https://web.lab.test/reflect/500",
    f"curl -sS -m 5 --http2 {HEADER} https://h2.lab.test/reflect/500",
    f"curl -sS -m 5 --noproxy '*' {HEADER} 'https://web.lab.test/reflect/500?header=1'",
    f"curl -sS -m 5 -u me:{HELD} https://web.lab.test/reflect/401",
    f"curl -sS -m 5 'https://web.lab.test/reflect/404?token={HELD}'",
)


@pytest.fixture
def name() -> str:
    return f"capture-{os.getpid()}"


def do(running: Running, command: str) -> str:
    running.tell(command)
    said = ""
    while (line := running.line()) not in ("done\n", ""):
        said += line
    return said


def everything(file: Path) -> str:
    """The file's bytes and all that tshark makes of them, decrypted, inflated and as hex."""
    return file.read_bytes().decode("latin-1") + tshark(file, "-V", "-x")


@pytest.mark.parametrize("make", [value_of, plain_value_of])
def test_a_value_that_goes_up_and_comes_back_is_nowhere_in_the_file(
    lab: Lab, name: str, tmp_path: Path, make: object
) -> None:
    assert callable(make)
    values = {TOKEN: make(TOKEN)}
    file = tmp_path / "f.pcapng"
    options = ("--policy", policy_in(tmp_path), "--name", name)
    with started(lab, values, options, SHELL, stdin=subprocess.PIPE) as (running, _):
        do(running, ":")
        with Capture(name, file) as capture:
            for command in REFLECTING:
                said = do(running, command)
                assert HELD in said or "401" in said or said, said
            running.tell("exit 0")
            summary = capture.end()
    sent = json.dumps(lab.requests_seen())
    assert search.says(sent, values[TOKEN]), "the value did not get there"
    assert summary["keys"] > 0
    whole = everything(file)
    assert not search.says(whole, values[TOKEN])
    assert values[TOKEN] not in whole
    decrypted = fields(file, "http.authorization", "http.authorization")
    assert (f"Bearer {HELD}",) in decrypted
    assert HELD in tshark(file, "-Y", "http.response.code == 500", "-V")
    assert not fields(file, 'frame.interface_name == "upstream"', "frame.number")


def test_with_secrets_it_is_where_upstream_got_it_and_the_file_says_so(
    lab: Lab, name: str, tmp_path: Path
) -> None:
    values = {TOKEN: plain_value_of(TOKEN)}
    file = tmp_path / "f.pcapng"
    options = ("--policy", policy_in(tmp_path), "--name", name)
    with started(lab, values, options, SHELL, stdin=subprocess.PIPE) as (running, _):
        do(running, ":")
        with Capture(name, file, "--with-secrets") as capture:
            assert capture.said[0] == (
                f"netns-debug: {file} will hold the values of secrets: treat it as one\n"
            )
            # Somebody else's packets in the same namespace, to the same server.
            lab.in_uplink("curl", "-sS", "-m", "5", "http://192.0.2.10/somebody-else")
            for command in REFLECTING[:2]:
                do(running, command)
            running.tell("exit 0")
            summary = capture.end()
    up = 'frame.interface_name == "upstream"'
    sent = fields(file, f"{up} and http.authorization", "http.authorization", "frame.comment")
    assert [text for text, _ in sent] == [f"Bearer {values[TOKEN]}"]
    assert sent[0][1].startswith("the proxy for curl (pid ")
    again = fields(file, f"{up} and http2.headers.authorization", "http2.headers.authorization")
    assert again == [(f"Bearer {values[TOKEN]}",)]
    inside = 'frame.interface_name == "eth0" and http.authorization'
    assert fields(file, inside, "http.authorization") == [(f"Bearer {HELD}",)]
    assert summary["upstream_packets"] == len(fields(file, up, "frame.number")) > 0
    assert "somebody-else" not in everything(file)
    assert fields(file, f"{up} and tcp.port == 80", "frame.number") == []
    assert fields(file, f"{up} and tcp.flags.syn == 1", "frame.number"), "from the first packet on"


ENDPOINT = """\
version: 1
network_policies:
  lab:
    endpoints:
      - {host: web.lab.test, port: 443, protocol: rest, access: full}
secrets:
  LAB_TOKEN:
    hosts: [web.lab.test]
    slots: [{header: authorization}]
    expose: EXPOSE
"""


@pytest.mark.parametrize("expose", ["endpoint\n    binaries: [{path: /usr/bin/curl}]", "env"])
def test_where_cmd_has_the_value_itself_the_word_is_asked_for(
    lab: Lab, name: str, tmp_path: Path, expose: str
) -> None:
    path = tmp_path / "policy.yaml"
    text = ENDPOINT.replace("EXPOSE", expose)
    if expose == "env":
        text = re.sub(r"    (hosts|slots):.*\n", "", text)
    path.write_text(text)
    path.chmod(0o644)
    values = {TOKEN: plain_value_of(TOKEN)}
    options = ("--policy", str(path), "--name", name)
    file = tmp_path / "f.pcapng"
    with Running(
        *("--secret", TOKEN, *options), cmd=SHELL, lab=lab, env=values, stdin=subprocess.PIPE
    ) as running:
        do(running, ":")
        done = netns_debug("capture", name, "-o", str(file), "--seconds", "1")
        assert done.returncode == 125
        assert f"CMD can have the value of {TOKEN} itself" in done.stderr
        assert "--with-secrets" in done.stderr
        assert done.stderr.count("netns-debug: ") == 1
        assert not file.exists()
        done = netns_debug("capture", name, "-o", str(file), "--seconds", "0.3", "--with-secrets")
        assert done.returncode == 0, done.stderr
        running.tell("exit 0")
        running.process.wait(10)


# As uid 0 and as somebody: the control socket, the file in memory, a capture of its own.
ATTACK = """
import os, socket, sys
found = []
for path in ("/run/netns-runtime/NAME.sock", "/run/netns-runtime/NAME.json"):
    for place in (path, "/proc/1/root" + path):
        if os.path.exists(place):
            found.append(place)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.connect(path)
        sock.send(b'{"command": "capture", "secrets": true}')
        found.append("connected")
    except OSError:
        pass
for pid in os.listdir("/proc"):
    if pid.isdigit():
        try:
            for fd in os.listdir(f"/proc/{pid}/fd"):
                if "memfd:keys" in os.readlink(f"/proc/{pid}/fd/{fd}"):
                    found.append(f"{pid}/{fd}")
        except OSError:
            pass
for kind in (socket.SOCK_RAW, socket.SOCK_DGRAM):
    try:
        socket.socket(socket.AF_PACKET, kind, 0x300)
        found.append("packet socket")
    except OSError:
        pass
print("found", found, flush=True)
"""


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_cmd_gets_no_keys_and_no_capture(lab: Lab, name: str, tmp_path: Path, user: str) -> None:
    (lab.work / "attack.py").write_text(ATTACK.replace("NAME", name))
    options = ("--policy", policy_in(tmp_path), "--name", name, "--user", user)
    with (
        started(lab, {TOKEN: "x" * 20}, options, SHELL, stdin=subprocess.PIPE) as (running, _),
    ):
        do(running, ":")
        with Capture(name, tmp_path / "f.pcapng") as capture:
            do(running, "curl -sS -m 5 https://web.lab.test/")
            assert "found []" in do(running, f"{PYTHON} attack.py")
            (proxy,) = search.proxy_pids(running.process.pid)
            descriptors = Path(f"/proc/{proxy}/fd")
            keys = [p for p in descriptors.iterdir() if "memfd:keys" in os.readlink(p)]
            assert keys, "the search does not even find them where they are"
            assert {os.stat(path).st_size for path in keys} == {0}, "nothing stays"
            running.tell("exit 0")
            assert capture.end()["keys"] > 0


def test_while_nobody_captures_nothing_is_logged(lab: Lab, name: str, tmp_path: Path) -> None:
    options = ("--policy", policy_in(tmp_path), "--name", name)
    with started(lab, {TOKEN: "x" * 20}, options, SHELL, stdin=subprocess.PIPE) as (running, _):
        do(running, "curl -sS -m 5 https://web.lab.test/")
        (proxy,) = search.proxy_pids(running.process.pid)
        assert not search.in_memory(proxy, [b"CLIENT_TRAFFIC_SECRET_0 "])
        file = tmp_path / "f.pcapng"
        with Capture(name, file) as capture:
            do(running, "curl -sS -m 5 https://web.lab.test/during")
            capture.end(interrupt=True)
        do(running, "curl -sS -m 5 https://web.lab.test/after")
        sockets = [
            os.readlink(path)
            for path in Path(f"/proc/{proxy}/fd").iterdir()
            if "socket:" in os.readlink(path)
        ]
        running.tell("exit 0")
        running.process.wait(10)
    assert sockets
    assert fields(file, 'http.request.uri == "/during"', "frame.number")


def test_a_capture_that_stands_still_holds_nobody_up(lab: Lab, name: str, tmp_path: Path) -> None:
    options = ("--policy", policy_in(tmp_path), "--name", name)
    loop = "for i in $(seq 100); do curl -sS -m 5 -o /dev/null https://web.lab.test/; done"
    with started(lab, {TOKEN: "x" * 20}, options, SHELL, stdin=subprocess.PIPE) as (running, _):
        do(running, ":")
        with Capture(name, tmp_path / "f.pcapng") as capture:
            capture.process.send_signal(signal.SIGSTOP)
            begun = time.monotonic()
            said = do(running, loop)
            took = time.monotonic() - begun
            capture.process.send_signal(signal.SIGCONT)
            running.tell("exit 0")
            capture.end()
    assert said.strip() == ""
    assert took < 20


def test_a_process_s_name_cannot_pass_for_words_of_ours(
    lab: Lab, name: str, tmp_path: Path
) -> None:
    evil = "a\n(pid 1)\x1b[2J"
    script = f"""
import ctypes, socket
ctypes.CDLL(None).prctl(15, {evil.encode()!r}, 0, 0, 0)
for where in (("10.200.0.1", 3128), ("203.0.113.5", 81)):
    try:
        sock = socket.create_connection(where, 3)
        sock.sendall(b"CONNECT evil.test:443 HTTP/1.1\\r\\n\\r\\n")
        sock.recv(999)
    except OSError:
        pass
"""
    (lab.work / "evil.py").write_text(script)
    file = tmp_path / "f.pcapng"
    with Running("--name", name, cmd=SHELL, lab=lab, stdin=subprocess.PIPE) as running:
        do(running, ":")
        with Capture(name, file) as capture:
            do(running, f"{PYTHON} evil.py")
            running.tell("exit 0")
            capture.end()
    data = file.read_bytes()
    assert evil.encode() not in data
    assert b"\x1b[2J" not in data
    (comment,) = {c for (c,) in fields(file, "http.request.method == CONNECT", "frame.comment")}
    assert "a\\n(pid 1)" in comment.replace("\\\\", "\\")
    entries = fields(file, "systemd_journal", "systemd_journal.message")
    assert len(entries) == 2
    assert all("\n" not in text and "\x1b" not in text for (text,) in entries)


def test_root_writes_where_it_was_told_and_nowhere_else(
    lab: Lab, name: str, tmp_path: Path
) -> None:
    """What CMD may do in its working directory, where a person may well start a capture."""
    aim = tmp_path / "aim"
    with Running("--name", name, cmd=SHELL, lab=lab, stdin=subprocess.PIPE) as running:
        do(running, f"rm -rf f.pcapng dir; ln -s {aim} f.pcapng; ln -s {tmp_path} dir")
        for target in (lab.work / "f.pcapng", lab.work / "dir" / "f.pcapng"):
            done = netns_debug("capture", name, "-o", str(target), "--seconds", "0.2")
            assert done.returncode == 125, done.stdout
            assert len(done.stderr.splitlines()) == 1
        do(running, "rm -rf f.pcapng dir")
        running.tell("exit 0")
        running.process.wait(10)
    assert not aim.exists()
    assert not (tmp_path / "f.pcapng").exists()
