"""`netns-debug enter`: a second command held exactly as the first, or none at all."""

from __future__ import annotations

import json
import os
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from netns_runtime import state
from netns_runtime.control import ask
from netns_runtime.debug import enter
from netns_runtime.errors import StepError
from netns_runtime.namespace import enter_join, init
from tests.support.run import NETNS_DEBUG, PYTHON, Running, environment, netns_debug
from tests.support.terminal import Person

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.lab import Lab

NAME = "debug-enter"
# What holds a process, as it sees it itself; for CMD and for what was entered alike.
LOOK = """
import json, os
lines = (line.partition(":") for line in open("/proc/self/status"))
status = {key: value.strip() for key, _, value in lines}
kept = ("Uid", "Gid", "Groups", "NoNewPrivs", "Seccomp", "Seccomp_filters", "CapInh", "CapPrm",
        "CapEff", "CapBnd", "CapAmb")
look = {key: status.get(key) for key in kept}
names = os.listdir("/proc/self/ns")
look["namespaces"] = {name: os.readlink("/proc/self/ns/" + name) for name in names}
look["cgroup"] = open("/proc/self/cgroup").read()
look["env"] = {k: v for k, v in os.environ.items() if k not in ("TERM", "_", "SHLVL")}
look["cwd"] = os.getcwd()
look["root"] = sorted(os.listdir("/"))
look["core"] = __import__("resource").getrlimit(4)
print(json.dumps(look), flush=True)
"""


@contextmanager
def running(lab: Lab, *options: str, script: str = LOOK) -> Iterator[tuple[Running, str]]:
    with Running(
        *("--name", NAME, *options),
        cmd=[PYTHON, "-c", script + "\ninput()"],
        lab=lab,
        stdin=subprocess.PIPE,
        env={"KEPT": "a value"},
    ) as one:
        yield one, one.line()


@pytest.mark.parametrize("user", ["root", "nobody"])
def test_what_is_entered_is_held_exactly_as_the_command_is(lab: Lab, user: str) -> None:
    with running(lab, "--user", user) as (one, first):
        done = netns_debug("enter", NAME, "--", PYTHON, "-c", LOOK)
        assert done.returncode == 0, done.stderr
        result = one.wait(given=b"\n")
    theirs, ours = json.loads(first), json.loads(done.stdout)
    assert ours == theirs, result.told()
    assert ours["Seccomp"] == "2"
    assert ours["CapBnd"] == "0" * 16
    assert ours["env"]["KEPT"] == "a value"


def test_policy_and_counting_are_the_sandbox_s(lab: Lab) -> None:
    with running(lab, "--allow", "web.lab.test:80") as (one, _):
        allowed = netns_debug("enter", NAME, "--", "curl", "-sS", "http://web.lab.test/")
        refused = netns_debug(
            *("enter", NAME, "--", PYTHON, "-c"),
            "import socket; socket.create_connection(('192.0.2.10', 9), 5)",
        )
        counted = json.loads(netns_debug("stats", NAME, "--json").stdout)
        result = one.wait(given=b"\n")
    assert allowed.stdout == "hello from web.lab.test\n", allowed.stderr + result.told()
    assert "ConnectionRefusedError" in refused.stderr
    assert counted["totals"]["direct_tcp"] == 1
    event = result.event("connect.refused")
    assert event["address"] == "192.0.2.10"
    assert str(event.get("comm", "python3")).startswith("python3")


def test_status_streams_and_json_are_the_command_s_and_ours(lab: Lab) -> None:
    with running(lab) as (one, _):
        done = netns_debug("enter", NAME, "--json", "--", "sh", "-c", "echo out; exit 7")
        assert (done.returncode, done.stdout) == (7, "out\n")
        assert json.loads(done.stderr)["status"] == 7
        assert netns_debug("enter", NAME, "--", "sh", "-c", "kill -9 $$").returncode == 137
        missing = netns_debug("enter", NAME, "--", "no-such-program")
        assert missing.returncode == 127
        assert missing.stderr == (
            "netns-debug: cannot run no-such-program: No such file or directory\n"
        )
        piped = subprocess.run(
            [NETNS_DEBUG, "enter", NAME, "--", "cat"],
            input=b"through",
            capture_output=True,
            check=False,
            env=environment(),
            timeout=20,
        )
        assert piped.stdout == b"through"
        assert one.wait(given=b"\n").status == 0


def test_a_terminal_inside_is_another_than_the_person_s(lab: Lab) -> None:
    with running(lab) as (one, _):
        script = f"tty; '{NETNS_DEBUG}' enter {NAME} -- sh; echo left $?; stty -a | tr ';' '\\n'"
        env = environment({"TERM": "xterm", "PS1": "> "})
        with Person(["/bin/sh", "-c", script], env, "/") as person:
            outside = person.waits_for(r"/dev/(pts/\d+)")[1]
            person.types("readlink /proc/self/fd/0; stty size; echo in-$TERM\n")
            inside = person.waits_for(r"/dev/(pts/\d+)|in-xterm")[1]
            assert inside != outside
            person.waits_for("in-xterm")
            person.resizes(33, 111)
            person.types("sleep 0.3; stty size\n")
            person.waits_for("33 111")
            # Said by what is then the foreground: a shell between two jobs may lose a Ctrl-C.
            person.types("sh -c 'echo be''gan; exec sleep 60'\n")
            person.waits_for("began")
            person.types("\x03")
            person.types("echo status $?\n")
            person.waits_for("status 130")
            person.types("exit 5\n")
            person.waits_for("left 5")
            person.waits_for(r"[^-]icanon")
        assert one.wait(given=b"\n").status == 0


def test_ends_with_the_sandbox_and_says_so(lab: Lab) -> None:
    with running(lab) as (one, _):
        with subprocess.Popen(
            [NETNS_DEBUG, "enter", NAME, "--", "sh", "-c", "echo in; sleep 60"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        ) as entered:
            assert entered.stdout is not None
            assert entered.stdout.readline() == "in\n"
            began = time.monotonic()
            assert one.wait(given=b"\n").status == 0
            _, said = entered.communicate(timeout=10)
        assert entered.returncode == 137
        assert said == f"netns-debug: sandbox {NAME} ended, and the command too\n"
        assert time.monotonic() - began < 5


def test_nothing_stays_when_it_is_killed(lab: Lab) -> None:
    with running(lab) as (one, _):
        (record,) = [record for record in state.survey()[0] if record.name == NAME]
        procs = Path(record.cgroup, "cgroup.procs")
        before = procs.read_text().split()
        with subprocess.Popen(
            [NETNS_DEBUG, "enter", NAME, "--", "sh", "-c", "echo in; exec sleep 60"],
            stdout=subprocess.PIPE,
            env=environment(),
        ) as entered:
            assert entered.stdout is not None
            assert entered.stdout.readline() == b"in\n"
            assert len(procs.read_text().split()) == len(before) + 1
            entered.kill()
        deadline = time.monotonic() + 5
        while procs.read_text().split() != before and time.monotonic() < deadline:
            time.sleep(0.02)
        assert procs.read_text().split() == before
        assert one.wait(given=b"\n").status == 0


# Looks into whatever appears in /proc while somebody enters, as uid 0 inside would.
SPY = """
import os, sys
print("watching", flush=True)
mine = set(os.listdir("/proc"))
told = set()
while len(told) < 3:
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or entry in mine: continue
        for what in ("exe", "root", "cwd", "fd/0", "fd/3"):
            try: path = os.readlink(f"/proc/{entry}/{what}")
            except OSError: continue
            if what == "exe": told.add(path)
            if "main" in path or path.endswith("/python3.11") or "python3.12" in path:
                print("SAW", what, path, flush=True)
    if os.path.exists(sys.argv[1]): break
print(sorted(told), flush=True)
"""


def test_uid_0_inside_sees_nothing_of_the_process_before_it_is_the_command(lab: Lab) -> None:
    stop = lab.work / "stop"
    script = SPY.replace("sys.argv[1]", repr(str(stop)))
    try:
        with running(lab, "--user", "root", script=script) as (one, first):
            assert first == "watching\n"
            for _ in range(5):
                assert netns_debug("enter", NAME, "--", "sleep", "0.1").returncode == 0
            stop.touch()
            result = one.wait(given=b"\n")
    finally:
        stop.unlink(missing_ok=True)
    assert "sleep" in result.stdout, result.told()
    assert "SAW" not in result.stdout, result.told()


@pytest.mark.parametrize("fault", ["filters", "cgroup", "uid"])
def test_runs_nothing_where_the_process_would_be_held_less(
    lab: Lab, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = lab.work / f"ran-{fault}"
    with running(lab, "--user", "nobody") as (one, _):
        answer = ask(NAME, {"command": "enter"})
        (record,) = [record for record in state.survey()[0] if record.name == NAME]
        joining = enter.joining_of(answer, ("touch", str(marker)), record.cookie, None)
        if fault == "cgroup":
            joining = enter_join.Joining(
                **{name: getattr(joining, name) for name in joining.__slots__} | {"cgroups": ()}
            )
        elif fault == "filters":
            monkeypatch.setattr(enter_join, "PR_SET_SECCOMP", 23)
        else:
            monkeypatch.setattr(init, "give_up_privileges", lambda job: None)
        pid = os.fork()
        if pid == 0:
            # join() makes its process non-dumpable: not this one's to be.
            code = 1
            try:
                pidfd = os.pidfd_open(answer["pid"])
                joined = enter_join.join(joining, pidfd, [None, None, None])
                try:
                    enter._hold(joined, answer["pid"], pidfd, joining)
                finally:
                    joined.close()
            except StepError:
                code = 0
            finally:
                os._exit(code)
        _, status = os.waitpid(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert not marker.exists()
        assert one.wait(given=b"\n").status == 0


def test_a_sandbox_that_is_not_there_is_one_line() -> None:
    done = netns_debug("enter", "nobody-here", "--", "true")
    assert done.returncode == 125
    assert len(done.stderr.splitlines()) == 1
