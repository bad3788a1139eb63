"""Who owns a flow: the process that sent the SYN, as the kernel recorded it then."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Owner:
    """A process of a sandbox, seen from the host.

    `pid` is the thread group's id in the host's PID namespace and `comm` the thread's name, at most
    15 bytes, decoded with backslash escapes. `exe_inode` and `exe_device` (the kernel's dev_t,
    major << 20 | minor) identify the executable at the moment of the connect; 0 means the probe
    could not read it. `exe` is its path as the host sees it, where that could still be read.
    """

    pid: int
    comm: str
    exe_inode: int = 0
    exe_device: int = 0
    exe: str | None = None
