"""Runs one plan in a fresh network namespace, without proxy, gateway or the rest of the runtime.

`run` is for commands that are done in a moment; as a program (`python -m tests.support.enter JSON
-- CMD`) it is a small netns-run with job control, for tests that need a terminal or signals. Every
namespace and process is gone when either ends.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from netns_runtime.namespace import netns
from netns_runtime.namespace.enter import Command, EnterPlan, plan_enter
from netns_runtime.namespace.enter_launch import (
    CannotExecute,
    Event,
    Exited,
    Failed,
    launch,
)
from netns_runtime.namespace.filesystem import View
from netns_runtime.namespace.filesystem_protect import Identity
from netns_runtime.namespace.terminal import JobControl, Terminal

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

ROOT = Path(__file__).parents[2]
# A uid that owns nothing here, so that what it can reach is what anybody can.
STRANGER = Identity(54_321, 54_321)
UID_0 = Identity(0, 0)
BASE_ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin", "LC_ALL": "C.UTF-8"}
SYSTEM_PYTHON = "/usr/bin/python3"
ENDS = (Exited, CannotExecute, Failed)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a command ended and what it wrote."""

    status: int
    stdout: str
    stderr: str
    events: tuple[Event, ...]


def status_of(event: Event) -> int:
    """The exit status that netns-run would have."""
    if isinstance(event, Exited | CannotExecute):
        return event.status
    return 125


def run(
    argv: Sequence[str],
    *,
    identity: Identity = STRANGER,
    view: View | None = None,
    env: Mapping[str, str] | None = None,
    cwd: str = "/",
    keep_fds: tuple[int, ...] = (),
    stdin: bytes = b"",
    change: Callable[[EnterPlan], EnterPlan] = lambda plan: plan,
) -> Outcome:
    """Run `argv` in a sandbox, with `change` applied to its plan, and wait for its end."""
    command = Command(tuple(argv), {**BASE_ENV, **(env or {})}, cwd, identity, keep_fds)
    plan = change(plan_enter(command, view or View(read_only=identity.uid == 0)))
    with (
        netns.create_namespace("test") as namespace,
        tempfile.TemporaryFile() as given,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
    ):
        given.write(stdin)
        given.seek(0)
        with StdioIs(given.fileno(), out.fileno(), err.fileno()):
            child = launch(plan, netns_fd=namespace)
        events: list[Event] = []
        try:
            child.go()
            while not events or not isinstance(events[-1], ENDS):
                events.append(child.handle())
        finally:
            child.close()
        out.seek(0)
        err.seek(0)
        return Outcome(
            status_of(events[-1]),
            out.read().decode(errors="backslashreplace"),
            err.read().decode(errors="backslashreplace"),
            tuple(events),
        )


class StdioIs:
    """Put three descriptors at 0, 1 and 2 for as long as it takes to fork."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = numbers
        self.saved: list[int] = []

    def __enter__(self) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        self.saved = [os.dup(number) for number in range(3)]
        for target, number in enumerate(self.numbers):
            os.dup2(number, target)

    def __exit__(self, *_: object) -> None:
        for target, number in enumerate(self.saved):
            os.dup2(number, target)
            os.close(number)


def run_bare(argv: Sequence[str], *, identity: Identity = STRANGER, **options: Any) -> Outcome:
    """Run `argv` as the same user without any of the defences, in a session of its own."""
    done = subprocess.run(
        list(argv),
        user=identity.uid,
        group=identity.gid,
        extra_groups=list(identity.groups),
        env={**BASE_ENV, **options.pop("env", {})},
        start_new_session=True,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        cwd="/",
        **options,
    )
    return Outcome(done.returncode, done.stdout, done.stderr, ())


def python(script: str, *arguments: str) -> list[str]:
    """A command that runs `script` with the system's interpreter."""
    return [SYSTEM_PYTHON, "-I", "-S", "-c", script, *arguments]


def without_filter(plan: EnterPlan) -> EnterPlan:
    """The same sandbox with no system call filter."""
    return replace(plan, filters=())


def main() -> int:
    """netns-run in small: `JSON -- CMD`, where JSON may set uid, env, cwd, read_only, writable."""
    options = json.loads(sys.argv[1])
    uid = options.get("uid", STRANGER.uid)
    command = Command(
        tuple(sys.argv[3:]),
        {**BASE_ENV, **options.get("env", {})},
        options.get("cwd", "/"),
        Identity(uid, uid),
    )
    view = View(
        read_only=options.get("read_only", uid == 0),
        writable=tuple(options.get("writable", ())),
        protected=tuple(options.get("protected", ())),
    )
    with netns.create_namespace("test") as namespace:
        child = launch(plan_enter(command, view), netns_fd=namespace)
        jobs = JobControl(child, Terminal.controlling())
        is_going = False
        try:
            while True:
                event = child.handle()
                jobs.on(event)
                if not is_going:
                    child.go()
                    is_going = True
                if isinstance(event, CannotExecute | Failed):
                    sys.stderr.write(f"{event.message}\n")
                if isinstance(event, ENDS):
                    return status_of(event)
        finally:
            child.close()
            jobs.close()


if __name__ == "__main__":
    sys.exit(main())
