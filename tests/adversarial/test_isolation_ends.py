"""kill -9 of the supervisor, at any moment, ends everything that it started."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.enter import ROOT

PATIENCE = 5.0


def session_of(session: int) -> list[int]:
    """Every live process of a session, by the kernel's table."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] not in "ZX":
                found.append(int(entry.name))
    return found


@pytest.mark.parametrize("moment", [0.0, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.2])
def test_nothing_outlives_a_supervisor_killed_while_it_starts(moment: float) -> None:
    _kill_after(moment, "sleep 1000 & sleep 1000")


def test_nothing_outlives_it_when_the_command_ignores_every_signal() -> None:
    _kill_after(0.3, "trap '' HUP INT TERM; setsid -f sleep 1000; sleep 1000; sleep 1000")


def _kill_after(moment: float, script: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.enter", "{}", "--", "sh", "-c", script],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    ) as driver:
        # From the first process it makes on.
        deadline = time.monotonic() + PATIENCE
        while len(session_of(driver.pid)) < 2:
            assert time.monotonic() < deadline
        time.sleep(moment)
        assert len(session_of(driver.pid)) >= 2
        namespaces = {
            os.readlink(f"/proc/{pid}/ns/pid_for_children") for pid in session_of(driver.pid)
        }
        driver.kill()
        driver.wait()
        deadline = time.monotonic() + PATIENCE
        while left := [*session_of(driver.pid), *_inside(namespaces)]:
            assert time.monotonic() < deadline, left
            time.sleep(0.01)


def _inside(namespaces: set[str]) -> list[int]:
    own = os.readlink("/proc/self/ns/pid")
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                namespace = os.readlink(entry / "ns/pid")
            except OSError:
                continue
            if namespace in namespaces and namespace != own:
                found.append(int(entry.name))
    return found
