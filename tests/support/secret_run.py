"""Runs netns-run with secrets whose values nobody may ever see again, and watches for them.

`value_of` makes a value that looks like the real thing. `run_with_secrets` runs a command to its
end; `started` and `finish_bot` run a bot and search its sandbox from outside while it lives. Both
give a `Told`: all that a person or a log could have read, and `leaks` says where a value is in it.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Final

from tests.support import search
from tests.support.run import Result, Running
from tests.support.world import PLACEHOLDER

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tests.support.lab import Lab

PREFIXES: Final = {"SLACK_BOT_TOKEN": "xoxb-", "SLACK_APP_TOKEN": "xapp-1-"}
SEARCH_ME: Final = "search me\n"


def value_of(name: str) -> str:
    """A value for the secret of that name, unlike any other and with what needs escaping."""
    return f"{PREFIXES.get(name, '')}{secrets.token_urlsafe(24)}+/=&%{secrets.token_hex(8)}"


def plain_value_of(name: str) -> str:
    """The same without what needs escaping, as most tokens are."""
    return f"{PREFIXES.get(name, '')}{secrets.token_hex(20)}"


def placeholder(name: str) -> str:
    return PLACEHOLDER + name


@dataclass(frozen=True)
class Told:
    """What a run said: its `result` (audit included) and its status descriptor.

    `traces`: where the values were inside the sandbox. `in_proxy`: the search found them where they
    are, so that finding nothing elsewhere means something.
    """

    result: Result
    status_fd: str
    values: Mapping[str, str] = field(repr=False)
    traces: tuple[str, ...] = ()
    in_proxy: bool = False

    def leaks(self) -> list[str]:
        """Which of its words hold a value."""
        said = {
            "stdout": self.result.stdout,
            "stderr": self.result.stderr,
            "status-fd": self.status_fd,
            **{f"audit {n}": str(line) for n, line in enumerate(self.result.audit)},
        }
        values = self.values.values()
        return [name for name, text in said.items() if any(search.says(text, v) for v in values)]

    def substituted(self) -> set[tuple[str, str, str]]:
        """(secret, slot, host) of the audit's lines."""
        lines = self.result.events("secret.substituted")
        return {(line["secret"], line["slot"], line["host"]) for line in lines}


@contextmanager
def started(
    lab: Lab,
    values: Mapping[str, str],
    options: Sequence[str],
    cmd: Sequence[str],
    env: Mapping[str, str] | None = None,
    **rest: Any,
) -> Iterator[tuple[Running, IO[bytes]]]:
    """A run with `--secret NAME` for each value, `-v` and a status descriptor: the file."""
    with tempfile.TemporaryFile("w+b") as status:
        fd = os.open(f"/proc/self/fd/{status.fileno()}", os.O_WRONLY | os.O_APPEND)
        words = [word for name in values for word in ("--secret", name)]
        try:
            running = Running(
                *("-v", "--status-fd", str(fd), *words, *options),
                cmd=cmd,
                lab=lab,
                env={**values, **(env or {})},
                pass_fds=[fd],
                **rest,
            )
        finally:
            os.close(fd)
        with running:
            yield running, status


def _text_of(status: IO[bytes]) -> str:
    status.seek(0)
    return str(status.read(), "utf-8", "replace")


def run_with_secrets(
    lab: Lab,
    values: Mapping[str, str],
    *options: str,
    cmd: Sequence[str],
    timeout: float = 30,
    **rest: Any,
) -> Told:
    """Run to the end and check that nothing it said holds a value."""
    with started(lab, values, options, cmd, **rest) as (running, status):
        result = running.wait(timeout)
        told = Told(result, _text_of(status), values)
    assert told.leaks() == [], f"{told.leaks()} hold a value:\n{result.told()}"
    return told


@dataclass(frozen=True)
class Bot:
    """A program that says SEARCH_ME when it has lived, and ends after a line of input."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)


def finish_bot(lab: Lab, running: Running, status: IO[bytes], values: Mapping[str, str]) -> Told:
    """Read a bot's words until SEARCH_ME, search its sandbox, let it go on, and wait for it."""
    said = ""
    while (line := running.line()) not in (SEARCH_ME, ""):
        said += line
    traces: list[str] = []
    in_proxy = False
    if line:
        pid = running.process.pid
        pids = search.sandbox_pids(pid)
        assert len(pids) >= 2, "the sandbox's processes were not found"
        traces = search.traces(pids, values.values(), [lab.work])
        needles = [value.encode() for value in values.values()]
        in_proxy = any(search.in_memory(proxy, needles) for proxy in search.proxy_pids(pid))
    result = running.wait(30, b"go on\n")
    result = Result(result.status, said + result.stdout, result.stderr, result.audit)
    return Told(result, _text_of(status), values, tuple(traces), in_proxy)
