"""What /proc says of processes that the kernel, or a port number, named.

A pid may have gone or been reused by the time anybody looks, so an executable is believed only when
it is still the inode that the kernel recorded. Looking for a socket's owner is bounded: a sandbox
with more descriptors than that has an unknown owner, never a slow supervisor.
"""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_DESCRIPTORS: Final = 4096
_TABLES: Final = {"udp": ("udp", "udp6"), "tcp": ("tcp", "tcp6")}
_PLACES: Final = ("/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin")
_MAPPED: Final = bytes(10) + b"\xff\xff"
_SOCKET: Final = re.compile(r"socket:\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Process:
    """A process by the host's pid, its name and, where it could be read, its executable."""

    pid: int
    comm: str
    exe: str | None


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


def executable_named(comm: str, inode: int, device: int) -> str | None:
    """The path of an executable whose process has gone, by the name it had; None when unsure.

    A file of that name in a usual place is believed only when it is the inode and device (the
    kernel's dev_t) that the kernel recorded.
    """
    if not inode or not comm or "/" in comm:
        return None
    for directory in dict.fromkeys((*os.environ.get("PATH", "").split(":"), *_PLACES)):
        path = f"{directory}/{comm}"
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            continue
        if (status.st_ino, _kernel_device(status.st_dev)) == (inode, device):
            return os.path.realpath(path)
    return None


def _kernel_device(device: int) -> int:
    # include/linux/kdev_t.h
    return os.major(device) << 20 | os.minor(device)


def sockets_at(protocol: str, port: int, address: bytes = b"") -> frozenset[int]:
    """Inodes of the calling thread's namespace's sockets with this local port (proc_net(5)).

    With `address` (packed) those that have it; where there is none, those that take any.
    """
    wanted = f":{port:04X}"
    found: set[int] = set()
    places: dict[int, str] = {}
    for table in _TABLES.get(protocol, ()):
        try:
            lines = Path(f"/proc/thread-self/net/{table}").read_text(encoding="ascii").splitlines()
        except OSError:
            continue
        for line in lines[1:]:
            fields = line.split()
            if len(fields) > 9 and fields[1].endswith(wanted):
                found.add(int(fields[9]))
                places[int(fields[9])] = fields[1].partition(":")[0]
    found.discard(0)
    if not address:
        return frozenset(found)
    own = {_hexadecimal(address), _hexadecimal(_MAPPED + address)}
    exact = frozenset(inode for inode in found if places[inode] in own)
    return exact or frozenset(inode for inode in found if not places[inode].strip("0"))


def _hexadecimal(address: bytes) -> str:
    # net/ipv4/udp.c prints each 32 bits as a number, so with its bytes in the host's order.
    words = (address[at : at + 4] for at in range(0, len(address), 4))
    return "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)


def holder_of(inodes: frozenset[int], pids: Iterable[int]) -> Process | None:
    """Which of these processes has one of these sockets open."""
    budget = MAX_DESCRIPTORS
    for pid in pids if inodes else ():
        try:
            numbers = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue
        budget -= len(numbers)
        if budget < 0:
            return None
        for number in numbers:
            try:
                match = _SOCKET.fullmatch(os.readlink(f"/proc/{pid}/fd/{number}"))
            except OSError:
                continue
            if match is not None and int(match[1]) in inodes:
                return process_of(pid)
    return None


def process_of(pid: int) -> Process | None:
    """The process with this pid now."""
    try:
        comm = Path(f"/proc/{pid}/comm").read_bytes().rstrip(b"\n")
    except OSError:
        return None
    text = comm.decode("utf-8", "backslashreplace")
    return Process(pid, text.encode("unicode_escape").decode("ascii"), executable_of(pid))


def members_of(cgroup: Path) -> list[int]:
    """The pids in a cgroup."""
    try:
        return [int(word) for word in (cgroup / "cgroup.procs").read_text("ascii").split()]
    except OSError:
        return []
