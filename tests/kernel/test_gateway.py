"""The gateway's rules alone, without the probe: every protocol is refused at once and counted."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import time
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TYPE_CHECKING, TypeVar

import pytest

from netns_runtime.errors import NetnsError, UsageError
from netns_runtime.firewall import nft
from netns_runtime.firewall.ruleset import gateway_ruleset
from netns_runtime.listeners import transparent_sockets
from netns_runtime.namespace import netns
from netns_runtime.namespace.netlink import apply_links, link_plan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")
AT_ONCE = 0.5


@dataclass(frozen=True)
class Pair:
    sandbox: int
    gateway: int

    def inside(self, function: Callable[[], T]) -> T:
        return netns.run_in(self.sandbox, function)

    def packets(self, name: str) -> int:
        return netns.run_in(self.gateway, nft.read_counters).packets[name]


@pytest.fixture
def pair() -> Iterator[Pair]:
    with ExitStack() as stack:
        gateway = stack.enter_context(netns.create_namespace("gateway"))
        sandbox = stack.enter_context(netns.create_namespace("sandbox"))
        apply_links(link_plan(), sandbox_fd=sandbox, gateway_fd=gateway)
        netns.run_in(gateway, lambda: nft.load(gateway_ruleset()))
        yield Pair(sandbox, gateway)


def attempt(family: int, address: tuple[object, ...], kind: int = socket.SOCK_STREAM) -> int:
    """The errno of a connect, which must come at once."""
    began = time.monotonic()
    with socket.socket(family, kind) as sock:
        sock.settimeout(5)
        result = sock.connect_ex(address)
    assert time.monotonic() - began < AT_ONCE
    return result


DESTINATIONS = {
    "an address on the internet": (socket.AF_INET, ("192.0.2.1", 443)),
    "the gateway at another port": (socket.AF_INET, ("10.200.0.1", 22)),
    "the transparent port": (socket.AF_INET, ("10.200.0.1", 3129)),
    "a neighbour that does not exist": (socket.AF_INET, ("10.200.0.77", 80)),
    "a private address": (socket.AF_INET, ("192.168.1.1", 80)),
    "the metadata service": (socket.AF_INET, ("169.254.169.254", 80)),
    "a virtual address": (socket.AF_INET, ("198.18.0.1", 443)),
    "an IPv6 address": (socket.AF_INET6, ("2001:db8::1", 443)),
    "the gateway's IPv6 address": (socket.AF_INET6, ("fd00:c8::1", 3128)),
    "an IPv6 neighbour that does not exist": (socket.AF_INET6, ("fd00:c8::77", 80)),
    "a mapped address": (socket.AF_INET6, ("::ffff:192.0.2.1", 443)),
}


@pytest.mark.parametrize(("family", "address"), DESTINATIONS.values(), ids=DESTINATIONS)
def test_a_tcp_connect_is_refused_at_once_every_time_and_counted(
    pair: Pair, family: int, address: tuple[object, ...]
) -> None:
    results = pair.inside(lambda: [attempt(family, address) for _ in range(5)])
    assert results == [errno.ECONNREFUSED] * 5
    assert pair.packets("refused_tcp") == 5


def test_a_link_local_address_fails_at_once(pair: Pair) -> None:
    def inside() -> int:
        index = socket.if_nametoindex("eth0")
        return attempt(socket.AF_INET6, ("fe80::1", 80, 0, index))

    assert pair.inside(inside) == errno.ENETUNREACH


def _has(protocol: int) -> bool:
    try:
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM, protocol).close()
    except OSError:
        return False
    return True


# Linux 7.3 no longer has it; 6.18 does.
UDP_LITE = [(socket.AF_INET, ("192.0.2.1", 443), 136, "refused_other")] if _has(136) else []


@pytest.mark.parametrize(
    ("family", "address", "protocol", "counter"),
    [
        (socket.AF_INET, ("192.0.2.1", 443), 0, "refused_udp"),
        (socket.AF_INET6, ("2001:db8::1", 443), 0, "refused_udp"),
        *UDP_LITE,
    ],
    ids=["udp", "udp over ipv6", *("udp-lite" for _ in UDP_LITE)],
)
def test_a_datagram_is_refused_at_once_every_time_and_counted(
    pair: Pair, family: int, address: tuple[str, int], protocol: int, counter: str
) -> None:
    def inside() -> list[int | None]:
        found: list[int | None] = []
        with socket.socket(family, socket.SOCK_DGRAM, protocol) as sock:
            sock.settimeout(2)
            sock.connect(address)
            for _ in range(5):
                try:
                    sock.send(b"x")
                    sock.recv(1)
                except OSError as error:
                    found.append(error.errno)
        return found

    assert pair.inside(inside) == [errno.ECONNREFUSED] * 5
    assert pair.packets(counter) == 5


def test_destinations_are_told_with_their_counts(pair: Pair) -> None:
    pair.inside(lambda: [attempt(socket.AF_INET, ("192.0.2.1", 443)) for _ in range(3)])
    pair.inside(lambda: attempt(socket.AF_INET6, ("2001:db8::1", 80)))
    found = netns.run_in(pair.gateway, nft.read_counters).destinations
    shown = {(str(a), protocol, port): count for (a, protocol, port), count in found.items()}
    assert shown == {("192.0.2.1", "tcp", 443): 3, ("2001:db8::1", "tcp", 80): 1}


def test_a_spoofed_source_is_dropped_and_counted(pair: Pair) -> None:
    def inside() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as raw:
            raw.setsockopt(socket.IPPROTO_IP, socket.IP_HDRINCL, 1)
            source, target = socket.inet_aton("10.200.0.9"), socket.inet_aton("10.200.0.1")
            header = bytes([0x45, 0, 0, 28, 0, 1, 0, 0, 64, 17, 0, 0]) + source + target
            datagram = (5353).to_bytes(2, "big") + (53).to_bytes(2, "big") + b"\0\x08\0\0"
            raw.sendto(header + datagram, ("10.200.0.1", 53))

    pair.inside(inside)
    assert pair.packets("spoofed") == 1
    assert pair.packets("accepted_dns") == 0


def test_only_the_proxy_and_the_resolver_are_reachable(pair: Pair) -> None:
    def listen() -> list[socket.socket]:
        socks = []
        for port in (3128, 53, 8080):
            sock = socket.create_server(("0.0.0.0", port))
            socks.append(sock)
        return socks

    listening = netns.run_in(pair.gateway, listen)
    try:
        results = pair.inside(
            lambda: {p: attempt(socket.AF_INET, ("10.200.0.1", p)) for p in (3128, 53, 8080)}
        )
        elsewhere = pair.inside(lambda: attempt(socket.AF_INET, ("192.0.2.1", 3128)))
    finally:
        for sock in listening:
            sock.close()
    assert results == {3128: 0, 53: 0, 8080: errno.ECONNREFUSED}
    assert elsewhere == errno.ECONNREFUSED


@pytest.fixture
def redirecting() -> Iterator[tuple[Pair, dict[int, socket.socket]]]:
    """A gateway that hands virtual and listed addresses to transparent sockets, by IP version."""
    listed = [(ip_address("192.0.2.9"), (22,)), (ip_address("2001:db8::9"), None)]
    with ExitStack() as stack:
        gateway = stack.enter_context(netns.create_namespace("gateway"))
        sandbox = stack.enter_context(netns.create_namespace("sandbox"))
        apply_links(link_plan(), sandbox_fd=sandbox, gateway_fd=gateway)
        ruleset = gateway_ruleset(redirect=True, listed=listed)
        netns.run_in(gateway, lambda: nft.load(ruleset))
        socks = netns.run_in(gateway, transparent_sockets)
        for sock in socks:
            stack.enter_context(sock)
            sock.settimeout(2)
        yield Pair(sandbox, gateway), dict(zip((4, 6), socks, strict=True))


@pytest.mark.parametrize(
    ("address", "port"),
    [
        ("198.18.0.5", 443),
        ("198.19.255.1", 1),
        ("fd00:c8:0:1::5", 80),
        ("192.0.2.9", 22),
        ("2001:db8::9", 65535),
    ],
)
def test_a_redirected_socket_s_own_address_is_the_original_destination(
    redirecting: tuple[Pair, dict[int, socket.socket]], address: str, port: int
) -> None:
    pair, listeners = redirecting
    with pair.inside(lambda: socket.create_connection((address, port), timeout=2)) as client:
        accepted, _ = listeners[ip_address(address).version].accept()
        with accepted:
            assert accepted.getsockname()[:2] == (address, port)
            client.sendall(b"ping")
            assert accepted.recv(4) == b"ping"
            accepted.sendall(b"pong")
            assert client.recv(4) == b"pong"
    assert pair.packets("redirected") > 0
    assert pair.packets("refused_tcp") == 0


@pytest.mark.parametrize(
    ("address", "port"),
    [
        ("192.0.2.9", 23),
        ("192.0.2.10", 22),
        ("10.200.0.1", 3129),
        ("fd00:c8::1", 3129),
        ("198.20.0.1", 443),
        ("fd00:c8:0:2::1", 443),
    ],
)
def test_nothing_else_reaches_a_transparent_socket(
    redirecting: tuple[Pair, dict[int, socket.socket]], address: str, port: int
) -> None:
    pair, _ = redirecting
    family = socket.AF_INET if ip_address(address).version == 4 else socket.AF_INET6
    assert pair.inside(lambda: attempt(family, (address, port))) == errno.ECONNREFUSED


def test_listed_addresses_are_swapped_without_touching_the_rest(
    redirecting: tuple[Pair, dict[int, socket.socket]],
) -> None:
    pair, _ = redirecting
    pair.inside(lambda: attempt(socket.AF_INET, ("192.0.2.1", 80)))
    netns.run_in(pair.gateway, lambda: nft.update_redirect([(ip_address("192.0.2.7"), None)]))
    results = pair.inside(
        lambda: [attempt(socket.AF_INET, (a, 22)) for a in ("192.0.2.9", "192.0.2.7", "198.18.0.1")]
    )
    assert results == [errno.ECONNREFUSED, 0, 0]
    assert pair.packets("refused_tcp") == 2


def test_the_gateway_has_no_way_out(pair: Pair) -> None:
    def links() -> set[str]:
        return {name for _, name in socket.if_nameindex()}

    assert netns.run_in(pair.gateway, links) == {"lo", "gw0"}
    assert pair.inside(links) == {"lo", "eth0"}


def test_a_refused_step_is_named_and_nothing_of_it_stays(pair: Pair) -> None:
    with pytest.raises(NetnsError, match="gateway: ip link add gw0 type veth"):
        apply_links(link_plan(), sandbox_fd=pair.sandbox, gateway_fd=pair.gateway)


def test_a_ruleset_that_somebody_added_to_is_noticed() -> None:
    def add() -> None:
        subprocess.run(["nft", "add", "table", "inet", "other"], check=True)
        nft.load(gateway_ruleset())

    with (
        netns.create_namespace("gateway") as gateway,
        pytest.raises(NetnsError, match="the kernel lists other rules"),
    ):
        netns.run_in(gateway, add)


def test_an_uplink_that_is_no_network_namespace_is_refused() -> None:
    for name in ("/proc/self/ns/mnt", "/etc/passwd", "/dev/null", "nowhere-at-all"):
        with pytest.raises(UsageError, match="--uplink"):
            os.close(netns.open_namespace(name))


def test_two_namespaces_have_two_cookies(pair: Pair) -> None:
    assert netns.cookie_of(pair.sandbox) != netns.cookie_of(pair.gateway)
    assert netns.cookie_of(pair.sandbox) == netns.cookie_of(pair.sandbox)
