"""Writes audit events as JSON lines to one descriptor.

The supervisor and the proxy write to the same file, each line by one `write(2)` to a descriptor
opened with O_APPEND, so lines never mix. A line that cannot be written raises `AuditError`; the
proxy then refuses the flow (no record, no egress).
"""

from __future__ import annotations

import json
import os
import select
import stat
from typing import TYPE_CHECKING, Any

from netns_runtime.errors import UsageError, file_error
from netns_runtime.events import event_of

if TYPE_CHECKING:
    from collections.abc import Callable


class AuditError(Exception):
    """The audit line could not be written in full."""


# A reader that does not read: wait this long once, then not at all until it reads again.
PATIENCE_MS = 1000

# An event is flat: there is no circle to look for.
_encode = json.JSONEncoder(ensure_ascii=True, check_circular=False, separators=(",", ":")).encode


class AuditLog:
    """Events of one sandbox. `fd` is borrowed, never closed here; None means nobody asked for them.

    `listener`, where given, sees every event after it was written. `form` is how they are written:
    "json", or "ocsf" (`netns_runtime.ocsf`); the listener sees the contract's names in either case.
    """

    def __init__(
        self,
        fd: int | None,
        sandbox: str,
        listener: Callable[[dict[str, Any]], None] | None = None,
        form: str = "json",
    ) -> None:
        self.fd = fd
        self._mapped: Callable[[dict[str, Any]], dict[str, Any]] | None = None
        if form == "ocsf" and fd is not None:
            from netns_runtime.ocsf import ocsf_of  # no part of most launches

            self._mapped = ocsf_of
        self.sandbox = sandbox
        self.listener = listener
        self._patience = PATIENCE_MS
        self._may_block = fd is not None and not stat.S_ISREG(os.fstat(fd).st_mode)

    def write(self, event: str, **fields: Any) -> None:
        """Write one event. Raises AuditError when the line did not get out whole."""
        if self.fd is None and self.listener is None:
            return
        line = event_of(event, self.sandbox, **fields)
        if self.fd is not None:
            told = line if self._mapped is None else self._mapped(line)
            data = (_encode(told) + "\n").encode("ascii")
            if self._may_block:
                self._wait_for_room(self.fd)
            try:
                written = os.write(self.fd, data)
                while written < len(data):
                    written += os.write(self.fd, data[written:])
            except OSError as error:
                raise AuditError(f"cannot write the audit: {error.strerror}") from error
        if self.listener is not None:
            self.listener(line)

    def _wait_for_room(self, fd: int) -> None:
        """A pipe that is writable has room for PIPE_BUF bytes (pipe(7)), a line as a rule."""
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        if not poll.poll(self._patience):
            self._patience = 0
            raise AuditError("cannot write the audit: its reader does not read")
        self._patience = PATIENCE_MS


def open_audit(target: str) -> int:
    """Open `FILE` or `fd:N` for appending and return a descriptor that the caller owns.

    A file is created with mode 0600; a symbolic link at its end, a second name, and anything but a
    regular file, a FIFO or a character device, is refused: root must not append where a link of
    CMD's points, and CMD must not write by another name.
    """
    if target.startswith("fd:"):
        number = target[3:]
        if not (number.isascii() and number.isdigit() and len(number) < 10):
            raise UsageError(f"--audit {target}: fd:N takes a number", remedy="as in fd:3")
        try:
            return os.dup(int(number))
        except OSError as error:
            raise UsageError(
                f"--audit {target}: descriptor {number} is not open",
                remedy=f"pass an open one; sudo closes it unless -C {int(number) + 1} is given",
            ) from error
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY
    try:
        fd = os.open(target, flags | os.O_NONBLOCK, 0o600)
    except OSError as error:
        raise file_error(f"--audit {target}", error) from error
    found = os.fstat(fd)
    mode = found.st_mode
    wrong = ""
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)):
        wrong = "not a regular file, FIFO or device"
    elif stat.S_ISREG(mode) and found.st_nlink > 1:
        wrong = "it has other names (hard links): name a file that has one"
    elif os.path.isabs(target) and os.readlink(f"/proc/self/fd/{fd}") != os.path.normpath(target):
        wrong = "a link is on the way to it: name it by its real path"
    if wrong:
        os.close(fd)
        raise UsageError(f"--audit {target}: {wrong}", remedy="or pass a descriptor: fd:N")
    os.set_blocking(fd, True)
    return fd
