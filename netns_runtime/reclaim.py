"""Removes what a killed supervisor left: state files, empty cgroups, entries of the shared probe.

The kernel itself has removed namespaces, interfaces, rules and processes by then. A name is locked
while it is cleaned, so that a sandbox that starts under it at this moment is never disturbed.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from netns_runtime import layout, state
from netns_runtime.control import path_of
from netns_runtime.errors import NetnsError
from netns_runtime.namespace import cgroup

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Reclaimed:
    """What was removed: state files and cgroups by name, entries of the probe, pin sets."""

    names: tuple[str, ...]
    cgroups: tuple[str, ...]
    probe_entries: int
    pins: tuple[str, ...] = ()

    @property
    def is_empty(self) -> bool:
        return not (self.names or self.cgroups or self.probe_entries or self.pins)


def stray_cgroups(where: cgroup.Hierarchies) -> list[str]:
    """Names of our cgroups, of running sandboxes too."""
    names: dict[str, None] = {}
    for root in (where.unified, *where.version1.values()):
        with suppress(OSError):
            names.update(
                (entry.name, None) for entry in os.scandir(root / layout.PREFIX) if entry.is_dir()
            )
    return list(names)


def _remove_cgroup(where: cgroup.Hierarchies, name: str) -> bool:
    paths: list[Path] = [
        root / layout.PREFIX / name for root in (where.unified, *where.version1.values())
    ]
    return all(cgroup.remove(path, 0.5) for path in paths if path.is_dir())


def reclaim(*, pins: bool = False) -> Reclaimed:
    """Remove everything whose supervisor has gone; with `pins`, other versions' probe sets too."""
    candidates: list[str] = []
    where = None
    with suppress(NetnsError):
        where = cgroup.hierarchies()
        candidates = stray_cgroups(where)
    records, taken, gone = state.survey()
    names: list[str] = []
    cgroups: list[str] = []
    for name in dict.fromkeys(
        [*(path.name.removesuffix(state.SUFFIX) for path in gone), *candidates]
    ):
        if name in taken:
            continue
        with ExitStack() as stack:
            try:
                stack.enter_context(state.claim(name))
            except NetnsError:
                continue
            path_of(name).unlink(missing_ok=True)
            if any(path.name == name + state.SUFFIX for path in gone):
                names.append(name)
            if where is not None and name in candidates and _remove_cgroup(where, name):
                cgroups.append(name)
    entries, sets = _reclaim_probe({record.cookie for record in records}, pins=pins and not taken)
    return Reclaimed(tuple(names), tuple(cgroups), entries, sets)


def _reclaim_probe(live: set[int], *, pins: bool) -> tuple[int, tuple[str, ...]]:
    from netns_runtime.probes import hooks
    from netns_runtime.probes import pins as pinned

    try:
        place = pinned.bpffs_of(pinned.MOUNTS.read_text(encoding="utf-8", errors="surrogateescape"))
    except OSError:
        return 0, ()
    if place is None:
        return 0, ()
    entries = 0
    current = pinned.set_name(hooks.source_text())
    with suppress(NetnsError, OSError):
        if (place / current).is_dir():
            with pinned.ensure_probe() as probe:
                entries = probe.reclaim(live)
    removed: tuple[str, ...] = ()
    with suppress(OSError):
        # Where nothing runs, what a slot of another version still holds is a killed sandbox's.
        removed = pinned.remove_stale_sets(place, in_use=pins)
    return entries, removed


def reclaim_quietly() -> None:
    """Reclaim if there is a sign that something was left; never an error of this run."""
    with suppress(NetnsError, OSError):
        _, taken, gone = state.survey()
        strays = set(stray_cgroups(cgroup.hierarchies())) - taken
        if gone or strays:
            reclaim()
