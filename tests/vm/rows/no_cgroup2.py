"""No cgroup v2 is mounted: no sandbox starts, in one line that says how to mount it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.support import leftovers
from tests.support.run import netns_debug, netns_run
from tests.vm.rows.claims import assert_one_line, checks


def test_the_line_names_what_to_mount_and_nothing_stays() -> None:
    before = leftovers.snapshot()
    for probe in ("auto", "bpf", "nft"):
        result = netns_run("--probe", probe, cmd=["true"])
        assert_one_line(result, "cgroup v2", "mount -t cgroup2")
    assert leftovers.wait_for_nothing(before) == []


def test_doctor_says_so_and_that_no_sandbox_can_start() -> None:
    found = checks()
    missing = {name for name, check in found.items() if not check["is_present"]}
    assert missing == {"cgroup v2", "probe", "probe: cgroup2"}
    for name in missing:
        assert "mount -t cgroup2" in found[name]["remedy"], found[name]
    assert netns_debug("doctor", timeout=120).returncode == 1


def test_what_the_line_says_mends_it() -> None:
    place = Path("/sys/fs/cgroup/unified")
    place.mkdir()
    subprocess.run(["mount", "-t", "cgroup2", "none", place], check=True)
    assert netns_run(cmd=["true"]).status == 0
