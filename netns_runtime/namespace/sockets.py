"""Unix sockets of the host that have a path: who listens where, in any namespace we can see.

A path socket is reachable wherever its path is, whatever the network namespace, so those known at
launch are covered. The kernel lists them per network namespace, with the path as its owner wrote
it; the owner's mount table tells where that is for us. Reading races with processes that end, and
those are skipped; nothing here raises for what the kernel shows.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Final

from netns_runtime.namespace.filesystem_mounts import Mount, aliases_of, parse_mountinfo

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ACCEPTS: Final = 0x00010000  # __SO_ACCEPTCON
DATAGRAM: Final = 0x0002
# unix_seq_show: "%pK: %08X %08X %08X %04X %02X %5lu", then the name as its owner gave it. A name
# may hold anything, line feeds too, so that an entry begins only where all of this is there.
_ENTRY: Final = re.compile(
    r"^[0-9a-f]{8,16}: [0-9A-F]{8} [0-9A-F]{8} ([0-9A-F]{8}) ([0-9A-F]{4}) [0-9A-F]{2} +([0-9]+)",
    re.MULTILINE | re.ASCII,
)
PROC: Final = Path("/proc")


@dataclass(frozen=True, slots=True)
class BoundSocket:
    """A path that answers connections or takes datagrams; `inode` is the socket's number."""

    path: str
    inode: int


def parse_unix_table(text: str) -> frozenset[BoundSocket]:
    """/proc/net/unix: sockets with a path that listen or take datagrams; no abstract ones."""
    found = set()
    entries = list(_ENTRY.finditer(text))
    for entry, following in zip_longest(entries, entries[1:]):
        path = text[entry.end() + 1 : following.start() if following else len(text)]
        path = path.removesuffix("\n")
        if not path or path.startswith("@"):
            continue
        if int(entry[1], 16) & ACCEPTS or int(entry[2], 16) == DATAGRAM:
            found.add(BoundSocket(path, int(entry[3])))
    return frozenset(found)


def host_socket_paths(mounts: tuple[Mount, ...]) -> frozenset[str]:
    """Every path in the tree `mounts` at which a socket of some process is reachable now."""
    found: set[str] = set()
    tables = {os.readlink("/proc/self/ns/mnt"): mounts}
    networks: dict[str, frozenset[BoundSocket]] = {}
    places: set[tuple[str, str]] = set()
    for process in _processes():
        try:
            network = os.readlink(process / "ns/net")
            view = os.readlink(process / "ns/mnt")
            if (network, view) in places:
                continue
            places.add((network, view))
            if network not in networks:
                networks[network] = parse_unix_table(_read(process / "net/unix"))
            if view not in tables:
                tables[view] = parse_mountinfo(_read(process / "mountinfo"))
            root = os.readlink(process / "root")
        except OSError:
            continue
        for bound in networks[network]:
            if bound.path.startswith("/"):
                path = os.path.normpath((root if root != "/" else "") + bound.path)
                found.update(_seen_from(path, tables[view], mounts))
    relative = {
        bound.inode: bound.path
        for table in networks.values()
        for bound in table
        if not bound.path.startswith("/")
    }
    if relative:
        for path, view in _places_of(relative):
            found.update(_seen_from(path, tables.get(view, mounts), mounts))
    return frozenset(path for path in found if os.path.lexists(path))


def _seen_from(path: str, view: tuple[Mount, ...], mounts: tuple[Mount, ...]) -> Iterable[str]:
    resolved = os.path.realpath(path) if view is mounts else path
    return aliases_of(resolved, mounts, view)


def _places_of(relative: dict[int, str]) -> Iterator[tuple[str, str]]:
    """Where sockets bound to a relative path are: below their holders' working directories."""
    for process in _processes():
        try:
            held = {os.readlink(entry.path) for entry in os.scandir(process / "fd")}
            for inode, path in relative.items():
                if f"socket:[{inode}]" in held:
                    directory = os.readlink(process / "cwd")
                    yield os.path.normpath(f"{directory}/{path}"), os.readlink(process / "ns/mnt")
        except OSError:
            continue


def _processes() -> Iterator[Path]:
    yield PROC / "self"
    for entry in os.scandir(PROC):
        if entry.name.isdigit():
            yield PROC / entry.name


def _read(path: Path) -> str:
    return os.fsdecode(path.read_bytes())
