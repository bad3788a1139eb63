"""A process inside while somebody with root runs netns-debug beside it.

It names its files, holds on to the terminal that it was lent, and puts links and FIFOs where root
may look. Every attack here worked once.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from netns_runtime.debug import metrics
from tests.support.run import NETNS_DEBUG, PYTHON, Running, environment, netns_debug
from tests.support.terminal import Person

if TYPE_CHECKING:
    from tests.support.lab import Lab

NAME = "attack-debug"
SHELL = ("sh", "-c")

HOLDS_FLOWS = """
import os, socket, sys
socks = [socket.create_connection(("web.lab.test", 7), 10) for _ in range(30)]
for sock in socks:
    sock.sendall(b"hello")
    assert sock.recv(5) == b"hello"
os.write(1, b"held\\n")
sys.stdin.readline()
"""


def test_executables_with_long_names_do_not_hide_the_flows(lab: Lab) -> None:
    here = os.open(lab.work, os.O_RDONLY | os.O_DIRECTORY)
    where = str(lab.work)
    try:
        for _ in range(14):
            part = "d" * 200 + "\u00e9" * 20
            os.mkdir(part, dir_fd=here)
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY, dir_fd=here)
            os.close(here)
            here, where = below, f"{where}/{part}"
        shutil.copy("/usr/bin/python3", f"/proc/self/fd/{here}/python")
    finally:
        os.close(here)
    with Running(
        *("--name", NAME, "--allow", "web.lab.test:7"),
        cmd=[f"{where}/python", "-c", HOLDS_FLOWS],
        lab=lab,
        stdin=subprocess.PIPE,
    ) as running:
        assert running.line() == "held\n", running.wait(given=b"").told()
        done = netns_debug("flows", NAME, "--json")
        assert done.returncode == 0, done.stderr
        assert len(json.loads(done.stdout)) == 30
        assert running.wait(given=b"\n").status == 0


# Gives the terminal up before it ends, so that the kernel does not hang it up for the other.
STAYS_AT_THE_TERMINAL = """
import fcntl, os, select, signal, termios, time
signal.signal(signal.SIGHUP, signal.SIG_IGN)
if os.fork():
    os.write(1, b"in\\r\\n")
    os.read(0, 1)
    fcntl.ioctl(0, termios.TIOCNOTTY)
    os._exit(7)
time.sleep(0.2)
os.setsid()
end = time.time() + 8
try:
    while time.time() < end:
        os.write(1, b".")
        if select.select([0], [], [], 0.02)[0]:
            os.write(1, b"GOT " + os.read(0, 100).hex().encode())
except OSError:
    pass
"""


def test_what_is_left_at_the_terminal_neither_keeps_it_nor_reads_what_is_typed_next() -> None:
    with Running("--name", NAME, cmd=[PYTHON, "-c", "input()"], stdin=subprocess.PIPE) as running:
        deadline = time.monotonic() + 10
        while NAME not in netns_debug("list").stdout:
            assert time.monotonic() < deadline
        script = f'{NETNS_DEBUG} enter {NAME} -- {PYTHON} -c "$EVIL"; echo left $?; exec cat'
        env = {**environment({"EVIL": STAYS_AT_THE_TERMINAL}), "TERM": "dumb"}
        with Person(["/bin/sh", "-c", script], env, "/") as person:
            person.waits_for("in\r")
            began = time.monotonic()
            person.types("x\n")
            # While what it left behind is still shown, a person is already back in their mind.
            time.sleep(0.4)
            person.types("password\n")
            assert person.waits_for(r"left (\d+)")[1] == "7"
            assert time.monotonic() - began < 4
            person.types("done\n")
            person.waits_for("done")
            assert b"password".hex() not in person.seen
        running.wait(given=b"\n")


def test_a_link_that_cmd_plants_meanwhile_does_not_say_where_the_policy_goes(
    tmp_path: Path,
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    swap = "mv out was && ln -s elsewhere out"
    done = subprocess.run(
        [NETNS_DEBUG, "learn", "-o", "out/policy", "--writable", "/", "--", *SHELL, swap],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(),
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert (tmp_path / "was/policy").read_text().startswith("# Learned by netns-debug")


def test_a_link_that_cmd_planted_before_is_refused_and_cmd_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to("elsewhere")
    done = subprocess.run(
        [NETNS_DEBUG, "learn", "-o", "out/policy", "--", *SHELL, "echo ran"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(),
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (125, "")
    assert "a link is on the way to it" in done.stderr
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_policy_whose_name_cmd_has_taken_is_printed_and_not_lost(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            NETNS_DEBUG,
            "learn",
            "-o",
            "policy",
            "--writable",
            "/",
            "--",
            *SHELL,
            "echo mine > policy",
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(),
        timeout=60,
        check=False,
    )
    assert done.returncode == 125
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "network_policies:" in done.stdout
    assert (tmp_path / "policy").read_text() == "mine\n"


def test_callers_that_send_an_octet_at_a_time_do_not_keep_the_others_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics, "DEADLINE", 0.5)
    with metrics._listening("127.0.0.1", 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        where = ("127.0.0.1", server.server_port)
        slow = [socket.create_connection(where) for _ in range(metrics.CALLERS)]
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            for sock in slow:
                with suppress(OSError):
                    sock.sendall(b"X")
            time.sleep(0.1)
        with socket.create_connection(where, 2) as other:
            other.sendall(b"GET /other HTTP/1.0\r\n\r\n")
            assert other.recv(100).startswith(b"HTTP/1.0 404")
        for sock in slow:
            sock.close()
        server.shutdown()


# Calls connect(2) from a page that no file backs, as compiled code does: only a map names it.
CALLS_FROM_NOWHERE = """
import ctypes, mmap, os, socket, struct, sys, time
page = mmap.mmap(-1, 4096, prot=7)
page.write(bytes.fromhex("b82a0000000f05c3"))
at = ctypes.addressof(ctypes.c_char.from_buffer(page))
connect = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_long, ctypes.c_char_p, ctypes.c_long)(at)
name = f"/tmp/perf-{os.getpid()}.map"
if sys.argv[1] == "fifo":
    os.mkfifo(name)
else:
    os.symlink(sys.argv[1], name)
os.write(1, f"{at:x}\\n".encode())
sys.stdin.readline()
where = struct.pack("=HH4s8x", 2, socket.htons(9), socket.inet_aton("198.51.100.77"))
end = time.monotonic() + 5
while time.monotonic() < end:
    with socket.socket() as sock:
        connect(sock.fileno(), where, 16)
    time.sleep(0.2)
"""


def stacks_seen(what: str, planted: Path | None = None) -> str:
    with Running(
        *("--name", NAME), cmd=[PYTHON, "-c", CALLS_FROM_NOWHERE, what], stdin=subprocess.PIPE
    ) as running:
        address = running.line().strip()
        if planted is not None:
            planted.write_text(f"{address} 1000 a_line_of_the_host\n")
        running.tell("go")
        done = netns_debug("trace", NAME, "--stacks", "--for", "3")
        running.process.terminate()
        running.wait(given=b"")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="its machine code is x86-64's")
def test_a_link_for_a_perf_map_does_not_make_root_read_a_file_of_the_host() -> None:
    planted = Path("/var/tmp/netns-runtime-attack-debug")
    try:
        assert "a_line_of_the_host" not in stacks_seen(str(planted), planted)
    finally:
        planted.unlink()


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="its machine code is x86-64's")
def test_a_fifo_for_a_perf_map_does_not_stop_the_stacks() -> None:
    assert "connect was refused, called from" in stacks_seen("fifo")
