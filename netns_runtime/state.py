"""What exists now, so that netns-debug finds it and the next run reclaims what a killed one left.

One file per sandbox in /run/netns-runtime, held locked (flock(2)) by its supervisor for as
long as it lives: a file that can be locked belongs to a sandbox that has gone. Only root reads or
writes it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from netns_runtime import layout
from netns_runtime.errors import StepError, UsageError, step_error

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SUFFIX: Final = ".json"
_FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Record:
    """One running sandbox. `*_ns` are paths below /proc/PID/fd of its supervisor; `pins` is the
    directory of the probe that guards it, empty without one; `secrets` tells names and hosts.
    """

    name: str
    supervisor: int
    started: str
    command: tuple[str, ...]
    uid: int
    cookie: int
    cgroup: str
    sandbox_ns: str
    gateway_ns: str
    probe: str
    uplink: str | None = None
    policies: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    audit: str | None = None
    pid: int | None = None
    proxy: int | None = None
    pins: str = ""
    presets: tuple[str, ...] = ()
    secrets: tuple[dict[str, Any], ...] = ()
    format: int = _FORMAT


def generated_name() -> str:
    """`sb-` and 8 random hexadecimal digits."""
    return f"sb-{os.urandom(4).hex()}"


def prepare(directory: Path = layout.RUN_DIR) -> None:
    """Make the directory, root's alone. Raises StepError when it is somebody else's."""
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        status = directory.lstat()
    except OSError as error:
        raise step_error(
            f"state directory {directory}", error, remedy="free some space on /run, or mount it"
        ) from error
    if status.st_uid != os.geteuid() or not directory.is_dir() or directory.is_symlink():
        raise StepError(
            f"state directory {directory}: it belongs to uid {status.st_uid}",
            remedy="remove it; only root may own it",
        )
    if status.st_mode & 0o077:
        directory.chmod(0o700)


class Claim:
    """A sandbox's name, ours until `close`; `write` replaces what is recorded about it."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self.fd = fd
        self._record: Record | None = None

    @property
    def record(self) -> Record:
        """What was written last."""
        if self._record is None:
            raise ValueError("nothing is recorded yet")
        return self._record

    def write(self, record: Record) -> None:
        self._record = record
        data = json.dumps(asdict(record)).encode("ascii")
        try:
            # In place, so that the lock stays on the file that has the name; a reader that meets a
            # short file takes it as still starting.
            os.pwrite(self.fd, data + b"\n", 0)
            os.ftruncate(self.fd, len(data) + 1)
        except OSError as error:
            raise step_error(
                f"state file {self.path}", error, remedy="free some space on /run"
            ) from error

    def close(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()
        os.close(self.fd)


@contextlib.contextmanager
def claim(name: str, directory: Path = layout.RUN_DIR) -> Iterator[Claim]:
    """Take the name for this supervisor. Raises UsageError when a running sandbox has it."""
    path = directory / (name + SUFFIX)
    for _ in range(100):
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise step_error(
                f"state file {path}", error, remedy="free some space on /run"
            ) from error
        if not _lock(fd, patience=0.1):
            os.close(fd)
            raise UsageError(
                f"--name {name}: a sandbox of that name is running",
                remedy="choose another name, or leave --name out",
            )
        if _is_still(path, fd):
            break
        os.close(fd)
    taken = Claim(path, fd)
    try:
        yield taken
    finally:
        taken.close()


def _lock(fd: int, patience: float = 0.0) -> bool:
    # A survey holds the lock for an instant while it looks; a supervisor holds it for good.
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.005)
        else:
            return True


def _is_still(path: Path, fd: int) -> bool:
    try:
        there, ours = path.stat(), os.fstat(fd)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def _decode(data: bytes) -> Record | None:
    try:
        fields = json.loads(data)
        if fields.get("format") != _FORMAT:
            return None
        for key in ("command", "policies", "allow", "presets", "secrets"):
            fields[key] = tuple(fields[key])
        return Record(**fields)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def survey(directory: Path = layout.RUN_DIR) -> tuple[list[Record], frozenset[str], list[Path]]:
    """Records of running sandboxes, the names that are taken, and files of those that have gone.

    A taken name without a record is a sandbox that is still starting, or of another version.
    """
    records: list[Record] = []
    taken: set[str] = set()
    gone: list[Path] = []
    try:
        entries = sorted(directory.glob("*" + SUFFIX))
    except OSError:
        entries = []
    for path in entries:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            continue
        try:
            if _lock(fd):
                gone.append(path)
                continue
            taken.add(path.name.removesuffix(SUFFIX))
            # As long as CMD's arguments, which may be megabytes.
            record = _decode(os.pread(fd, os.fstat(fd).st_size, 0))
            if record is not None:
                records.append(record)
        finally:
            os.close(fd)
    return records, frozenset(taken), gone
