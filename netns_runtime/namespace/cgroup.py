"""The cgroups of ours: one parent, and below it one per sandbox.

The parent lies where the unified hierarchy is mounted (cgroups(7)), wherever that is; the eBPF
hooks are attached to each sandbox's own. Limits use whichever hierarchy has the controller, so
they hold on hybrid systems too. An empty cgroup left by `kill -9` is removed by the next run.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from netns_runtime import layout
from netns_runtime.errors import StepError, step_error
from netns_runtime.namespace.filesystem_mounts import unescape

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netns_runtime.config import Limits

PROC_MOUNTS: Final = Path("/proc/mounts")
CONTROLLERS: Final = ("pids", "memory")
_FILES: Final = {
    ("pids", 2): "pids.max",
    ("memory", 2): "memory.max",
    ("pids", 1): "pids.max",
    ("memory", 1): "memory.limit_in_bytes",
}


@dataclass(frozen=True, slots=True)
class Hierarchies:
    """Mount points: the unified one, and version 1 controllers by name."""

    unified: Path
    version1: dict[str, Path]

    @property
    def parent(self) -> Path:
        """The cgroup that holds all sandboxes and the hooks."""
        return self.unified / layout.PREFIX


def find_hierarchies(mounts: str) -> Hierarchies | None:
    """Read /proc/mounts; None without a cgroup v2 mount."""
    unified: Path | None = None
    version1: dict[str, Path] = {}
    for line in mounts.split("\n"):
        fields = line.split(" ")
        if len(fields) < 4:
            continue
        where = Path(unescape(fields[1]))
        if fields[2] == "cgroup2" and unified is None:
            unified = where
        elif fields[2] == "cgroup":
            for option in fields[3].split(","):
                if option in CONTROLLERS:
                    version1.setdefault(option, where)
    return Hierarchies(unified, version1) if unified is not None else None


def hierarchies() -> Hierarchies:
    """This machine's hierarchies. Raises StepError with the remedy when there is no cgroup v2."""
    found = find_hierarchies(os.fsdecode(PROC_MOUNTS.read_bytes()))
    if found is None:
        raise StepError(
            "cgroup: no cgroup v2 hierarchy is mounted",
            remedy="mount one, for example with: "
            "mkdir -p /sys/fs/cgroup/unified && mount -t cgroup2 none /sys/fs/cgroup/unified",
        )
    return found


@dataclass(frozen=True, slots=True)
class Cgroups:
    """One sandbox's cgroups: `unified` and, where limits need them, version 1 ones."""

    unified: Path
    version1: tuple[Path, ...] = ()

    def all(self) -> tuple[Path, ...]:
        return (self.unified, *self.version1)


@contextlib.contextmanager
def create_cgroups(where: Hierarchies, name: str, limits: Limits) -> Iterator[Cgroups]:
    """Make the sandbox's cgroups with its limits, and remove them at the end.

    The name is the caller's alone (state.claim), so a cgroup that has it is a killed run's.
    """
    own = where.parent / name
    wanted = {"pids": limits.pids, "memory": limits.memory}
    made: list[Path] = []
    try:
        step = f"cgroup {own}"
        try:
            where.parent.mkdir(exist_ok=True)
            if own.is_dir():
                remove(own)
            own.mkdir()
            made.append(own)
            for controller, value in wanted.items():
                if value is None:
                    continue
                step = f"--limit {controller}={value}"
                made += _limit(where, own, controller, value)
        except OSError as error:
            raise step_error(step, error) from error
        yield Cgroups(own, tuple(dict.fromkeys(path for path in made if path != own)))
    finally:
        for path in reversed(made):
            remove(path)


def _limit(where: Hierarchies, own: Path, controller: str, value: int) -> list[Path]:
    if controller in where.version1:
        path = where.version1[controller] / layout.PREFIX / own.name
        path.mkdir(parents=True, exist_ok=True)
        (path / _FILES[controller, 1]).write_text(str(value), encoding="ascii")
        return [path]
    available = (where.unified / "cgroup.controllers").read_text(encoding="ascii").split()
    if controller not in available:
        raise StepError(
            f"--limit {controller}={value}: the kernel offers no {controller} controller",
            remedy=f"start it with that controller enabled, or leave out --limit {controller}",
        )
    for level in (where.unified, where.parent):
        (level / "cgroup.subtree_control").write_text(f"+{controller}", encoding="ascii")
    (own / _FILES[controller, 2]).write_text(str(value), encoding="ascii")
    return []


def remove(path: Path, patience: float = 1.0) -> bool:
    """Remove a cgroup once its last process is gone. False when it stays, for the next run."""
    deadline = time.monotonic() + patience
    while True:
        try:
            path.rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            if time.monotonic() > deadline:
                return False
            with contextlib.suppress(OSError):
                (path / "cgroup.kill").write_text("1", encoding="ascii")
            time.sleep(0.001)
        else:
            return True
