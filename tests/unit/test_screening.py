"""Which addresses may be dialled, by name of the range that says no."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netns_runtime import layout
from netns_runtime.address import screen
from netns_runtime.screening import embedded_of

OPEN = [
    "1.1.1.1",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "168.63.129.15",
    "169.253.255.255",
    "169.255.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "192.0.2.1",
    "198.17.255.255",
    "198.20.0.0",
    "198.51.100.1",
    "203.0.113.1",
    "223.255.255.255",
    "2001:db8::1",
    "2606:4700::1111",
    "3fff::1",
    "::ffff:192.0.2.1",
    "64:ff9b::192.0.2.1",
    "2001:db8::5efe:192.0.2.1",
]

CLOSED = {
    "0.0.0.0": "this host",
    "0.1.2.3": "this host",
    "10.0.0.0": "private",
    "10.199.255.255": "private",
    "10.200.0.1": "sandbox",
    "10.200.0.2": "sandbox",
    "10.255.255.255": "private",
    "100.64.0.0": "carrier-grade",
    "100.127.255.255": "carrier-grade",
    "100.100.100.200": "metadata",
    "127.0.0.1": "loopback",
    "127.255.255.255": "loopback",
    "168.63.129.16": "metadata",
    "169.254.0.1": "link-local",
    "169.254.169.254": "metadata",
    "169.254.170.2": "metadata",
    "172.16.0.0": "private",
    "172.31.255.255": "private",
    "192.0.0.1": "protocol",
    "192.0.0.192": "metadata",
    "192.88.99.1": "6to4",
    "192.168.0.0": "private",
    "198.18.0.0": "virtual",
    "198.19.255.255": "virtual",
    "224.0.0.1": "multicast",
    "239.255.255.255": "multicast",
    "240.0.0.0": "reserved",
    "255.255.255.255": "broadcast",
    "::": "unspecified",
    "::1": "loopback",
    "::2": "IPv4-compatible",
    "::127.0.0.1": "IPv4-compatible",
    "::192.0.2.1": "IPv4-compatible",
    "::ffff:127.0.0.1": "loopback",
    "::ffff:169.254.169.254": "metadata",
    "::ffff:0:10.0.0.1": "not global",
    "64:ff9b::127.0.0.1": "loopback",
    "64:ff9b::10.0.0.1": "private",
    "64:ff9b:1::192.0.2.1": "local-use",
    "100::1": "discard",
    "2001:0:c000:201::80ff:fffe": "127.0.0.1",
    "2001:0:7f00:1::3fff:fdfe": "127.0.0.1",
    "2001:0:c000:201::3fff:fdfe": "Teredo",
    "2001:2::1": "protocol",
    "2001:20::1": "protocol",
    "2002:7f00:1::1": "loopback",
    "2002:a9fe:a9fe::1": "metadata",
    "2002:c000:201::1": "6to4",
    "2001:db8::5efe:10.0.0.1": "ISATAP",
    "2001:db8::200:5efe:127.0.0.1": "ISATAP",
    "fe80::5efe:192.0.2.1": "link-local",
    "200::1": "not global",
    "4000::1": "not global",
    "fc00::1": "unique local",
    "fd00:ec2::254": "metadata",
    "fd00:c8::1": "sandbox",
    "fd00:c8:0:1::7": "virtual",
    "fd20:ce::254": "metadata",
    "fe80::1": "link-local",
    "fe80::1%eth0": "zone",
    "fec0::1": "site-local",
    "ff02::1": "multicast",
}


@pytest.mark.parametrize("text", OPEN)
def test_may_be_dialled(text: str) -> None:
    assert screen(ip_address(text), frozenset(), ()) is None


@pytest.mark.parametrize(("text", "reason"), CLOSED.items())
def test_is_refused_with_the_name_of_its_range(text: str, reason: str) -> None:
    said = screen(ip_address(text), frozenset(), ())
    assert said is not None
    assert reason in said


@pytest.mark.parametrize(
    "form", ["192.0.2.9", "::ffff:192.0.2.9", "64:ff9b::192.0.2.9", "2001:db8::5efe:192.0.2.9"]
)
def test_refuses_the_uplinks_own_address_in_every_form(form: str) -> None:
    own = frozenset({IPv4Address("192.0.2.9")})
    assert "uplink" in str(screen(ip_address(form), own, ()))
    assert screen(ip_address("192.0.2.10"), own, ()) is None


def test_refuses_the_uplinks_own_ipv6_address() -> None:
    own = frozenset({IPv6Address("2001:db8::9")})
    assert "uplink" in str(screen(IPv6Address("2001:db8::9"), own, ()))


LIFTED = {
    "the range itself": ("10.1.2.3", ["10.0.0.0/8"]),
    "a part of it": ("10.1.2.3", ["10.1.0.0/16"]),
    "the address alone": ("10.1.2.3", ["10.1.2.3/32"]),
    "one of several entries": ("10.1.2.3", ["192.0.2.0/24", "10.1.2.0/24"]),
    "loopback that is named": ("127.0.0.1", ["127.0.0.1/32"]),
    "metadata that is named": ("169.254.169.254", ["169.254.169.254/32"]),
    "a mapped form of a listed address": ("::ffff:10.1.2.3", ["10.0.0.0/8"]),
    "a NAT64 form of a listed address": ("64:ff9b::10.1.2.3", ["10.0.0.0/8"]),
    "unique local": ("fd12::1", ["fd12::/16"]),
    "a public address in a wide entry": ("192.0.2.1", ["0.0.0.0/0"]),
}

KEPT = {
    "private by an entry for everything": ("10.1.2.3", ["0.0.0.0/0"]),
    "private by an entry for more than it": ("10.1.2.3", ["8.0.0.0/5"]),
    "loopback by an entry for everything": ("::1", ["::/0"]),
    "metadata by an entry for link-local": ("169.254.169.254", ["169.254.0.0/16"]),
    "metadata by an entry for carrier-grade NAT": ("100.100.100.200", ["100.64.0.0/10"]),
    "the sandbox's network by its own entry": ("10.200.0.1", ["10.200.0.1/32"]),
    "the sandbox's network by a private entry": ("10.200.0.9", ["10.0.0.0/8"]),
    "a virtual address": (str(layout.VIRTUAL_IPV4[5]), ["198.18.0.0/15"]),
    "an IPv6 virtual address": (str(layout.VIRTUAL_IPV6[5]), ["fd00:c8:0:1::/64"]),
    "this host": ("0.0.0.0", ["0.0.0.0/32"]),
    "unspecified": ("::", ["::/128"]),
    "what another entry lists": ("10.1.2.3", ["10.2.0.0/16"]),
    "a public address outside the list": ("192.0.2.1", ["198.51.100.0/24"]),
    "6to4 whose inside is not listed": ("2002:a00:1::1", ["2002::/16"]),
    "ISATAP whose inside is not listed": ("2001:db8::5efe:10.0.0.1", ["2001:db8::/32"]),
    "Teredo by its client alone": ("2001:0:c000:201::f5ff:fffe", ["10.0.0.0/8"]),
}


@pytest.mark.parametrize(("text", "allowed"), LIFTED.values(), ids=LIFTED)
def test_allowed_ips_lift(text: str, allowed: list[str]) -> None:
    assert screen(ip_address(text), frozenset(), map(ip_network, allowed)) is None


@pytest.mark.parametrize(("text", "allowed"), KEPT.values(), ids=KEPT)
def test_allowed_ips_do_not_lift(text: str, allowed: list[str]) -> None:
    assert screen(ip_address(text), frozenset(), map(ip_network, allowed)) is not None


def test_only_an_entry_for_exactly_it_lifts_an_address_of_the_uplink() -> None:
    own = frozenset({IPv4Address("10.0.0.5")})
    target = IPv4Address("10.0.0.5")
    assert screen(target, own, [ip_network("10.0.0.0/8")]) is not None
    assert screen(target, own, [ip_network("10.0.0.5/32")]) is None


def test_takes_the_teredo_client_apart() -> None:
    form, inner = embedded_of(IPv6Address("2001:0:c000:201::3fff:fdfe"))
    assert form == "Teredo"
    assert [str(address) for address in inner] == ["192.0.2.1", "192.0.2.1"]


@settings(max_examples=200, deadline=None, database=None)
@given(st.ip_addresses(v=4))
def test_lets_no_ipv4_address_pass_that_is_neither_global_nor_documentation(
    ip: IPv4Address,
) -> None:
    documentation = any(
        ip in ip_network(text) for text in ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24")
    )
    if screen(ip, frozenset(), ()) is None:
        assert ip.is_global or documentation


@settings(max_examples=200, deadline=None, database=None)
@given(st.ip_addresses(v=4), st.sampled_from(["::ffff:{}", "64:ff9b::{}", "2001:db8::5efe:{}"]))
def test_an_embedded_address_never_passes_where_it_would_not_pass_alone(
    ip: IPv4Address, form: str
) -> None:
    if screen(ip, frozenset(), ()) is not None:
        assert screen(IPv6Address(form.format(ip)), frozenset(), ()) is not None
