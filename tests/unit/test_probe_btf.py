"""Offsets from BTF, on a table made by hand, whole and damaged."""

from __future__ import annotations

import contextlib
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netns_runtime.probes import btf

if TYPE_CHECKING:
    from pathlib import Path

Member = tuple[str, int, int]


def table(*structures: tuple[int, str, list[Member]], magic: int = 0xEB9F) -> bytes:
    """BTF with an int as type 1 and then these (kind, name, members of (name, type, bits))."""
    strings = b"\0"

    def name(text: str) -> int:
        nonlocal strings
        if not text:
            return 0
        strings += text.encode() + b"\0"
        return len(strings) - len(text) - 1

    types = struct.pack("=IIII", name("int"), 1 << 24, 4, 32)
    for kind, label, members in structures:
        types += struct.pack("=III", name(label), kind << 24 | len(members), 64)
        for member, type_id, bits in members:
            types += struct.pack("=III", name(member), type_id, bits)
    header = struct.pack("=HBBIIIII", magic, 1, 0, 24, 0, len(types), len(types), len(strings))
    return header + types + strings


SAMPLE = table(
    (5, "", [("tgid", 1, 32)]),
    (4, "", [("", 2, 64), ("odd", 1, 3)]),
    (4, "task", [("state", 1, 0), ("", 3, 128)]),
)
WANTED = {"AT": ("task", "tgid"), "STATE": ("task", "state")}


def test_follows_anonymous_members() -> None:
    assert btf.offsets_of(SAMPLE, WANTED) == {"AT": (128 + 64 + 32) // 8, "STATE": 0}


@pytest.mark.parametrize("wanted", [("task", "gone"), ("nobody", "tgid"), ("task", "odd")])
def test_a_field_that_is_not_there_or_not_whole_is_left_out(wanted: tuple[str, str]) -> None:
    assert btf.offsets_of(SAMPLE, {"X": wanted}) == {}


def test_a_bitfield_structure_keeps_its_offsets() -> None:
    data = bytearray(table((4, "task", [("tgid", 1, 8 << 24 | 64)])))
    at = data.index(struct.pack("=I", 4 << 24 | 1))
    data[at : at + 4] = struct.pack("=I", 1 << 31 | 4 << 24 | 1)
    assert btf.offsets_of(bytes(data), {"AT": ("task", "tgid")}) == {"AT": 8}


def test_refuses_a_structure_inside_itself() -> None:
    with pytest.raises(ValueError, match="nested"):
        btf.offsets_of(table((4, "task", [("", 2, 0)])), WANTED)


@pytest.mark.parametrize("size", [0, 10, 23, 30, 60])
def test_refuses_what_is_cut_short(size: int) -> None:
    with pytest.raises(ValueError, match="BTF"):
        btf.offsets_of(SAMPLE[:size], WANTED)


def test_refuses_another_magic() -> None:
    with pytest.raises(ValueError, match="not BTF"):
        btf.offsets_of(table(magic=0x9FEB), WANTED)


@given(st.integers(0, len(SAMPLE) - 1), st.integers(0, 255))
def test_a_damaged_byte_raises_nothing_but_value_error(place: int, value: int) -> None:
    data = bytearray(SAMPLE)
    data[place] = value
    with contextlib.suppress(ValueError):
        btf.offsets_of(bytes(data), WANTED)


def test_a_kernel_without_btf_gives_no_offsets(tmp_path: Path) -> None:
    assert btf.executable_offsets(tmp_path / "vmlinux") == {}
    (tmp_path / "vmlinux").write_bytes(SAMPLE)
    assert btf.executable_offsets(tmp_path / "vmlinux") == {}
