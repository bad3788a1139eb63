"""Runs the checkout's `netns-run` and `netns-debug` as a person would, and collects what they say.

`netns_run` waits and returns a `Result`; `Running` is the same while it runs. A command that
outlives its timeout is killed and fails the test with what it had said by then.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Self

from tests.support.lab import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from tests.support.lab import Lab

NETNS_RUN = str(CHECKOUT / "netns-run")
NETNS_DEBUG = str(CHECKOUT / "netns-debug")
PYTHON = "/usr/bin/python3"
CLIENT_PYTHON = str(CHECKOUT / ".venv/clients/bin/python")
NODE_MODULES = str(CHECKOUT / ".venv/node/node_modules")
TIMEOUT = 30.0

# What a developer's shell may hold and a test must not depend on.
_DROPPED = ("proxy", "python", "sudo_", "ssh_", "netns_")


@dataclass(frozen=True)
class Result:
    """How a run ended. `audit` is every event, in order."""

    status: int
    stdout: str
    stderr: str
    audit: list[dict[str, Any]] = field(repr=False)

    def events(self, event: str, **wanted: Any) -> list[dict[str, Any]]:
        """The events of that name whose fields have these values."""
        return list(matching(self.audit, event, wanted))

    def event(self, event: str, **wanted: Any) -> dict[str, Any]:
        """The one such event; AssertionError unless there is exactly one."""
        found = self.events(event, **wanted)
        assert len(found) == 1, f"{len(found)} of {event} {wanted} in {self.told()}"
        return found[0]

    def told(self) -> str:
        """All of it, for an assertion's message."""
        audit = "\n".join(json.dumps(line) for line in self.audit)
        parts = {"stdout": self.stdout, "stderr": self.stderr, "audit": audit}
        said = [f"--- {name}\n{text}" for name, text in parts.items()]
        return "\n".join([f"status {self.status}", *said])


def matching(
    audit: Sequence[Mapping[str, Any]], event: str, wanted: Mapping[str, Any]
) -> Iterator[dict[str, Any]]:
    for line in audit:
        if line["event"] == event and all(line.get(k) == v for k, v in wanted.items()):
            yield dict(line)


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not any(d in k.lower() for d in _DROPPED)}
    return {**kept, **(extra or {})}


class Running:
    """A netns-run at work. Use as a context manager: it is killed, and waited for, at the end."""

    def __init__(
        self,
        *options: str,
        cmd: Sequence[str],
        lab: Lab | None = None,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
        stdin: int | IO[bytes] | None = subprocess.DEVNULL,
        pass_fds: Sequence[int] = (),
        launcher: Sequence[str] = (NETNS_RUN,),
        **popen: Any,
    ) -> None:
        self._audit = tempfile.TemporaryFile("w+b")  # noqa: SIM115 - closed in __exit__
        audit_fd = os.open(f"/proc/self/fd/{self._audit.fileno()}", os.O_WRONLY | os.O_APPEND)
        where = lab.run_args() if lab else []
        words = [*launcher, *where, "--audit", f"fd:{audit_fd}", *options, "--", *cmd]
        popen = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **popen}
        try:
            self.process = subprocess.Popen(
                words,
                stdin=stdin,
                env=environment(env),
                cwd=cwd or (lab.work if lab else None),
                pass_fds=[audit_fd, *pass_fds],
                **popen,
            )
        finally:
            os.close(audit_fd)

    def audit(self) -> list[dict[str, Any]]:
        """The events so far."""
        size = os.fstat(self._audit.fileno()).st_size
        text = os.pread(self._audit.fileno(), size, 0)
        return [json.loads(line) for line in text.splitlines() if line.endswith(b"}")]

    def tell(self, line: str) -> None:
        """Write a line to its standard input, which must be a pipe."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def line(self) -> str:
        """The next line of its standard output."""
        assert self.process.stdout is not None
        return str(self.process.stdout.readline(), "utf-8", "replace")

    def wait(self, timeout: float = TIMEOUT, given: bytes | None = None) -> Result:
        """Wait for the end; `given` goes to its standard input. AssertionError after `timeout`."""
        try:
            out, err = self.process.communicate(given, timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, err = self.process.communicate(timeout=10)
            told = self._result(out, err).told()
            raise AssertionError(f"still running after {timeout} s: {told}") from None
        return self._result(out, err)

    def _result(self, out: bytes | None, err: bytes | None) -> Result:
        said = [(b or b"").decode("utf-8", "replace") for b in (out, err)]
        return Result(self.process.returncode, said[0], said[1], self.audit())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe:
                pipe.close()
        self._audit.close()


def netns_run(
    *options: str,
    cmd: Sequence[str],
    lab: Lab | None = None,
    input: str | None = None,  # noqa: A002 - the name subprocess.run gives it
    timeout: float = TIMEOUT,
    **rest: Any,
) -> Result:
    """Run `netns-run [lab's options] OPTIONS -- CMD` to its end.

    With a lab the working directory is `lab.work` unless `cwd` says otherwise.
    """
    stdin = subprocess.DEVNULL if input is None else subprocess.PIPE
    with Running(*options, cmd=cmd, lab=lab, stdin=stdin, **rest) as running:
        return running.wait(timeout, None if input is None else input.encode())


def netns_debug(*words: str, timeout: float = TIMEOUT) -> subprocess.CompletedProcess[str]:
    """Run `netns-debug WORDS`."""
    return subprocess.run(
        [NETNS_DEBUG, *words],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment(),
        check=False,
        stdin=subprocess.DEVNULL,
    )
