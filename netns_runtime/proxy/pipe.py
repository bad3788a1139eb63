"""A pipe between two sockets for splice(2).

It is as large as an unprivileged process may have it, or it is not opened at all: past
fs.pipe-user-pages-soft a pipe shrinks to a page or two, and copying serves better.
"""

from __future__ import annotations

import fcntl
import os
from typing import Final

PIPE_SIZE: Final = 1024 * 1024  # the default of fs.pipe-max-size


class Pipe:
    """A pipe that a way is moving bytes through; `held` of them are inside."""

    __slots__ = ("held", "into", "out_of")

    def __init__(self) -> None:
        self.out_of, self.into = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self.held = 0
        try:
            fcntl.fcntl(self.into, fcntl.F_SETPIPE_SZ, PIPE_SIZE)
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        os.close(self.out_of)
        os.close(self.into)
