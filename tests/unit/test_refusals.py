"""Refused connects as audit lines: nothing twice, nothing lost between the two counters."""

from __future__ import annotations

import json
import os
from ipaddress import ip_address
from typing import Any

import pytest

from netns_runtime.audit import AuditError, AuditLog
from netns_runtime.counts import tally
from netns_runtime.events import event_of
from netns_runtime.firewall.nft import Counters
from netns_runtime.firewall.ruleset import COUNTERS
from netns_runtime.probes.records import Totals
from netns_runtime.refusals import Refusals, remedy_of


def counters(destinations: dict[tuple[str, str, int], int], **packets: int) -> Counters:
    return Counters(
        {**dict.fromkeys(COUNTERS, 0), **packets},
        {(ip_address(a), proto, port): n for (a, proto, port), n in destinations.items()},
    )


def refusals_of(*readings: Counters) -> list[list[dict[str, Any]]]:
    seen: list[dict[str, Any]] = []
    pending = list(readings)
    refusals = Refusals(
        AuditLog(None, "s", seen.append), None, lambda: pending.pop(0), lambda _text: None
    )
    told = []
    for _ in readings:
        seen.clear()
        refusals.poll_nft()
        told.append([dict(event) for event in seen])
    return told


def test_only_what_is_new_is_told() -> None:
    key = ("192.0.2.1", "tcp", 443)
    first, second, third = refusals_of(
        counters({key: 2}, refused_tcp=2),
        counters({key: 2}, refused_tcp=2),
        counters({key: 5}, refused_tcp=5),
    )
    assert [event["count"] for event in first] == [2]
    assert second == []
    assert [(event["address"], event["count"]) for event in third] == [("192.0.2.1", 3)]


def test_what_the_bounded_set_did_not_hold_is_told_without_a_destination() -> None:
    (events,) = refusals_of(counters({("192.0.2.1", "tcp", 443): 2}, refused_tcp=7, refused_icmp=1))
    assert [(event.get("address"), event["reason"], event["count"]) for event in events] == [
        ("192.0.2.1", "direct_tcp", 2),
        (None, "direct_tcp", 5),
        (None, "direct_icmp", 1),
    ]


def test_both_counters_add_up() -> None:
    probe = Totals(
        refused={"direct_tcp": 3, "direct_udp": 1, "direct_other": 0},
        events=2,
        lost=1,
        details=1,
        flags=0,
        slot=0,
    )
    assert tally(probe, counters({}, refused_other=2, stray_tcp=9)) == {
        "count": 6,
        "counted_bpf": 4,
        "counted_nft": 2,
        "suppressed": 2,
        "direct_tcp": 3,
        "direct_udp": 1,
        "direct_other": 2,
    }


def test_an_audit_that_cannot_be_written_is_complained_of_once() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    complaints: list[str] = []
    refusals = Refusals(
        AuditLog(writing, "s"),
        None,
        lambda: counters({("192.0.2.1", "tcp", n): 1 for n in range(1, 9)}, refused_tcp=8),
        complaints.append,
    )
    try:
        refusals.poll_nft()
    finally:
        os.close(writing)
    assert len(complaints) == 1


def test_a_line_is_written_whole_or_the_writer_hears_of_it() -> None:
    reading, writing = os.pipe()
    AuditLog(writing, "s").write("sandbox.exited", code=0, detail="a\x1b[31m\n\u202e")
    line = os.read(reading, 4096)
    os.close(reading)
    assert line.isascii()
    assert line.count(b"\n") == 1
    assert json.loads(line)["detail"] == "a\x1b[31m\n\u202e"
    with pytest.raises(AuditError):
        AuditLog(writing, "s").write("sandbox.exited")
    os.close(writing)


def test_a_name_outside_the_vocabulary_is_a_bug_at_once() -> None:
    with pytest.raises(ValueError, match="no audit event"):
        event_of("sandbox.exploded", "s")
    with pytest.raises(ValueError, match="no audit field"):
        event_of("sandbox.exited", "s", colour="red")


@pytest.mark.parametrize(
    ("address", "port", "protocol", "redirect", "said"),
    [
        ("192.0.2.1", 443, "tcp", True, "--allow 192.0.2.1:443"),
        ("2001:db8::1", 443, "tcp", True, "--allow [2001:db8::1]:443"),
        ("192.0.2.1", 443, "tcp", False, "connect through the proxy"),
        ("10.1.2.3", 5432, "tcp", True, "allowed_ips [10.1.2.3]"),
        ("169.254.169.254", 80, "tcp", True, "allowed_ips [169.254.169.254]"),
        ("198.18.0.1", 443, "tcp", False, "--redirect on"),
        ("198.18.0.1", 443, "udp", True, "UDP is not carried"),
        ("192.0.2.1", 53, "udp", True, "ask the resolver at 10.200.0.1"),
        ("10.200.0.1", 22, "tcp", True, "connect through the proxy"),
        (None, 0, "", True, "connect through the proxy"),
    ],
)
def test_the_remedy_is_what_would_carry_this_connect(
    address: str | None, port: int, protocol: str, redirect: bool, said: str
) -> None:
    to = ip_address(address) if address else None
    assert said in remedy_of(to, port, protocol, redirect=redirect)


def test_a_virtual_address_is_told_with_its_name() -> None:
    seen: list[dict[str, Any]] = []
    reading = counters({("198.18.0.1", "tcp", 443): 1}, refused_tcp=1)
    refusals = Refusals(AuditLog(None, "s", seen.append), None, lambda: reading, lambda _text: None)
    refusals.learn_name("198.18.0.1", "api.test")
    refusals.poll_nft()
    assert [(event["host"], event["address"]) for event in seen] == [("api.test", "198.18.0.1")]
