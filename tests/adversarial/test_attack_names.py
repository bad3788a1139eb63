"""Names that somebody without privilege gives sockets and mounts, and that every launch reads.

The kernel writes them raw into /proc/net/unix and, but for four characters, into mount tables. One
process with a line feed in a socket's name, or CMD itself, stopped every later launch.
"""

from __future__ import annotations

import os
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest

from netns_runtime.namespace.cgroup import find_hierarchies
from netns_runtime.namespace.filesystem_mounts import Mount, parse_mountinfo
from netns_runtime.namespace.sockets import BoundSocket, parse_unix_table
from tests.support.run import NETNS_RUN, PYTHON, Running, netns_run

if TYPE_CHECKING:
    from pathlib import Path

ENTRY = "0000000000000000: 00000002 00000000 00010000 0001 01 4711"
FORGED = ("\0x\na b c zz e f g h", "\0x\na b c 10000 1 1 zz /etc/passwd", "\0\x0b1 2 3 4 5 6 zz /x")
# A vertical tab, U+2028, a carriage return and a byte that is not UTF-8: none ends a line.
ODD = b"a\x0bb\xe2\x80\xa8c\rd\xffe"


@pytest.mark.parametrize("name", FORGED, ids=ascii)
def test_a_strangers_socket_does_not_stop_a_launch(name: str) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name.encode())
        listener.listen()
        result = netns_run(cmd=["true"])
    assert result.status == 0, result.told()


def test_a_socket_of_one_sandbox_does_not_stop_the_next() -> None:
    script = f"""
import socket, sys
kept = []
for name in {FORGED!r}:
    kept.append(socket.socket(socket.AF_UNIX))
    kept[-1].bind(name.encode())
    kept[-1].listen()
print("bound", flush=True)
sys.stdin.read()
"""
    with Running(cmd=[PYTHON, "-c", script], stdin=subprocess.PIPE) as first:
        assert first.line() == "bound\n"
        result = netns_run(cmd=["true"])
        assert first.wait(10, b"").status == 0
    assert result.status == 0, result.told()


def test_a_line_feed_neither_hides_nor_forges_a_socket() -> None:
    text = (
        "Num       RefCount Protocol Flags    Type St Inode Path\n"
        f"{ENTRY} /tmp/a\nb c 10000 1 1 zz d\n{ENTRY} @x\nno entry\n{ENTRY}\n{ENTRY} /y \n"
    )
    assert parse_unix_table(text) == {
        BoundSocket("/tmp/a\nb c 10000 1 1 zz d", 4711),
        BoundSocket("/y ", 4711),
    }
    assert parse_unix_table("Num RefCount Protocol Flags Type St Inode Path\n") == frozenset()


def test_only_a_line_feed_ends_a_line_of_a_mount_table() -> None:
    odd = os.fsdecode(b"/mnt/" + ODD)
    assert parse_mountinfo(f"36 35 98:0 / {odd} rw - tmpfs none rw\n") == (
        Mount(odd, "/", "98:0", "tmpfs"),
    )
    found = find_hierarchies(f"none {odd} cgroup2 rw 0 0\n")
    assert found is not None
    assert str(found.unified) == odd


def test_a_mount_of_another_namespace_does_not_stop_a_launch(tmp_path: Path) -> None:
    with mounted_apart(tmp_path, "echo mounted; read line") as apart:
        assert apart.stdout is not None
        assert apart.stdout.readline() == b"mounted\n"
        result = netns_run(cmd=["true"])
        apart.communicate(b"\n", timeout=10)
    assert result.status == 0, result.told()


@pytest.mark.parametrize("probe", ["nft", "auto"])
def test_an_odd_mount_of_the_host_does_not_stop_a_launch(tmp_path: Path, probe: str) -> None:
    with mounted_apart(tmp_path, f"exec {NETNS_RUN} --probe {probe} -- echo ran") as apart:
        out, err = apart.communicate(timeout=30)
    assert (apart.returncode, out, err) == (0, b"ran\n", b"")


def mounted_apart(tmp_path: Path, script: str) -> subprocess.Popen[bytes]:
    """A shell in a mount namespace of its own that has a mount with an odd name."""
    place = os.fsencode(tmp_path) + b"/" + ODD
    os.mkdir(place)
    mount = b'mount -t tmpfs none "$1" && ' + script.encode()
    return subprocess.Popen(
        [b"unshare", b"--mount", b"sh", b"-c", mount, b"sh", place],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd="/",
    )
