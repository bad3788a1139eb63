"""A sandbox whose CMD is a shell that a test tells what to do, and netns-debug's answers about it.

`Shell` is a context manager; `do` runs one command inside and returns its status once it has ended.
Leaving the block ends the shell and waits for it.
"""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any, Self

from tests.support.run import Running, netns_debug

if TYPE_CHECKING:
    from tests.support.lab import Lab

CURL = "curl -s -o /dev/null -m 8"
PAST = f"{CURL} --noproxy '*'"


def answer(*words: str) -> Any:
    """What `netns-debug WORDS --json` says; AssertionError unless its status is 0."""
    said = netns_debug(*words, "--json")
    assert said.returncode == 0, said.stderr
    return json.loads(said.stdout)


def why(*words: str) -> dict[str, Any]:
    found: dict[str, Any] = answer("why", *words)
    return found


class Shell:
    """A sandbox of this name; it has answered once when the block is entered."""

    def __init__(self, lab: Lab, name: str, *options: str) -> None:
        self.name = name
        words = ["sh", "-c", 'while read line; do eval "$line"; echo "done $?"; done']
        self.running = Running(*options, "--name", name, cmd=words, lab=lab, stdin=subprocess.PIPE)

    def do(self, command: str) -> int:
        self.running.tell(f"{command} </dev/null")
        return int(self.running.line().split()[1])

    def why(self, *words: str) -> dict[str, Any]:
        return why(*words, "--sandbox", self.name)

    def __enter__(self) -> Self:
        self.running.__enter__()
        self.do(":")
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.running.tell("exit 0")
            self.running.process.wait(10)
        finally:
            self.running.__exit__()
