"""`netns-debug enter SANDBOX [-- CMD]`: a second command under everything that holds the first.

The supervisor says what CMD was given; the command gets the same, is compared with CMD from outside
and runs only where nothing differs. The person's terminal itself never goes inside, where others
could open it by way of /proc: a pseudo-terminal of ours stands for it. Ends with the command's exit
status, or with one line and 125, nothing having run.
"""

from __future__ import annotations

import base64
import json
import os
import re
import select
import signal
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from netns_runtime.debug.live import chosen
from netns_runtime.debug.text import shown
from netns_runtime.errors import NetnsError, StepError, UsageError, step_error
from netns_runtime.namespace.enter_join import Joined, Joining, differences, join

if TYPE_CHECKING:
    from netns_runtime import state

USAGE: Final = """\
usage: netns-debug enter [SANDBOX] [--json] [-- CMD [ARGS...]]

CMD, or a shell, inside: the same namespaces, user, policy and restrictions. Ends with its exit
status, 128+N for a signal; 125 for any error, 126 and 127 as netns-run. --json: one line on
standard error says what ran and how.
"""
TERM: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
FORWARDED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def main(words: list[str], as_json: bool) -> int:
    """Run CMD, or a shell, inside. With --json one line on standard error says what ran and how."""
    own, command = _split(words)
    if len(own) > 1 or any(word.startswith("-") for word in own):
        raise UsageError(f"enter takes no {own[-1]!r}", remedy="see netns-debug enter --help")
    if os.geteuid() != 0:
        raise UsageError("needs root", remedy="run sudo netns-debug …")
    record = chosen(own[0] if own else None)
    with ExitStack() as stack:
        model, joining = _joining(record, tuple(command))
        pidfd = _pidfd_of(record, model, joining)
        stack.callback(os.close, pidfd)
        from netns_runtime.debug.stdio import Stdio

        stdio = Stdio()
        stack.callback(stdio.close)
        stdio.owned_by(joining.uid, joining.gid)
        joined = join(joining, pidfd, stdio.inside, terminal=stdio.is_terminal)
        stack.callback(joined.close)
        stdio.hand_over()
        _hold(joined, model, pidfd, joining)
        status, why = _follow(joined, stdio)
        has_ended = bool(select.select([pidfd], [], [], 0)[0])
    if why:
        raise _NotRun(f"cannot run {shown(why)}", status)
    if status == 128 + signal.SIGKILL and has_ended:
        sys.stderr.write(f"netns-debug: sandbox {shown(record.name)} ended, and the command too\n")
    if as_json:
        line = json.dumps({"sandbox": record.name, "pid": joined.pid, "status": status})
        sys.stderr.write(line + "\n")
    return status


class _NotRun(NetnsError):
    """126 or 127, as netns-run says it."""

    def __init__(self, what: str, status: int) -> None:
        super().__init__(what)
        self.status = status


def _split(words: list[str]) -> tuple[list[str], list[str]]:
    if "--" not in words:
        return words, []
    at = words.index("--")
    if not words[at + 1 :]:
        raise UsageError("enter: nothing after --", remedy="name a command, or leave -- out")
    return words[:at], words[at + 1 :]


def _joining(record: state.Record, command: tuple[str, ...]) -> tuple[int, Joining]:
    """CMD's pid and what it was given, as its supervisor says: never read from inside."""
    from netns_runtime.control import ask

    answer = ask(record.name, {"command": "enter"})
    if "error" in answer:
        raise StepError(str(answer["error"]), remedy="is it of this version?")
    return int(answer["pid"]), joining_of(answer, command, record.cookie, os.environ.get("TERM"))


def joining_of(
    answer: dict[str, Any], command: tuple[str, ...], cookie: int, term: str | None
) -> Joining:
    """The supervisor's answer as a value; `term` is the terminal's kind, the one thing of ours."""
    env = {str(name): str(value) for name, value in answer["env"].items()}
    if term is not None and TERM.fullmatch(term):
        env["TERM"] = term
    shell = env.get("SHELL", "")
    return Joining(
        argv=command or (shell if shell.startswith("/") else "/bin/sh",),
        env=env,
        cwd=str(answer["cwd"]),
        uid=int(answer["uid"]),
        gid=int(answer["gid"]),
        groups=tuple(int(group) for group in answer["groups"]),
        filters=tuple(base64.b64decode(program) for program in answer["filters"]),
        cgroups=tuple(str(path) for path in answer["cgroups"]),
        cookie=cookie,
    )


def _pidfd_of(record: state.Record, pid: int, joining: Joining) -> int:
    """CMD's process, held, and seen to be of this sandbox. Raises StepError."""
    gone = StepError(f"sandbox {record.name} has gone", remedy="see netns-debug list")
    try:
        pidfd = os.pidfd_open(pid)
    except OSError as error:
        raise gone from error
    try:
        namespace, own = os.stat(f"/proc/{pid}/ns/net"), os.stat(record.sandbox_ns)
        if (namespace.st_dev, namespace.st_ino) != (own.st_dev, own.st_ino) or not joining.filters:
            raise StepError(f"pid {pid} is not CMD of sandbox {record.name}", remedy="report this")
        # Readable once it has ended: what was looked at was its own as long as it is not.
        if select.select([pidfd], [], [], 0)[0]:
            raise gone
    except OSError as error:
        os.close(pidfd)
        raise gone from error
    except StepError:
        os.close(pidfd)
        raise
    return pidfd


def _hold(joined: Joined, model: int, pidfd: int, joining: Joining) -> None:
    """Put the process where CMD is, compare the two, and let it go. Raises StepError."""
    try:
        for directory in joining.cgroups:
            Path(directory, "cgroup.procs").write_text(str(joined.pid), encoding="ascii")
        wrong = differences(joined.pid, model, joining)
        if select.select([pidfd], [], [], 0)[0]:
            wrong = "CMD has ended meanwhile"
    except OSError as error:
        raise step_error("entering the sandbox", error, remedy="see netns-debug list") from error
    if wrong is not None:
        raise StepError(
            f"entering the sandbox: the process would not be held as CMD is ({wrong}); not run",
            remedy="see netns-debug doctor SANDBOX",
        )
    joined.go()


def _follow(joined: Joined, stdio: Any) -> tuple[int, str]:
    """Carry the terminal's bytes and our signals until the command has ended."""
    before = {number: signal.getsignal(number) for number in FORWARDED}
    try:
        for number in FORWARDED:
            if before[number] is not signal.SIG_IGN:
                signal.signal(number, lambda number, _: joined.signal(number))
        stdio.carry(joined)
        return joined.wait()
    finally:
        for number, handler in before.items():
            with suppress(TypeError):
                signal.signal(number, handler)
