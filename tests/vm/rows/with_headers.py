"""Kernel headers are installed, of this kernel or another: the probe compiles as without them."""

from __future__ import annotations

from pathlib import Path

from netns_runtime.layout import CACHE_DIR
from tests.support.run import netns_run
from tests.vm.rows.claims import checks, connects


def test_there_are_some() -> None:
    assert list(Path("/usr/src").glob("linux-headers-*/include/generated"))


def test_the_probe_loads_and_counts() -> None:
    assert netns_run("--probe", "bpf", cmd=["true"]).status == 0
    names, result = connects("--probe", "bpf", to=[("192.0.2.10", 80)] * 5)
    assert names == ["ECONNREFUSED"] * 5
    assert result.event("sandbox.exited")["counted_bpf"] == 5
    assert result.events("connect.refused")[0]["exe"].startswith("/usr/bin/python3")


def test_they_were_not_needed() -> None:
    (tree,) = (CACHE_DIR / "headers").iterdir()
    assert tree.name.startswith("own-")


def test_doctor_misses_nothing() -> None:
    missing = [name for name, check in checks().items() if not check["is_present"]]
    assert missing == []
