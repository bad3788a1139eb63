"""What the addresses of a process's stack are called: `function+0x1f [file]`.

Root reads here what a hostile process has laid out, so no path of its is looked up: a mapped file
is opened as the inode that is mapped (/proc/PID/map_files), a perf map of compiled code without
following a link and without waiting. All of it is bounded and parsed here, where a wrong offset is
an exception; debug links and build-ids are not followed. Whatever cannot be known is the address.
"""

from __future__ import annotations

import bisect
import os
import re
import stat
import struct
import time
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from netns_runtime.debug.places import read_inside

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SECTION: Final = 16 << 20
"""Bytes of one symbol table, or of its names, that are read; one that is longer has no names."""
HEADERS: Final = 4096
KEPT: Final = 64 << 20
"""Bytes of tables that are kept."""
PROCESSES: Final = 256
FRESH: Final = 1.0
"""Seconds for which a process is believed to have the mappings it had; longer where reading them
took long, so that PATIENCE of the time at most goes into what somebody made long on purpose."""
PATIENCE: Final = 0.05

_ELF: Final = struct.Struct("<4sBB10xHHIQQQIHHHHHH")
_SEGMENT: Final = struct.Struct("<IIQQQQQQ")
_SECTION: Final = struct.Struct("<IIQQQQIIQQ")
_SYMBOL: Final = struct.Struct("<IBBHQQ")
_LOAD, _SYMTAB, _DYNSYM = 1, 2, 11
_FUNCTIONS: Final = (2, 10)  # STT_FUNC, STT_GNU_IFUNC
_MAPPING: Final = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (\S+) ([0-9a-f]+) \S+ (\d+) *(.*)")
_ENTRY: Final = re.compile(rb"(?:0x)?([0-9a-fA-F]{1,16}) (?:0x)?([0-9a-fA-F]{1,16}) ([^\n]{1,512})")


@dataclass(frozen=True, slots=True)
class Mapping:
    """A line of /proc/PID/maps. `inode` 0 is memory that no file backs."""

    start: int
    end: int
    offset: int
    inode: int
    path: str


@dataclass(slots=True)
class Table:
    """Functions by address. `loads` are (file offset, size, address) of what is mapped."""

    starts: array[int] = field(default_factory=lambda: array("Q"))
    sizes: array[int] = field(default_factory=lambda: array("Q"))
    names: array[int] = field(default_factory=lambda: array("I"))
    text: bytes = b""
    loads: tuple[tuple[int, int, int], ...] = ()

    def name_at(self, address: int) -> str | None:
        """`function+0x1f` of an address as the file has it."""
        place = bisect.bisect_right(self.starts, address) - 1
        if place < 0 or address - self.starts[place] >= self.sizes[place]:
            return None
        start = self.names[place]
        end = self.text.find(b"\0", start, start + 512)
        name = self.text[start : end if end >= 0 else start + 512].decode("utf-8", "replace")
        return f"{name}+{address - self.starts[place]:#x}" if name else None

    def address_of(self, offset: int) -> int | None:
        """Where the file wants the byte at this offset to be."""
        for at, size, address in self.loads:
            if at <= offset < at + size:
                return offset - at + address
        return None

    @property
    def octets(self) -> int:
        return len(self.text) + 20 * len(self.starts)


def table_of(fd: int) -> Table:
    """Read an ELF file of 64 bits. Raises OSError, ValueError or struct.error for anything else."""
    head = _ELF.unpack(_exactly(fd, _ELF.size, 0))
    magic, width, order, *_, segments_at, sections_at = head[:9]
    _, segment_size, segments, section_size, sections, _ = head[10:]
    if (magic, width, order) != (b"\x7fELF", 2, 1):
        raise ValueError("no ELF of 64 bits, little-endian")
    if (segment_size, section_size) != (_SEGMENT.size, _SECTION.size) or segments > HEADERS:
        raise ValueError("its headers are of another size")
    data = _exactly(fd, segments * _SEGMENT.size, segments_at)
    found = Table(
        loads=tuple(
            (offset, size, address)
            for kind, _, offset, address, _, size, *_ in _SEGMENT.iter_unpack(data)
            if kind == _LOAD
        )
    )
    if not sections or sections > HEADERS:
        return found
    data = _exactly(fd, sections * _SECTION.size, sections_at)
    headers = list(_SECTION.iter_unpack(data))
    for kind in (_SYMTAB, _DYNSYM):
        chosen = next((header for header in headers if header[1] == kind), None)
        if chosen is None or chosen[6] >= len(headers):
            continue
        text = headers[chosen[6]]
        if max(chosen[5], text[5]) > SECTION:
            continue
        found.text = _exactly(fd, text[5], text[4])
        symbols = _exactly(fd, chosen[5] // _SYMBOL.size * _SYMBOL.size, chosen[4])
        _fill(found, symbols)
        break
    return found


def _fill(table: Table, data: bytes) -> None:
    functions = sorted(
        (address, size, name)
        for name, info, _, section, address, size in _SYMBOL.iter_unpack(data)
        if info & 15 in _FUNCTIONS and section and size
    )
    table.starts = array("Q", (address for address, _, _ in functions))
    table.sizes = array("Q", (size for _, size, _ in functions))
    table.names = array("I", (name for _, _, name in functions))


def _exactly(fd: int, size: int, at: int) -> bytes:
    if at > 1 << 62:
        raise ValueError("an offset beyond any file")
    data = os.pread(fd, size, at)
    if len(data) != size:
        raise ValueError("the file ends before it should")
    return data


def perf_table(data: bytes) -> Table:
    """A perf map: `START SIZE name` a line, in hexadecimal."""
    entries = sorted(
        (int(found[1], 16), int(found[2], 16), found.start(3))
        for found in _ENTRY.finditer(data[:SECTION])
    )
    return Table(
        array("Q", (start for start, _, _ in entries)),
        array("Q", (size for _, size, _ in entries)),
        array("I", (name for _, _, name in entries)),
        data[:SECTION].replace(b"\n", b"\0"),
    )


def mappings_of(pid: int) -> list[Mapping]:
    """What is mapped in a process, by address. Raises OSError."""
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as file:
        return list(_mappings(file))


def _mappings(lines: Iterator[str]) -> Iterator[Mapping]:
    for line in lines:
        found = _MAPPING.match(line.rstrip("\n"))
        if found is not None:
            start, end, _, offset, inode, path = found.groups()
            yield Mapping(int(start, 16), int(end, 16), int(offset, 16), int(inode), path)


def open_mapped(pid: int, mapping: Mapping) -> int:
    """The file that is mapped there, whatever its path leads to by now. Raises OSError."""
    path = f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}"
    # Looked at before it is opened: opening a device does something.
    held = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(held).st_mode):
            raise OSError("what is mapped is no regular file")
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        return os.open(f"/proc/self/fd/{held}", flags)
    finally:
        os.close(held)


class UserSymbols:
    """Names, with what was read for them kept for a while."""

    def __init__(
        self,
        opened: Callable[[int, Mapping], int] = open_mapped,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._opened = opened
        self._clock = clock
        self._tables: dict[tuple[int, ...], Table] = {}
        self._octets = 0
        self._processes: dict[int, tuple[float, list[Mapping], Table | None]] = {}

    def name_of(self, pid: int, address: int) -> str:
        """`function+0x1f [file]`; `0x... [file]` without symbols; the address of what has gone."""
        try:
            mappings, compiled = self._process(pid)
        except OSError:
            return hex(address)
        place = bisect.bisect_right(mappings, address, key=lambda one: one.start) - 1
        if place < 0 or address >= mappings[place].end:
            return hex(address)
        mapping = mappings[place]
        name = compiled.name_at(address) if compiled is not None else None
        if name:
            return f"{name} [compiled]"
        if not mapping.inode:
            return hex(address)
        where = f"[{mapping.path.rpartition('/')[2]}]"
        try:
            table = self._table(pid, mapping)
            at = table.address_of(address - mapping.start + mapping.offset)
            name = table.name_at(at) if at is not None else None
        except (OSError, ValueError, struct.error):
            name = None
        return f"{name or hex(address)} {where}"

    def _process(self, pid: int) -> tuple[list[Mapping], Table | None]:
        now = self._clock()
        kept = self._processes.get(pid)
        if kept is None or now > kept[0]:
            if len(self._processes) >= PROCESSES:
                self._processes.clear()
            mappings, compiled = mappings_of(pid), _compiled(pid)
            until = max(now + FRESH, self._clock() + (self._clock() - now) / PATIENCE)
            kept = self._processes[pid] = (until, mappings, compiled)
        return kept[1], kept[2]

    def _table(self, pid: int, mapping: Mapping) -> Table:
        fd = self._opened(pid, mapping)
        try:
            status = os.fstat(fd)
            key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            found = self._tables.get(key)
            if found is None:
                found = table_of(fd)
                if self._octets > KEPT:
                    self._tables.clear()
                    self._octets = 0
                self._tables[key] = found
                self._octets += found.octets
        finally:
            os.close(fd)
        return found


def _compiled(pid: int) -> Table | None:
    """The perf map that a runtime keeps of what it compiled, by the pid that it has inside."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as file:
            inside = next(line.split()[-1] for line in file if line.startswith("NSpid:"))
        data = read_inside(pid, f"/tmp/perf-{inside}.map")
    except (OSError, StopIteration):
        return None
    return perf_table(data)
