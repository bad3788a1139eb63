"""Turns an `EnterPlan` into processes, and their fate into events.

`launch` forks and returns at once; the sandbox is set up while the caller goes on, and CMD does
not run before `Child.go`. The child's life hangs on ours in three ways: the parent-death signal of
each process in the chain, the control socket, and the PID namespace. `Child.handle` reads one
message and gives an event; `Failed` and `CannotExecute` end the sandbox, as `Exited` does.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import marshal
import os
import resource
import signal
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from netns_runtime.errors import EXIT_CANNOT_EXECUTE, EXIT_NOT_FOUND, StepError
from netns_runtime.namespace.enter import BWRAP, INTERPRETER, EnterPlan, bwrap_arguments
from netns_runtime.namespace.filesystem_apply import apply_covers, enter_private_mounts

if TYPE_CHECKING:
    from collections.abc import Sequence

INIT: Final = Path(__file__).with_name("init.py")
APPARMOR: Final = Path("/proc/self/attr/apparmor")
CLONE_NEWNET: Final = 0x40000000
PR_SET_PDEATHSIG: Final = 1
# fs/coredump.c: a limit of exactly 1 runs no core_pattern program, where 0 does; no core fits in.
NO_CORE: Final = (1, 1)
MESSAGE_LIMIT: Final = 8192
_CREDENTIALS: Final = struct.Struct("iII")
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Ready:
    """The sandbox is set up and CMD's process, `pid` as we see it, waits for `go`."""

    pid: int


@dataclass(frozen=True, slots=True)
class Started:
    """CMD has been executed."""

    pid: int


@dataclass(frozen=True, slots=True)
class Stopped:
    """A signal has stopped CMD."""

    signal: int


@dataclass(frozen=True, slots=True)
class Continued:
    """CMD runs again."""


@dataclass(frozen=True, slots=True)
class Exited:
    """CMD has ended; `status` is what netns-run exits with: its own, or 128+N for signal N."""

    status: int
    signal: int | None = None


@dataclass(frozen=True, slots=True)
class CannotExecute:
    """CMD could not be executed: `status` 127 if it is not there, else 126."""

    errno: int
    message: str

    @property
    def status(self) -> int:
        """The exit status of netns-run."""
        return EXIT_NOT_FOUND if self.errno == errno.ENOENT else EXIT_CANNOT_EXECUTE


@dataclass(frozen=True, slots=True)
class Failed:
    """The sandbox ended before, or without, CMD's own end; `message` is what bubblewrap said."""

    message: str


Event = Ready | Started | Stopped | Continued | Exited | CannotExecute | Failed


class Child:
    """The sandbox's processes as the supervisor holds them.

    `pid` is bubblewrap's, `command_pid` CMD's once `Ready` has been handled. Readable when there
    is an event. Whoever made it calls `close`.
    """

    def __init__(
        self, pid: int, control: socket.socket, errors: int, plan: EnterPlan | None = None
    ) -> None:
        self.pid = pid
        # What a second command is to get as well (enter_join), without the plan's files.
        self.command = plan.command if plan is not None else None
        self.filters = plan.filters if plan is not None else ()
        self.command_pid: int | None = None
        self._control = control
        self._errors = errors
        self._status: int | None = None

    def fileno(self) -> int:
        """The control socket, for a selector."""
        return self._control.fileno()

    def go(self) -> None:
        """Let CMD run. May be called before `Ready`. A sandbox that has ended ignores it."""
        self._tell(b"G")

    def signal(self, number: int) -> None:
        """Send CMD's process a signal; ignored where it has ended."""
        self._tell(b"P %d" % number)

    def signal_group(self, number: int) -> None:
        """Send a signal to the process group that CMD started in; ignored where it has ended."""
        self._tell(b"K %d" % number)

    def _tell(self, message: bytes) -> None:
        # A signal may still come when all of it is over and closed.
        with suppress(OSError):
            self._control.send(message, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)

    def handle(self) -> Event:
        """Read one event; blocks until there is one. After an end there is nothing more to read."""
        message, ancillary = self._receive()
        verb, _, rest = message.partition(b" ")
        if verb == b"R":
            self.command_pid = _sender(ancillary)
            return Ready(self.command_pid)
        if verb == b"S":
            return Started(self.command_pid or 0)
        if verb == b"T":
            return Stopped(int(rest))
        if verb == b"C":
            return Continued()
        if verb == b"X":
            code = os.waitstatus_to_exitcode(int(rest))
            return Exited(code) if code >= 0 else Exited(128 - code, -code)
        if verb == b"E":
            number, _, what = rest.partition(b" ")
            text = os.strerror(int(number))
            return CannotExecute(int(number), f"{os.fsdecode(what)}: {text}")
        return Failed(self._why())

    def _receive(self) -> tuple[bytes, list[tuple[int, int, bytes]]]:
        size = socket.CMSG_SPACE(_CREDENTIALS.size)
        try:
            return self._control.recvmsg(MESSAGE_LIMIT, size)[:2]
        except ConnectionResetError:
            # init ended with a message of ours unread; what it said before is still queued.
            return self._control.recvmsg(MESSAGE_LIMIT, size)[:2]

    def _why(self) -> str:
        """The last line that bubblewrap or init wrote before it ended, and how it ended."""
        said = b""
        status = self.wait()
        with suppress(BlockingIOError):
            said = os.read(self._errors, 65536)
        lines = [line for line in said.decode(errors="backslashreplace").splitlines() if line]
        ended = f"signal {-status}" if status < 0 else f"status {status}"
        return lines[-1].strip() if lines else f"the sandbox ended with {ended}"

    def wait(self) -> int:
        """Wait until every process of the sandbox is gone; bubblewrap's exit code."""
        if self._status is None:
            _, status = os.waitpid(self.pid, 0)
            self._status = os.waitstatus_to_exitcode(status)
        return self._status

    def kill(self) -> None:
        """End everything inside; `wait` tells when that has happened."""
        if self._status is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """End the sandbox if it still runs, wait for it, and let go of every descriptor."""
        self.kill()
        self.wait()
        self._control.close()
        if self._errors >= 0:
            os.close(self._errors)
            self._errors = -1


def _sender(ancillary: Sequence[tuple[int, int, bytes]]) -> int:
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
            pid: int = _CREDENTIALS.unpack(data[: _CREDENTIALS.size])[0]
            return pid
    raise StepError("the sandbox's first message came without credentials")


def launch(plan: EnterPlan, *, netns_fd: int, cgroup_fds: Sequence[int] = ()) -> Child:
    """Start the sandbox of `plan` in the network namespace and cgroups given by descriptor.

    `cgroup_fds` are open, writable cgroup.procs files. None of the caller's descriptors is closed
    here. Raises OSError where a memfd, a pipe or a process cannot be made.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    errors, errors_write = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(errors, False)
    supervisor = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(errors)
            ours.close()
            _become_bwrap(plan, supervisor, netns_fd, cgroup_fds, theirs.fileno(), errors_write)
        except BaseException as error:
            with suppress(OSError):
                os.write(errors_write, f"entering the sandbox: {error}\n".encode(errors="replace"))
        finally:
            os._exit(125)
    theirs.close()
    os.close(errors_write)
    return Child(pid, ours, errors, plan)


def _become_bwrap(
    plan: EnterPlan,
    supervisor: int,
    netns_fd: int,
    cgroup_fds: Sequence[int],
    control: int,
    errors: int,
) -> NoReturn:
    """In the forked process; every step before the exec holds nothing of the supervisor's open.

    The order matters: the parent-death signal first, sockets of the supervisor last, and the
    cgroup before the exec so that everything inside is born in it.
    """
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != supervisor:
        os._exit(125)
    _reset_signals()
    os.setpgid(0, 0)
    for number in cgroup_fds:
        os.write(number, b"0")
    if _LIBC.setns(netns_fd, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "joining the network namespace")
    resource.setrlimit(resource.RLIMIT_CORE, NO_CORE)
    enter_private_mounts()
    apply_covers(plan.view.covers)

    control, errors = _above_stdio(control), _above_stdio(errors)
    keep = plan.command.keep_fds
    stdio = _stash_stdio()
    files = [_memfd(_content(content)) for content, _ in plan.view.files]
    filters = [_memfd(program) for program in plan.filters]
    program = _memfd(INIT.read_bytes())
    job = _memfd(_job(plan, control, stdio))
    arguments = bwrap_arguments(plan, file_fds=files, filter_fds=filters)
    options = _memfd(b"".join(os.fsencode(argument) + b"\0" for argument in arguments))

    os.dup2(_above_stdio(os.open("/dev/null", os.O_RDWR)), 0)
    os.dup2(errors, 1)
    os.dup2(errors, 2)
    passed = {*keep, *files, *filters, program, job, options, control}
    passed.update(number for number in stdio if number is not None)
    _close_all_but({0, 1, 2, *passed})
    for number in passed:
        os.set_inheritable(number, True)
    python = [INTERPRETER, "-I", "-S", f"/proc/self/fd/{program}", str(job)]
    argv = [BWRAP, "--args", str(options), "--", *python]
    _stay_unconfined()
    os.execve(BWRAP, argv, {"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8"})


def _stay_unconfined() -> None:
    """Where AppArmor leaves us alone, become bubblewrap without the profile that its path has.

    Ubuntu's (bwrap-userns-restrict) is for who makes user namespaces, which we do not, and takes
    from init the capabilities to become CMD's user. A confined netns-run stays as confined.
    """
    with suppress(OSError):
        if (APPARMOR / "current").read_bytes().strip() == b"unconfined":
            (APPARMOR / "exec").write_bytes(b"exec unconfined")


def _job(plan: EnterPlan, control: int, stdio: Sequence[int | None]) -> bytes:
    command, identity = plan.command, plan.command.identity
    job = {
        "argv": [os.fsencode(argument) for argument in command.argv],
        "env": {os.fsencode(name): os.fsencode(value) for name, value in command.env.items()},
        "cwd": os.fsencode(command.cwd),
        "uid": identity.uid,
        "gid": identity.gid,
        "groups": list(identity.groups),
        "runtime_dir": os.fsencode(plan.runtime_dir) if plan.runtime_dir else None,
        "control": control,
        "stdio": list(stdio),
        "keep": list(command.keep_fds),
    }
    return marshal.dumps(job, 2)  # a version every Python 3 reads


def _reset_signals() -> None:
    """What the supervisor handles or blocks is its own affair; what was ignored stays ignored."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if callable(signal.getsignal(number)) or number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _stash_stdio() -> tuple[int | None, ...]:
    """CMD's 0, 1 and 2 under other numbers, because 1 and 2 carry bubblewrap's complaints."""
    stash: list[int | None] = []
    for number in (0, 1, 2):
        try:
            # Where the caller closed one, some descriptor of ours may sit there: those are
            # close-on-exec, which what a program inherits never is.
            is_ours = bool(fcntl.fcntl(number, fcntl.F_GETFD) & fcntl.FD_CLOEXEC)
            stash.append(None if is_ours else _above_stdio(number))
        except OSError:
            stash.append(None)
    return tuple(stash)


def _above_stdio(number: int) -> int:
    return fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 3)


def _content(content: bytes | int) -> bytes:
    if isinstance(content, bytes):
        return content
    return os.pread(content, os.fstat(content).st_size, 0)


def _memfd(content: bytes) -> int:
    created = os.memfd_create("netns-run", os.MFD_CLOEXEC)
    number = _above_stdio(created)
    os.close(created)
    view = memoryview(content)
    while view:
        view = view[os.write(number, view) :]
    os.lseek(number, 0, os.SEEK_SET)
    return number


def _close_all_but(kept: set[int]) -> None:
    previous = -1
    for number in sorted(kept):
        if number > previous + 1:  # Python 3.11 takes the empty range 0..0 for everything
            os.closerange(previous + 1, number)
        previous = number
    os.closerange(previous + 1, 0x7FFFFFFF)
