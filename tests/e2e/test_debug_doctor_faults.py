"""`netns-debug doctor SANDBOX`: more faults that are injected; each is named, and no other.

The trust store is covered in the sandbox's own mount namespace, links and routes are changed in
namespaces of the test's, processes are stopped and go on afterwards.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from netns_runtime.counts import unregistered_of
from netns_runtime.debug import places
from tests.e2e.test_debug_doctor import NAME, examined, failed, running
from tests.e2e.test_debug_flows import POLICY
from tests.e2e.test_debug_metrics import samples_of
from tests.support.run import NETNS_DEBUG, PYTHON, environment, netns_debug

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from netns_runtime.state import Record
    from tests.support.lab import Lab

STRAY = """
import os, socket, sys
with open(sys.argv[1] + "/cgroup.procs", "w") as file: file.write(str(os.getpid()))
for _ in range(int(sys.argv[2])):
    with socket.socket() as sock: print(sock.connect_ex(("127.0.0.1", 9)))
"""


@contextmanager
def stopped(pid: int | None) -> Iterator[None]:
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def wait_until(claim: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not claim():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def warned(checks: dict[str, dict[str, Any]]) -> set[str]:
    """What is warned of, but for what is this machine's or the lab's own doing."""
    found = {name for name, check in checks.items() if check["verdict"] == "warn"}
    return found - {"clock", "unregistered"}


def bundle_of(record: Record) -> str:
    with open(f"/proc/{record.pid}/environ", "rb") as file:
        variables = dict(word.partition(b"=")[::2] for word in file.read().split(b"\0"))
    return variables[b"SSL_CERT_FILE"].decode()


def test_names_a_trust_store_without_the_sandbox_s_own_authority(lab: Lab, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    with running(lab, "--policy", str(policy)) as record:
        assert failed(examined(0)) == []
        bundle = bundle_of(record)
        # Below it is the host's own store.
        entered = ["nsenter", "-t", str(record.pid), "-m", "-p"]
        subprocess.run([*entered, "umount", "-l", bundle], check=True)
        checks = examined(1)
    assert failed(checks) == ["trust"]
    assert checks["trust"]["detail"] == f"{bundle} lacks 2 of the 2 own certificates"
    assert "will not trust what is terminated" in checks["trust"]["remedy"]


def test_names_a_clock_that_is_not_the_sandbox_s(lab: Lab) -> None:
    with running(lab):
        assert "time namespace" not in examined(0)["clock"]["detail"]
        done = subprocess.run(
            ["unshare", "--time", "--fork", NETNS_DEBUG, "doctor", NAME],
            capture_output=True,
            text=True,
            env=environment(),
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    [line] = [line for line in done.stdout.splitlines() if "clock:" in line]
    assert line == "warn    clock: CMD has a time namespace of its own"


def test_names_an_uplink_without_a_default_route(fresh_lab: Lab) -> None:
    with running(fresh_lab):
        assert warned(examined(0)) == set()
        for family in ("-4", "-6"):
            done = fresh_lab.in_uplink("ip", family, "route", "del", "default")
            assert done.returncode == 0, done.stderr
        checks = examined(0)
    assert warned(checks) == {"uplink"}
    assert checks["uplink"]["detail"].endswith("has no default route")
    assert checks["uplink"]["remedy"] == "only addresses on its own links can be dialled"


@pytest.mark.parametrize("end", ["eth0", "gw0"])
def test_names_the_end_of_the_link_that_is_down(lab: Lab, end: str) -> None:
    with running(lab) as record:
        where = record.sandbox_ns if end == "eth0" else record.gateway_ns
        subprocess.run(["nsenter", f"--net={where}", "ip", "link", "set", end, "down"], check=True)
        checks = examined(1)
    # What cannot be reached over it fails as well.
    assert failed(checks) == ["proxy", "dns", "link"]
    assert checks["link"]["detail"] == f"{end} is down"
    assert "cannot be reached from inside" in checks["proxy"]["detail"]


def test_names_a_command_that_is_stopped(lab: Lab) -> None:
    """netns-run stops with its command, as a job does, and with it everything of its group."""
    with running(lab, process_group=0) as record:
        assert record.pid is not None
        os.kill(record.pid, signal.SIGSTOP)
        try:
            wait_until(lambda: places.state_of(record.supervisor) == "is stopped")
            checks = examined(1)
        finally:
            os.kill(record.supervisor, signal.SIGCONT)
        assert failed(checks) == ["supervisor"]
        wanted = f"it is stopped, as its command (pid {record.pid}) is"
        assert checks["supervisor"]["detail"].endswith(wanted)
        wait_until(lambda: places.state_of(record.pid) == "runs")
        assert failed(examined(0)) == [], "what was said to help did"


def test_names_a_supervisor_that_is_stopped_and_not_its_proxy(lab: Lab) -> None:
    with running(lab) as record:
        with stopped(record.supervisor):
            checks = examined(1)
        assert failed(checks) == ["supervisor"]
        found = checks["supervisor"]
        wanted = f"(pid {record.supervisor}) does not answer: it is stopped"
        assert found["detail"].endswith(wanted), "and its command is not"
        assert found["remedy"] == "kill -CONT it"
        assert checks["proxy"]["verdict"] == "ok"
        # What only the supervisor knows is unknown, and is not made up.
        unknown = {name for name, check in checks.items() if check["verdict"] == "unknown"}
        assert unknown == {"trust", "clock", "resolver"}
        assert failed(examined(0)) == []


def test_refusals_that_no_sandbox_counts_are_told_by_doctor_and_metrics(lab: Lab) -> None:
    """A process of the host's namespace is put into the sandbox's cgroup: the probe refuses it,
    and no sandbox's counts have it."""
    tries = 5
    family = "netns_unregistered_refused_connects_total"
    with running(lab) as record:
        if not record.pins:
            pytest.skip("no probe here")
        before = unregistered_of(record.pins)
        assert samples_of(netns_debug("metrics").stdout)[family] == before
        stray = subprocess.run(
            [PYTHON, "-c", STRAY, record.cgroup, str(tries)],
            capture_output=True,
            text=True,
            check=True,
        )
        assert set(stray.stdout.split()) == {str(errno.ECONNREFUSED)}
        checks = examined(0)
        assert samples_of(netns_debug("metrics").stdout)[family] == before + tries
    found = checks["unregistered"]
    assert found["verdict"] == "warn"
    assert found["detail"].startswith(f"{before + tries} connects refused that no sandbox's counts")
    assert "another network namespace" in found["remedy"]
    assert checks["gateway"]["detail"].endswith("; 0 connects refused so far")
