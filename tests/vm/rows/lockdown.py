"""The kernel forbids reading its memory: connects are counted, without the executable's name."""

from __future__ import annotations

from pathlib import Path

from tests.support.run import netns_run
from tests.vm.rows.claims import connects


def test_this_kernel_is_locked_down() -> None:
    assert "[confidentiality]" in Path("/sys/kernel/security/lockdown").read_text(encoding="ascii")


def test_the_probe_loads_and_counts() -> None:
    assert netns_run("--probe", "bpf", cmd=["true"]).status == 0
    names, result = connects("--probe", "bpf", to=[("192.0.2.10", 80)] * 5)
    assert names == ["ECONNREFUSED"] * 5
    assert result.event("sandbox.exited")["counted_bpf"] == 5
    (event, *_) = result.events("connect.refused")
    assert event["pid"] > 0
