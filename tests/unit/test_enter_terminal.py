"""Job control's decisions, with a terminal and a child that only remember."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from netns_runtime.namespace.enter_launch import Ready, Stopped
from netns_runtime.namespace.terminal import JobControl, Terminal

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMAND = 4242


class Remembers:
    def __init__(self) -> None:
        self.sent: list[tuple[str, int]] = []

    def signal(self, number: int) -> None:
        self.sent.append(("command", number))

    def signal_group(self, number: int) -> None:
        self.sent.append(("group", number))


class FakeTerminal(Terminal):
    def __init__(self, owner: int) -> None:
        self.owner = owner

    def is_given_to(self, group: int) -> bool:
        return self.owner == group

    def give_to(self, group: int) -> None:
        self.owner = group

    def close(self) -> None:
        pass


class Jobs(JobControl):
    """Does not stop the test; remembers that it would have, and who had the terminal then."""

    stops: tuple[tuple[int, int], ...] = ()

    def _stop_ourselves(self, number: int) -> None:
        assert isinstance(self._terminal, FakeTerminal)
        self.stops = (*self.stops, (number, self._terminal.owner))


@pytest.fixture
def child() -> Remembers:
    return Remembers()


@pytest.fixture
def terminal() -> FakeTerminal:
    return FakeTerminal(os.getpgrp())


@pytest.fixture
def jobs(child: Remembers, terminal: FakeTerminal) -> Iterator[Jobs]:
    jobs = Jobs(child, terminal)
    yield jobs
    jobs.close()


def test_a_stop_takes_the_terminal_back_before_we_stop(
    jobs: Jobs, child: Remembers, terminal: FakeTerminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "isatty", lambda _: True)
    jobs.on(Ready(COMMAND))
    assert terminal.owner == COMMAND
    jobs.on(Stopped(signal.SIGTSTP))
    assert jobs.stops == ((signal.SIGTSTP, os.getpgrp()),)
    assert terminal.owner == COMMAND
    assert child.sent == [("group", signal.SIGCONT)]


def test_in_a_pipeline_the_terminal_is_given_only_when_wanted(
    jobs: Jobs, child: Remembers, terminal: FakeTerminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "isatty", lambda number: number == 0)
    jobs.on(Ready(COMMAND))
    assert terminal.owner == os.getpgrp()
    jobs.on(Stopped(signal.SIGTTIN))
    assert terminal.owner == COMMAND
    assert jobs.stops == ()
    assert child.sent == [("group", signal.SIGCONT)]


def test_in_the_background_wanting_the_terminal_stops_us_the_same_way(
    jobs: Jobs, terminal: FakeTerminal
) -> None:
    terminal.owner = 1
    jobs.on(Ready(COMMAND))
    jobs.on(Stopped(signal.SIGTTOU))
    assert jobs.stops == ((signal.SIGTTOU, 1),)


def test_signals_go_where_kill_or_the_terminal_meant_them(jobs: Jobs, child: Remembers) -> None:
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGWINCH):
        os.kill(os.getpid(), number)
    assert sorted(child.sent) == [
        ("command", signal.SIGHUP),
        ("command", signal.SIGTERM),
        ("group", signal.SIGINT),
        ("group", signal.SIGWINCH),
    ]


def test_an_ignored_signal_is_left_ignored(child: Remembers) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        jobs = JobControl(child, None)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        jobs.close()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signal.getsignal(signal.SIGHUP) is before
