"""A kernel whose modules cannot be loaded: each one that is missing is named, one after the other.

The tests run in order and give the kernel back one module at a time, so that each line is seen for
the module that it names and for no other reason, and what the line says mends it.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import leftovers
from tests.support.run import netns_debug, netns_run
from tests.vm.rows.claims import assert_one_line, checks

DENIED = Path("/etc/modprobe.d/without.conf")
STEPS = (
    ("veth", "gateway", "modprobe veth"),
    ("nf_tables", "gateway", "modprobe -a nf_tables nft_reject_inet"),
    ("nft_reject_inet", "gateway", "modprobe -a nf_tables nft_reject_inet"),
    ("nft_tproxy", "redirect", "modprobe nft_tproxy"),
)
"""Module, doctor's check, and what both doctor and netns-run tell to do."""


def give_back(module: str) -> None:
    lines = DENIED.read_text(encoding="ascii").splitlines(keepends=True)
    kept = [line for line in lines if line.split()[1] != module]
    assert kept != lines
    DENIED.write_text("".join(kept), encoding="ascii")


def is_loaded(module: str) -> bool:
    return any(line.split()[0] == module for line in Path("/proc/modules").read_text().splitlines())


@pytest.mark.parametrize(("module", "feature", "remedy"), STEPS, ids=[step[0] for step in STEPS])
def test_a_missing_module_is_named_and_nothing_stays(
    module: str, feature: str, remedy: str
) -> None:
    assert not is_loaded(module)
    before = leftovers.snapshot()
    assert_one_line(netns_run(cmd=["echo", "ran"], timeout=90), remedy)
    assert leftovers.wait_for_nothing(before) == []
    found = checks()[feature]
    assert not found["is_present"]
    assert remedy in found["remedy"], found
    assert netns_debug("doctor", timeout=120).returncode == (1 if feature == "gateway" else 0)
    give_back(module)


def test_with_all_of_them_a_sandbox_starts() -> None:
    result = netns_run(cmd=["echo", "ran"], timeout=90)
    assert (result.status, result.stdout, result.stderr) == (0, "ran\n", ""), result.told()
    assert all(is_loaded(step[0]) for step in STEPS)
    assert [name for name, check in checks().items() if not check["is_present"]] == []
