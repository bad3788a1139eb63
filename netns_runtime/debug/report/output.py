"""Writes a page to the file that the caller named: whole or not at all, and never somewhere else.

The directory is walked to by descriptors; a link on the way is followed only where nobody but the
caller and root could have made it, and one at the end never. The page goes to a new file beside the
target, which then takes its name. An existing file is replaced only if it is a regular file of the
caller's. Ends in one UsageError otherwise; nothing is left behind then.
"""

from __future__ import annotations

import os
import secrets
import stat
from contextlib import suppress
from typing import Final

from netns_runtime.debug.text import shown
from netns_runtime.errors import UsageError, file_error

LINKS: Final = 20
"""Symbolic links on the way, in all; the kernel's own limit is 40."""
MODE: Final = 0o644
"""A page is made to be shown; the umask may take from it."""
_PLACE: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def callers() -> frozenset[int]:
    """The uids that are the caller: our own and, as root under sudo, who called it."""
    sudo = os.environ.get("SUDO_UID", "")
    found = {os.geteuid()}
    if os.geteuid() == 0 and sudo.isascii() and sudo.isdigit() and len(sudo) < 11:
        found.add(int(sudo))
    return frozenset(found)


def check(target: str) -> None:
    """Raise UsageError where `write` could not: nobody waits for a page that has no place."""
    directory, name = _place_of(target)
    try:
        _refuse_what_is_there(directory, name, target)
        if not os.access(".", os.W_OK, dir_fd=directory, effective_ids=True):
            raise _wrong(target, "its directory cannot be written", "choose another directory")
    finally:
        os.close(directory)


def write(target: str, data: bytes) -> None:
    """Give the target this content. Raises UsageError."""
    directory, name = _place_of(target)
    spare = f".netns-report-{secrets.token_hex(8)}"
    try:
        try:
            _fill(directory, spare, data)
            _refuse_what_is_there(directory, name, target)
            os.rename(spare, name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            with suppress(OSError):
                os.unlink(spare, dir_fd=directory)
            raise
    except OSError as error:
        raise file_error(f"report: -o {shown(target)}", error) from error
    finally:
        os.close(directory)


def _fill(directory: int, name: str, data: bytes) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(name, flags, MODE, dir_fd=directory)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
    finally:
        os.close(fd)


def _wrong(target: str, what: str, remedy: str) -> UsageError:
    return UsageError(f"report: -o {shown(target)}: {what}", remedy=remedy)


def _refuse_what_is_there(directory: int, name: str, target: str) -> None:
    try:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return
    except OSError as error:
        raise file_error(f"report: -o {shown(target)}", error) from error
    if not stat.S_ISREG(found.st_mode):
        kind = "a link" if stat.S_ISLNK(found.st_mode) else "no regular file"
        raise _wrong(target, f"there is {kind}", "name a file, or use -o - for standard output")
    if found.st_uid not in callers():
        raise _wrong(target, f"it belongs to uid {found.st_uid}", "name a file of your own")


def _place_of(target: str) -> tuple[int, str]:
    """A descriptor of the directory, which the caller closes, and the name in it."""
    head, _, name = target.rpartition("/")
    if name in ("", ".", ".."):
        raise _wrong(target, "it names no file", "name one, as in -o report.html")
    fd = -1
    try:
        fd = os.open("/" if target.startswith("/") else ".", _PLACE & ~os.O_NOFOLLOW)
        todo = [part for part in reversed(head.split("/")) if part not in ("", ".")]
        links = 0
        while todo:
            part = todo.pop()
            found = os.stat(part, dir_fd=fd, follow_symlinks=False)
            if stat.S_ISLNK(found.st_mode):
                links += 1
                if links > LINKS or not _is_ours_alone(fd, found):
                    raise _wrong(
                        target, f"{shown(part)} is a link that others can set",
                        "name the directory by its real path",
                    )  # fmt: skip
                there = os.readlink(part, dir_fd=fd)
                if there.startswith("/"):
                    fd = _moved(fd, "/")
                todo += [step for step in reversed(there.split("/")) if step not in ("", ".")]
            else:
                fd = _moved(fd, part)
    except UsageError:
        os.close(fd)
        raise
    except (OSError, ValueError) as error:
        if fd >= 0:
            os.close(fd)
        if isinstance(error, ValueError):
            raise _wrong(target, "it has a NUL character", "name a file") from None
        raise file_error(f"report: -o {shown(target)}", error) from error
    return fd, name


def _moved(fd: int, part: str) -> int:
    following = os.open(part, _PLACE, dir_fd=fd)
    os.close(fd)
    return following


def _is_ours_alone(directory: int, link: os.stat_result) -> bool:
    trusted = {0, os.geteuid()}
    around = os.fstat(directory)
    if link.st_uid not in trusted or around.st_uid not in trusted:
        return False
    # In a sticky directory only a link's owner can change it (unlink(2)).
    return not around.st_mode & 0o022 or bool(around.st_mode & stat.S_ISVTX)
