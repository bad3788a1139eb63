"""Where the probe lives in bpffs, and how a launch gets at it: opens the pins, or makes them once.

One directory holds one set, named by what it was built from (sources, record layout, kernel), so an
upgrade never meets maps of another layout, and old sandboxes keep the set they started with.
Raises ProbeUnavailable when this kernel or machine cannot have a probe.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import re
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from netns_runtime import layout
from netns_runtime.probes import hooks, syscall
from netns_runtime.probes.probe import MAPS, Probe
from netns_runtime.probes.unavailable import ProbeUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

BPFFS: Final = Path("/sys/fs/bpf")
MOUNTS: Final = Path("/proc/self/mounts")
_SET: Final = re.compile(rf"{layout.PREFIX}-[0-9a-f]{{16}}")
_HALF: Final = re.compile(rf"{_SET.pattern}-new")
ALL_FEATURES: Final[frozenset[str]] = frozenset()


def bpffs_of(mounts: str) -> Path | None:
    """Where bpffs is mounted, by the text of /proc/mounts: the usual place if it is one of them."""
    places = [Path(line.split()[1]) for line in mounts.splitlines() if line.split()[2:3] == ["bpf"]]
    return BPFFS if BPFFS in places else (places[0] if places else None)


def open_bpffs() -> Path:
    """The bpffs to use, mounted for all if nobody has yet, as systemd and bpftool do."""
    place = bpffs_of(MOUNTS.read_text(encoding="utf-8", errors="surrogateescape"))
    if place is not None:
        return place
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"bpf", os.fsencode(BPFFS), b"bpf", 0, b"mode=0700") != 0:
        why = os.strerror(ctypes.get_errno())
        raise ProbeUnavailable(f"cannot mount bpffs at {BPFFS}: {why}", remedy="mount it yourself")
    return BPFFS


def set_name(source: str, lacks: frozenset[str] = ALL_FEATURES) -> str:
    """The name of the set for this source on this kernel; bpffs allows no dot in it."""
    kernel = os.uname()
    text = "\0".join([source, kernel.release, kernel.version, kernel.machine, *sorted(lacks)])
    return f"{layout.PREFIX}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


@contextmanager
def _only_one(place: Path) -> Iterator[None]:
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _check_owner(directory: Path) -> None:
    """A bpffs that others mounted may be sticky and writable for all: take no set of theirs."""
    found = os.lstat(directory)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != 0 or found.st_mode & 0o022:
        raise ProbeUnavailable(f"{directory} is not root's own", remedy="remove it")


def open_set(directory: Path) -> Probe:
    _check_owner(directory)
    opened: dict[str, int] = {}
    try:
        for name in (*MAPS, *(hook.program for hook in hooks.HOOKS)):
            opened[name] = syscall.open_pin(str(directory / name))
    except OSError:
        for fd in opened.values():
            os.close(fd)
        raise
    return Probe(directory, opened)


def ensure_probe(
    *,
    bpffs: Path | None = None,
    name: str | None = None,
    cache: Path = layout.CACHE_DIR,
    lacks: frozenset[str] = ALL_FEATURES,
) -> Probe:
    """Open the pinned set of programs and maps; compile and pin it if this is the first launch.

    `lacks` names features (features.py) to do without, as if the kernel had not got them: what is
    needed then raises, and without "btf" executables are unknown. `name` and `bpffs` are for tests,
    which keep a set of their own. The Probe's descriptors are the caller's, by `close`.
    """
    _refuse_without(lacks)
    place = bpffs or open_bpffs()
    source = hooks.source_text()
    directory = place / (name or set_name(source, lacks))
    try:
        return open_set(directory)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ProbeUnavailable(f"cannot open the probe in {directory}: {error.strerror}") from error
    try:
        with _only_one(place):
            if not directory.exists():
                from netns_runtime.probes import load

                load.compile_and_pin(directory, source, load.executable_flags(lacks), cache)
            return open_set(directory)
    except OSError as error:
        raise ProbeUnavailable(f"cannot pin the probe in {directory}: {error.strerror}") from error


def _refuse_without(lacks: frozenset[str]) -> None:
    if lacks:
        from netns_runtime.probes.features import needed

        missing = sorted(lacks & needed())
        if missing:
            raise ProbeUnavailable(f"the kernel has no {missing[0]}", remedy="nft enforces alone")


def stale_sets(bpffs: Path, current: str, *, in_use: bool = False) -> list[Path]:
    """The sets of other versions that serve no sandbox any more; one that does is not listed.

    With `in_use` all of them: for a caller who knows that no sandbox runs.
    """
    return [
        entry
        for entry in bpffs.iterdir()
        if _SET.fullmatch(entry.name) and entry.name != current and (in_use or _is_idle(entry))
    ]


def remove_stale_sets(bpffs: Path | None = None, *, in_use: bool = False) -> tuple[str, ...]:
    """Unpin the stale sets, and the halves of sets that died launches left. Their names.

    `in_use` is `stale_sets`'.
    """
    place = bpffs or bpffs_of(MOUNTS.read_text(encoding="utf-8", errors="surrogateescape"))
    if place is None:
        return ()
    current = set_name(hooks.source_text())
    # Under the lock nobody is pinning, so a half is nobody's.
    with _only_one(place):
        stale = stale_sets(place, current, in_use=in_use)
        stale += [entry for entry in place.iterdir() if _HALF.fullmatch(entry.name)]
        for directory in stale:
            remove_pins(directory)
    return tuple(directory.name for directory in stale)


def _is_idle(directory: Path) -> bool:
    try:
        slots = syscall.open_pin(str(directory / "slots"))
    except OSError:
        return True
    try:
        return syscall.is_empty(slots)
    finally:
        os.close(slots)


def remove_pins(directory: Path) -> None:
    """Forget a set. Programs that guard a cgroup stay attached until that cgroup is removed."""
    for entry in list(directory.iterdir()):
        entry.unlink()
    directory.rmdir()
