"""Opens a policy file once and reads it.

The supervisor is root and obeys what the file says, so where `reach` is given, a file that CMD
could write or replace is refused: it would be CMD that writes the next run's policy. Ends in a
Policy or in one UsageError.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from netns_runtime.errors import UsageError, file_error
from netns_runtime.policy.load import load_policy
from netns_runtime.policy.nodes import MAX_BYTES, shown

if TYPE_CHECKING:
    from netns_runtime.policy.reach import Reach
    from netns_runtime.policy.rules import Policy


def read_policy(path: str, reach: Reach | None = None) -> Policy:
    """The policy in the file at `path`, which may also be a pipe (`/dev/fd/63`)."""
    try:
        data = _read(path)
        step = None if reach is None else reach.writable_step(path)
    except OSError as error:
        raise file_error(f"--policy {shown(path)}", error) from error
    if step is not None:
        raise UsageError(
            f"--policy {shown(path)}: CMD could write {shown(step)} and with it the next policy",
            remedy="keep the policy where only root can write",
        )
    return load_policy(data, path)


def read_text(path: str) -> str:
    """The text of the file, not yet understood, for a supervisor that will load it."""
    try:
        return _read(path).decode("utf-8")
    except OSError as error:
        raise file_error(f"--set {shown(path)}", error) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--set {shown(path)}: not UTF-8", remedy="save it as UTF-8") from error


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
    with open(fd, "rb") as file:
        mode = os.fstat(fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
            raise UsageError(
                f"--policy {shown(path)}: neither a file nor a pipe", remedy="name a YAML file"
            )
        os.set_blocking(fd, True)
        return file.read(MAX_BYTES + 1)
