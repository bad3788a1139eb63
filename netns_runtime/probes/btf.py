"""Where a field lies in a structure of the running kernel, read from its BTF.

The only fields we need are on the way from a task to its executable; foreign headers would give
foreign offsets, so they come from /sys/kernel/btf/vmlinux or not at all. Format:
Documentation/bpf/btf.rst. A file that does not hold together raises ValueError, and a field that
is not there is missing from the answer; the probe then runs without executables.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

VMLINUX: Final = Path("/sys/kernel/btf/vmlinux")

_MAGIC: Final = 0xEB9F
_STRUCT: Final = 4
_UNION: Final = 5
_ENUM: Final = 6
# Bytes after the common 12 of a type: fixed, and for each of its vlen members.
_EXTRA: Final = {
    1: (4, 0),
    3: (12, 0),
    4: (0, 12),
    5: (0, 12),
    6: (0, 8),
    13: (0, 8),
    14: (4, 0),
    15: (0, 12),
    17: (4, 0),
    19: (0, 12),
}
_LAST_KIND: Final = 19
_DEPTH: Final = 16
_TYPE = struct.Struct("=III")

EXECUTABLE_FIELDS: Final[Mapping[str, tuple[str, str]]] = {
    "AT_TASK_MM": ("task_struct", "mm"),
    "AT_TASK_PARENT": ("task_struct", "real_parent"),
    "AT_TASK_TGID": ("task_struct", "tgid"),
    "AT_MM_EXE_FILE": ("mm_struct", "exe_file"),
    "AT_FILE_INODE": ("file", "f_inode"),
    "AT_INODE_NUMBER": ("inode", "i_ino"),
    "AT_INODE_SUPER": ("inode", "i_sb"),
    "AT_SUPER_DEVICE": ("super_block", "s_dev"),
}
"""Macro of bpf/who.c to (structure, field)."""


class _Types:
    """Positions of all types, so that an anonymous member can be followed by its type id."""

    def __init__(self, data: bytes) -> None:
        try:
            magic, _, _, header, types, size, strings, _ = struct.unpack_from("=HBBIIIII", data)
        except struct.error as error:
            raise ValueError("BTF: cut short") from error
        if magic != _MAGIC:
            raise ValueError("BTF: not for this machine's byte order, or not BTF")
        self.data = data
        self.strings = header + strings
        self.positions = [0]
        place, end = header + types, header + types + size
        unpack, extra, append = _TYPE.unpack_from, _EXTRA, self.positions.append
        while place < end:
            _, info, _ = unpack(data, place)
            append(place)
            kind = info >> 24 & 0x1F
            if not 0 < kind <= _LAST_KIND:
                raise ValueError(f"BTF: unknown kind {kind}")
            fixed, each = extra.get(kind, (0, 0))
            place += 12 + fixed + each * (info & 0xFFFF)

    def name_at(self, offset: int) -> bytes:
        start = self.strings + offset
        return self.data[start : self.data.index(b"\0", start)]

    def members(self, place: int) -> list[tuple[bytes, int, int]]:
        """(name, type id, offset in bits) of each member of the structure at that position."""
        _, info, _ = _TYPE.unpack_from(self.data, place)
        mask = 0xFFFFFF if info >> 31 else 0xFFFFFFFF
        fields = struct.iter_unpack("=III", self.data[place + 12 :][: 12 * (info & 0xFFFF)])
        return [(self.name_at(name), type_id, bits & mask) for name, type_id, bits in fields]

    def structures(self, wanted: frozenset[bytes]) -> dict[bytes, int]:
        found: dict[bytes, int] = {}
        for place in self.positions[1:]:
            name, info, _ = _TYPE.unpack_from(self.data, place)
            if info >> 24 & 0x1F == _STRUCT and name:
                text = self.name_at(name)
                if text in wanted:
                    found.setdefault(text, place)
        return found

    def offset_of(self, place: int, field: bytes, depth: int = _DEPTH) -> int | None:
        """In bits, through anonymous structures and unions."""
        if depth == 0:
            raise ValueError("BTF: nested without end")
        for name, type_id, bits in self.members(place):
            if name == field:
                return bits
            if not name:
                inner = self.positions[type_id]
                kind = _TYPE.unpack_from(self.data, inner)[1] >> 24 & 0x1F
                below = (
                    self.offset_of(inner, field, depth - 1) if kind in (_STRUCT, _UNION) else None
                )
                if below is not None:
                    return bits + below
        return None


def offsets_of(data: bytes, fields: Mapping[str, tuple[str, str]]) -> dict[str, int]:
    """Byte offset of each field found, under the caller's names. Raises ValueError on bad BTF."""
    try:
        types = _Types(data)
        places = types.structures(frozenset(owner.encode() for owner, _ in fields.values()))
        found: dict[str, int] = {}
        for label, (owner, field) in fields.items():
            place = places.get(owner.encode())
            bits = types.offset_of(place, field.encode()) if place is not None else None
            if bits is not None and bits % 8 == 0:
                found[label] = bits // 8
    except (struct.error, IndexError) as error:
        raise ValueError("BTF: cut short") from error
    return found


def enumerators_of(data: bytes, name: str) -> dict[str, int]:
    """Names and numbers of an enumeration, empty where there is none. ValueError on bad BTF."""
    try:
        types = _Types(data)
        for place in types.positions[1:]:
            label, info, _ = _TYPE.unpack_from(data, place)
            if info >> 24 & 0x1F == _ENUM and types.name_at(label) == name.encode("ascii"):
                pairs = struct.iter_unpack("=Ii", data[place + 12 :][: 8 * (info & 0xFFFF)])
                return {types.name_at(at).decode("ascii"): number for at, number in pairs}
    except (struct.error, IndexError) as error:
        raise ValueError("BTF: cut short") from error
    return {}


def executable_offsets(path: Path = VMLINUX) -> dict[str, int]:
    """All of EXECUTABLE_FIELDS, or nothing when the kernel does not say (all or none)."""
    try:
        found = offsets_of(path.read_bytes(), EXECUTABLE_FIELDS)
    except (OSError, ValueError):
        return {}
    return found if len(found) == len(EXECUTABLE_FIELDS) else {}
