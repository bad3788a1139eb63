"""The ids of every BPF program, map and link in the kernel, by bpf(2) alone.

Ends with OSError where the kernel has no bpf(2) or refuses it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from pathlib import Path
from typing import Final

# include/uapi/linux/bpf.h, enum bpf_cmd
OBJ_GET: Final = 7
OBJ_GET_INFO_BY_FD: Final = 15
NEXT_ID: Final = {"program": 11, "map": 12, "link": 31}
GET_FD_BY_ID: Final = {"program": 13, "map": 14, "link": 30}
# Offset of `name` in struct bpf_prog_info and bpf_map_info.
NAME_OFFSET: Final = {"program": 64, "map": 24}

_BPF: Final = {"x86_64": 321, "aarch64": 280}.get(platform.machine(), 321)
_libc = ctypes.CDLL(None, use_errno=True)


def _bpf(command: int, attributes: bytes) -> tuple[int, bytes]:
    buffer = ctypes.create_string_buffer(attributes.ljust(128, b"\0"), 128)
    result = _libc.syscall(_BPF, command, buffer, 128)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result, buffer.raw


def ids(kind: str) -> set[int]:
    found: set[int] = set()
    last = 0
    while True:
        try:
            _, raw = _bpf(NEXT_ID[kind], struct.pack("II", last, 0))
        except OSError as error:
            if error.errno == errno.ENOENT:
                return found
            raise
        (last,) = struct.unpack_from("I", raw, 4)
        found.add(last)


def _info(fd: int) -> bytes:
    info = ctypes.create_string_buffer(256)
    _bpf(OBJ_GET_INFO_BY_FD, struct.pack("IIQ", fd, 256, ctypes.addressof(info)))
    return info.raw


def name_of(kind: str, number: int) -> str:
    """The name its loader gave it, or "" where it has none or is gone already."""
    try:
        fd, _ = _bpf(GET_FD_BY_ID[kind], struct.pack("I", number))
    except OSError:
        return ""
    try:
        offset = NAME_OFFSET.get(kind)
        if offset is None:
            return ""
        return _info(fd)[offset : offset + 16].split(b"\0")[0].decode("ascii", "replace")
    finally:
        os.close(fd)


def pinned_ids(prefix: str) -> set[int]:
    """Ids, of any kind, of what is pinned below a name that begins with `prefix` in any bpffs."""
    found = set()
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    for place in (Path(words[1]) for words in mounts if words[2] == "bpf"):
        for pin in (p for top in place.glob(f"{prefix}*") for p in (top, *top.rglob("*"))):
            if pin.is_dir():
                continue
            path = ctypes.create_string_buffer(os.fsencode(pin))
            try:
                fd, _ = _bpf(OBJ_GET, struct.pack("QII", ctypes.addressof(path), 0, 0))
            except OSError:
                continue
            # `id` is the second field of bpf_prog_info, bpf_map_info and bpf_link_info alike.
            found.add(struct.unpack_from("I", _info(fd), 4)[0])
            os.close(fd)
    return found
