"""The sandbox's first process: PID 1 inside, between bubblewrap and CMD.

A stand-alone program, run as `python3 -I -S /proc/self/fd/N JOB_FD` by the system's interpreter; it
imports nothing of ours and holds no secret but CMD's own environment. It forks CMD without
privilege, gives up its own, reaps, passes signals on, and tells the supervisor over the control
socket what became of CMD. It ends when CMD ends or the supervisor does, and all inside with it.

Messages up: b"R" from CMD's process before it executes (the kernel adds its pid), then from us
b"S" started, b"T n" stopped, b"C" continued, b"X status" (a wait status), b"E errno text".
Messages down: b"G" go, b"P n" signal CMD, b"K n" signal CMD's process group.
"""

from __future__ import annotations

# signal, select and ctypes proper cost 7 ms, most of it enum, of a start that takes 10.
import _ctypes
import _signal  # type: ignore[import-not-found]
import errno
import marshal
import os
import select
import sys

TYPE_CHECKING = False  # importing typing costs another 10 ms
if TYPE_CHECKING:
    from typing import Any, NoReturn

PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_CAPBSET_DROP = 24
PR_SET_SECUREBITS = 28
PR_SET_NO_NEW_PRIVS = 38
# NOROOT, NO_CAP_AMBIENT_RAISE, each with its lock.
SECUREBITS = 0b1100_0011
CAPABILITY_HEADER = b"\x22\x05\x08\x20" + bytes(4)  # version 3, this process
LOST = 137

_LIBC = _ctypes.dlopen(None, os.RTLD_NOW)  # type: ignore[arg-type]


def libc(function: str, *arguments: int | bytes) -> int:
    """Call libc; the result is C's. Integers are passed as C ints, bytes by pointer."""
    result: int = _ctypes.call_function(_ctypes.dlsym(_LIBC, function), arguments)
    return result


def must(result: int, step: str) -> None:
    """Stop the sandbox where a defence could not be raised."""
    if result < 0:
        sys.stderr.write(f"init: {step} was refused\n")
        os._exit(LOST)


def give_up_privileges(job: dict[str, Any]) -> None:
    """No capability in any set, no way back to one, and the uid, gid and groups of CMD."""
    capability = 0
    while libc("prctl", PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:
        capability += 1
    must(libc("prctl", PR_SET_SECUREBITS, SECUREBITS, 0, 0, 0), "PR_SET_SECUREBITS")
    must(libc("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
    os.setgroups(job["groups"])
    os.setresgid(job["gid"], job["gid"], job["gid"])
    os.setresuid(job["uid"], job["uid"], job["uid"])
    must(libc("capset", CAPABILITY_HEADER, bytes(24)), "capset")
    # Changed credentials reset both.
    must(libc("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0), "PR_SET_DUMPABLE")
    must(libc("prctl", PR_SET_PDEATHSIG, _signal.SIGKILL, 0, 0, 0), "PR_SET_PDEATHSIG")


def become_command(job: dict[str, Any], gate: int, outcome: int) -> NoReturn:
    """In CMD's process: take its place in every respect, wait for the gate, execute."""
    try:
        os.setpgid(0, 0)
        for target, source in enumerate(job["stdio"]):
            if source is None:
                os.close(target)
            else:
                os.dup2(source, target)
        for entry in os.listdir("/proc/self/fd"):
            if int(entry) > 2 and int(entry) not in job["keep"]:
                try:
                    os.set_inheritable(int(entry), False)
                except OSError:
                    continue
        for number in (_signal.SIGPIPE, _signal.SIGXFSZ):
            _signal.signal(number, _signal.SIG_DFL)
        give_up_privileges(job)
        libc("prctl", PR_SET_PDEATHSIG, 0, 0, 0, 0)
        os.write(job["control"], b"R")
        if os.read(gate, 1) != b"G":
            os._exit(LOST)
        os.chdir(job["cwd"])
    except OSError as refused:
        fail(outcome, refused, b"working directory " + job["cwd"] if refused.filename else b"init")
    execute(job, outcome)


def execute(job: dict[str, Any], outcome: int) -> NoReturn:
    """Search CMD's own PATH as execvp does, a script without `#!` included."""
    argv, env = job["argv"], job["env"]
    name = argv[0]
    places = env.get(b"PATH", b"/usr/local/bin:/usr/bin:/bin").split(b":")
    paths = [name] if b"/" in name else [(place or b".") + b"/" + name for place in places]
    worst = OSError(errno.ENOENT, "")
    for path in paths:
        try:
            os.execve(path, argv, env)
        except OSError as refused:
            if refused.errno == errno.ENOEXEC:
                try:
                    os.execve(b"/bin/sh", [b"sh", path, *argv[1:]], env)
                except OSError as no_shell:
                    refused = no_shell
            if refused.errno not in (errno.ENOENT, errno.ENOTDIR):
                worst = refused
                if refused.errno != errno.EACCES:
                    break
        except ValueError:
            worst = OSError(errno.EINVAL, "")
    fail(outcome, worst, name)


def fail(outcome: int, refused: OSError, what: bytes) -> NoReturn:
    """Tell init why CMD could not be executed, and end."""
    os.write(outcome, b"%d %s" % (refused.errno or 0, what[:2000]))
    os._exit(LOST)


def read_job(descriptor: int) -> dict[str, Any]:
    """The job is the whole of a memfd, marshalled by the supervisor."""
    with os.fdopen(descriptor, "rb") as file:
        job: dict[str, Any] = marshal.loads(file.read())
    return job


def make_runtime_dir(job: dict[str, Any]) -> None:
    """A private XDG_RUNTIME_DIR, as pam_systemd would make it, in our own /run."""
    if job["runtime_dir"] is not None:
        os.makedirs(job["runtime_dir"], 0o755, exist_ok=True)
        os.chmod(job["runtime_dir"], 0o700)
        os.chown(job["runtime_dir"], job["uid"], job["gid"])


def quiet(job: dict[str, Any], wake: int) -> None:
    """Let go of CMD's stdio, of the supervisor's error pipe, and of every signal but SIGCHLD."""
    null = os.open("/dev/null", os.O_RDWR)
    for target in (0, 1, 2):
        os.dup2(null, target)
    for descriptor in {*job["stdio"], *job["keep"]} - {None, 0, 1, 2}:
        os.close(descriptor)
    for number in range(1, _signal.NSIG):
        if number not in (_signal.SIGKILL, _signal.SIGSTOP, _signal.SIGCHLD):
            try:
                _signal.signal(number, _signal.SIG_IGN)
            except (OSError, ValueError):
                continue
    _signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    _signal.signal(_signal.SIGCHLD, lambda _number, _frame: None)


class Init:
    """The loop: what CMD does goes up, what the supervisor wants goes down."""

    def __init__(self, control: int, gate: int, outcome: int, command: int) -> None:
        self.control = control
        self.gate = gate
        self.outcome = outcome
        self.command = command
        self.has_outcome = False

    def say(self, message: bytes) -> None:
        """Tell the supervisor; without one there is nothing left to do."""
        try:
            os.write(self.control, message)
        except OSError:
            os._exit(LOST)

    def listen(self) -> None:
        """Obey one message of the supervisor, or end with it."""
        try:
            message = os.read(self.control, 64)
        except ConnectionError:
            message = b""
        if not message:
            os._exit(LOST)
        verb, _, number = message.partition(b" ")
        if verb == b"G":
            os.write(self.gate, b"G")
        elif verb in (b"P", b"K"):
            # Unreaped, so the number is still CMD's.
            try:
                (os.kill if verb == b"P" else os.killpg)(self.command, int(number))
            except (ProcessLookupError, PermissionError):
                return

    def learn(self) -> None:
        """Read, once, whether CMD executed: silence is success. Blocks until that is decided."""
        if self.has_outcome:
            return
        self.has_outcome = True
        why = os.read(self.outcome, 4096)
        self.say(b"E " + why if why else b"S")
        if why:
            os._exit(LOST)

    def reap(self) -> None:
        """Collect what ended or changed; CMD's end is ours."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid != self.command:
                continue
            if os.WIFSTOPPED(status):
                self.say(b"T %d" % os.WSTOPSIG(status))
            elif os.WIFCONTINUED(status):
                self.say(b"C")
            else:
                self.learn()
                self.say(b"X %d" % status)
                code = os.waitstatus_to_exitcode(status)
                os._exit(code if code >= 0 else 128 - code)


def main() -> NoReturn:
    """Fork CMD, then watch it until one side ends."""
    must(libc("prctl", PR_SET_DUMPABLE, 0, 0, 0, 0), "PR_SET_DUMPABLE")
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        # CMD's process may be interrupted before it is CMD: that needs no traceback.
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    job = read_job(int(sys.argv[1]))
    make_runtime_dir(job)
    gate_read, gate_write = os.pipe()
    outcome_read, outcome_write = os.pipe()
    command = os.fork()
    if command == 0:
        os.close(gate_write)
        os.close(outcome_read)
        become_command(job, gate_read, outcome_write)
    os.close(gate_read)
    os.close(outcome_write)
    give_up_privileges(job)
    woken, wake = os.pipe()
    os.set_blocking(woken, False)
    os.set_blocking(wake, False)
    quiet(job, wake)
    init = Init(job["control"], gate_write, outcome_read, command)
    poll = select.poll()
    for descriptor in (init.control, woken, outcome_read):
        poll.register(descriptor, select.POLLIN)
    os.write(wake, b"\0")
    while True:
        ready = {descriptor for descriptor, _ in poll.poll()}
        if init.control in ready:
            init.listen()
        if outcome_read in ready:
            poll.unregister(outcome_read)
            init.learn()
        if woken in ready:
            os.read(woken, 4096)
        init.reap()


if __name__ == "__main__":
    main()
