"""Who sends what no hook sees, by each way that this kernel has: the tracepoint and the kprobe."""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING, Any, Final

import pytest

from netns_runtime.probes.kprobe import has_kprobes
from netns_runtime.probes.tracing import NEITHER, PACKETS, Tracing
from tests.support.probe import cell, own_parent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from netns_runtime.probes.seen import Seen
    from tests.support.probe import Cell

RELEASE: Final = tuple(int(part) for part in os.uname().release.split(".")[:2])
# sock:sock_send_length came with Linux 6.3; CONFIG_KPROBES is the kernel's own choice.
WAYS: Final = [
    way for way, is_there in {"tracepoint": RELEASE >= (6, 3), "kprobe": has_kprobes()}.items()
    if is_there
]  # fmt: skip
TO: Final = "198.18.0.7"
TO_IPV6: Final = "fd00:c8:0:1::7"
ICMP_ECHO: Final = bytes.fromhex("0800f7ff00000000")


@pytest.fixture
def box() -> Iterator[Cell]:
    with own_parent() as parent, cell(parent) as made:
        yield made


def traced(box: Cell, way: str, body: Callable[[], Any]) -> tuple[int, list[Seen]]:
    """What a child sent, and its pid."""

    def child() -> int:
        body()
        return os.getpid()

    tracing = Tracing({box.cookie: 1}, 0, PACKETS, (way,))
    try:
        assert tracing.way == way
        assert tracing.lacks == []
        pid = box.run(child, guarded=False)
        time.sleep(0.05)
        seen = [event for event in tracing.read() if event.kind == "send"]
        assert tracing.missed() == 0
    finally:
        tracing.close()
    return pid, seen


def told(seen: list[Seen]) -> list[tuple[str, str, str]]:
    return [(event.protocol, event.reason, event.destination) for event in seen]


@pytest.mark.parametrize("way", WAYS)
class TestEachWay:
    def test_a_raw_socket_is_named_with_where_it_sends(self, box: Cell, way: str) -> None:
        def body() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
                raw.sendto(ICMP_ECHO, (TO, 0))

        pid, seen = traced(box, way, body)
        assert told(seen) == [("icmp", "raw socket", TO)]
        assert (seen[0].pid, seen[0].place) == (pid, "sandbox")
        assert seen[0].comm.startswith("python") or seen[0].comm.startswith("pytest")

    def test_ipv6_too(self, box: Cell, way: str) -> None:
        def body() -> None:
            with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6) as raw:
                raw.sendto(bytes.fromhex("8000000000000000"), (TO_IPV6, 0))

        pid, seen = traced(box, way, body)
        assert told(seen) == [("icmpv6", "raw socket", TO_IPV6)]
        assert seen[0].pid == pid

    def test_a_datagram_after_connect_is_named(self, box: Cell, way: str) -> None:
        def body() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.connect((TO, 4433))
                sock.send(b"x")

        pid, seen = traced(box, way, body)
        assert told(seen) == [("udp", "datagram socket", f"{TO}:4433")]
        assert seen[0].pid == pid

    def test_a_packet_socket_is_named(self, box: Cell, way: str) -> None:
        def body() -> None:
            with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM) as sock:
                sock.sendto(b"\x60" + bytes(39), ("lo", 0x86DD))

        pid, seen = traced(box, way, body)
        assert [(event.reason, event.pid) for event in seen] == [("packet socket", pid)]

    def test_what_the_hooks_judge_is_not_told_again(self, box: Cell, way: str) -> None:
        def body() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.sendto(b"x", (TO, 53))
            with socket.socket() as server, socket.socket() as client:
                server.bind((TO, 0))
                server.listen()
                client.connect(server.getsockname())
                client.send(b"x")
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                sock.bind("")
                sock.sendto(b"x", sock.getsockname())

        assert traced(box, way, body)[1] == []

    def test_other_namespaces_are_not_told(self, box: Cell, way: str) -> None:
        with own_parent() as parent, cell(parent) as other:
            tracing = Tracing({box.cookie: 1}, 0, PACKETS, (way,))
            try:
                other.run(lambda: socket.socket(2, 3, 1).sendto(ICMP_ECHO, (TO, 0)), guarded=False)
                time.sleep(0.05)
                assert tracing.read() == []
            finally:
                tracing.close()


def test_a_kernel_with_neither_way_says_so_and_shows_the_rest(box: Cell) -> None:
    tracing = Tracing({box.cookie: 1}, 0, PACKETS, ())
    try:
        assert tracing.way is None
        assert tracing.lacks == [NEITHER]
    finally:
        tracing.close()


def test_this_kernel_has_a_way() -> None:
    assert WAYS, NEITHER
