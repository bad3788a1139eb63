"""Looks for a secret's value from outside, as root: in processes, their files, and what they said.

`sandbox_pids` are CMD's processes of a running netns-run, `proxy_pids` the proxy's. `traces` names
each place in which one of the value's `forms` was found: environment, command line, memory (at most
`MOST_MEMORY` bytes of each process), open files, and the directories that a sandbox has of its own.
A process that ends meanwhile is no error, but `traces` then has nothing to say of it.
"""

from __future__ import annotations

import base64
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

MOST_MEMORY: Final = 1 << 30
MOST_FILE: Final = 1 << 24
MOST_FILES: Final = 3000
_CHUNK: Final = 1 << 22
OWN_PLACES: Final = ("tmp", "run", "var/tmp", "dev/shm", "etc/ssl", "etc/pki", "root", "home")
_REGION: Final = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r\S+ \S+ \S+ \S+\s*(.*)")


def forms(value: str) -> tuple[bytes, ...]:
    """The value as programs hold it: bytes, UTF-16, percent-encoded, JSON, base64 at any offset."""
    raw = value.encode()
    # Characters that share no sextet with what stands before or behind them.
    coded = [
        base64.b64encode(bytes(at) + raw)[(0, 4, 4)[at] :][:-4].rstrip(b"=") for at in range(3)
    ]
    found = {raw, value.encode("utf-16-le"), quote(value, safe="").encode(), *coded}
    return tuple(found | {json.dumps(value)[1:-1].encode()})


def says(text: str | bytes, value: str) -> bool:
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    return any(form in data for form in forms(value))


def descendants(pid: int) -> Iterator[int]:
    try:
        tasks = [path.read_text().split() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:
        return
    for child in (int(word) for words in tasks for word in words):
        yield child
        yield from descendants(child)


def _namespace(pid: int | str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


def sandbox_pids(supervisor: int) -> list[int]:
    """Those below it in a PID namespace of their own."""
    here = _namespace("self")
    return [pid for pid in descendants(supervisor) if _namespace(pid) not in (here, "")]


def proxy_pids(supervisor: int) -> list[int]:
    def words(pid: int) -> bytes:
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return b""

    return [pid for pid in descendants(supervisor) if b"netns_runtime.proxy" in words(pid)]


def _regions(pid: int) -> Iterator[tuple[int, int]]:
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        found = _REGION.match(line)
        if found and found[3] not in ("[vvar]", "[vsyscall]", "[vvar_vclock]"):
            yield int(found[1], 16), int(found[2], 16)


def in_memory(pid: int, needles: Iterable[bytes]) -> bool:
    """Whether one of them is in the process's memory, a page boundary or not."""
    needles = tuple(needles)
    overlap = max(map(len, needles))
    left = MOST_MEMORY
    try:
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            for begin, end in _regions(pid):
                tail = b""
                for at in range(begin, min(end, begin + left), _CHUNK):
                    try:
                        data = os.pread(memory.fileno(), min(_CHUNK, end - at), at)
                    except OSError:
                        break
                    left -= len(data)
                    if any(needle in tail + data for needle in needles):
                        return True
                    tail = data[-overlap:]
                if left <= 0:
                    break
    except OSError:
        return False
    return False


def _files(root: Path) -> Iterator[Path]:
    left = MOST_FILES
    for place in OWN_PLACES:
        # A link there would lead into the tests' own tree.
        for directory, _, names in os.walk(root / place):
            for name in names:
                left -= 1
                if left < 0:
                    return
                yield Path(directory, name)


def _is_in_file(path: Path, needles: Iterable[bytes]) -> bool:
    try:
        if not path.is_file() or path.is_symlink():
            return False
        with path.open("rb") as file:
            data = file.read(MOST_FILE)
    except OSError:
        return False
    return any(needle in data for needle in needles)


def traces(pids: Iterable[int], values: Iterable[str], directories: Iterable[Path]) -> list[str]:
    """Where the values are, one line each: `PID environ`, `PID memory`, a file's path."""
    needles = [form for value in values for form in forms(value)]
    found = []
    roots = set()
    for pid in pids:
        about = ("environ", "cmdline", "comm")
        found += [f"{pid} {name}" for name in about if _is_in(Path(f"/proc/{pid}/{name}"), needles)]
        if in_memory(pid, needles):
            found.append(f"{pid} memory")
        try:
            opened = [path for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_file()]
        except OSError:
            opened = []
        found += [f"{pid} {path}" for path in opened if _is_in(path, needles)]
        roots.add(Path(f"/proc/{pid}/root"))
    if roots:
        found += [str(path) for path in _files(min(roots)) if _is_in_file(path, needles)]
    for directory in directories:
        found += [str(path) for path in directory.rglob("*") if _is_in_file(path, needles)]
    return found


def _is_in(path: Path, needles: Iterable[bytes]) -> bool:
    try:
        with path.open("rb") as file:
            data = file.read(MOST_FILE)
    except OSError:
        return False
    return any(needle in data for needle in needles)
