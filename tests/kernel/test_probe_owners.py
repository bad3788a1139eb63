"""The proxy learns who dialled, for every way to dial, without looking into /proc."""

from __future__ import annotations

import os
import select
import socket
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from netns_runtime.probes import syscall
from netns_runtime.probes.owners import OwnerTable
from tests.support import uring
from tests.support.probe import Cell, guarded_cell, own_parent, own_probe, skip

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from netns_runtime.probes.probe import Probe

V4, V6 = socket.AF_INET, socket.AF_INET6
PROXY = "10.200.0.1"
MPTCP = 262
MSG_FASTOPEN = 0x20000000
TCP_FASTOPEN, TCP_FASTOPEN_CONNECT = 23, 30


@pytest.fixture(scope="module")
def probe() -> Iterator[Probe]:
    with own_probe() as probe:
        yield probe


@pytest.fixture(scope="module")
def parent() -> Iterator[Path]:
    with own_parent() as parent:
        yield parent


def plain(port: int) -> socket.socket:
    return socket.create_connection((PROXY, port))


def non_blocking(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setblocking(False)
    sock.connect_ex((PROXY, port))
    select.select([], [sock], [], 5)
    return sock


def bound(port: int) -> socket.socket:
    return socket.create_connection((PROXY, port), source_address=("10.200.0.2", 40404))


def mapped(port: int) -> socket.socket:
    sock = socket.socket(V6)
    sock.connect((f"::ffff:{PROXY}", port))
    return sock


def multipath(port: int) -> socket.socket:
    sock = socket.socket(V4, socket.SOCK_STREAM, MPTCP)
    sock.connect((PROXY, port))
    return sock


def fast_open(port: int) -> socket.socket:
    sock = socket.socket()
    sock.sendto(b"hello", MSG_FASTOPEN, (PROXY, port))
    return sock


def fast_open_connect(port: int) -> socket.socket:
    sock = socket.socket()
    sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
    sock.connect((PROXY, port))
    sock.send(b"hello")
    return sock


def through_uring(port: int) -> socket.socket:
    sock = socket.socket()
    assert uring.connect(sock, PROXY, port) == 0
    return sock


KINDS: dict[str, Callable[[int], socket.socket]] = {
    "plain": plain,
    "non-blocking": non_blocking,
    "bound": bound,
    "mapped": mapped,
    "mptcp": multipath,
    "fast open by sendto": fast_open,
    "fast open by option": fast_open_connect,
    "io_uring": through_uring,
}


def dial(kind: str, times: int = 2) -> list[list[object]]:
    """(pid, source port) of each dialling process; the second fast open has a cookie."""
    found: list[list[object]] = []
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN, 16)
        server.bind((PROXY, 3128))
        server.listen()
        server.settimeout(5)
        for _ in range(times):
            pid = os.fork()
            if pid == 0:
                with open("/proc/self/comm", "w", encoding="ascii") as file:
                    file.write("dialler")
                try:
                    sock = KINDS[kind](3128)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                    sock.close()
                finally:
                    os._exit(0)
            accepted, peer = server.accept()
            accepted.close()
            os.waitpid(pid, 0)
            found.append([pid, peer[0], peer[1]])
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_the_owner_of_a_flow_is_who_dialled(probe: Probe, parent: Path, kind: str) -> None:
    if kind == "mptcp" and not os.path.exists("/proc/sys/net/mptcp/enabled"):
        skip("no MPTCP")
    with guarded_cell(probe, parent) as (made, registration):
        made.run(lambda: Path("/proc/sys/net/ipv4/tcp_fastopen").write_text("3"), guarded=False)
        fd = registration.owners_fd()
        table = OwnerTable(fd, made.cookie)
        executable = os.stat("/proc/self/exe")
        for pid, ip, port in made.run(lambda: dial(kind, 1 if kind == "bound" else 2)):
            owner = table.owner_of(ip, port)
            assert owner is not None
            assert (owner.pid, owner.comm) == (pid, "dialler")
            assert owner.exe_inode == executable.st_ino
            assert table.owner_of(ip, port, destination_port=53) is None
            assert OwnerTable(fd, made.cookie + 1).owner_of(ip, port) is None
        os.close(fd)
        assert registration.totals().total == 0


@pytest.mark.parametrize("host", ["198.18.0.7", "fd00:c8:0:1::7"])
def test_a_redirected_flow_is_found_by_its_original_destination(
    probe: Probe, parent: Path, host: str
) -> None:
    with guarded_cell(probe, parent, redirect=True) as (made, registration):

        def body() -> list[object]:
            family = V6 if ":" in host else V4
            with socket.socket(family) as server, socket.socket(family) as client:
                server.bind(("", 443))
                server.listen()
                client.connect((host, 443))
                return [os.getpid(), client.getsockname()[0], client.getsockname()[1]]

        pid, ip, port = made.run(body)
        fd = registration.owners_fd()
        table = OwnerTable(fd, made.cookie)
        owner = table.owner_of(ip, port, ip_address(host), 443)
        assert owner is not None
        assert owner.pid == pid
        assert table.owner_of(ip, port) is None
        os.close(fd)


def test_one_source_port_to_two_destinations_keeps_two_owners(probe: Probe, parent: Path) -> None:
    with guarded_cell(probe, parent, redirect=True) as (made, registration):

        def dial_from(host: str) -> int:
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                client.bind(("10.200.0.2", 40405))
                client.connect_ex((host, 443))
            return os.getpid()

        pids = {host: made.run(partial(dial_from, host)) for host in ("198.18.0.1", "198.18.0.2")}
        fd = registration.owners_fd()
        table = OwnerTable(fd, made.cookie)
        for host, pid in pids.items():
            owner = table.owner_of("10.200.0.2", 40405, ip_address(host), 443)
            assert owner is not None
            assert owner.pid == pid
        os.close(fd)


def test_an_unprivileged_reader_can_look_up_and_not_write(probe: Probe, parent: Path) -> None:
    with guarded_cell(probe, parent) as (made, registration):
        ((pid, ip, port),) = made.run(lambda: dial("plain", 1))
        fd = registration.owners_fd()

        def unprivileged() -> list[object]:
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            owner = OwnerTable(fd, made.cookie).owner_of(ip, port)
            try:
                syscall.update(fd, bytes(32), bytes(56))
            except PermissionError:
                return [owner and owner.pid, "refused"]
            return [owner and owner.pid, "written"]

        outside = Cell(made.fd, 0, made.cgroup)
        assert outside.run(unprivileged, guarded=False) == [pid, "refused"]
        os.close(fd)
