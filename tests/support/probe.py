"""A probe of the tests' own and sandboxes for it: namespaces without an uplink, cgroups, children.

Each `Cell` is a network namespace in which 10.200.0.1 and the virtual addresses are local, so that
what the probe allows has somebody to connect to. Everything made here is gone at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import time
import traceback
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from netns_runtime.namespace.netns import cookie_of, create_namespace, setns
from netns_runtime.probes.pins import ensure_probe, open_bpffs, remove_pins
from netns_runtime.probes.unavailable import ProbeUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from netns_runtime.probes.probe import Probe, Registration

REFUSED_IPV4 = "192.0.2.7"
REFUSED_IPV6 = "2001:db8::7"


def skip(why: str) -> None:
    """Skip here, unless the machine is one where it must work."""
    if os.environ.get("NETNS_MUST_WORK") == "1":
        pytest.fail(f"NETNS_MUST_WORK=1: {why}")
    pytest.skip(why)


def unified() -> Path:
    """Where cgroup2 is mounted."""
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        if line.split()[2] == "cgroup2":
            return Path(line.split()[1])
    skip("no cgroup2 is mounted")
    raise AssertionError


def remove_cgroup(path: Path) -> None:
    """Its processes have been waited for; the kernel lets go a moment later."""
    for _ in range(500):
        try:
            path.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.002)
        else:
            return
    raise AssertionError(f"{path} is still in use")


@contextmanager
def own_probe(**options: Any) -> Iterator[Probe]:
    """A set of programs and maps that only this test has."""
    if os.geteuid() != 0:
        skip("needs root")
    name = f"netns-runtime-test-{secrets.token_hex(4)}"
    try:
        probe = ensure_probe(name=name, **options)
    except ProbeUnavailable as error:
        skip(str(error))
        raise
    try:
        with probe:
            yield probe
    finally:
        remove_pins(open_bpffs() / name)


@contextmanager
def own_parent() -> Iterator[Path]:
    """A cgroup for this test's sandboxes."""
    path = unified() / f"netns-runtime-test-{secrets.token_hex(4)}"
    path.mkdir()
    try:
        yield path
    finally:
        remove_cgroup(path)


@dataclass(frozen=True)
class Child:
    """A process inside a cell; `join` gives what its function returned."""

    pid: int
    reading: int

    def join(self) -> Any:
        with os.fdopen(self.reading) as pipe:
            text = pipe.read()
        os.waitpid(self.pid, 0)
        assert text, f"child {self.pid} died without an answer"
        answer = json.loads(text)
        assert "error" not in answer, answer["error"]
        return answer["value"]


@dataclass(frozen=True)
class Cell:
    """A namespace (`fd`, `cookie`) and a cgroup. `start` runs a function in both, in a new process.

    The function's value must be JSON; an exception fails the test with its traceback.
    """

    fd: int
    cookie: int
    cgroup: Path

    def start(self, function: Callable[[], Any], *, guarded: bool = True) -> Child:
        reading, writing = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            answer: dict[str, Any]
            try:
                if guarded:
                    (self.cgroup / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
                setns(self.fd)
                answer = {"value": function()}
            except BaseException:
                answer = {"error": traceback.format_exc()}
            os.write(writing, json.dumps(answer).encode())
            os._exit(0)
        os.close(writing)
        return Child(pid, reading)

    def run(self, function: Callable[[], Any], *, guarded: bool = True) -> Any:
        return self.start(function, guarded=guarded).join()


def _bring_up() -> None:
    for words in (
        "link set lo up",
        "addr add 10.200.0.1/32 dev lo",
        "addr add 10.200.0.2/32 dev lo",
        "route add local 198.18.0.0/15 dev lo",
        "-6 addr add fd00:c8::2/128 dev lo nodad",
        "-6 route add local fd00:c8:0:1::/64 dev lo",
    ):
        subprocess.run(["ip", *words.split()], check=True)


@contextmanager
def cell(parent: Path) -> Iterator[Cell]:
    """A namespace and a cgroup below `parent`, not registered with any probe yet."""
    with create_namespace("test") as fd:
        cgroup = parent / secrets.token_hex(4)
        cgroup.mkdir()
        try:
            made = Cell(fd, cookie_of(fd), cgroup)
            made.run(_bring_up, guarded=False)
            yield made
        finally:
            remove_cgroup(cgroup)


@contextmanager
def guarded_cell(probe: Probe, parent: Path, **options: Any) -> Iterator[tuple[Cell, Registration]]:
    """A cell that the probe guards."""
    with cell(parent) as made, probe.register(made.cookie, made.cgroup, **options) as registration:
        yield made, registration


def kill(pid: int) -> None:
    """kill -9 and wait."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
