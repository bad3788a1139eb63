"""One connect(2) through io_uring, by raw system calls: what a client with liburing does.

Gives the errno (0 for success) that the completion carries; raises OSError where the kernel has no
io_uring. Layouts: include/uapi/linux/io_uring.h.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import socket
import struct

_SETUP, _ENTER = 425, 426
_OP_CONNECT = 16
_SQES = 0x10000000
_GETEVENTS = 1
_libc = ctypes.CDLL(None, use_errno=True)


def _syscall(*arguments: object) -> int:
    result: int = _libc.syscall(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def connect(sock: socket.socket, host: str, port: int) -> int:
    params = ctypes.create_string_buffer(120)
    ring = _syscall(_SETUP, 4, params)
    tail, mask, array = (struct.unpack_from("=I", params, 40 + at)[0] for at in (4, 8, 24))
    completed, cqes = (struct.unpack_from("=I", params, 80 + at)[0] for at in (4, 20))
    queue = mmap.mmap(ring, 4096, mmap.MAP_SHARED)
    entries = mmap.mmap(ring, 4096, mmap.MAP_SHARED, offset=_SQES)
    address = ctypes.create_string_buffer(
        struct.pack("=H", socket.AF_INET) + struct.pack("!H", port) + socket.inet_aton(host), 16
    )
    entries[:64] = struct.pack(
        "=BBHiQQI28x", _OP_CONNECT, 0, 0, sock.fileno(), 16, ctypes.addressof(address), 0
    ).ljust(64, b"\0")
    place = struct.unpack_from("=I", queue, tail)[0]
    index = place & struct.unpack_from("=I", queue, mask)[0]
    struct.pack_into("=I", queue, array + 4 * index, 0)
    struct.pack_into("=I", queue, tail, place + 1)
    _syscall(_ENTER, ring, 1, 1, _GETEVENTS, None, 0)
    assert struct.unpack_from("=I", queue, completed)[0] == 1
    result: int = struct.unpack_from("=i", queue, cqes + 8)[0]
    os.close(ring)
    return -result
