"""The mount table as values, and every path by which one file can be reached.

`parse_mountinfo` reads the kernel's text (proc_pid_mountinfo(5)); `aliases_of` answers where else
in the tree a file appears, which is what makes covering a path mean covering the file. Pure; it
ends with values, and a line the kernel would never write raises ValueError.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

# File systems that are the kernel's own controls, or another namespace's devices and processes.
KERNEL_FILESYSTEMS: Final = frozenset(
    [
        "apparmorfs",
        "autofs",
        "binder",
        "binfmt_misc",
        "bpf",
        "cgroup",
        "cgroup2",
        "configfs",
        "cpuset",
        "debugfs",
        "devpts",
        "devtmpfs",
        "efivarfs",
        "functionfs",
        "fusectl",
        "gadgetfs",
        "mqueue",
        "nfsd",
        "nsfs",
        "ocfs2_dlmfs",
        "proc",
        "pstore",
        "resctrl",
        "rpc_pipefs",
        "securityfs",
        "selinuxfs",
        "smackfs",
        "sysfs",
        "tracefs",
        "usbfs",
        "xenfs",
    ]
)

_OCTAL: Final = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo. `root` is the part of the file system that `point` shows."""

    point: str
    root: str
    device: str
    kind: str


def parse_mountinfo(text: str) -> tuple[Mount, ...]:
    """The mounts in the kernel's order: a later one at the same point hides an earlier one."""
    mounts = []
    # Only a line feed ends a line: names may hold what str.splitlines takes for an end.
    for line in filter(None, text.split("\n")):
        left, separator, right = line.partition(" - ")
        fields = left.split(" ")
        if not separator or len(fields) < 6:
            raise ValueError(f"not a line of mountinfo: {line!r}")
        device, root, point = fields[2:5]
        mounts.append(Mount(unescape(point), unescape(root), device, right.split(" ")[0]))
    return tuple(mounts)


def unescape(field: str) -> str:
    """A field of the kernel's mount tables as it is: white space and backslashes are in octal."""
    if "\\" not in field:
        return field
    raw = _OCTAL.sub(lambda match: chr(int(match[1], 8)), os.fsencode(field).decode("latin-1"))
    return os.fsdecode(raw.encode("latin-1"))


def is_below(path: str, top: str) -> bool:
    """Whether `path` is `top` or lies under it. Both absolute and without a trailing slash."""
    return path == top or path.startswith(top if top == "/" else top + "/")


def mount_of(path: str, mounts: Iterable[Mount]) -> Mount | None:
    """The mount that shows `path`: the deepest point, and of several there the latest."""
    best = None
    for mount in mounts:
        if is_below(path, mount.point) and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best


def aliases_of(
    path: str, mounts: tuple[Mount, ...], seen_in: tuple[Mount, ...] | None = None
) -> tuple[str, ...]:
    """Every path in the tree `mounts` where the file at `path` appears, `path` itself included.

    `seen_in` is the mount table in which `path` was seen, where that is another one.
    """
    home = mount_of(path, seen_in if seen_in is not None else mounts)
    if home is None:
        return ()
    inside = _join(home.root, path[len(home.point.rstrip("/")) :])
    found = {
        _join(mount.point, inside[len(mount.root.rstrip("/")) :])
        for mount in mounts
        if mount.device == home.device and is_below(inside, mount.root)
    }
    return tuple(sorted(found))


def _join(top: str, rest: str) -> str:
    rest = rest.strip("/")
    top = top.rstrip("/")
    return f"{top}/{rest}" if rest else top or "/"
