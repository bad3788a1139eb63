"""Records of the kernel read as values: sizes, byte order, hostile names."""

from __future__ import annotations

import re
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING

import pytest

from netns_runtime.owner import Owner
from netns_runtime.probes import hooks, records
from netns_runtime.probes.records import (
    DESTINATION,
    EVENT,
    OWNER,
    SANDBOX,
    destination_of,
    event_of,
    flow_key,
    owner_value,
    sandbox_value,
    text_of,
    totals_of,
)

if TYPE_CHECKING:
    import struct

SIZES = {"u64": 8, "u32": 4, "u16": 2, "u8": 1}


def size_in_c(name: str) -> int:
    """The size of a structure of bpf/records.h, all of whose fields are naturally aligned."""
    text = (hooks.source_directory() / "records.h").read_text()
    body = re.search(rf"struct {name} {{(.*?)\n}};", text, re.DOTALL)
    assert body is not None, name
    total = 0
    for line in re.sub(r"/\*.*?\*/", "", body[1], flags=re.DOTALL).split(";"):
        words = line.split()
        if not words:
            continue
        each = size_in_c(words[1]) if words[0] == "struct" else SIZES.get(words[0], 1)
        count = re.search(r"\[(\w+)\]", line)
        sizes = {"REASONS": 4, "EVENT_COMM": 16}
        total += each * (sizes[count[1]] if count else 1)
    assert total % 8 == 0, f"{name} has padding that is not named"
    return total


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("destination", records.DESTINATION),
        ("detail", records.DETAIL),
        ("sandbox", records.SANDBOX),
        ("slot", records.SLOT),
        ("event", records.EVENT),
        ("flow", records.FLOW),
        ("owner", records.OWNER),
        ("dialling", records.DIAL),
    ],
)
def test_c_and_python_agree_on_every_size(name: str, layout: struct.Struct) -> None:
    assert layout.size == size_in_c(name)


def destination(address: str, port: int, protocol: int, reason: int, cookie: int = 7) -> bytes:
    packed = records.packed_of(ip_address(address))
    return DESTINATION.pack(cookie, packed, port | protocol << 16 | reason << 24)


def test_an_event_says_who_and_where() -> None:
    data = EVENT.pack(
        0, 11, 22, 33, 34, 35, 36, 0, destination("192.0.2.7", 65535, 6, 0), b"curl\0junk".ljust(16)
    )
    event = event_of(data)
    assert (event.pid, event.tid, event.ppid, event.uid) == (33, 34, 35, 36)
    assert (event.address, event.port) == (IPv4Address("192.0.2.7"), 65535)
    assert (event.protocol, event.reason, event.comm) == ("tcp", "direct_tcp", "curl")
    assert (event.exe_inode, event.exe_device, event.cookie) == (11, 22, 7)


@pytest.mark.parametrize(
    ("protocol", "reason", "expected"),
    [
        (17, 1, ("udp", "direct_udp")),
        (1, 2, ("icmp", "direct_other")),
        (132, 2, ("132", "direct_other")),
    ],
)
def test_protocols_without_a_name_are_numbers(
    protocol: int, reason: int, expected: tuple[str, str]
) -> None:
    found = destination_of(
        destination("2001:db8::1", 9, protocol, reason), records.DETAIL.pack(5, 0, 0, 1, 2, b"x")
    )
    assert (found.protocol, found.reason) == expected
    assert (found.address, found.count) == (IPv6Address("2001:db8::1"), 5)


@pytest.mark.parametrize(
    ("comm", "text"),
    [
        (b"plain\0\0", "plain"),
        (b"a b", "a b"),
        (b"\x1b[2J\n", "\\x1b[2J\\n"),
        (b"\xff\xfe", "\\xff\\xfe"),
        ("naïve".encode(), "naïve"),
        ("\u202eevil".encode(), "\\u202eevil"),
        (b"\x7f", "\\x7f"),
        (b"", ""),
    ],
)
def test_a_name_never_carries_a_control_character(comm: bytes, text: str) -> None:
    assert text_of(comm) == text
    assert text_of(comm).isprintable()


def test_totals_add_up_over_cpus() -> None:
    one = SANDBOX.pack(9, 5, 3, 4, 0, 0, 0, 10, 20, 30, 0, 6, 1, 2)
    two = SANDBOX.pack(9, 5, 3, 4, 0, 0, 0, 1, 2, 3, 0, 0, 1, 1)
    totals = totals_of(one + two)
    assert totals.refused == {"direct_tcp": 11, "direct_udp": 22, "direct_other": 33}
    assert (totals.total, totals.events, totals.lost, totals.details) == (66, 6, 2, 3)
    assert totals.suppressed == 58
    assert (totals.flags, totals.slot) == (5, 3)


def test_a_new_sandbox_has_counted_nothing_on_any_cpu() -> None:
    value = sandbox_value(9, 7, 3, 4, rate=100, burst=200, cpus=3)
    assert len(value) == 3 * SANDBOX.size
    assert totals_of(value).total == 0
    assert SANDBOX.unpack_from(value)[:6] == (9, 7, 3, 4, 10_000_000, 1_990_000_000)


def test_an_owner_is_read_back() -> None:
    value = OWNER.pack(1234, 0, 254 << 20, 42, 1000, 0, b"python3")
    assert owner_value(value) == Owner(42, "python3", 1234, 254 << 20)


def test_flows_that_differ_in_one_thing_have_different_keys() -> None:
    base: tuple[int, int, records.Address, int] = (7, 40000, IPv4Address("10.200.0.1"), 3128)
    others: list[tuple[int, int, records.Address, int]] = [
        (8, *base[1:]),
        (7, 40001, *base[2:]),
        (7, 40000, IPv4Address("10.200.0.2"), 3128),
        (7, 40000, IPv6Address("fd00::1"), 3128),
        (*base[:3], 3129),
    ]
    assert len({flow_key(*key) for key in [base, *others]}) == 6
