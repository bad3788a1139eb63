"""A pipe between two sockets for splice(2).

It is as large as an unprivileged process may have it, or it is not opened at all: past
fs.pipe-user-pages-soft a pipe shrinks to a page or two, and copying serves better.
"""

from __future__ import annotations

import fcntl
import os
from typing import Final

PIPE_SIZE: Final = 1024 * 1024  # the default of fs.pipe-max-size
PIPES: Final = 16
SPLICE: Final = 3  # SPLICE_F_MOVE | SPLICE_F_NONBLOCK


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


class Pipes:
    """At most PIPES pipes, lent to one way at a time."""

    def __init__(self) -> None:
        self._free: list[Pipe] = []
        self._open = 0

    def take(self) -> Pipe | None:
        """An empty pipe, or None where none is to be had."""
        if self._free:
            return self._free.pop()
        if self._open >= PIPES:
            return None
        try:
            pipe = Pipe()
        except OSError:
            return None
        self._open += 1
        return pipe

    def give_back(self, pipe: Pipe) -> None:
        """Keep an empty pipe for the next; close one that still holds bytes."""
        if pipe.held:
            pipe.close()
            self._open -= 1
        else:
            self._free.append(pipe)

    def close(self) -> None:
        """Close those that are not lent."""
        for pipe in self._free:
            pipe.close()
        self._free.clear()
