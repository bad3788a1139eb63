"""`netns-run`: reads the command line, runs the sandbox, and ends with its exit status.

Every error is one line on stderr and exit status 125, so that it is never taken for CMD's own.
SIGTERM and SIGHUP undo what was set up, as Ctrl-C does.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from typing import Final

from netns_runtime import __version__
from netns_runtime.cli.options import USAGE, parse_command_line
from netns_runtime.cli.text import internal_error, settle
from netns_runtime.errors import EXIT_FAILED, NetnsError, UsageError

ROOM: Final = 800
"""With more descriptors open, a launch may get numbers beyond select's FD_SETSIZE (1024)."""


def main(*, inspect: bool = False) -> int:
    """The process: its value is the exit status. `inspect` is `Spec.inspect`: no option sets it."""
    return settle(_status(inspect))


def _status(inspect: bool) -> int:
    if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        # Inherited, it would have the kernel reap our children unseen.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)
    try:
        _fill_streams()
        return _run(sys.argv[1:], inspect)
    except NetnsError as error:
        from netns_runtime.supervise import complain

        complain(str(error))
        return error.status
    except KeyboardInterrupt:
        return 128 + 2
    except BrokenPipeError:
        return EXIT_FAILED
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EPIPE, errno.EBADF):
            return internal_error("netns-run", error)
        return EXIT_FAILED
    except Exception as error:
        return internal_error("netns-run", error)


def _end(number: int, _frame: object) -> None:
    """Unwind, and let nothing interrupt that."""
    for other in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(other, signal.SIG_IGN)
    raise SystemExit(128 + number)


def _fill_streams() -> None:
    """Where 0, 1 or 2 is closed, some descriptor of ours would take its number and its fate.

    What fills them is close-on-exec, which is how CMD's are told apart (enter_launch).
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    inherited = len(os.listdir("/proc/self/fd"))
    if inherited > ROOM:
        raise UsageError(
            f"{inherited} open descriptors were inherited, and a launch can have {ROOM}",
            remedy="have whoever starts netns-run close them, or set close-on-exec",
        )
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - as long as we live


def _run(words: list[str], inspect: bool) -> int:
    spec = parse_command_line(words)
    if isinstance(spec, str):
        sys.stdout.write(f"netns-run {__version__}\n" if spec == "--version" else USAGE)
        return 0
    if inspect:
        from dataclasses import replace

        spec = replace(spec, inspect=True)
    from netns_runtime.request import resolve

    with resolve(spec, os.environ) as request:
        if spec.verbose and not spec.dry_run:
            from netns_runtime.supervise import complain

            for note in dict.fromkeys(request.policy.notes):
                complain(note)
        if spec.dry_run:
            from netns_runtime.cli.dry_run import show

            show(request)
            return 0
        from netns_runtime.runtime import run

        return run(request)


if __name__ == "__main__":
    sys.exit(main())
