"""The kernel has no nft_tproxy: redirection is an error that says so, without it all works."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support import leftovers, world
from tests.support.run import netns_run
from tests.vm.rows.claims import assert_one_line, checks, connects

if TYPE_CHECKING:
    from tests.support.lab import Lab


def test_redirection_ends_in_one_line_that_names_the_module_and_the_way_without() -> None:
    before = leftovers.snapshot()
    result = netns_run(cmd=["echo", "ran"])
    assert_one_line(result, "nft_tproxy", "--redirect off")
    assert leftovers.wait_for_nothing(before) == []


def test_without_redirection_who_ignores_the_proxy_is_refused(lab: Lab) -> None:
    names, result = connects("--redirect", "off", to=[(world.WEB_IPV4, 80)] * 3, lab=lab)
    assert names == ["ECONNREFUSED"] * 3
    assert result.event("sandbox.exited")["count"] == 3


def test_without_redirection_the_proxy_carries(lab: Lab) -> None:
    words = ("--redirect", "off", "--allow", "web.lab.test")
    result = netns_run(*words, cmd=["curl", "-sSf", "http://web.lab.test/"], lab=lab, timeout=60)
    assert result.status == 0, result.told()


def test_doctor_names_it() -> None:
    found = checks()
    assert found["gateway"]["is_present"]
    assert not found["redirect"]["is_present"]
    assert "nft_tproxy" in found["redirect"]["remedy"]
