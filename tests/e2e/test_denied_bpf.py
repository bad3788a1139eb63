"""bpf(2) is denied, as by a container: the same is refused, nft counts, and nobody is named."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support import leftovers, world
from tests.support.lab import CHECKOUT
from tests.support.run import NETNS_DEBUG, NETNS_RUN, PYTHON, Result, environment, netns_run

if TYPE_CHECKING:
    from tests.support.lab import Lab

SCRIPT = str(CHECKOUT / "tests/support/probe_script.py")
DENIED = (PYTHON, str(CHECKOUT / "tests/vm/rows/deny_bpf.py"))
ERRNOS = ["EPERM", "ENOSYS"]


def run(errno: str, *options: str, cmd: list[str], lab: Lab | None = None) -> Result:
    return netns_run(*options, cmd=cmd, lab=lab, launcher=(*DENIED, errno, NETNS_RUN))


@pytest.mark.parametrize("errno", ERRNOS)
def test_refuses_and_counts_exactly_by_nft_alone(lab: Lab, errno: str) -> None:
    targets = [(world.WEB_IPV4, 80), (world.WEB_IPV6, 443), ("169.254.169.254", 80)] * 7
    attempts = json.dumps([["tcp", *target] for target in targets])
    result = run(errno, "--redirect", "off", cmd=[PYTHON, SCRIPT, attempts], lab=lab)
    assert (result.status, result.stderr) == (0, ""), result.told()
    assert {told["errno"] for told in json.loads(result.stdout)} == {"ECONNREFUSED"}
    exited = result.event("sandbox.exited")
    assert (exited["counted_bpf"], exited["counted_nft"]) == (0, 21), result.told()
    assert result.event("sandbox.started")["probe"] == "nft"
    assert all("pid" not in event for event in result.events("connect.refused"))
    assert lab.connections_seen() == []


def test_carries_what_is_allowed_and_nothing_else(lab: Lab) -> None:
    script = (
        "curl -sSf http://web.lab.test/ >/dev/null && echo reached;"
        "curl -sSf -m 10 --noproxy '*' http://web.lab.test/ >/dev/null && echo carried;"
        "curl -sSf -m 10 http://other.test/ 2>/dev/null || echo refused;"
        "curl -sSf -m 10 --noproxy '*' http://other.test/ 2>/dev/null || echo refused"
    )
    result = run("EPERM", "--allow", "web.lab.test", cmd=["sh", "-c", script], lab=lab)
    assert result.stdout.split() == ["reached", "carried", "refused", "refused"], result.told()


@pytest.mark.parametrize("errno", ERRNOS)
def test_asked_for_the_probe_it_ends_in_one_line_and_leaves_nothing(errno: str) -> None:
    before = leftovers.snapshot()
    result = run(errno, "--probe", "bpf", cmd=["echo", "ran"])
    assert (result.status, result.stdout) == (125, ""), result.told()
    (line,) = result.stderr.splitlines()
    assert line.startswith("netns-run: ")
    assert "bpf" in line or "probe" in line
    assert leftovers.wait_for_nothing(before) == []


def test_doctor_names_the_call_and_what_is_lost() -> None:
    words = [*DENIED, "EPERM", NETNS_DEBUG, "doctor", "--json"]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=30, env=environment(), check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = {check["feature"]: check for check in json.loads(done.stdout)["checks"]}
    assert not found["probe"]["is_present"]
    assert not found["probe: bpf"]["is_present"]
    assert "lift what denies bpf(2)" in found["probe: bpf"]["remedy"]
    assert found["gateway"]["is_present"]
