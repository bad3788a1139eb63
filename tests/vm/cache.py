"""Where built things are kept, and how they get there: whole, or not at all.

A thing is built under a temporary name in the cache and renamed when it is complete, so an
interrupted build leaves nothing that the next run would take for finished. One process builds, and
one guest runs, at a time; others wait. Errors are StepError: no space, or no directory to write to.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Final

from netns_runtime.errors import StepError, step_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

NAME: Final = "netns-runtime-vm"
SYSTEM: Final = Path("/var/cache")
_PARTIAL: Final = ".partial"
_REMEDIES: Final = {errno.ENOSPC: "free some space, or point XDG_CACHE_HOME at another disk"}


def place_of(environment: Mapping[str, str]) -> Path:
    """$XDG_CACHE_HOME's or else the system's directory of ours."""
    chosen = environment.get("XDG_CACHE_HOME", "")
    return (Path(chosen) if chosen.startswith("/") else SYSTEM) / NAME


def open_cache() -> Path:
    """The directory, made if need be."""
    place = place_of(os.environ)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StepError(
            f"cache {place}: {error.strerror}",
            remedy="point XDG_CACHE_HOME at a directory of yours",
        ) from error
    return place


@contextlib.contextmanager
def only_one(
    place: Path, what: str = "lock", waiting: Callable[[], None] | None = None
) -> Iterator[None]:
    """Hold the cache for building, or another thing in it; calls `waiting` if somebody has it."""
    with (place / what).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting:
                waiting()
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def key_of(*parts: str | bytes) -> str:
    """Twelve hex digits that change with any of the parts."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:12]


def require_space(place: Path, mebibytes: int, what: str) -> None:
    """Raise StepError unless that much is free there."""
    free = shutil.disk_usage(place).free >> 20
    if free < mebibytes:
        raise StepError(
            f"{what}: needs {mebibytes} MiB below {place}, {free} MiB are free",
            remedy="free some, or point XDG_CACHE_HOME at another disk",
        )


def remove(path: Path) -> None:
    """A file or a tree, there or not."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_older(directory: Path, pattern: str, kept: Path) -> None:
    """Remove what was built from other inputs under the same name."""
    for path in directory.glob(pattern):
        if path != kept and not path.name.endswith(_PARTIAL):
            remove(path)


def built(path: Path, build: Callable[[Path], None]) -> Path:
    """`path`, which `build` made if it was not there: it gets another name to write to."""
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + _PARTIAL)
    remove(partial)
    try:
        build(partial)
        partial.rename(path)
    except OSError as error:
        raise step_error(
            f"building {path.name}", error, remedy=_REMEDIES.get(error.errno or 0, "")
        ) from error
    finally:
        remove(partial)
    return path


def run(
    step: str,
    words: Sequence[str | Path],
    *,
    remedy: str,
    given: str = "",
    env: Mapping[str, str] | None = None,
) -> str:
    """Run a program to its end and return what it wrote; StepError quotes its last complaint."""
    try:
        done = subprocess.run(
            [str(word) for word in words],
            input=given,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            env=dict(env) if env is not None else None,
        )
    except FileNotFoundError as error:
        raise StepError(f"{step}: {error.filename} is not installed", remedy=remedy) from error
    if done.returncode != 0:
        raise StepError(f"{step}: {complaint(done.stderr or done.stdout)}", remedy=remedy)
    return done.stdout


def complaint(said: str) -> str:
    """The line that tells most: the first that starts with E:, ERROR or error, or the last one."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    loud = [line for line in lines if line.lower().startswith(("e:", "err", "fatal"))]
    return (loud or lines[-1:] or ["it said nothing"])[0]
