"""The probe refuses every kind of direct connect, and counts each exactly once."""

from __future__ import annotations

import errno
import os
import socket
import threading
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import uring
from tests.support.probe import (
    REFUSED_IPV4,
    REFUSED_IPV6,
    Cell,
    cell,
    guarded_cell,
    own_parent,
    own_probe,
    skip,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from netns_runtime.probes.probe import Probe, Registration

TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
MPTCP = 262
MSG_FASTOPEN = 0x20000000


@pytest.fixture(scope="module")
def probe() -> Iterator[Probe]:
    with own_probe() as probe:
        yield probe


@pytest.fixture(scope="module")
def parent() -> Iterator[Path]:
    with own_parent() as parent:
        yield parent


@pytest.fixture
def guarded(probe: Probe, parent: Path) -> Iterator[tuple[Cell, Registration]]:
    with guarded_cell(probe, parent) as pair:
        yield pair


def connect(family: int, kind: int, host: str, protocol: int = 0, **options: bool) -> int:
    with socket.socket(family, kind, protocol) as sock:
        sock.setblocking(options.get("blocking", True))
        return sock.connect_ex((host, 443))


def errno_of(function: Callable[[], object]) -> int:
    try:
        function()
    except OSError as error:
        return error.errno or 0
    return 0


def send_to(family: int, host: str) -> int:
    with socket.socket(family, UDP) as sock:
        return errno_of(lambda: sock.sendto(b"x", (host, 443)))


def send_message(family: int, host: str) -> int:
    with socket.socket(family, UDP) as sock:
        return errno_of(lambda: sock.sendmsg([b"x"], [], 0, (host, 443)))


def fast_open(host: str) -> int:
    with socket.socket(socket.AF_INET, TCP) as sock:
        return errno_of(lambda: sock.sendto(b"x", MSG_FASTOPEN, (host, 443)))


def fast_open_connect(host: str) -> int:
    with socket.socket(socket.AF_INET, TCP) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, 30, 1)
        return sock.connect_ex((host, 443))


def through_uring(host: str) -> int:
    with socket.socket(socket.AF_INET, TCP) as sock:
        return uring.connect(sock, host, 443)


V4, V6 = socket.AF_INET, socket.AF_INET6
MAPPED = f"::ffff:{REFUSED_IPV4}"
KINDS: dict[str, tuple[str, str, Callable[[], int]]] = {
    "tcp": ("direct_tcp", REFUSED_IPV4, lambda: connect(V4, TCP, REFUSED_IPV4)),
    "tcp ipv6": ("direct_tcp", REFUSED_IPV6, lambda: connect(V6, TCP, REFUSED_IPV6)),
    "tcp mapped": ("direct_tcp", REFUSED_IPV4, lambda: connect(V6, TCP, MAPPED)),
    "non-blocking": (
        "direct_tcp",
        REFUSED_IPV4,
        lambda: connect(V4, TCP, REFUSED_IPV4, blocking=False),
    ),
    "mptcp": ("direct_tcp", REFUSED_IPV4, lambda: connect(V4, TCP, REFUSED_IPV4, MPTCP)),
    "mptcp ipv6": ("direct_tcp", REFUSED_IPV6, lambda: connect(V6, TCP, REFUSED_IPV6, MPTCP)),
    "fast open by sendto": ("direct_tcp", REFUSED_IPV4, lambda: fast_open(REFUSED_IPV4)),
    "fast open by option": ("direct_tcp", REFUSED_IPV4, lambda: fast_open_connect(REFUSED_IPV4)),
    "io_uring": ("direct_tcp", REFUSED_IPV4, lambda: through_uring(REFUSED_IPV4)),
    "udp connected": ("direct_udp", REFUSED_IPV4, lambda: connect(V4, UDP, REFUSED_IPV4)),
    "udp connected ipv6": ("direct_udp", REFUSED_IPV6, lambda: connect(V6, UDP, REFUSED_IPV6)),
    "udp connected mapped": ("direct_udp", REFUSED_IPV4, lambda: connect(V6, UDP, MAPPED)),
    "sendto": ("direct_udp", REFUSED_IPV4, lambda: send_to(V4, REFUSED_IPV4)),
    "sendto ipv6": ("direct_udp", REFUSED_IPV6, lambda: send_to(V6, REFUSED_IPV6)),
    "sendto mapped": ("direct_udp", REFUSED_IPV4, lambda: send_to(V6, MAPPED)),
    "sendmsg": ("direct_udp", REFUSED_IPV4, lambda: send_message(V4, REFUSED_IPV4)),
    "sendmsg ipv6": ("direct_udp", REFUSED_IPV6, lambda: send_message(V6, REFUSED_IPV6)),
    "ping socket": (
        "direct_other",
        REFUSED_IPV4,
        lambda: connect(V4, UDP, REFUSED_IPV4, socket.IPPROTO_ICMP),
    ),
}


def outcome(function: Callable[[], int]) -> int | str:
    try:
        return function()
    except OSError as error:
        if error.errno in (errno.EPROTONOSUPPORT, errno.ENOSYS, errno.EPERM, errno.EACCES):
            return f"the kernel refuses it: {error}"
        raise


@pytest.mark.parametrize("kind", KINDS)
def test_refuses_and_counts_once(guarded: tuple[Cell, Registration], kind: str) -> None:
    made, registration = guarded
    reason, address, function = KINDS[kind]
    if kind == "ping socket":
        made.run(
            lambda: Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 0"), guarded=False
        )
    for number in (1, 2, 3):
        got = made.run(lambda: outcome(function))
        if isinstance(got, str):
            skip(got)
        assert errno.errorcode[got] == "ECONNREFUSED"
        totals = registration.totals()
        assert totals.refused == {
            name: number * (name == reason) for name in ("direct_tcp", "direct_udp", "direct_other")
        }
    assert [str(event.address) for event in registration.read_events()] == [address] * 3
    (destination,) = registration.destinations()
    assert (str(destination.address), destination.port, destination.count) == (address, 443, 3)


def test_the_same_connects_pass_without_the_probe(parent: Path) -> None:
    with cell(parent) as made:
        for kind in ("tcp", "udp connected", "sendto"):
            got = made.run(partial(outcome, KINDS[kind][2]))
            assert errno.errorcode[got] == "ENETUNREACH", kind


@pytest.mark.parametrize(
    ("host", "port"),
    [
        ("10.200.0.1", 3128),
        ("10.200.0.1", 53),
        ("127.0.0.1", 9),
        ("127.9.9.9", 9),
        ("0.0.0.0", 9),
        ("10.200.0.2", 9),
        ("::1", 9),
        ("::", 9),
        ("fd00:c8::2", 9),
        ("::ffff:10.200.0.1", 3128),
        ("::ffff:127.0.0.1", 9),
    ],
)
def test_lets_through_what_is_served(
    guarded: tuple[Cell, Registration], host: str, port: int
) -> None:
    made, registration = guarded

    def dial() -> str:
        family = V6 if ":" in host else V4
        with socket.socket(family, TCP) as server, socket.socket(family, TCP) as client:
            server.bind((host, port))
            server.listen()
            client.connect((host, port))
            return str(server.accept()[1][0])

    assert made.run(dial)
    assert registration.totals().total == 0


@pytest.mark.parametrize(
    ("host", "port", "kind"),
    [
        ("10.200.0.1", 3129, TCP),
        ("10.200.0.1", 22, TCP),
        ("10.200.0.1", 3128, UDP),
        ("10.200.0.3", 3128, TCP),
        ("fd00:c8::1", 3128, TCP),
        ("198.18.0.9", 443, TCP),
        ("fd00:c8:0:1::9", 443, TCP),
        ("255.255.255.255", 9, TCP),
        ("224.0.0.1", 9, UDP),
        ("169.254.169.254", 80, TCP),
        ("fe80::1", 80, TCP),
        ("::127.0.0.1", 80, TCP),
        ("::2", 80, TCP),
        ("128.0.0.1", 80, TCP),
    ],
)
def test_refuses_what_only_looks_like_it(
    guarded: tuple[Cell, Registration], host: str, port: int, kind: int
) -> None:
    made, registration = guarded

    def dial() -> int:
        with socket.socket(V6 if ":" in host else V4, kind) as sock:
            return sock.connect_ex((host, port))

    assert errno.errorcode[made.run(dial)] == "ECONNREFUSED"
    assert registration.totals().total == 1


def test_the_resolver_flag_closes_port_53(probe: Probe, parent: Path) -> None:
    with guarded_cell(probe, parent, resolver=False) as (made, registration):
        assert made.run(lambda: send_to_port("10.200.0.1", 53)) == errno.ECONNREFUSED
        assert registration.totals().refused["direct_udp"] == 1


def send_to_port(host: str, port: int) -> int:
    with socket.socket(V4, UDP) as sock:
        return errno_of(lambda: sock.sendto(b"x", (host, port)))


def test_the_redirect_flag_opens_virtual_addresses_to_tcp_alone(probe: Probe, parent: Path) -> None:
    with guarded_cell(probe, parent, redirect=True) as (made, registration):

        def dial(family: int, kind: int, host: str) -> int:
            with socket.socket(family, TCP) as server, socket.socket(family, kind) as client:
                server.bind(("", 443))
                server.listen()
                return client.connect_ex((host, 443))

        assert made.run(lambda: dial(V4, TCP, "198.19.255.254")) == 0
        assert made.run(lambda: dial(V6, TCP, "fd00:c8:0:1::9")) == 0
        assert registration.totals().total == 0
        assert made.run(lambda: send_to(V4, "198.19.255.254")) == errno.ECONNREFUSED
        assert made.run(lambda: send_message(V6, "fd00:c8:0:1::9")) == errno.ECONNREFUSED
        assert registration.totals().refused["direct_udp"] == 2
        assert made.run(lambda: connect(V4, TCP, "198.20.0.0")) == errno.ECONNREFUSED
        assert made.run(lambda: connect(V6, TCP, "fd00:c8:0:2::9")) == errno.ECONNREFUSED


def test_connecting_udp_to_a_virtual_address_is_getaddrinfo_sorting_and_no_refusal(
    probe: Probe, parent: Path
) -> None:
    with guarded_cell(probe, parent) as (made, registration):
        assert made.run(lambda: connect(V4, UDP, "198.18.0.1")) == 0
        assert made.run(lambda: connect(V6, UDP, "fd00:c8:0:1::1")) == 0
        assert registration.totals().total == 0
        assert made.run(lambda: connect(V4, TCP, "198.18.0.1")) == errno.ECONNREFUSED
        assert made.run(lambda: connect(V4, UDP, REFUSED_IPV4)) == errno.ECONNREFUSED


def test_listed_addresses_pass_at_their_ports_and_for_their_sandbox_alone(
    probe: Probe, parent: Path
) -> None:
    listed = [(ip_address(REFUSED_IPV4), (443,)), (ip_address(REFUSED_IPV6), None)]

    def at(host: str, port: int, kind: int = TCP) -> int:
        with socket.socket(V6 if ":" in host else V4, kind) as client:
            return client.connect_ex((host, port))

    with (
        guarded_cell(probe, parent, redirect=True, listed=listed) as (made, registration),
        guarded_cell(probe, parent, redirect=True) as (other, others),
    ):
        # What passes the hook meets the namespace's missing route instead.
        for host, port in ((REFUSED_IPV4, 443), (REFUSED_IPV6, 1), (f"::ffff:{REFUSED_IPV4}", 443)):
            assert made.run(partial(at, host, port)) == errno.ENETUNREACH
        assert registration.totals().total == 0
        assert made.run(partial(at, REFUSED_IPV4, 444)) == errno.ECONNREFUSED
        assert made.run(partial(at, REFUSED_IPV4, 443, UDP)) == errno.ECONNREFUSED
        assert other.run(partial(at, REFUSED_IPV4, 443)) == errno.ECONNREFUSED
        assert (registration.totals().total, others.totals().total) == (2, 1)

        probe.set_listed(made.cookie, [(ip_address(REFUSED_IPV4), None)])
        assert made.run(partial(at, REFUSED_IPV4, 444)) == errno.ENETUNREACH
        assert made.run(partial(at, REFUSED_IPV6, 1)) == errno.ECONNREFUSED
        assert registration.totals().total == 3


def test_listed_addresses_mean_nothing_without_the_redirect_flag(
    probe: Probe, parent: Path
) -> None:
    listed = [(ip_address(REFUSED_IPV4), None)]
    with guarded_cell(probe, parent, listed=listed) as (made, registration):
        assert made.run(lambda: connect(V4, TCP, REFUSED_IPV4)) == errno.ECONNREFUSED
        assert registration.totals().total == 1


def test_an_unknown_namespace_in_a_guarded_cgroup_is_refused_even_loopback(
    probe: Probe, parent: Path
) -> None:
    with guarded_cell(probe, parent) as (made, registration), cell(parent) as other:
        stranger = Cell(other.fd, other.cookie, made.cgroup)
        before = probe.unknown_total()
        assert stranger.run(lambda: connect(V4, TCP, "127.0.0.1")) == errno.ECONNREFUSED
        assert stranger.run(lambda: connect(V4, TCP, "10.200.0.1")) == errno.ECONNREFUSED
        assert probe.unknown_total() == before + 2
        assert registration.totals().total == 0


def test_closing_leaves_the_cgroup_closed(probe: Probe, parent: Path) -> None:
    with cell(parent) as made:
        probe.register(made.cookie, made.cgroup).close()
        assert made.run(lambda: connect(V4, TCP, "127.0.0.1")) == errno.ECONNREFUSED
        assert probe.totals(made.cookie) is None


def test_threads_are_named_by_their_process(guarded: tuple[Cell, Registration]) -> None:
    made, registration = guarded

    def body() -> list[int]:
        results: list[int] = []
        threads = [
            threading.Thread(target=lambda: results.append(connect(V4, TCP, REFUSED_IPV4)))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return [os.getpid(), *results]

    pid, *results = made.run(body)
    assert results == [errno.ECONNREFUSED] * 8
    events = registration.read_events()
    assert {event.pid for event in events} == {pid}
    assert len({event.tid for event in events}) == 8
    assert pid not in {event.tid for event in events}
