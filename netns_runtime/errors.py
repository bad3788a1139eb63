"""What can go wrong before CMD runs, as values a person can act on.

Every error that reaches a user is a `NetnsError`: one line that names the step or the input, what
was wrong with it, and the remedy. The command line prints `str(error)` after `netns-run: ` and ends
with `error.status`. Anything else that escapes is a bug.
"""

from __future__ import annotations

import errno
import os
from typing import Final

EXIT_FAILED = 125
EXIT_CANNOT_EXECUTE = 126
EXIT_NOT_FOUND = 127


class NetnsError(Exception):
    """One line for the user: what, where, remedy. `status` is the exit status it asks for."""

    status = EXIT_FAILED

    def __init__(self, what: str, *, remedy: str = "") -> None:
        self.what = " ".join(what.split())
        self.remedy = " ".join(remedy.split())
        super().__init__(f"{self.what}: {self.remedy}" if self.remedy else self.what)


class UsageError(NetnsError):
    """The command line, a policy or another input is wrong; nothing was changed."""


class StepError(NetnsError):
    """A set-up step failed; what the steps before it made is gone again."""


_FILE_REMEDIES: Final = {
    errno.ENOENT: "check the path",
    errno.ENOTDIR: "check the path: a part of it is no directory",
    errno.EISDIR: "name a file, not a directory",
    errno.EACCES: "choose a file that root may use here",
    errno.EPERM: "choose a file that root may use here",
    errno.ELOOP: "name the file itself, not a link",
    errno.EROFS: "choose a file system that can be written",
    errno.ENOSPC: "free space there, or choose another place",
    errno.EMFILE: "raise the limit of open files: ulimit -n",
    errno.ENXIO: "start its reader first",
    errno.ENAMETOOLONG: "give a shorter path",
}


def file_error(said: str, cause: OSError) -> UsageError:
    """The user's file that could not be opened or read; `said` is the option and the path."""
    code = cause.errno or 0
    return UsageError(
        f"{said}: {os.strerror(code)}", remedy=_FILE_REMEDIES.get(code, "choose another file")
    )


def step_error(step: str, cause: BaseException, *, remedy: str = "") -> StepError:
    """Name the step that the kernel or a library refused.

    An OSError is told by its errno's name and text, anything else by its own message.
    """
    if isinstance(cause, OSError) and cause.errno is not None:
        name = errno.errorcode.get(cause.errno, str(cause.errno))
        where = f" ({cause.filename})" if cause.filename else ""
        return StepError(f"{step}: {name} {os.strerror(cause.errno)}{where}", remedy=remedy)
    return StepError(f"{step}: {cause}", remedy=remedy)
