"""Reads the value of a `--secret` from where it is: a variable, a file or a descriptor.

Each is read once, within VALUE_LIMIT, and taken as one line of text. A file that CMD may choose the
way to, or that has a second name, is refused; a descriptor is closed, so that CMD has neither. Ends
in a value, or in one UsageError that names the secret and never shows its value.
"""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from netns_runtime.errors import UsageError, file_error
from netns_runtime.secret import PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from netns_runtime.spec import SecretSource

VALUE_LIMIT: Final = 64 << 10
_OWN_DESCRIPTOR: Final = re.compile(r"/(?:dev|proc/self|proc/thread-self)/fd/([0-9]{1,9})")


@dataclass(frozen=True, slots=True)
class Found:
    """A value and, where it came from a file, which: CMD must not find it there."""

    value: str = field(repr=False)
    path: str | None = None
    inode: tuple[int, int] | None = None


def read_secret(
    source: SecretSource,
    environment: Mapping[str, str],
    real_path: Callable[[str, str], str],
) -> Found:
    """The value that `source` names. `real_path(option, path)` is `Request.real_path`."""
    said = f"--secret {source.name}={source}"
    if source.kind == "env":
        text = environment.get(source.place)
        if text is None:
            raise UsageError(
                f"{said}: there is no such variable",
                remedy="set it; sudo passes on only what --preserve-env=NAME names",
            )
        return Found(parse_value(text.encode("utf-8", "surrogateescape"), said))
    own = _OWN_DESCRIPTOR.fullmatch(source.place)
    try:
        if source.kind == "fd" or own is not None:
            return _from_descriptor(int(own[1] if own else source.place), said)
        return _from_file(source.place, said, real_path)
    except OSError as error:
        raise file_error(said, error) from None


def parse_value(data: bytes, said: str) -> str:
    """The value in `data`, without one newline at its end. Raises UsageError, `said` in front."""
    if len(data) > VALUE_LIMIT + 2:
        raise UsageError(
            f"{said}: longer than {VALUE_LIMIT >> 10} KiB", remedy="a secret is one short line"
        )
    data = data.removesuffix(b"\n").removesuffix(b"\r") if data.endswith(b"\n") else data
    if not data:
        raise UsageError(f"{said}: the value is empty", remedy="give it one")
    if len(data) > VALUE_LIMIT:
        raise UsageError(
            f"{said}: longer than {VALUE_LIMIT >> 10} KiB", remedy="a secret is one short line"
        )
    try:
        value = data.decode("utf-8")
    except UnicodeDecodeError:
        raise UsageError(
            f"{said}: the value is not UTF-8", remedy="a secret is one line of text"
        ) from None
    if any(unicodedata.category(character) == "Cc" for character in set(value)):
        raise UsageError(
            f"{said}: the value holds a control character", remedy="a secret is one line of text"
        )
    if value in (".", ".."):
        # In a path it would be another path (RFC 3986, 5.2.4), and these are not escaped.
        raise UsageError(f"{said}: the value is only dots", remedy="give the secret's own value")
    if value.startswith(PREFIX):
        raise UsageError(
            f"{said}: the value is a placeholder itself", remedy="give the secret's own value"
        )
    return value


def _from_file(path: str, said: str, real_path: Callable[[str, str], str]) -> Found:
    real = os.path.realpath(real_path(said.partition(":")[0] + ":", path))
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    fd = os.open(real, flags)
    try:
        status = os.fstat(fd)
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISFIFO(status.st_mode)):
            raise UsageError(f"{said}: neither a file nor a pipe", remedy="name a file")
        if os.readlink(f"/proc/self/fd/{fd}") != real:
            raise UsageError(f"{said}: a link on the way to it changed", remedy="try again")
        os.set_blocking(fd, True)
        return _read(fd, said, status)
    finally:
        os.close(fd)


def _from_descriptor(fd: int, said: str) -> Found:
    if fd in (1, 2):
        raise UsageError(f"{said}: that is where CMD writes", remedy="use 0, or 3 and above")
    try:
        status = os.fstat(fd)
    except OSError:
        raise UsageError(
            f"{said}: descriptor {fd} is not open",
            remedy=f"open it for netns-run; sudo closes it unless -C {fd + 1} (or more) is given",
        ) from None
    if stat.S_ISDIR(status.st_mode):
        raise UsageError(f"{said}: it is a directory", remedy="name a file")
    os.set_blocking(fd, True)
    try:
        return _read(fd, said, status)
    finally:
        if fd == 0:
            null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            os.dup2(null, 0)
            os.close(null)
        else:
            os.close(fd)


def _read(fd: int, said: str, status: os.stat_result) -> Found:
    is_file = stat.S_ISREG(status.st_mode)
    if is_file and status.st_nlink > 1:
        raise UsageError(
            f"{said}: it has other names (hard links), by which CMD could read it",
            remedy="name a file that has one",
        )
    data = b""
    while len(data) <= VALUE_LIMIT + 2:
        part = os.read(fd, VALUE_LIMIT + 3 - len(data))
        if not part:
            break
        data += part
    path = os.readlink(f"/proc/self/fd/{fd}")
    is_there = path.startswith("/") and _is_same(path, status)
    return Found(
        parse_value(data, said),
        path if is_there and not stat.S_ISCHR(status.st_mode) else None,
        (status.st_dev, status.st_ino),
    )


def _is_same(path: str, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.lstat(path), status)
    except OSError:
        return False
