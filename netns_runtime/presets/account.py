"""The user whose configuration is read: with that user's rights, and nothing of it executed.

Root reads for CMD's user, and that user's files are CMD's to write: a link must not lead to what
only root can read, a pipe must not stop us. A tool that is asked for its own default is one of the
system's, runs as the user, without the caller's environment and without a network.
"""

from __future__ import annotations

import ctypes
import os
import stat
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

FILE_LIMIT: Final = 1 << 20
PATIENCE: Final = 10.0
SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CLONE_NEWNET: Final = 0x40000000
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38


@dataclass(frozen=True, slots=True)
class Account:
    """Whom CMD runs as. `environment` is the caller's; `root` stands before every path of the
    system's own configuration."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    environment: Mapping[str, str] = field(repr=False)
    root: str = ""

    def read(self, path: str) -> str | None:
        """The text of a file, or None where the user cannot read one there."""
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        try:
            with self._rights():
                fd = os.open(path, flags)
        except (OSError, ValueError):
            return None
        with open(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return None
            return file.read(FILE_LIMIT).decode("utf-8", "replace")

    def entries(self, path: str) -> list[str]:
        """The names in a directory, in order; none where the user cannot read it."""
        try:
            with self._rights():
                return sorted(os.listdir(path))
        except OSError:
            return []

    def ask(self, *words: str, **environment: str) -> str | None:
        """What a tool of the system says on its standard output; None where it cannot say."""
        import shutil
        import subprocess

        program = shutil.which(words[0], path=SYSTEM_PATH)
        if program is None:
            return None
        base = {"PATH": SYSTEM_PATH, "HOME": self.home or "/", "LANG": "C.UTF-8"}
        try:
            done = subprocess.run(
                [program, *words[1:]],
                env=base | environment,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                timeout=PATIENCE,
                check=True,
                preexec_fn=self._become,
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout[:FILE_LIMIT].decode("utf-8", "replace")

    def _become(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0)
        libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        os.setsid()
        if os.geteuid() != 0:
            return
        if libc.unshare(_CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "unshare")
        os.setgroups(self.groups)
        os.setresgid(self.gid, self.gid, self.gid)
        os.setresuid(self.uid, self.uid, self.uid)

    @contextmanager
    def _rights(self) -> Iterator[None]:
        if os.geteuid() != 0 or self.uid == 0:
            yield
            return
        gid, groups = os.getegid(), os.getgroups()
        os.setgroups(self.groups)
        os.setegid(self.gid)
        os.seteuid(self.uid)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(gid)
            os.setgroups(groups)
