"""The file of a capture: made by us alone, root's, and whole after every write.

`open_capture` makes it and never follows a link or takes a file that is there; `write` puts whole
blocks behind each other. When the disk is full the file is cut back to its last whole block, and
UsageError says so; what was written stays readable. `-` is standard output.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
from typing import TYPE_CHECKING, Final

from netns_runtime.debug.text import shown
from netns_runtime.errors import UsageError, file_error

if TYPE_CHECKING:
    from collections.abc import Sequence

_FLAGS: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class CaptureFile:
    """Owns `fd`. `written` is the number of bytes in whole blocks."""

    def __init__(self, fd: int, name: str) -> None:
        self._fd = fd
        self._name = name
        self._is_file = stat.S_ISREG(os.fstat(fd).st_mode)
        self.written = 0

    def write(self, blocks: Sequence[bytes]) -> None:
        """Put them behind what is there. Raises UsageError; what was there stays whole.

        BrokenPipeError where standard output has no reader any more.
        """
        view = memoryview(b"".join(blocks))
        size = len(view)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            if self._is_file:
                os.ftruncate(self._fd, self.written)
                os.lseek(self._fd, self.written, os.SEEK_SET)
            if error.errno == errno.EPIPE:
                raise
            raise file_error(f"-o {shown(self._name)}", error) from error
        self.written += size

    def fileno(self) -> int:
        return self._fd

    def close(self) -> None:
        os.close(self._fd)


def open_capture(name: str, *, unseen_by: int | None = None) -> CaptureFile:
    """Make the file, with mode 0600. Raises UsageError where there is one, or a link on the way.

    `unseen_by` is a process of uid 0, which owns whatever root makes: a directory that it sees will
    not do.
    """
    said = f"-o {shown(name)}"
    if name == "-":
        if sys.stdout.isatty():
            raise UsageError("-o -: packets are no text for a terminal", remedy="pipe it: | tshark")
        return CaptureFile(os.dup(1), "standard output")
    parent, base = os.path.split(name)
    if base in ("", ".", ".."):
        raise UsageError(f"{said}: no name of a file", remedy="as in -o capture.pcapng")
    try:
        directory = os.open(parent or ".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise file_error(said, error) from error
    try:
        real = os.readlink(f"/proc/self/fd/{directory}")
        if real != os.path.normpath(os.path.join(os.getcwd(), parent)):
            raise UsageError(
                f"{said}: a link is on the way to it", remedy="name it by its real path"
            )
        if unseen_by is not None and _sees(unseen_by, real, directory):
            raise UsageError(
                f"{said}: CMD runs as root, sees that directory and could read the values",
                remedy="name another place, as in -o /run/capture.pcapng",
            )
        return CaptureFile(os.open(base, _FLAGS, 0o600, dir_fd=directory), name)
    except OSError as error:
        if error.errno == errno.EEXIST:
            raise UsageError(
                f"{said}: it is there already", remedy="name another file, or remove it"
            ) from error
        raise file_error(said, error) from error
    finally:
        os.close(directory)


def _sees(pid: int, path: str, directory: int) -> bool:
    try:
        there = os.stat(f"/proc/{pid}/root{path}")
    except OSError:
        return False
    return os.path.samestat(there, os.fstat(directory))
