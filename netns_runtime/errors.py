"""What can go wrong before CMD runs, as values a person can act on.

Every error that reaches a user is a `NetnsError`: one line that names the step or the input, what
was wrong with it, and the remedy. The command line prints `str(error)` after `netns-run: ` and ends
with `error.status`. Anything else that escapes is a bug.
"""

from __future__ import annotations

import errno
import os

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


def step_error(step: str, cause: BaseException, *, remedy: str = "") -> StepError:
    """Name the step that the kernel or a library refused.

    An OSError is told by its errno's name and text, anything else by its own message.
    """
    if isinstance(cause, OSError) and cause.errno is not None:
        name = errno.errorcode.get(cause.errno, str(cause.errno))
        where = f" ({cause.filename})" if cause.filename else ""
        return StepError(f"{step}: {name} {os.strerror(cause.errno)}{where}", remedy=remedy)
    return StepError(f"{step}: {cause}", remedy=remedy)
