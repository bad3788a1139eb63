"""What root executes or reads next time must not be writable by CMD: which mounts see to that.

Each protected path is covered read-only, at every path where it appears; and each directory above
it that CMD could rename is bound on itself, because a mount point cannot be renamed away. Pure but
for lstat; a protected path that does not exist is left out.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from netns_runtime.namespace.filesystem_mounts import Mount, aliases_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class How(Enum):
    """What a cover does to a path, strongest first."""

    HIDE = "hide"
    READ_ONLY = "read-only"
    PIN = "pin"


@dataclass(frozen=True, slots=True, order=True)
class Cover:
    """A mount put over `path` in the sandbox's own mount namespace, before bubblewrap copies it.

    `must` says that the launch fails where it cannot be placed; otherwise a path that has gone
    since the plan was made is nothing to cover.
    """

    path: str
    how: How
    must: bool = False


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom CMD runs as."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()


def could_write(status: os.stat_result, identity: Identity) -> bool:
    """Whether CMD may write this inode, or may allow itself to: an owner can change the mode.

    A set group bit counts for every group, because with an ACL it is the mask of all named users.
    """
    return status.st_uid == identity.uid or bool(status.st_mode & (stat.S_IWGRP | stat.S_IWOTH))


def could_rename(
    path: str, identity: Identity, look: Callable[[str], os.stat_result] = os.lstat
) -> bool:
    """Whether CMD could rename or replace `path` in its directory; a sticky one guards owners."""
    above = look(os.path.dirname(path))
    if not could_write(above, identity):
        return False
    if above.st_mode & stat.S_ISVTX and above.st_uid != identity.uid:
        return look(path).st_uid == identity.uid
    return True


def protect(
    paths: Iterable[str],
    identity: Identity,
    mounts: tuple[Mount, ...],
    hidden: Iterable[str] = (),
) -> tuple[Cover, ...]:
    """The covers that keep CMD from changing `paths` by write, unlink or any rename above.

    What is `hidden` CMD cannot read either: /dev/null lies over it.
    """
    found: dict[str, Cover] = {}
    secret = frozenset(hidden)
    for path in (*paths, *secret):
        for alias in aliases_of(os.path.realpath(path), mounts):
            if not os.path.lexists(alias):
                continue
            # A read-only mount does not keep anybody from writing to a FIFO.
            is_pipe = stat.S_ISFIFO(os.lstat(alias).st_mode)
            how = How.HIDE if is_pipe or path in secret else How.READ_ONLY
            found[alias] = Cover(alias, how, must=True)
            above = os.path.dirname(alias)
            while above != "/":
                if could_rename(above, identity):
                    found.setdefault(above, Cover(above, How.PIN, must=True))
                above = os.path.dirname(above)
    return tuple(found[path] for path in sorted(found))
