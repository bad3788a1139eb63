"""What CMD could write, so that nothing the next root run obeys is CMD's to choose.

A path is within reach if CMD can write the file or replace any directory or link on the way to it.
An owner counts as a writer, because an owner may change the mode. Only `os.lstat` and friends are
called; a path that does not exist raises OSError.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_LINKS: Final = 40  # the kernel's own limit for one path


@dataclass(frozen=True, slots=True)
class Reach:
    """CMD's uid and gids, and the trees it may write in at all (None: wherever modes allow).

    `trees` are real paths: the working directory and every `--writable` of a read-only sandbox.
    """

    uid: int
    gids: frozenset[int] = frozenset()
    trees: tuple[str, ...] | None = None

    def writable_step(self, path: str) -> str | None:
        """The first step on the way to `path` that CMD could write or replace, or None."""
        for step in trail_of(path):
            if self._includes(step):
                return step
        return None

    def _includes(self, step: str) -> bool:
        if self.trees is not None and not any(_is_under(step, tree) for tree in self.trees):
            return False
        status = os.lstat(step)
        if status.st_uid == self.uid:
            return True
        if stat.S_ISLNK(status.st_mode):
            return False
        if stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX:
            # In a sticky directory nobody replaces what another owns, and the next step is looked
            # at by itself.
            return False
        if status.st_mode & stat.S_IWOTH:
            return True
        # With an ACL the group bits are its mask, so they may speak of somebody else.
        return bool(status.st_mode & stat.S_IWGRP) and (
            status.st_gid in self.gids or _has_acl(step)
        )


def trail_of(path: str) -> Iterator[str]:
    """Every directory, link and at last the file itself that opening `path` passes through."""
    links = 0
    here = "/"
    todo = _parts(os.path.join(os.getcwd(), path))
    yield here
    while todo:
        part = todo.pop()
        if part == "..":
            here = os.path.dirname(here)
            continue
        step = os.path.join(here, part)
        yield step
        if not stat.S_ISLNK(os.lstat(step).st_mode):
            here = step
            continue
        links += 1
        if links > _MAX_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
        target = os.readlink(step)
        if target.startswith("/"):
            here = "/"
        todo.extend(_parts(target))
    yield here


def _parts(path: str) -> list[str]:
    return [part for part in reversed(path.split("/")) if part not in {"", "."}]


def _is_under(path: str, tree: str) -> bool:
    return path == tree or path.startswith(tree.rstrip("/") + "/")


def _has_acl(path: str) -> bool:
    try:
        return bool(os.getxattr(path, "system.posix_acl_access"))
    except OSError:
        return False
