"""The search for a value: what it finds, so that what it does not find means something."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from urllib.parse import quote

import pytest

from tests.support import search

VALUE = 'xoxb-a/b+c=d&e%f"g\\h-0123456789'


@pytest.mark.parametrize(
    "dressed",
    [
        VALUE.encode(),
        quote(VALUE, safe="").encode(),
        VALUE.encode("utf-16-le"),
        *(base64.b64encode(b"u" * n + b":" + VALUE.encode() + b"!" * n) for n in range(4)),
        VALUE.replace("\\", "\\\\").replace('"', '\\"').encode(),
    ],
)
def test_a_value_is_found_in_any_dress(dressed: bytes) -> None:
    assert search.says(b"before " + dressed + b" after", VALUE)
    assert not search.says(b"before " + dressed[: len(dressed) // 2] + b" after", VALUE)


# Puts two halves next to each other on either side of a page's end; whole, it is nowhere else.
HOLDS = """
import ctypes, sys
block = ctypes.create_string_buffer(3 * 4096)
start = ctypes.addressof(block)
end = start - start % 4096 + 2 * 4096
for half, at in zip(sys.argv[1:], (end - 16, end)):
    ctypes.memmove(at, half.encode(), 16)
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_value_is_found_in_memory_across_a_boundary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "_CHUNK", 4096)
    halves = [os.urandom(8).hex() for _ in range(2)]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-ISc", HOLDS, *halves], stdin=pipe, stdout=pipe
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        found = search.in_memory(process.pid, ["".join(halves).encode()])
        assert not search.in_memory(process.pid, ["".join(reversed(halves)).encode()])
        process.communicate()
    assert found
