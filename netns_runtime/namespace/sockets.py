"""Unix sockets of the host that have a path: who listens where, in any namespace we can see.

A path socket is reachable wherever its path is, whatever the network namespace, so those known at
launch are covered. The kernel lists them per network namespace, with the path as its owner wrote
it; the owner's mount table tells where that is for us. Reading races with processes that end, and
those are skipped; nothing here raises for what the kernel shows.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from netns_runtime.namespace.filesystem_mounts import Mount, aliases_of, parse_mountinfo

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ACCEPTS: Final = 0x00010000  # __SO_ACCEPTCON
DATAGRAM: Final = 0x0002
PROC: Final = Path("/proc")


@dataclass(frozen=True, slots=True)
class BoundSocket:
    """A path that answers connections or takes datagrams; `inode` is the socket's number."""

    path: str
    inode: int


def parse_unix_table(text: str) -> frozenset[BoundSocket]:
    """/proc/net/unix: sockets with a path that listen or take datagrams; no abstract ones."""
    found = set()
    for line in text.splitlines()[1:]:
        fields = line.split(None, 7)
        if len(fields) < 8 or fields[7].startswith("@"):
            continue
        if int(fields[3], 16) & ACCEPTS or int(fields[4], 16) == DATAGRAM:
            found.add(BoundSocket(fields[7], int(fields[6])))
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
    return path.read_text(errors="surrogateescape")
