"""Attaches a program to the entry of a function of the kernel's: for kernels that have kprobes.

`open_kprobe` gives a descriptor; closing it, or the end of the process, takes the program away and
leaves no name in tracefs. Raises OSError as the kernel answered: ENOENT where there are no kprobes
or no such function. Layout: `struct perf_event_attr` of include/uapi/linux/perf_event.h.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from pathlib import Path
from typing import Final

KIND: Final = 2
"""BPF_PROG_TYPE_KPROBE."""
SOURCE: Final = Path("/sys/bus/event_source/devices/kprobe/type")
ARGUMENTS: Final = {
    "x86_64": ((("pt_regs", "di"), 0), (("pt_regs", "si"), 0)),
    "aarch64": ((("pt_regs", "regs"), 0), (("pt_regs", "regs"), 8)),
}
"""Where a function's first two arguments are, by machine: a field, and bytes beyond its start."""

_NUMBERS: Final = {"x86_64": 298, "aarch64": 241}
_ATTR: Final = struct.Struct("=IIQQQQQIIQQ48x")
_CLOEXEC: Final = 8
_SET_PROGRAM: Final = 0x40042408
_ENABLE: Final = 0x2400
_libc = ctypes.CDLL(None, use_errno=True)


def has_kprobes() -> bool:
    """Whether this kernel has them and we know its machine's registers."""
    return os.uname().machine in ARGUMENTS and SOURCE.exists()


def open_kprobe(function: str, program: int) -> int:
    """Run `program` at every entry of the function, in whichever process, until closed."""
    name = ctypes.create_string_buffer(function.encode("ascii"))
    source = int(SOURCE.read_text(encoding="ascii"))
    address = ctypes.addressof(name)
    attr = _ATTR.pack(source, _ATTR.size, 0, 0, 0, 0, 0, 0, 0, address, 0)
    number = _NUMBERS.get(os.uname().machine, -1)
    # Any process, and of all processors the first: a kprobe is none's.
    words = [ctypes.c_long(word) for word in (-1, 0, -1, _CLOEXEC)]
    fd = int(_libc.syscall(ctypes.c_long(number), ctypes.c_char_p(attr), *words))
    if fd < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    try:
        fcntl.ioctl(fd, _SET_PROGRAM, program)
        fcntl.ioctl(fd, _ENABLE, 0)
    except OSError:
        os.close(fd)
        raise
    return fd
