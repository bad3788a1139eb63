"""Names of a stack's addresses, from files that a hostile process has laid out."""

from __future__ import annotations

import ctypes
import os
import struct
import tempfile

from hypothesis import given
from hypothesis import strategies as st

from netns_runtime.debug.usersymbols import Mapping, UserSymbols, perf_table, table_of

LIBC = ctypes.CDLL(None)
CONNECT = ctypes.cast(LIBC.connect, ctypes.c_void_p).value or 0
HEAD = open("/proc/self/exe", "rb").read(4096)  # noqa: SIM115


def by_path(pid: int, mapping: Mapping) -> int:
    """What map_files gives to root alone."""
    return os.open(mapping.path, os.O_RDONLY)


def test_an_address_is_a_function_of_the_file_that_is_mapped_there() -> None:
    told = UserSymbols(by_path).name_of(os.getpid(), CONNECT + 0x10)
    assert told.partition("+")[2].startswith("0x10 [libc")
    assert "connect" in told


def test_what_is_mapped_nowhere_and_who_has_gone_is_an_address() -> None:
    assert UserSymbols(by_path).name_of(os.getpid(), 0x10) == "0x10"
    assert UserSymbols(by_path).name_of(1 << 30, 0x10) == "0x10"


def test_a_file_that_cannot_be_opened_is_named_without_its_functions() -> None:
    def refused(pid: int, mapping: Mapping) -> int:
        raise PermissionError

    told = UserSymbols(refused).name_of(os.getpid(), CONNECT)
    assert told.startswith(f"{CONNECT:#x} [libc")


def test_a_perf_map_is_read_as_far_as_it_is_one() -> None:
    table = perf_table(b"7f00 10 one two\nrubbish\n8f00 10 three\n" + b"f" * 40 + b" 1 x\n")
    assert table.name_at(0x7F03) == "one two+0x3"
    assert table.name_at(0x8F0F) == "three+0xf"
    assert table.name_at(0x8F10) is None


@given(st.binary(max_size=200), st.integers(0, 300))
def test_no_file_makes_it_fail_but_by_its_own_errors(noise: bytes, at: int) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(HEAD[:at] + noise + HEAD[at + len(noise) :])
        file.flush()
        try:
            table = table_of(file.fileno())
        except (OSError, ValueError, struct.error):
            return
        table.name_at(at)
        table.address_of(at)
