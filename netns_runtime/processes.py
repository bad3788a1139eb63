"""What /proc says of a process that the kernel named: its executable and its parent.

A pid may have gone or been reused by the time anybody looks, so an executable is believed only when
it is still the inode that the kernel recorded.
"""

from __future__ import annotations

import os


def kernel_device(device: int) -> int:
    """A `st_dev` as the kernel writes it: major << 20 | minor (include/linux/kdev_t.h)."""
    return os.major(device) << 20 | os.minor(device)


def executable_of(pid: int, inode: int = 0) -> str | None:
    """The path of a process's executable as the host sees it; None when it cannot be known.

    `inode` is what the kernel recorded, 0 for unknown. A file that was deleted or replaced since is
    told with the kernel's own ` (deleted)` at its end.
    """
    link = f"/proc/{pid}/exe"
    try:
        path = os.readlink(link)
        if inode and os.stat(link).st_ino != inode:
            return None
    except OSError:
        return None
    return path
