"""Covers a path in a mount namespace of our own, by descriptor, creating nothing.

Runs as root in the forked process that becomes bubblewrap. bubblewrap makes a missing mount point
as root and follows links on the way, so whatever lies where CMD's user can write is covered here
instead: opened once, compared with the path that was planned, mounted over by descriptor. Ends
with the covers in place or with OSError.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
from typing import TYPE_CHECKING, Final

from netns_runtime.namespace.filesystem_protect import Cover, How

if TYPE_CHECKING:
    from collections.abc import Iterable

CLONE_NEWNS: Final = 0x00020000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REC, MS_PRIVATE = 0x4000, 0x40000
# The same numbers on every architecture.
SYS_OPEN_TREE, SYS_MOVE_MOUNT, SYS_MOUNT_SETATTR = 428, 429, 442
AT_EMPTY_PATH, AT_RECURSIVE = 0x1000, 0x8000
OPEN_TREE_CLONE, OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
MOVE_MOUNT_BY_DESCRIPTOR: Final = 0x4 | 0x40  # F_EMPTY_PATH | T_EMPTY_PATH
MOUNT_ATTR_RDONLY: Final = 1

_LIBC = ctypes.CDLL(None, use_errno=True)


def _check(result: int, path: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result


def enter_private_mounts() -> None:
    """A mount namespace that nothing propagates into or out of."""
    _check(_LIBC.unshare(CLONE_NEWNS), "unshare")
    _check(_LIBC.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None), "/")


def apply_covers(covers: Iterable[Cover]) -> None:
    """Place the covers, outer paths first. Raises OSError for one that must be there."""
    for cover in sorted(covers, key=lambda cover: cover.path):
        try:
            target = _open_exactly(cover.path)
        except OSError:
            if cover.must:
                raise
            continue
        try:
            _PLACE[cover.how](target, cover.path)
        finally:
            os.close(target)


def _open_exactly(path: str) -> int:
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    if os.readlink(f"/proc/self/fd/{descriptor}") != path:
        os.close(descriptor)
        raise OSError(errno.ELOOP, "is not where it was when the launch was planned", path)
    return descriptor


def _hide(target: int, path: str) -> None:
    if stat.S_ISDIR(os.fstat(target).st_mode):
        place = f"/proc/self/fd/{target}".encode()
        flags = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC
        _check(_LIBC.mount(b"tmpfs", place, b"tmpfs", flags, b"size=4k,mode=0555"), path)
        return
    null = os.open("/dev/null", os.O_PATH | os.O_CLOEXEC)
    _move(_clone(null, path, recursive=False), target, path)


def _pin(target: int, path: str) -> None:
    _move(_clone(os.dup(target), path), target, path)


def _make_read_only(target: int, path: str) -> None:
    tree = _clone(os.dup(target), path)
    attributes = struct.pack("=QQQQ", MOUNT_ATTR_RDONLY, 0, 0, 0)
    _check(
        _LIBC.syscall(
            SYS_MOUNT_SETATTR,
            tree,
            b"",
            AT_EMPTY_PATH | AT_RECURSIVE,
            attributes,
            ctypes.c_size_t(len(attributes)),
        ),
        path,
    )
    _move(tree, target, path)


def _clone(source: int, path: str, *, recursive: bool = True) -> int:
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | AT_EMPTY_PATH | AT_RECURSIVE * recursive
    try:
        return _check(_LIBC.syscall(SYS_OPEN_TREE, source, b"", flags), path)
    finally:
        os.close(source)


def _move(tree: int, target: int, path: str) -> None:
    try:
        flags = MOVE_MOUNT_BY_DESCRIPTOR
        _check(_LIBC.syscall(SYS_MOVE_MOUNT, tree, b"", target, b"", flags), path)
    finally:
        os.close(tree)


_PLACE = {How.HIDE: _hide, How.READ_ONLY: _make_read_only, How.PIN: _pin}
