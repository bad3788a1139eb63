"""CMD is itself: what the caller closed, ignored or left out is as it would be without us."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.lab import CHECKOUT
from tests.support.run import NETNS_RUN, PYTHON, Running, netns_debug, netns_run

if TYPE_CHECKING:
    from pathlib import Path

CLOSED = [
    combination for size in (1, 2, 3) for combination in itertools.combinations((0, 1, 2), size)
]


def closing(numbers: tuple[int, ...]) -> tuple[str, ...]:
    redirections = " ".join(f"{number}>&-" for number in numbers)
    return ("sh", "-c", f'exec "$0" "$@" {redirections}', NETNS_RUN)


@pytest.mark.parametrize("closed", CLOSED, ids=str)
def test_closed_streams_stay_closed_and_cost_neither_audit_nor_state(
    tmp_path: Path, closed: tuple[int, ...]
) -> None:
    name = f"closed-{os.getpid()}"
    script = f"""
import os, time
found = []
for number in (0, 1, 2):
    try:
        os.fstat(number)
    except OSError:
        found.append(number)
with open({str(tmp_path / "found.new")!r}, "w") as file:
    file.write(str(tuple(found)))
os.rename({str(tmp_path / "found.new")!r}, {str(tmp_path / "found")!r})
while not os.path.exists({str(tmp_path / "enough")!r}):
    time.sleep(0.01)
os._exit(4)
"""
    with Running(
        *("--name", name), cmd=[PYTHON, "-c", script], launcher=closing(closed), cwd=tmp_path
    ) as running:
        while not (tmp_path / "found").exists() and running.process.poll() is None:
            time.sleep(0.01)
        listed = netns_debug("list", "--json")
        (tmp_path / "enough").touch()
        result = running.wait(10)
    assert result.status == 4, result.told()
    # The launcher gives CMD /dev/null for a stderr that is closed.
    assert (tmp_path / "found").read_text() == str(tuple(set(closed) - {2}))
    assert f'"{name}"' in listed.stdout, "its state file was let go of"
    assert result.event("sandbox.exited")["code"] == 4


def test_an_ignored_sigchld_of_the_caller_costs_nothing() -> None:
    command = [str(CHECKOUT / ".venv/bin/python"), "-I", "-m", "netns_runtime.cli.run"]
    script = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN)"
    script += "; os.execv(sys.argv[1], sys.argv[1:])"
    done = subprocess.run(
        [PYTHON, "-c", script, *command, "--", "sh", "-c", "exit 5"],
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=30,
    )
    assert done.returncode == 5


def test_a_uid_without_an_entry_does_not_get_the_callers_home() -> None:
    result = netns_run("--user", "54321", cmd=["sh", "-c", 'echo "$HOME,$USER"'], cwd="/")
    assert result.stdout == "/,\n", result.told()


def test_a_status_on_standard_output_is_told_to_the_end() -> None:
    result = netns_run("--status-fd", "1", cmd=["sh", "-c", "exit 3"])
    events = [json.loads(line)["event"] for line in result.stdout.splitlines()]
    assert events == ["started", "exited"], result.told()
