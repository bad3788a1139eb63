"""Names, signals and machines that make a launch fail: one line, 125, CMD not run, nothing left."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from netns_runtime.layout import RUN_DIR
from tests.support.run import NETNS_RUN, Running, netns_debug, netns_run

PATIENCE = 10.0


def wait_until_claimed(name: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not (RUN_DIR / f"{name}.json").exists():
        assert time.monotonic() < deadline, "it never started"
        time.sleep(0.001)


def test_a_name_whose_sandbox_was_killed_can_be_taken_at_once() -> None:
    name = f"stale-{os.getpid()}"
    with Running("--name", name, cmd=["sh", "-c", "echo up; exec sleep 60"]) as running:
        assert running.line() == "up\n"
        running.process.send_signal(signal.SIGKILL)
    result = netns_run("--name", name, cmd=["sh", "-c", "exit 3"])
    assert result.status == 3, result.told()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_it_starts_undoes_what_was_made(number: signal.Signals) -> None:
    name = f"early-{os.getpid()}"
    with Running("--name", name, cmd=["sleep", "60"]) as running:
        wait_until_claimed(name)
        running.process.send_signal(number)
        result = running.wait(PATIENCE)
    assert (result.status, result.stderr) == (128 + number, ""), result.told()
    assert not (RUN_DIR / f"{name}.json").exists()


def test_a_storm_of_signals_changes_nothing_for_a_command_that_ignores_them() -> None:
    script = "trap '' TERM INT HUP QUIT USR1 USR2; echo up; read line; exit 7"
    with Running(cmd=["sh", "-c", script], stdin=subprocess.PIPE) as running:
        assert running.line() == "up\n"
        for _ in range(300):
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
                running.process.send_signal(number)
        running.tell("")
        result = running.wait(PATIENCE)
    assert (result.status, result.stderr) == (7, ""), result.told()


def test_a_sandbox_with_long_arguments_is_listed_like_any_other() -> None:
    name = f"long-{os.getpid()}"
    words = ["x" * 100_000] * 11
    with Running("--name", name, cmd=["sh", "-c", "echo up; exec sleep 60", *words]) as running:
        assert running.line() == "up\n"
        listed = netns_debug("list", "--json")
        running.process.send_signal(signal.SIGTERM)
        running.wait(PATIENCE)
    assert f'"{name}"' in listed.stdout, listed.stderr


@pytest.mark.parametrize("words", ["fd:\u00b2", "fd:99999999999999999999"])
def test_an_audit_that_is_no_descriptor_is_one_line(words: str) -> None:
    result = netns_run("--audit", words, cmd=["echo", "ran"])
    assert_refused(result.status, result.stdout, result.stderr)


@pytest.mark.parametrize("uid", ["4294967295", "99999999999999"])
def test_a_uid_that_means_leave_it_as_it_is_is_refused(uid: str) -> None:
    for env in ({"SUDO_UID": uid, "SUDO_GID": "1"}, {"SUDO_UID": "54321", "SUDO_GID": uid}):
        result = netns_run(cmd=["id", "-u"], env=env, cwd="/")
        assert_refused(result.status, result.stdout, result.stderr)


def test_too_few_descriptors_are_one_line() -> None:
    for limit in range(13, 40, 2):
        launcher = ("sh", "-c", f'ulimit -n {limit}; exec "$0" "$@"', NETNS_RUN)
        done = subprocess.run(
            [*launcher, "--", "echo", "ran"],
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
            timeout=30,
        )
        if done.returncode:
            assert_refused(done.returncode, done.stdout, done.stderr)


def broken(place: str) -> subprocess.CompletedProcess[str]:
    """netns-run on a machine where /dev/null is in the place of a file."""
    script = f'mount --bind /dev/null {place} && exec "$0" -- echo ran'
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, NETNS_RUN],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=30,
    )


def test_a_machine_without_bubblewrap_is_told_so_in_one_line() -> None:
    done = broken("/usr/bin/bwrap")
    assert_refused(done.returncode, done.stdout, done.stderr)


def test_a_machine_without_libnftables_is_told_so_in_one_line() -> None:
    library = next(Path("/usr/lib").glob("*/libnftables.so.1")).resolve()
    done = broken(str(library))
    assert_refused(done.returncode, done.stdout, done.stderr)


def assert_refused(status: int, stdout: str, stderr: str) -> None:
    assert (status, stdout) == (125, ""), stderr
    assert stderr.startswith("netns-run: "), stderr
    assert stderr.count("\n") == 1, stderr
