"""A second command in a sandbox that runs: `netns-debug enter`, from the fork to the exec.

`join` starts it and returns a `Joined`, whose process has given up everything and waits; whoever
made it puts the process into the sandbox's cgroups, looks at it from outside (`differences`), and
lets it go, or closes it. Nothing inside is trusted, uid 0 least of all; the theory is told below.
Ends with the command's own exit status, or with a StepError and no process.

Theory of operation. Two forks. The first child (the keeper) enters the namespaces of CMD's process
and stays in our PID namespace, invisible inside; what it forks is born in all of them, so that
nothing inside ever meets a process of the host's namespaces. Both are non-dumpable until the exec,
which closes /proc/PID/{exe,fd,root,mem} to uid 0 inside, and import nothing once they are inside:
Python would take modules from files that CMD may have written. The second child drops to CMD's
uid without a capability, loads CMD's own filters, says so, and executes only after it was let go.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import select
import signal
import socket
import termios
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from netns_runtime.errors import EXIT_CANNOT_EXECUTE, EXIT_NOT_FOUND, StepError
from netns_runtime.namespace import init
from netns_runtime.namespace.enter_launch import NO_CORE, _close_all_but, _reset_signals
from netns_runtime.namespace.netns import SO_NETNS_COOKIE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWPID, NEWNET: one call for all, setns(2) since Linux 5.8.
NAMESPACES: Final = 0x00020000 | 0x02000000 | 0x04000000 | 0x08000000 | 0x20000000 | 0x40000000
LINKS: Final = ("mnt", "cgroup", "uts", "ipc", "pid", "net")
PR_SET_SECCOMP: Final = 22
SECCOMP_MODE_FILTER: Final = 2
PATIENCE: Final = 10.0
ENOENT: Final = 2
_LIBC = ctypes.CDLL(None, use_errno=True)


class _Program(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


@dataclass(frozen=True, slots=True)
class Joining:
    """What the supervisor gave CMD, and a second command gets too. `cgroups` are directories."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    filters: tuple[bytes, ...]
    cgroups: tuple[str, ...]
    cookie: int

    def job(self, stdio: Sequence[int | None]) -> dict[str, Any]:
        """The same as init.py's functions take it."""
        return {
            "argv": [os.fsencode(word) for word in self.argv],
            "env": {os.fsencode(name): os.fsencode(value) for name, value in self.env.items()},
            "cwd": os.fsencode(self.cwd),
            "uid": self.uid,
            "gid": self.gid,
            "groups": list(self.groups),
            "stdio": list(stdio),
        }


class Joined:
    """The process, before and after it was let go. `pid` is the command's as we see it."""

    def __init__(self, keeper: int, control: socket.socket) -> None:
        self._keeper = keeper
        self._control = control
        self._pidfd = os.pidfd_open(keeper)
        self._status: int | None = None
        self.pid = int(self._expect(b"P"))
        self._expect(b"R")

    def fileno(self) -> int:
        """Readable once the command has ended, or could not be executed."""
        return self._pidfd

    def _expect(self, verb: bytes) -> bytes:
        message = b""
        if select.select([self._control], [], [], PATIENCE)[0]:
            message = self._control.recv(4096)
        if message[:1] != verb:
            self.close()
            said = message[1:].decode(errors="replace").strip()
            raise StepError(
                f"entering the sandbox: {said or 'it ended meanwhile'}",
                remedy="see netns-debug list",
            )
        return message[1:]

    def go(self) -> None:
        """Let the command run."""
        self._control.send(b"G")

    def signal(self, number: int) -> None:
        """Send the command's process group a signal; ignored where it has ended."""
        if self._status is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    def wait(self) -> tuple[int, str]:
        """The exit status once it has ended, and why it could not be executed ("" where it was)."""
        why = ""
        with suppress(OSError):
            while message := self._control.recv(4096):
                if message[:1].isdigit():
                    number, _, what = message.partition(b" ")
                    why = f"{os.fsdecode(what)}: {os.strerror(int(number))}"
                    found = EXIT_NOT_FOUND if int(number) == ENOENT else EXIT_CANNOT_EXECUTE
                    self._reap()
                    return found, why
        status = self._reap()
        return (status if status >= 0 else 128 - status), why

    def _reap(self) -> int:
        if self._status is None:
            _, status = os.waitpid(self._keeper, 0)
            self._status = os.waitstatus_to_exitcode(status)
        return self._status

    def close(self) -> None:
        """End the command if it still runs, and wait for it."""
        if self._status is None:
            with suppress(ProcessLookupError):
                os.kill(self._keeper, signal.SIGKILL)
            self._reap()
        self._control.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


def join(
    joining: Joining, pidfd: int, stdio: Sequence[int | None], *, terminal: bool = False
) -> Joined:
    """Start the command in the namespaces of the process behind `pidfd`, and hold it there.

    `stdio` are its 0, 1 and 2, borrowed; with `terminal` the first becomes its controlling one.
    Raises StepError.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # Inherited by both children: from here on nothing with their memory can be looked into.
    _must(_LIBC.prctl(init.PR_SET_DUMPABLE, 0, 0, 0, 0), "PR_SET_DUMPABLE")
    job = joining.job(stdio)
    programs = [_Program(len(code) // 8, code) for code in joining.filters]
    keeper = os.fork()
    if keeper == 0:
        try:
            ours.close()
            _keep(joining, job, programs, pidfd, theirs, terminal=terminal)
        except BaseException as error:
            with suppress(OSError):
                theirs.send(b"F" + f"{error}".encode(errors="replace")[:2000])
        finally:
            os._exit(125)
    theirs.close()
    return Joined(keeper, ours)


def _keep(
    joining: Joining,
    job: dict[str, Any],
    programs: Sequence[_Program],
    pidfd: int,
    control: socket.socket,
    *,
    terminal: bool,
) -> None:
    """In the keeper: enter, fork the command's process, and end as it does."""
    _must(_LIBC.prctl(init.PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "PR_SET_PDEATHSIG")
    # Stopped with our process group, it would leave a zombie that the sandbox's end waits for.
    os.setsid()
    _reset_signals()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, NO_CORE)
    _must(_LIBC.setns(pidfd, NAMESPACES), "setns")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        cookie = probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)
    if int.from_bytes(cookie, "little") != joining.cookie:
        raise StepError("CMD's process is in another network namespace than its sandbox")
    command = os.fork()
    if command == 0:
        try:
            _become(job, programs, control, terminal=terminal)
        except BaseException as error:
            with suppress(OSError):
                control.send(b"F" + f"{error}".encode(errors="replace")[:2000])
        finally:
            os._exit(125)
    control.send(b"P%d" % command)
    # The other end must see ours close at the exec, and nothing of the caller's stays open here.
    _close_all_but(set())
    _, status = os.waitpid(command, 0)
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


def _become(
    job: dict[str, Any],
    programs: Sequence[_Program],
    control: socket.socket,
    *,
    terminal: bool,
) -> None:
    """In the command's process: give up everything, say so, wait, execute."""
    os.setsid()
    held = control.fileno()
    for target, source in enumerate(job["stdio"]):
        if source is None:
            with suppress(OSError):
                os.close(target)
        else:
            os.dup2(source, target)
    _close_all_but({0, 1, 2, held})
    os.set_inheritable(held, False)
    if terminal:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    init.give_up_privileges(job)
    for program in programs:
        _must(
            _LIBC.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0),
            "system call filter",
        )
    control.send(b"R")
    if control.recv(1) != b"G":
        os._exit(125)
    try:
        os.chdir(job["cwd"])
    except OSError as refused:
        init.fail(held, refused, b"working directory " + job["cwd"])
    init.execute(job, held)


def differences(pid: int, model: int, joining: Joining) -> str | None:
    """How process `pid` is held less than CMD's process `model`, seen from outside; None if it
    is not. Looks at its namespaces, cgroups, credentials, capabilities and filters.
    """
    for link in LINKS:
        ours, theirs = os.stat(f"/proc/{pid}/ns/{link}"), os.stat(f"/proc/{model}/ns/{link}")
        if (ours.st_dev, ours.st_ino) != (theirs.st_dev, theirs.st_ino):
            return f"another {link} namespace"
    if _read(f"/proc/{pid}/cgroup") != _read(f"/proc/{model}/cgroup"):
        return "another cgroup"
    lines = (line.partition(":") for line in _read(f"/proc/{pid}/status").splitlines())
    found = {name: value.split() for name, _, value in lines}
    wanted: dict[str, list[str]] = {
        "Uid": [str(joining.uid)] * 4,
        "Gid": [str(joining.gid)] * 4,
        **{f"Cap{kind}": ["0" * 16] for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")},
        "NoNewPrivs": ["1"],
        "Seccomp": [str(SECCOMP_MODE_FILTER)],
    }
    for name, value in wanted.items():
        if found.get(name) != value:
            return f"{name} {' '.join(found.get(name, ['missing']))}"
    if sorted(map(int, found.get("Groups", []))) != sorted(joining.groups):
        return "other groups"
    # Linux 5.11 counts them.
    if int(found.get("Seccomp_filters", ["99"])[0]) < len(joining.filters):
        return "fewer system call filters"
    return None


def _read(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def _must(result: int, step: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{step}: {os.strerror(number)}")
