"""How `scripts/test-vm` and `scripts/vm-box` end when something is wrong: one line and a status.

125 for what is missing here or was asked for wrongly, 130 when it was interrupted (SIGTERM too);
anything else is the command's own status.
"""

from __future__ import annotations

import argparse
import signal
import sys
from typing import TYPE_CHECKING, Final, NoReturn

from netns_runtime.errors import NetnsError, UsageError, file_error

if TYPE_CHECKING:
    from collections.abc import Callable

INTERRUPTED: Final = 130


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaint is a UsageError instead of a page and status 2."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, remedy=f"{self.prog} --help tells what there is")


def say(program: str, text: str) -> None:
    sys.stderr.write(f"{program}: {text}\n")
    sys.stderr.flush()


def _interrupted(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def ended(program: str, body: Callable[[], int]) -> int:
    """The status of `body`, or that of what stopped it, which is told in one line."""
    before = signal.signal(signal.SIGTERM, _interrupted)
    try:
        return body()
    except OSError as error:
        told = file_error(str(error.filename or "a file"), error)
        say(program, str(told))
        return told.status
    except NetnsError as error:
        say(program, str(error))
        return error.status
    except KeyboardInterrupt:
        say(program, "interrupted: what is built is kept, run it again to go on")
        return INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, before)
