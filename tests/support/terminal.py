"""A person at a terminal, as a value: type, and wait for what must appear.

The program under test is the leader of a session of its own with a pseudo-terminal; leaving the
block hangs the terminal up and ends every process of that session by its id.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PATIENCE = 8.0


class Person:
    """Types at `argv` and reads what it shows. `seen` is everything so far."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], cwd: str) -> None:
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            try:
                os.chdir(cwd)
                os.execve(argv[0], list(argv), dict(env))
            finally:
                os._exit(126)
        self.seen = ""
        self._read_to = 0

    def __enter__(self) -> Person:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.close(self.terminal)
        os.waitpid(self.pid, 0)

    def types(self, text: str) -> None:
        """Type, control characters included."""
        os.write(self.terminal, text.encode())

    def waits_for(self, pattern: str) -> re.Match[str]:
        """Read until `pattern` appears after the last match; fails with what was shown instead."""
        deadline = time.monotonic() + PATIENCE
        while True:
            match = re.compile(pattern).search(self.seen, self._read_to)
            if match:
                self._read_to = match.end()
                return match
            left = deadline - time.monotonic()
            ready = select.select([self.terminal], [], [], max(left, 0))[0]
            try:
                more = os.read(self.terminal, 65536) if ready else b""
            except OSError:
                more = b""
            if not more:
                shown = self.seen[self._read_to :]
                raise AssertionError(f"waited for {pattern!r}, saw {shown!r}")
            self.seen += more.decode(errors="replace")

    def resizes(self, rows: int, columns: int) -> None:
        """Drag the window."""
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, size)
