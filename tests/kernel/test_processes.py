"""Finding a socket's owner by its port, as the policy resolver asks for."""

from __future__ import annotations

import os
import socket
import sys

from netns_runtime import processes


def test_the_owner_of_a_udp_port_is_found_among_the_given_processes() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        inodes = processes.sockets_at("udp", sock.getsockname()[1])
        found = processes.holder_of(inodes, [1, os.getpid()])
        assert found is not None
        assert found.pid == os.getpid()
        assert found.exe == os.path.realpath(sys.executable)
        assert processes.holder_of(inodes, []) is None


def test_a_port_that_nobody_has_is_nobody_s() -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
        sock.bind(("::1", 0))
        port = sock.getsockname()[1]
        assert processes.sockets_at("udp", port)
    assert processes.sockets_at("udp", port) == frozenset()
    assert processes.holder_of(frozenset(), [os.getpid()]) is None


def test_the_executable_of_a_process_that_has_gone_is_found_by_its_name_and_inode() -> None:
    status = os.stat("/usr/bin/env")
    device = os.major(status.st_dev) << 20 | os.minor(status.st_dev)
    assert processes.executable_named("env", status.st_ino, device) == os.path.realpath(
        "/usr/bin/env"
    )
    assert processes.executable_named("env", status.st_ino + 1, device) is None
    assert processes.executable_named("env", status.st_ino, device + 1) is None
    assert processes.executable_named("../bin/env", status.st_ino, device) is None


def test_an_executable_that_is_another_inode_is_not_believed() -> None:
    inode = os.stat("/proc/self/exe").st_ino
    assert processes.executable_of(os.getpid(), inode) == os.path.realpath(sys.executable)
    assert processes.executable_of(os.getpid(), inode + 1) is None
    assert processes.executable_of(0) is None
