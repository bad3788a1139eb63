"""bpf(2), as much of it as the launch path needs, so that no launch imports bcc.

Every function is one call of the kernel's and raises OSError as the kernel answered; a lookup that
finds nothing gives None. Descriptors are new, close-on-exec (the kernel sets it) and the caller's.
Layouts: `union bpf_attr` of include/uapi/linux/bpf.h; a short attr is zero-filled by the kernel.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Final

_NUMBERS: Final = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "s390x": 351, "ppc64le": 361}
_MAP_CREATE: Final = 0
_MAP_LOOKUP: Final = 1
_MAP_UPDATE: Final = 2
_MAP_DELETE: Final = 3
_MAP_NEXT_KEY: Final = 4
_PROG_LOAD: Final = 5
_OBJ_PIN: Final = 6
_OBJ_GET: Final = 7
_PROG_ATTACH: Final = 8
_PROG_DETACH: Final = 9
_OBJ_INFO: Final = 15
_PROG_QUERY: Final = 16
_RAW_TRACEPOINT: Final = 17
_MAP_LOOKUP_BATCH: Final = 24

ANY: Final = 0
NOEXIST: Final = 1
READ_ONLY: Final = 1 << 3
"""BPF_F_RDONLY: the descriptor can look up and not change."""
_ALLOW_MULTI: Final = 1 << 1

RAW_TRACEPOINT: Final = 17
"""BPF_PROG_TYPE_RAW_TRACEPOINT."""
RINGBUF: Final = 27
"""BPF_MAP_TYPE_RINGBUF."""

_libc = ctypes.CDLL(None, use_errno=True)
_number = _NUMBERS.get(os.uname().machine, -1)


def _call(command: int, attr: ctypes.Array[ctypes.c_char]) -> int:
    result: int = _libc.syscall(
        ctypes.c_long(_number), ctypes.c_int(command), attr, ctypes.c_uint(len(attr))
    )
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _bpf(command: int, attr: bytes) -> int:
    return _call(command, _buffer(attr))


def _buffer(data: bytes) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(data, len(data))


def create_map(
    kind: int, key_size: int, value_size: int, entries: int, *, name: str = "", flags: int = 0
) -> int:
    """Create a map; `name` is cut to the kernel's 15 bytes."""
    label = name.encode("ascii")[:15]
    attr = struct.pack(
        "=IIIIIII16s", kind, key_size, value_size, entries, flags, 0, 0, label.ljust(16, b"\0")
    )
    return _bpf(_MAP_CREATE, attr)


def lookup(fd: int, key: bytes, size: int) -> bytes | None:
    """Read one value; `size` is the whole of it (8-aligned value times CPUs for per-CPU maps)."""
    keys, value = _buffer(key), ctypes.create_string_buffer(size)
    attr = struct.pack("=IIQQQ", fd, 0, ctypes.addressof(keys), ctypes.addressof(value), 0)
    try:
        _bpf(_MAP_LOOKUP, attr)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return value.raw


def update(fd: int, key: bytes, value: bytes, flags: int = ANY) -> None:
    """Write one value, all CPUs of it for a per-CPU map. NOEXIST: EEXIST if the key is there."""
    keys, values = _buffer(key), _buffer(value)
    attr = struct.pack("=IIQQQ", fd, 0, ctypes.addressof(keys), ctypes.addressof(values), flags)
    _bpf(_MAP_UPDATE, attr)


def delete(fd: int, key: bytes) -> bool:
    """Remove one entry; False when there was none."""
    keys = _buffer(key)
    attr = struct.pack("=IIQQQ", fd, 0, ctypes.addressof(keys), 0, 0)
    try:
        _bpf(_MAP_DELETE, attr)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return True


def is_empty(fd: int) -> bool:
    """Whether a hash map has no entry."""
    following = ctypes.create_string_buffer(256)
    try:
        _bpf(_MAP_NEXT_KEY, struct.pack("=IIQQ", fd, 0, 0, ctypes.addressof(following)))
    except OSError as error:
        if error.errno == errno.ENOENT:
            return True
        raise
    return False


def entries(fd: int, key_size: int, value_size: int, capacity: int) -> list[tuple[bytes, bytes]]:
    """Every (key, value) of a hash map of at most `capacity` entries, by one call (Linux 5.6)."""
    keys = ctypes.create_string_buffer(key_size * capacity)
    values = ctypes.create_string_buffer(value_size * capacity)
    batch = ctypes.create_string_buffer(8)
    attr = ctypes.create_string_buffer(
        struct.pack(
            "=QQQQIIQQ",
            0,
            ctypes.addressof(batch),
            ctypes.addressof(keys),
            ctypes.addressof(values),
            capacity,
            fd,
            0,
            0,
        ),
        56,
    )
    try:
        _call(_MAP_LOOKUP_BATCH, attr)
    except OSError as error:
        # ENOENT is how the kernel says that this was all.
        if error.errno != errno.ENOENT:
            raise
    count: int = struct.unpack_from("=I", attr, 32)[0]
    key_bytes = ctypes.string_at(keys, count * key_size)
    value_bytes = ctypes.string_at(values, count * value_size)
    return [
        (
            key_bytes[place * key_size : (place + 1) * key_size],
            value_bytes[place * value_size : (place + 1) * value_size],
        )
        for place in range(count)
    ]


def pin(fd: int, path: str) -> None:
    """Give a map or program a name in bpffs, which keeps it."""
    name = _buffer(os.fsencode(path) + b"\0")
    _bpf(_OBJ_PIN, struct.pack("=QII", ctypes.addressof(name), fd, 0))


def open_pin(path: str, flags: int = 0) -> int:
    """Open what is pinned there; READ_ONLY for a map that is only looked at."""
    name = _buffer(os.fsencode(path) + b"\0")
    return _bpf(_OBJ_GET, struct.pack("=QII", ctypes.addressof(name), 0, flags))


def attach(cgroup: int, program: int, kind: int) -> None:
    """Attach beside what others attached; it stays until detached or the cgroup is removed."""
    _bpf(_PROG_ATTACH, struct.pack("=IIII", cgroup, program, kind, _ALLOW_MULTI))


def detach(cgroup: int, program: int, kind: int) -> None:
    """Undo `attach`. ENOENT when it is not attached."""
    _bpf(_PROG_DETACH, struct.pack("=IIII", cgroup, program, kind, 0))


def attached(cgroup: int, kind: int) -> list[int]:
    """Ids of the programs attached to this very cgroup."""
    room = 64
    ids = (ctypes.c_uint32 * room)()
    attr = ctypes.create_string_buffer(
        struct.pack("=IIIIQI", cgroup, kind, 0, 0, ctypes.addressof(ids), room) + bytes(36), 64
    )
    _call(_PROG_QUERY, attr)
    count: int = struct.unpack_from("=I", attr, 24)[0]
    return list(ids[:count])


def open_raw_tracepoint(name: str, program: int) -> int:
    """Attach a program to a tracepoint until the descriptor is closed. ENOENT: there is none."""
    text = _buffer(name.encode("ascii") + b"\0")
    return _bpf(_RAW_TRACEPOINT, struct.pack("=QII", ctypes.addressof(text), program, 0))


def id_of(fd: int) -> int:
    """The kernel's id of a map or program (second word of both info structures)."""
    info = ctypes.create_string_buffer(8)
    _bpf(_OBJ_INFO, struct.pack("=IIQ", fd, 8, ctypes.addressof(info)))
    number: int = struct.unpack_from("=I", info, 4)[0]
    return number


def load_program(
    kind: int, expected_attach: int, code: bytes, name: str, *, log_size: int = 0
) -> tuple[int, str]:
    """Load a program: its descriptor and the verifier's log (empty without `log_size` bytes).

    Raises OSError; with `log_size`, its subclass VerifierRefused, which holds the log.
    """
    instructions = _buffer(code)
    license_text = _buffer(b"GPL\0")
    log = ctypes.create_string_buffer(max(log_size, 1))
    attr = struct.pack(
        "=IIQQIIQII16sII",
        kind,
        len(code) // 8,
        ctypes.addressof(instructions),
        ctypes.addressof(license_text),
        1 if log_size else 0,
        log_size,
        ctypes.addressof(log) if log_size else 0,
        0,
        0,
        name.encode("ascii")[:15].ljust(16, b"\0"),
        0,
        expected_attach,
    )
    try:
        fd = _bpf(_PROG_LOAD, attr)
    except OSError as error:
        if log_size:
            raise VerifierRefused(error.errno or 0, log.value.decode("utf-8", "replace")) from error
        raise
    return fd, log.value.decode("utf-8", "replace")


class VerifierRefused(OSError):
    """The kernel did not take a program; `log` is what its verifier wrote."""

    def __init__(self, number: int, log: str) -> None:
        super().__init__(number, os.strerror(number))
        self.log = log
