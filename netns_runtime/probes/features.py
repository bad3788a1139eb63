"""What the probe needs of the kernel and the machine, checked cheaply for `netns-debug doctor`.

Each check asks the kernel itself (a program of three instructions, a map of one entry) and leaves
nothing behind. The answer is a list of values; nothing raises. `lacks` names features to report as
missing, so that the fallback can be tried on a kernel that has everything.
"""

from __future__ import annotations

import importlib.util
import os
import struct
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

from netns_runtime.probes import syscall
from netns_runtime.probes.btf import VMLINUX
from netns_runtime.probes.hooks import CGROUP_SOCK_ADDR, HOOKS
from netns_runtime.probes.pins import MOUNTS, bpffs_of

if TYPE_CHECKING:
    from collections.abc import Callable

_KERNEL: Final = "boot a kernel with CONFIG_CGROUP_BPF, 5.18 or newer"
_ARRAY: Final = 2
_NETNS_COOKIE: Final = 122
_SET_RETVAL: Final = 187
_CONNECT4: Final = HOOKS[0].attach_type


@dataclass(frozen=True, slots=True)
class Feature:
    """One line of doctor. `needed`: without it there is no probe; else only `loses` is missing."""

    name: str
    present: bool
    needed: bool
    remedy: str
    loses: str = ""


def _instruction(code: int, registers: int = 0, immediate: int = 0) -> bytes:
    return struct.pack("=BBhi", code, registers, 0, immediate)


_ZERO = _instruction(0xB7) + _instruction(0x95)


def _loads(kind: int, attach_type: int, code: bytes = _ZERO) -> bool:
    try:
        os.close(syscall.load_program(kind, attach_type, code, "check")[0])
    except OSError:
        return False
    return True


def _calls(helper: int) -> bool:
    # r1 is the context at entry, which serves as the argument of either helper we ask for.
    code = _instruction(0x85, 0, helper) + _ZERO
    if helper == _SET_RETVAL:
        code = _instruction(0xB7, 1, -111) + code
    return _loads(CGROUP_SOCK_ADDR, _CONNECT4, code)


def _creates(kind: int, key: int, value: int, entries: int) -> bool:
    try:
        os.close(syscall.create_map(kind, key, value, entries))
    except OSError:
        return False
    return True


def _has_line(path: str, word: str, column: int) -> bool:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError:
        return False
    return any(word in line.split()[column : column + 1] for line in lines)


def _has_bpffs() -> bool:
    mounts = MOUNTS.read_text(encoding="utf-8")
    return bpffs_of(mounts) is not None or _has_line("/proc/filesystems", "bpf", 1)


@dataclass(frozen=True, slots=True)
class _Check:
    name: str
    ask: Callable[[], bool]
    remedy: str
    loses: str = ""


_CHECKS: Final = (
    _Check("bpf", lambda: _creates(_ARRAY, 4, 4, 1), "run as root, and lift what denies bpf(2)"),
    _Check(
        "cgroup2",
        lambda: _has_line("/proc/mounts", "cgroup2", 2),
        "mount -t cgroup2 none /mnt/cgroup",
    ),
    _Check("bpffs", _has_bpffs, _KERNEL),
    *(_Check(hook.name, partial(_loads, hook.kind, hook.attach_type), _KERNEL) for hook in HOOKS),
    _Check("ringbuf", lambda: _creates(syscall.RINGBUF, 0, 0, 65536), _KERNEL),
    _Check("netns cookie", lambda: _calls(_NETNS_COOKIE), _KERNEL),
    _Check("set_retval", lambda: _calls(_SET_RETVAL), _KERNEL),
    _Check(
        "bcc", lambda: importlib.util.find_spec("bcc") is not None, "apt-get install python3-bpfcc"
    ),
    _Check(
        "btf",
        VMLINUX.exists,
        "boot a kernel with CONFIG_DEBUG_INFO_BTF",
        loses="the executable of a refused or allowed connect",
    ),
)


def needed() -> frozenset[str]:
    """Names of the features without which there is no probe."""
    return frozenset(check.name for check in _CHECKS if not check.loses)


def features(lacks: frozenset[str] = frozenset()) -> list[Feature]:
    """Every feature, in the order in which to mend them."""
    return [
        Feature(
            name=check.name,
            present=check.name not in lacks and check.ask(),
            needed=not check.loses,
            remedy=check.remedy,
            loses=check.loses,
        )
        for check in _CHECKS
    ]
