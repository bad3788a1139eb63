"""Terminal injection: what CMD pushes into the terminal must not be typed into the host's shell."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.enter import ROOT
from tests.support.terminal import Person

if TYPE_CHECKING:
    from collections.abc import Iterator

INJECT = (
    "import ctypes,sys;l=ctypes.CDLL(None,use_errno=True);l.ioctl.argtypes="
    "[ctypes.c_int,ctypes.c_ulong,ctypes.c_char_p];"
    "r=[l.ioctl(0,int(sys.argv[1],0),bytes([c])) for c in b'echo inj$((40+2))\\n'];"
    "print('result',r[0],ctypes.get_errno())"
)


@pytest.fixture
def person() -> Iterator[Person]:
    env = {"PATH": "/usr/bin:/bin", "PS1": "host$ ", "TERM": "dumb", "HISTFILE": "/dev/null"}
    with Person(["/bin/bash", "--norc", "--noprofile", "-i"], env, str(ROOT)) as person:
        person.waits_for("host[$] ")
        person.types(f'attack="{INJECT}"\n'.replace("$((", "\\$(("))
        person.waits_for("host[$] ")
        yield person


@pytest.mark.parametrize("command", ["0x5412", "0xffffffff00005412", "0x100005412"])
def test_tiocsti_is_refused_with_upper_bits_set_too(person: Person, command: str) -> None:
    person.types(f'/usr/bin/python3 -c "$attack" {command}\n')
    person.waits_for("result 0 0")
    person.waits_for("\ninj42")
    person.waits_for("host[$] ")
    person.types(
        f"{sys.executable} -m tests.support.enter '{{}}' -- "
        f'/usr/bin/python3 -c "$attack" {command}\n'
    )
    person.waits_for("result -1 1")
    person.types("echo end\n")
    person.waits_for("\nend")
    assert person.seen.count("\ninj42") == 1


def test_tioclinux_is_refused_by_the_filter(person: Person) -> None:
    person.types(
        f"{sys.executable} -m tests.support.enter '{{}}' -- "
        '/usr/bin/python3 -c "$attack" 0x541c\n'
    )
    # A pseudo-terminal would answer ENOTTY (25).
    person.waits_for("result -1 1\r")
