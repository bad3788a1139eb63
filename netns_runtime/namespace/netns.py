"""Unnamed network namespaces, held by file descriptors.

A namespace lives as long as a descriptor or a process is in it, so nothing of it outlives us.
`setns` and `unshare` happen only on threads that are thrown away: a thread that changed its
namespace is never used for anything else (Linux namespaces belong to threads, namespaces(7)).
"""

from __future__ import annotations

import ctypes
import os
import socket
import stat
import threading
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from netns_runtime.errors import UsageError, step_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CLONE_NEWNET: Final = 0x40000000
# include/uapi/asm-generic/socket.h, Linux 5.14
SO_NETNS_COOKIE: Final = 71
# ioctl_ns(2): _IO(0xb7, 0x3), the namespace's CLONE_NEW* type
NS_GET_NSTYPE: Final = 0xB703
NAMED_DIR: Final = Path("/run/netns")

T = TypeVar("T")
_libc = ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: int) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def setns(fd: int) -> None:
    """Put the calling thread into the network namespace behind `fd`. Raises OSError."""
    _call("setns", fd, CLONE_NEWNET)


def run_on_thread(function: Callable[[], T]) -> T:
    """Run `function` on a new thread that ends with it, and hand over its value or exception."""
    outcome: dict[str, Any] = {}

    def body() -> None:
        try:
            outcome["value"] = function()
        except BaseException as error:  # handed to the caller, whatever it is
            outcome["error"] = error

    thread = threading.Thread(target=body, name="netns", daemon=True)
    thread.start()
    thread.join()
    if "error" in outcome:
        raise outcome["error"]
    value: T = outcome["value"]
    return value


def run_in(fd: int, function: Callable[[], T]) -> T:
    """Run `function` inside the namespace behind `fd`, on a thread that is then thrown away."""

    def body() -> T:
        setns(fd)
        return function()

    return run_on_thread(body)


@contextmanager
def create_namespace(step: str) -> Iterator[int]:
    """Make a network namespace and give its descriptor (close-on-exec), closed at the end."""

    def body() -> int:
        _call("unshare", CLONE_NEWNET)
        return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    try:
        fd = run_on_thread(body)
    except OSError as error:
        raise step_error(
            step, error, remedy="netns-run needs root and a kernel with CONFIG_NET_NS"
        ) from error
    try:
        yield fd
    finally:
        os.close(fd)


def open_namespace(name_or_path: str) -> int:
    """Open `--uplink NETNS`: a path, or a name as `ip netns` knows it. The caller closes it.

    Raises UsageError when there is none, or when it is something else than a network namespace.
    """
    path = name_or_path if "/" in name_or_path else str(NAMED_DIR / name_or_path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise UsageError(
            f"--uplink {name_or_path}: {error.strerror} ({path})",
            remedy="name a namespace from `ip netns list` or a path such as /proc/PID/ns/net",
        ) from error
    if not _is_network_namespace(fd):
        os.close(fd)
        raise UsageError(
            f"--uplink {name_or_path}: {path} is no network namespace",
            remedy="name a namespace from `ip netns list` or a path such as /proc/PID/ns/net",
        )
    return fd


def _is_network_namespace(fd: int) -> bool:
    import fcntl

    try:
        return stat.S_ISREG(os.fstat(fd).st_mode) and fcntl.ioctl(fd, NS_GET_NSTYPE) == CLONE_NEWNET
    except OSError:
        return False


def cookie_of(fd: int) -> int:
    """The kernel's cookie of the namespace behind `fd`: 64 bits, never used twice until reboot.

    The first socket of a namespace creates it (kernel commit 3d368ab87cf6, SO_NETNS_COOKIE).
    """

    def body() -> int:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as probe:
            return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), "little")

    return run_in(fd, body)
