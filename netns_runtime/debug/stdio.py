"""A person's terminal and the command's inside: two, with this process in between.

`Stdio` decides what the command gets for 0, 1 and 2: what is no terminal as it is; where input and
output are both a terminal, a pseudo-terminal of ours, which then is its controlling one; else a
pipe for each that is. `carry` moves bytes and window sizes until the command has ended, and `close`
leaves the terminal as it was found.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import termios
import time
import tty
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from netns_runtime.namespace.enter_join import Joined

CHUNK: Final = 65536
SILENCE: Final = 0.2
LAST_WORDS: Final = 1.0
"""Seconds, after the command has ended, in which what it left behind is still shown: until it is
silent for a moment, and never longer than this."""


class Stdio:
    """`inside` are the command's descriptors, None for one that is closed here."""

    def __init__(self) -> None:
        self._theirs: list[int] = []
        self._routes: dict[int, int] = {}
        self._master: int | None = None
        self._before: list[Any] | None = None
        self._winch: Any = None
        is_open = [_is_open(number) for number in (0, 1, 2)]
        is_tty = [is_open[number] and os.isatty(number) for number in (0, 1, 2)]
        self.is_terminal = is_tty[0] and is_tty[1]
        self.inside: list[int | None] = [
            number if is_open[number] else None for number in (0, 1, 2)
        ]
        if self.is_terminal:
            self._open_terminal(is_tty)
        else:
            for number in (0, 1, 2):
                if is_tty[number]:
                    self._open_pipe(number)

    def _open_terminal(self, is_tty: list[bool]) -> None:
        master, slave = (_above_stdio(number) for number in os.openpty())
        self._master = master
        self._theirs.append(slave)
        self._before = termios.tcgetattr(0)
        termios.tcsetattr(slave, termios.TCSANOW, self._before)
        self._resize()
        self._routes = {0: master, master: 1}
        for number in (0, 1, 2):
            if is_tty[number]:
                self.inside[number] = slave

    def _open_pipe(self, number: int) -> None:
        read, write = (_above_stdio(end) for end in os.pipe())
        theirs, ours = (read, write) if number == 0 else (write, read)
        self._theirs.append(theirs)
        self.inside[number] = theirs
        self._routes[number if number == 0 else ours] = ours if number == 0 else number

    def owned_by(self, uid: int, gid: int) -> None:
        """Let the command's user open what stands for the terminal, as it could the terminal."""
        for number in self._theirs:
            os.fchown(number, uid, gid)

    def hand_over(self) -> None:
        """The command has its ends: let go of them, and let the terminal pass keys through."""
        for number in self._theirs:
            os.close(number)
        self._theirs = []
        if self._before is not None:
            tty.setraw(0, termios.TCSADRAIN)
            self._winch = signal.signal(signal.SIGWINCH, lambda *_: self._resize())

    def _resize(self) -> None:
        if self._master is not None:
            with suppress(OSError):
                size = fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8))
                fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

    def carry(self, joined: Joined) -> None:
        """Until the command has ended; then what it still wrote. Keys are its alone: what a person
        types once it has ended is for the shell that they are back at."""
        poll = select.poll()
        poll.register(joined.fileno(), select.POLLIN)
        for source in self._routes:
            poll.register(source, select.POLLIN)
        end: float | None = None
        while end is None or any(source > 2 for source in self._routes):
            left = None if end is None else min(SILENCE, end - time.monotonic())
            if left is not None and left <= 0:
                return
            ready = poll.poll(None if left is None else left * 1000)
            if not ready:
                # Something that it left behind still holds its output: not waited for.
                return
            for number, _ in sorted(ready, key=lambda one: one[0] != joined.fileno()):
                if number == joined.fileno():
                    poll.unregister(number)
                    end = time.monotonic() + LAST_WORDS
                    if 0 in self._routes:
                        self._forget(poll, 0)
                elif number in self._routes and not self._pass_on(number):
                    self._forget(poll, number)

    def _forget(self, poll: select.poll, source: int) -> None:
        poll.unregister(source)
        target = self._routes.pop(source)
        if source == 0 and target != self._master:
            os.close(target)

    def _pass_on(self, source: int) -> bool:
        """Move what there is. Whether more may come."""
        try:
            data = os.read(source, CHUNK)
        except OSError:  # EIO: nobody inside has the terminal open any more
            return False
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._routes[source], view) :]
        except OSError:
            return False
        return bool(data)

    def close(self) -> None:
        """Leave the person's terminal as it was."""
        if self._before is not None:
            with suppress(OSError, termios.error):
                termios.tcsetattr(0, termios.TCSADRAIN, self._before)
            self._before = None
        if self._winch is not None:
            signal.signal(signal.SIGWINCH, self._winch)
            self._winch = None
        ours = {number for pair in self._routes.items() for number in pair if number > 2}
        for number in {*ours, *self._theirs, *([self._master] if self._master else [])}:
            with suppress(OSError):
                os.close(number)
        self._routes, self._theirs, self._master = {}, [], None


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


def _above_stdio(number: int) -> int:
    if number > 2:
        return number
    moved = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 3)
    os.close(number)
    return moved
