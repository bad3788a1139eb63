"""Virtual addresses and the names behind them: what is answered, what stays, what is limited."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest

from netns_runtime import layout
from netns_runtime.policy import Endpoint, Policy, Rule, parse_allow
from netns_runtime.proxy import names as module
from netns_runtime.proxy.names import (
    NameRule,
    VirtualNames,
    canonical_name,
    names_rule,
    reversed_address,
)


def test_a_name_keeps_its_addresses_and_an_address_its_name() -> None:
    names = VirtualNames(100)
    first = names.address_of("up.test", "up.test")
    assert first is not None
    for number in range(50):
        names.address_of(f"n{number}.test", "*.test")
    assert names.address_of("up.test", "*.test") is first
    for address in (first.ipv4, first.ipv6, str(first.ipv4), str(first.ipv6)):
        assert names.name_of(address) == "up.test"
    assert names.name_of(f"::ffff:{first.ipv4}") == "up.test"
    assert names.name_of(first.ipv6.exploded.upper()) == "up.test"


def test_every_address_is_in_its_pool_and_none_is_given_twice_or_at_a_blocks_edge() -> None:
    names = VirtualNames(3000, 3000)
    made = [names.address_of(f"n{number}.test", "*.test") for number in range(3000)]
    assert None not in made
    ipv4 = {virtual.ipv4 for virtual in made if virtual}
    ipv6 = {virtual.ipv6 for virtual in made if virtual}
    assert len(ipv4) == len(ipv6) == 3000
    assert all(address in layout.VIRTUAL_IPV4 for address in ipv4)
    assert all(address in layout.VIRTUAL_IPV6 for address in ipv6)
    assert {int(address) & 255 for address in ipv4}.isdisjoint({0, 255})


def test_the_same_name_means_the_same_address_in_another_sandbox() -> None:
    one, other = VirtualNames(10), VirtualNames(10)
    other.address_of("before.test", "before.test")
    here, there = (names.address_of("up.test", "up.test") for names in (one, other))
    assert here == there
    assert here is not None
    assert VirtualNames(10).name_of(here.ipv4) is None


def test_names_with_the_same_hash_get_different_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_hash_of", lambda name: module.POOL - 1)
    names = VirtualNames(10)
    made = [names.address_of(name, name) for name in ("a.test", "b.test", "c.test")]
    assert [str(virtual.ipv4) for virtual in made if virtual] == [
        "198.19.255.254",
        "198.18.0.1",
        "198.18.0.2",
    ]
    assert names.name_of("198.18.0.2") == "c.test"


@pytest.mark.parametrize(
    "address",
    [
        *("10.200.0.1", "198.17.255.255", "198.18.0.0", "198.18.0.255", "198.20.0.1", "127.0.0.1"),
        *("fd00:c8::1", "fd00:c8:0:1::1", "fd00:c8:0:2::c612:1", "::c612:1", "nonsense", ""),
        *("198.18.0.1", "fd00:c8:0:1::c612:1", "fd00:c8:0:1:1::c612:1", "::ffff:10.0.0.1"),
    ],
)
def test_nobody_is_behind_an_address_that_was_not_given(address: str) -> None:
    names = VirtualNames(10)
    names.address_of("up.test", "up.test")
    assert names.name_of(address) is None


def test_a_wildcard_that_is_used_up_hurts_no_other_and_no_name_that_is_there() -> None:
    names = VirtualNames(100, per_wildcard=3)
    kept = [names.address_of(f"n{number}.a.test", "*.a.test") for number in range(3)]
    assert names.address_of("n3.a.test", "*.a.test") is None
    assert names.address_of("n4.a.test", "*.a.test") is None
    assert [names.address_of(f"n{number}.a.test", "*.a.test") for number in range(3)] == kept
    assert names.address_of("n.b.test", "*.b.test") is not None
    assert names.address_of("spelled.a.test", "spelled.a.test") is not None
    assert len(names) == 5


def test_all_wildcards_together_keep_to_the_limit_and_leave_room_for_spelled_names() -> None:
    names = VirtualNames(4, per_wildcard=3)
    made = [names.address_of(f"n{n}.{zone}.test", f"*.{zone}.test") for zone in "abc" for n in "12"]
    assert [virtual is not None for virtual in made] == [True] * 4 + [False] * 2
    assert names.address_of("up.test", "up.test") is not None
    assert VirtualNames(0).address_of("n.a.test", "*.a.test") is None


def test_no_limit_lets_wildcards_take_more_than_half_of_the_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "POOL", 8)
    names = VirtualNames(1000, 1000)
    made = [names.address_of(f"n{number}.test", "*.test") for number in range(8)]
    assert made.count(None) == 4
    exact = [names.address_of(f"e{number}.test", f"e{number}.test") for number in range(6)]
    assert exact.count(None) == 2


POLICY = Policy(
    (
        parse_allow("up.test:22"),
        parse_allow("*.wild.test"),
        Rule("owned", (Endpoint("owned.wild.test", (5432,)),), binaries=()),
        Rule("one label", (Endpoint("*.one.test", None),)),
        Rule("addresses", (Endpoint("", None, (ip_network("192.0.2.0/24"),)),)),
        parse_allow("192.0.2.7"),
    )
)


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("up.test", NameRule("--allow up.test:22", "up.test")),
        ("a.b.wild.test", NameRule("--allow *.wild.test", "**.wild.test")),
        ("owned.wild.test", NameRule("owned", "owned.wild.test")),
        ("a.one.test", NameRule("one label", "*.one.test")),
        ("a.b.one.test", None),
        ("wild.test", None),
        ("xwild.test", None),
        ("up.test.evil.test", None),
        ("elsewhere.test", None),
        ("test", None),
    ],
)
def test_a_name_is_covered_by_the_narrowest_rule_on_any_port_for_anybody(
    name: str, rule: NameRule | None
) -> None:
    assert names_rule(POLICY, name) == rule


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("up.test", "up.test"),
        ("db", "db"),
        ("_dmarc.up.test", "_dmarc.up.test"),
        ("xn--bcher-kva.test", "xn--bcher-kva.test"),
        ("xn--\\195", None),
        ("xn--zzzzzzzz0.test", None),
        ("", None),
        ("192.0.2.7", None),
        ("0x7f.1", None),
        ("a\\.b.test", None),
        ("\\195\\188.test", None),
        ("up.test\\@", None),
    ],
)
def test_a_host_has_one_spelling_and_what_is_none_has_no_name(text: str, name: str | None) -> None:
    assert canonical_name(text) == name


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("1.0.18.198.in-addr.arpa", IPv4Address("198.18.0.1")),
        ("01.0.18.198.in-addr.arpa", None),
        ("0.18.198.in-addr.arpa", None),
        ("1.1.0.18.198.in-addr.arpa", None),
        ("in-addr.arpa", None),
        ("1.0.18.198.in-addr.arpa.test", None),
        ("1.0.0.0." * 8 + "ip6.arpa", IPv6Address("1:1:1:1:1:1:1:1".replace("1", "0001"))),
        ("-.0.0.0." * 8 + "ip6.arpa", None),
        ("0._.0.0." * 8 + "ip6.arpa", None),
        ("g.0.0.0." * 8 + "ip6.arpa", None),
        ("0.ip6.arpa", None),
    ],
)
def test_a_reverse_name_is_one_whole_address_or_none(
    name: str, address: IPv4Address | IPv6Address | None
) -> None:
    assert reversed_address(name) == address


def test_our_own_addresses_have_names_both_ways() -> None:
    names = VirtualNames(1)
    for name, addresses in module.OWN_NAMES.items():
        assert module.addresses_of_own(name) == addresses
        assert [names.pointer_of(address) for address in addresses] == [name, name]
    assert names.pointer_of(IPv4Address("127.8.8.8")) == "localhost"
    assert names.pointer_of(IPv4Address("192.0.2.7")) is None
    assert names.pointer_of(IPv6Address("2001:db8::1")) is None
    assert module.addresses_of_own("a.b.localhost") == module.OWN_NAMES["localhost"]
    assert module.addresses_of_own("notlocalhost") is None
