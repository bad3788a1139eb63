"""Job control and signals: the terminal is CMD's, and a stop of CMD is a stop of ours.

Theory of operation. CMD has a process group of its own, so a kill(0) inside never reaches us; the
shell knows only our group. (1) Where we are in the foreground and both stdin and stdout are the
terminal, CMD's group is put there before CMD runs. In a pipeline it is not, because `netns-run -- a
| less` must leave the terminal to less; there CMD is stopped by SIGTTIN or SIGTTOU if it does want
the terminal, which is when it gets it. (2) When CMD stops otherwise, we take the terminal back and
stop our own group, so that the shell, or a sudo in between, sees what it would have seen of CMD.
(3) When the shell continues us, in the foreground or not, we hand the terminal over again if it
is ours to give, and continue CMD's group. (4) At the end the terminal is taken back.
Ends with `close`; a terminal that has hung up is none.
"""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, Protocol

from netns_runtime.namespace.enter_launch import Event, Ready, Stopped

if TYPE_CHECKING:
    from collections.abc import Iterator

# To CMD alone, as kill(1) meant it.
TO_COMMAND: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# To its group, as the terminal would: we get these from it where our group is in the foreground.
TO_GROUP: Final = (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGWINCH)
WANTS_TERMINAL: Final = (signal.SIGTTIN, signal.SIGTTOU)


class Commanded(Protocol):
    """What a `Child` can do, as far as the terminal is concerned."""

    def signal(self, number: int) -> None:
        """Send CMD a signal."""

    def signal_group(self, number: int) -> None:
        """Send CMD's process group a signal."""


class Terminal:
    """The controlling terminal. `close` lets go of it; a terminal that is gone changes nothing."""

    def __init__(self, number: int) -> None:
        self._number = number

    @classmethod
    def controlling(cls) -> Terminal | None:
        """Our controlling terminal, or None for a process that has none."""
        try:
            return cls(os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY))
        except OSError:
            return None

    def is_given_to(self, group: int) -> bool:
        """Whether `group` is its foreground process group."""
        with suppress(OSError):
            return os.tcgetpgrp(self._number) == group
        return False

    def give_to(self, group: int) -> None:
        """Put `group` in the foreground, from the background too (SIGTTOU is blocked meanwhile)."""
        with _blocked(signal.SIGTTOU), suppress(OSError):
            os.tcsetpgrp(self._number, group)

    def close(self) -> None:
        """Let go of the descriptor."""
        os.close(self._number)


@contextmanager
def _blocked(number: signal.Signals) -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class JobControl:
    """One CMD's terminal and signals. Feed it every event of the `Child`; close it at the end.

    While open it handles the signals of `TO_COMMAND` and `TO_GROUP`, save those that were ignored
    when netns-run started: CMD inherits that. Main thread only.
    """

    def __init__(self, child: Commanded, terminal: Terminal | None) -> None:
        self._child = child
        self._terminal = terminal
        self._group: int | None = None
        self._is_given = False
        self._before: dict[signal.Signals, Any] = {}
        for number in (*TO_COMMAND, *TO_GROUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._forward)

    def _forward(self, number: int, _frame: object) -> None:
        if number in TO_COMMAND:
            self._child.signal(number)
        else:
            self._child.signal_group(number)

    def on(self, event: Event) -> None:
        """Follow CMD: may stop this process, and returns when the shell has continued it."""
        if isinstance(event, Ready):
            self._group = event.pid
            if os.isatty(0) and os.isatty(1):
                self._hand_over()
        elif isinstance(event, Stopped):
            self._on_stop(event.signal)

    def _on_stop(self, number: int) -> None:
        wanted = number in WANTS_TERMINAL
        if not (wanted and not self._is_given and self._hand_over()):
            self._take_back()
            self._stop_ourselves(number if wanted else signal.SIGTSTP)
            self._hand_over()
        self._child.signal_group(signal.SIGCONT)

    def _hand_over(self) -> bool:
        """Give CMD the terminal if our group has it; whether that was so."""
        if self._terminal is None or self._group is None:
            return False
        if not self._terminal.is_given_to(os.getpgrp()):
            return False
        self._terminal.give_to(self._group)
        self._is_given = True
        return True

    def _take_back(self) -> None:
        """Take the terminal from CMD, from whichever of its groups has it now."""
        if self._is_given and self._terminal is not None:
            self._terminal.give_to(os.getpgrp())
        self._is_given = False

    def _stop_ourselves(self, number: int) -> None:
        """Stop our whole group and come back when it is continued.

        Not SIGSTOP: in an orphaned group nobody would continue us, and there the kernel ignores
        these three, so that CMD is simply continued.
        """
        before = signal.signal(number, signal.SIG_DFL)
        try:
            os.kill(0, number)
        finally:
            signal.signal(number, before)

    def close(self) -> None:
        """Take the terminal back and leave signals as they were found."""
        self._take_back()
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before.clear()
        if self._terminal is not None:
            self._terminal.close()
            self._terminal = None
