"""The process that has the value: CMD cannot make it dump, stop it, trace it or read it.

The sandbox's own processes try as uid 0 and as somebody; root outside proves that there was
something to find.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import search
from tests.support.secret_policy import TOKEN, policy_in
from tests.support.secret_run import plain_value_of, started

if TYPE_CHECKING:
    from tests.support.lab import Lab

# Every pid there could be, by each call that could reach another process.
ATTACK = """
import ctypes, errno, os, signal
libc = ctypes.CDLL(None, use_errno=True)
PTRACE_ATTACH, PTRACE_SEIZE = 16, 0x4206
mine = {int(name) for name in os.listdir("/proc") if name.isdigit()}
found = []
for pid in PIDS:
    if pid in mine:
        continue
    for name, call in {
        "quit": lambda: os.kill(pid, signal.SIGQUIT),
        "core": lambda: os.kill(pid, signal.SIGABRT),
        "mem": lambda: open(f"/proc/{pid}/mem", "rb"),
        "environ": lambda: open(f"/proc/{pid}/environ", "rb").read(),
    }.items():
        try:
            call()
            found.append(f"{name} {pid}")
        except OSError:
            pass
    for request in (PTRACE_ATTACH, PTRACE_SEIZE):
        if libc.ptrace(request, pid, 0, 0) == 0:
            found.append(f"ptrace {pid}")
    if (fd := libc.syscall(434, pid, 0)) >= 0:
        found.append(f"pidfd {pid}")
print("found", found, flush=True)
os.system("curl -sS -H 'X-Token: openshell:resolve:env:LAB_TOKEN' https://web.lab.test/")
print("search me", flush=True)
input()
"""


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_the_proxy_cannot_be_signalled_traced_or_read_from_inside(
    lab: Lab, tmp_path: Path, user: str
) -> None:
    values = {TOKEN: plain_value_of(TOKEN)}
    options = ("--policy", policy_in(tmp_path), "--user", user)
    start = "PIDS = [int(pid) for pid in input().split()]\n"
    command = ["/usr/bin/python3", "-c", start + ATTACK]
    with started(lab, values, options, command, stdin=-1) as (running, _):
        while not (proxies := search.proxy_pids(running.process.pid)):
            assert running.process.poll() is None
        outside = [*proxies, running.process.pid, *search.descendants(running.process.pid)]
        running.tell(" ".join(str(pid) for pid in outside))
        said = ""
        while (line := running.line()) not in ("search me\n", ""):
            said += line
        alive = search.proxy_pids(running.process.pid)
        result = running.wait(10, b"\n")
    assert "found []\n" in said, said
    assert "hello from web.lab.test" in said, said + result.told()
    assert alive == proxies, result.told()


def test_the_proxy_leaves_no_core_and_is_roots_to_read_alone(lab: Lab, tmp_path: Path) -> None:
    values = {TOKEN: plain_value_of(TOKEN)}
    options = ("--policy", policy_in(tmp_path))
    command = ["sh", "-c", "curl -sS https://web.lab.test/; echo search me; read line"]
    with started(lab, values, options, command, stdin=-1) as (running, _):
        while running.line() != "search me\n":
            assert running.process.poll() is None
        (proxy,) = search.proxy_pids(running.process.pid)
        limits = Path(f"/proc/{proxy}/limits").read_text()
        where = Path(os.readlink(f"/proc/{proxy}/cwd"))
        before = set(where.glob("core*")) | set(lab.work.glob("core*"))
        # A process that is not dumpable belongs to root in /proc, whoever it runs as (proc(5)).
        owner = os.stat(f"/proc/{proxy}/mem").st_uid
        has_it = search.in_memory(proxy, [values[TOKEN].encode()])
        os.kill(proxy, signal.SIGQUIT)
        result = running.wait(20, b"\n")
    assert has_it, "the search does not even find the value where it is"
    core = next(line for line in limits.splitlines() if line.startswith("Max core file size"))
    # One byte: with zero a core_pattern that is a pipe would still be run (core(5)).
    assert set(core.split()[4:6]) <= {"0", "1"}, core
    assert owner == 0
    assert set(where.glob("core*")) | set(lab.work.glob("core*")) == before
    assert values[TOKEN] not in result.told()


def test_the_sandbox_has_no_trace_of_it_before_it_was_ever_used(lab: Lab, tmp_path: Path) -> None:
    values = {TOKEN: plain_value_of(TOKEN)}
    options = ("--policy", policy_in(tmp_path))
    with started(lab, values, options, ["sh", "-c", "echo search me; read line"], stdin=-1) as (
        running,
        _,
    ):
        assert running.line() == "search me\n"
        pids = search.sandbox_pids(running.process.pid)
        found = search.traces(pids, values.values(), [lab.work])
        running.wait(20, b"\n")
    assert found == []
