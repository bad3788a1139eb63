"""The terminal belongs to CMD: a real bash under a real pseudo-terminal, and a person typing."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.enter import ROOT
from tests.support.terminal import Person

if TYPE_CHECKING:
    from collections.abc import Iterator

PROMPT = "host[$] "
# What it prints can be told from what was typed.
SHOUTS = "sed -u 's/.*/\\U&/'"
# Its own handler first and the size after, so that no change falls in between.
SHOWS_SIZE = (
    "import os,signal;"
    'show=lambda *_: os.write(1, b"%d %d\\n" % os.get_terminal_size()[::-1]);'
    "signal.signal(signal.SIGWINCH, show);show();"
    "[signal.pause() for _ in iter(int, 1)]"
)


# Waits for the signal itself: a shell that is just about to read(2) loses it until the next line.
CATCHES = (
    "import signal, sys;"
    "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT]);"
    'print("up", flush=True); signal.sigwait([signal.SIGINT]); print("caught"); sys.exit(7)'
)
GOES_ON = 'import time; print("up", flush=True); time.sleep(1); print("done it")'


@pytest.fixture
def person() -> Iterator[Person]:
    env = {"PATH": "/usr/bin:/bin", "PS1": "host$ ", "TERM": "dumb", "HISTFILE": "/dev/null"}
    with Person(["/bin/bash", "--norc", "--noprofile", "-i"], env, str(ROOT)) as person:
        person.waits_for(PROMPT)
        person.types(f"run() {{ {sys.executable} -m tests.support.enter '{{}}' -- \"$@\"; }}\n")
        person.waits_for(PROMPT)
        yield person


def test_control_c_ends_the_command_and_not_the_shell(person: Person) -> None:
    person.types(f"run {SHOUTS}; echo status $?\n")
    person.types("typed\n")
    person.waits_for("TYPED")
    person.types("\x03")
    person.waits_for("status 130")
    person.types("echo still here\n")
    person.waits_for("\nstill here")


def test_control_c_reaches_a_command_that_handles_it(person: Person) -> None:
    person.types(f"run {sys.executable} -c '{CATCHES}'; echo =$?\n")
    person.waits_for("\nup\r")
    person.types("\x03")
    person.waits_for("caught")
    person.waits_for("=7")


def test_control_z_stops_it_and_fg_continues_it_with_the_terminal(person: Person) -> None:
    person.types("run sh -c 'echo up; read a; echo got $a; exit 5'\n")
    person.waits_for("\nup\r")
    person.types("\x1a")
    person.waits_for("Stopped")
    person.waits_for(PROMPT)
    person.types("jobs; echo shell lives\n")
    person.waits_for("\nshell lives")
    person.types("fg; echo status $?\n")
    person.waits_for("status|run sh")
    person.types("word\n")
    person.waits_for("got word")
    person.waits_for("status 5")


def test_stops_and_continues_again_and_again(person: Person) -> None:
    person.types(f"run {SHOUTS}\n")
    for number in range(3):
        person.types(f"line{number}\n")
        person.waits_for(f"LINE{number}")
        person.types("\x1a")
        person.waits_for("Stopped")
        person.waits_for(PROMPT)
        person.types("fg\n")
        person.waits_for("\n")
    # A ^D that the shell's line editor still has the terminal for would be a character.
    person.types("last\n")
    person.waits_for("LAST")
    person.types("\x04")
    person.waits_for(PROMPT)


def test_bg_lets_it_go_on_without_the_terminal(person: Person) -> None:
    # One process: dash, stopped between vfork and exec, cannot be continued.
    person.types(f"run {sys.executable} -c '{GOES_ON}'\n")
    person.waits_for("\nup\r")
    person.types("\x1a")
    person.waits_for("Stopped")
    person.types("bg\n")
    person.waits_for("[$] done it")
    person.types("echo shell has the terminal\n")
    person.waits_for("\nshell has the terminal")


def test_a_background_command_that_reads_stops_until_it_is_brought_forward(person: Person) -> None:
    person.types("run sh -c 'read a; echo got $a' &\n")
    person.waits_for(PROMPT)
    person.types("sleep 1; jobs\n")
    person.waits_for("Stopped")
    person.types("fg\n")
    person.waits_for("run sh")
    person.types("late\n")
    person.waits_for("got late")


def test_window_size_is_seen_and_its_change_is_told(person: Person) -> None:
    person.resizes(31, 97)
    person.types(f"run /usr/bin/python3 -c '{SHOWS_SIZE}'\n")
    person.waits_for("31 97")
    person.resizes(42, 111)
    person.waits_for("42 111")
    person.types("\x03")
    person.waits_for(PROMPT)


def test_an_interactive_shell_inside_has_job_control(person: Person) -> None:
    person.types("run env PS1='in$ ' bash --norc -i\n")
    person.waits_for("in[$] ")
    assert "no job control" not in person.seen
    person.types(f"{SHOUTS}\n")
    person.types("typed\n")
    person.waits_for("TYPED")
    person.types("\x1a")
    person.waits_for("Stopped")
    person.waits_for("in[$] ")
    person.types("jobs\n")
    person.waits_for("Stopped.*sed")
    person.types("fg\n")
    person.waits_for("sed")
    person.types("again\n")
    person.waits_for("AGAIN")
    person.types("\x03")
    person.waits_for("in[$] ")
    person.types("exit 9\n")
    person.waits_for(PROMPT)
    person.types("echo =$?\n")
    person.waits_for("=9")


def test_suspending_the_shell_inside_gives_the_terminal_back(person: Person) -> None:
    person.types("run env PS1='in$ ' bash --norc -i\n")
    person.waits_for("in[$] ")
    person.types("suspend\n")
    person.waits_for("Stopped")
    person.waits_for(PROMPT)
    person.types("fg\n")
    person.types("echo back $((40+2))\n")
    person.waits_for("back 42")
    person.types("exit\n")
    person.waits_for(PROMPT)


def test_a_pipeline_leaves_the_terminal_to_its_reader(person: Person) -> None:
    person.types("run echo through | sh -c 'read a </dev/tty; cat; echo key $a'\n")
    person.types("pressed\n")
    person.waits_for("through\r\nkey pressed")


def test_a_command_fed_by_a_pipe_gets_the_terminal_when_it_wants_it(person: Person) -> None:
    person.types("echo piped | run sh -c 'read a </dev/tty; cat; echo key $a'\n")
    person.types("pressed\n")
    person.waits_for("piped\r\nkey pressed")
    person.types("echo shell lives\n")
    person.waits_for("\nshell lives")
