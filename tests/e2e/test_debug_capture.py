"""`netns-debug capture` on a running sandbox: tshark shows who spoke, and what was said."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.capture import Capture, capinfos, fields, tshark
from tests.support.lab import CHECKOUT
from tests.support.run import NETNS_DEBUG, NODE_MODULES, PYTHON, Running, environment, netns_debug

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.lab import Lab

CLIENT = str(CHECKOUT / "tests/support/debug_client.py")
POLICY = """
version: 1
network_policies:
  inspected:
    endpoints:
      - {host: web.lab.test, port: 443, protocol: rest, access: full}
      - {host: h2.lab.test, port: 443, protocol: rest, access: full}
      - {host: ws.lab.test, port: 443, protocol: websocket, access: full}
  skipped:
    endpoints:
      - {host: api.lab.test, port: 443, tls: skip}
"""
CURL = "curl -sS -m 5"
DIRECT = f"{CURL} --noproxy '*'"
NODE_WS = """
const WebSocket = require("ws");
const ws = new WebSocket("wss://ws.lab.test/ws");
ws.on("open", () => ws.send("from node"));
ws.on("message", (data) => { console.log(String(data)); ws.close(1000); });
ws.on("close", () => process.exit(0));
"""

TALK = """
import socket, time
listener = socket.create_server(("127.0.0.1", 8099))
client = socket.create_connection(("127.0.0.1", 8099))
server, _ = listener.accept()
client.sendall(b"x")
time.sleep(0.5)
"""
FLOOD = """
import socket
one, other = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
other.bind(("127.0.0.1", 0))
where = other.getsockname()
for _ in range(120000):
    one.sendto(b"x" * 40, where)
"""


@pytest.fixture
def name() -> str:
    return f"capture-{os.getpid()}"


@pytest.fixture
def policy(tmp_path: Path) -> str:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    return str(path)


@pytest.fixture
def shell(lab: Lab, name: str, policy: str) -> Iterator[Running]:
    words = ["sh", "-c", 'while read -r line; do eval "$line"; echo; echo done; done']
    with Running(
        *("--name", name, "--policy", policy),
        cmd=words,
        lab=lab,
        env={"NODE_PATH": NODE_MODULES},
        stdin=subprocess.PIPE,
    ) as running:
        do(running, ":")
        yield running
        if running.process.poll() is None:
            leave(running)
            running.process.wait(10)


def do(running: Running, command: str) -> str:
    """Run it inside; what it said."""
    running.tell(command)
    said = ""
    while (line := running.line()) not in ("done\n", ""):
        said += line
    return said


def leave(running: Running) -> None:
    running.tell("exit 0")


def test_both_versions_of_http_are_plain_and_owned_on_both_ways_in(
    shell: Running, name: str, tmp_path: Path
) -> None:
    file = tmp_path / "f.pcapng"
    with Capture(name, file) as capture:
        assert "hello" in do(shell, f"{CURL} --http1.1 https://web.lab.test/explicit-one")
        assert "hello" in do(shell, f"{DIRECT} --http1.1 https://web.lab.test/redirected-one")
        assert "hello" in do(shell, f"{CURL} --http2 https://h2.lab.test/explicit-two")
        assert "hello" in do(shell, f"{DIRECT} --http2 https://h2.lab.test/redirected-two")
        assert "hello" in do(shell, f"{CURL} --tls-max 1.2 https://web.lab.test/older")
        leave(shell)
        summary = capture.end()
    assert summary["ended_by"] == "ended with the sandbox"
    assert summary["dropped"] == summary["lost"] == 0
    asked = fields(file, "http.request.method == GET", "http.request.uri", "frame.comment")
    assert [uri for uri, _ in asked] == ["/explicit-one", "/redirected-one", "/older"]
    for (_, comment), entry in zip(asked, ("explicit", "redirected", "explicit"), strict=True):
        assert comment.startswith("curl (pid "), comment
        assert f"/usr/bin/curl) -> web.lab.test:443, {entry}, flow " in comment
        assert "policy.yaml:" in comment
    paths = fields(file, "http2.headers.path", "http2.headers.path", "frame.comment")
    assert [path for path, _ in paths] == ["/explicit-two", "/redirected-two"]
    assert all("-> h2.lab.test:443, " in comment for _, comment in paths)
    bodies = tshark(file, "-Y", "http.response or http2.data.data", "-V")
    assert "hello from web.lab.test" in bodies
    assert "hello from h2.lab.test" in bodies
    versions = {
        version for (version,) in fields(file, "tls.handshake.type == 2", "_ws.col.Protocol")
    }
    assert versions == {"TLSv1.2", "TLSv1.3"}


def test_every_packet_of_a_flow_says_whose_it_is(shell: Running, name: str, tmp_path: Path) -> None:
    file = tmp_path / "f.pcapng"
    with Capture(name, file) as capture:
        do(shell, f"{CURL} https://web.lab.test/; {DIRECT} https://web.lab.test/")
        leave(shell)
        summary = capture.end()
    comments = [comment for (comment,) in fields(file, "tcp or dns", "frame.comment")]
    assert len(comments) > 20
    assert any("policy DNS: web.lab.test" in comment for comment in comments)
    assert all(comment.startswith("curl (pid ") for comment in comments)
    assert summary["packets"] == len(fields(file, "frame.interface_name", "frame.number"))


def test_a_websocket_s_messages_are_plain(
    lab: Lab, shell: Running, name: str, tmp_path: Path
) -> None:
    file = tmp_path / "f.pcapng"
    (lab.work / "ws.js").write_text(NODE_WS)
    with Capture(name, file) as capture:
        said = do(shell, "node ws.js 2>&1")
        assert "from node" in said, said
        leave(shell)
        capture.end()
    comments = {comment for (comment,) in fields(file, "websocket", "frame.comment")}
    assert len(comments) == 1
    assert comments.pop().startswith("node (pid ")
    assert "from node" in tshark(file, "-Y", "websocket", "-V")


def test_what_never_became_a_packet_stands_among_them(
    shell: Running, name: str, tmp_path: Path
) -> None:
    file = tmp_path / "f.pcapng"
    with Capture(name, file) as capture:
        do(shell, f"{DIRECT} http://203.0.113.5:81/")
        do(shell, f"{DIRECT} http://nobody.lab.test/")
        do(shell, f"{CURL} http://nobody.lab.test/")
        leave(shell)
        summary = capture.end()
    said = [text for (text,) in fields(file, "systemd_journal", "systemd_journal.message")]
    assert summary["refused"] == len(said) == 3
    assert said[0].startswith("refused curl (pid ")
    assert "-> 203.0.113.5:81: direct_tcp" in said[0]
    assert "name_not_allowed" in said[1]
    assert "http_request_denied" in said[2]
    (refused,) = fields(file, "http.response.code == 403", "frame.comment")
    assert "refused: no rule allows nobody.lab.test:80" in refused[0]
    names = fields(file, 'dns.qry.name == "nobody.lab.test"', "frame.comment")
    assert names
    assert all(comment.startswith("curl (pid ") for (comment,) in names), names
    assert all("nobody.lab.test, refused: no rule covers" in comment for (comment,) in names)


def test_a_tunnel_stays_closed_and_says_why(shell: Running, name: str, tmp_path: Path) -> None:
    file = tmp_path / "f.pcapng"
    with Capture(name, file) as capture:
        assert "hello" in do(shell, f"{CURL} https://api.lab.test/")
        leave(shell)
        assert capture.end()["keys"] == 0
    assert fields(file, "http.request.method == GET", "frame.number") == []
    comments = {comment for (comment,) in fields(file, "tls", "frame.comment")}
    assert len(comments) == 1
    assert comments.pop().endswith("a tunnel, tls: skip: its bytes stay as they are")


def test_flows_from_before_are_counted_and_say_so(
    shell: Running, name: str, tmp_path: Path
) -> None:
    file = tmp_path / "f.pcapng"
    do(shell, f"mkfifo pipe; {PYTHON} {CLIENT} websocket ws.lab.test 443 <pipe & exec 3>pipe")
    while "held" not in shell.line():
        pass
    with Capture(name, file) as capture:
        do(shell, "echo close >&3; sleep 0.3; rm pipe")
        leave(shell)
        assert capture.end()["open_before"] == 1
    comments = {comment for (comment,) in fields(file, "tcp.len > 0", "frame.comment")}
    assert len(comments) == 1
    assert comments.pop().endswith("began before the capture: no keys of its TLS")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_a_whole_file(
    shell: Running, name: str, tmp_path: Path, number: int
) -> None:
    file = tmp_path / "f.pcapng"
    with Capture(name, file) as capture:
        do(shell, f"{CURL} https://web.lab.test/now")
        capture.process.send_signal(number)
        summary = capture.end()
    assert summary["ended_by"] == "interrupted"
    assert fields(file, 'http.request.uri == "/now"', "frame.number")
    told = capinfos(file)
    assert "Strict time order:   True" in told
    assert f"Number of packets:   {summary['packets']}" in told
    assert "Name = eth0" in told
    assert "Name = lo" in told
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.stat().st_uid == 0


def test_a_kill_leaves_a_file_that_can_be_read(shell: Running, name: str, tmp_path: Path) -> None:
    file = tmp_path / "f.pcapng"
    with Capture(name, file) as capture:
        do(shell, f"{CURL} https://web.lab.test/before")
        time.sleep(0.8)
        capture.process.kill()
    assert fields(file, 'http.request.uri == "/before"', "frame.number")
    # And the proxy has noticed: another handshake, and another capture, are as before.
    again = tmp_path / "g.pcapng"
    with Capture(name, again) as capture:
        do(shell, f"{CURL} https://web.lab.test/after")
        leave(shell)
        capture.end()
    assert fields(again, 'http.request.uri == "/after"', "frame.number")


@pytest.mark.parametrize(
    ("words", "ended_by"),
    [(("--seconds", "0.5"), "after 0.5 s"), (("--packets", "5"), "as many as were asked for")],
)
def test_a_limit_ends_it(
    shell: Running, name: str, tmp_path: Path, words: tuple[str, str], ended_by: str
) -> None:
    file = tmp_path / "f.pcapng"
    with Capture(name, file, *words) as capture:
        do(shell, f"{CURL} https://web.lab.test/")
        summary = capture.end()
    assert summary["ended_by"] == ended_by
    assert summary["packets"] == len(fields(file, "frame.interface_name", "frame.number"))
    if words[0] == "--packets":
        assert summary["packets"] == 5


def test_two_captures_at_once_have_the_same(shell: Running, name: str, tmp_path: Path) -> None:
    files = [tmp_path / "f.pcapng", tmp_path / "g.pcapng"]
    with Capture(name, files[0]) as one, Capture(name, files[1]) as other:
        do(shell, f"{CURL} https://web.lab.test/both")
        leave(shell)
        one.end()
        other.end()
    for file in files:
        assert (
            len(fields(file, 'http.request and http.request.uri == "/both"', "frame.number")) == 1
        )


def test_standard_output_can_be_piped(shell: Running, name: str, tmp_path: Path) -> None:
    with (tmp_path / "f.pcapng").open("wb") as out:
        process = subprocess.Popen(
            [NETNS_DEBUG, "capture", name, "-o", "-"],
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        assert process.stderr is not None
        assert process.stderr.readline().endswith("Ctrl-C ends it\n")
        do(shell, f"{CURL} https://web.lab.test/piped")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=20)
    assert process.returncode == 0
    assert err.startswith("netns-debug: -: ")
    assert fields(tmp_path / "f.pcapng", 'http.request.uri == "/piped"', "frame.number")


def test_processes_that_talk_to_each_other_inside_are_both_named(
    lab: Lab, shell: Running, name: str, tmp_path: Path
) -> None:
    file = tmp_path / "f.pcapng"
    (lab.work / "talk.py").write_text(TALK)
    with Capture(name, file) as capture:
        do(shell, f"{PYTHON} talk.py")
        leave(shell)
        capture.end()
    comments = {comment for (comment,) in fields(file, "tcp.port == 8099", "frame.comment")}
    (comment,) = comments
    assert comment.count("python3 (pid ") == 2
    assert comment.endswith(", inside the sandbox")


def test_a_flood_loses_no_packet_without_a_word(
    lab: Lab, shell: Running, name: str, tmp_path: Path
) -> None:
    file = tmp_path / "f.pcapng"
    (lab.work / "flood.py").write_text(FLOOD)
    with Capture(name, file) as capture:
        do(shell, f"{PYTHON} flood.py")
        leave(shell)
        summary = capture.end()
    taken = summary["packets"] + summary["dropped"]
    assert 120_000 <= taken < 120_200, summary
    assert "Strict time order:   True" in capinfos(file)


# --- bad input ---


def one_line(*words: str) -> str:
    done = netns_debug("capture", *words)
    assert done.returncode == 125, done.stdout
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.stderr


def test_a_sandbox_that_has_gone_is_one_line_and_no_file(name: str, tmp_path: Path) -> None:
    said = one_line(name, "-o", str(tmp_path / "f"))
    assert said.startswith(f"netns-debug: no sandbox called {name} is running: ")
    assert not (tmp_path / "f").exists()


def test_a_file_that_cannot_be_made_is_one_line(shell: Running, name: str, tmp_path: Path) -> None:
    (tmp_path / "f").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "aim")
    assert "it is there already: " in one_line(name, "-o", str(tmp_path / "f"))
    assert (tmp_path / "f").read_text() == "mine"
    one_line(name, "-o", str(tmp_path / "link"))
    assert not (tmp_path / "aim").exists()
    assert "No such file" in one_line(name, "-o", str(tmp_path / "no" / "f"))
    do(shell, ":")


def test_a_full_disk_ends_it_in_one_line_and_leaves_what_fits(
    shell: Running, name: str, tmp_path: Path
) -> None:
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(place)], check=True)
    try:
        file = place / "f.pcapng"
        with Capture(name, file) as capture:
            (shell_said,) = [
                do(shell, f"for i in $(seq 60); do {CURL} https://web.lab.test/; done")
            ]
            assert "hello" in shell_said
            _, err = capture.process.communicate(timeout=20)
        assert capture.process.returncode == 125
        assert err.startswith(f"netns-debug: -o {file}: No space left on device: ")
        assert len(err.splitlines()) == 1
        shutil.copy(file, tmp_path / "f.pcapng")
    finally:
        subprocess.run(["umount", str(place)], check=True)
    assert fields(tmp_path / "f.pcapng", "http.request.uri", "frame.number")
    capinfos(tmp_path / "f.pcapng")


def test_bad_words_are_one_line() -> None:
    assert "capture needs a file" in one_line("some")
    assert "unknown option --nope" in one_line("some", "-o", "f", "--nope")


def test_help_says_what_is_in_the_file() -> None:
    done = netns_debug("capture", "--help")
    assert done.returncode == 0
    assert "--with-secrets" in done.stdout
    assert all(len(line) <= 100 for line in done.stdout.splitlines())
