"""bpf(2) is denied: everything is refused as before, counted by nft, and not attributed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.support import world
from tests.support.run import netns_run
from tests.vm.rows.claims import assert_one_line, checks, connects

if TYPE_CHECKING:
    from tests.support.lab import Lab


def test_a_sandbox_starts_and_refuses_and_counts_exactly(lab: Lab) -> None:
    targets = [(world.WEB_IPV4, 80), (world.WEB_IPV6, 443), ("169.254.169.254", 80)] * 7
    names, result = connects("--redirect", "off", to=targets, lab=lab)
    assert set(names) == {"ECONNREFUSED"}, result.told()
    exited = result.event("sandbox.exited")
    assert (exited["counted_bpf"], exited["counted_nft"]) == (0, 21), result.told()
    assert lab.connections_seen() == []


def test_an_allowed_host_is_reached_and_no_other(lab: Lab) -> None:
    script = (
        "curl -sSf http://web.lab.test/ >/dev/null && echo reached;"
        "curl -sS -m 10 --noproxy '*' http://web.lab.test/ >/dev/null && echo carried;"
        "curl -sSf -m 10 http://other.test/ 2>/dev/null || echo refused;"
        "curl -sSf -m 10 --noproxy '*' http://other.test/ 2>/dev/null || echo refused"
    )
    result = netns_run("--allow", "web.lab.test", cmd=["sh", "-c", script], lab=lab, timeout=90)
    assert result.stdout.split() == ["reached", "carried", "refused", "refused"], result.told()


def test_asked_for_the_probe_it_says_in_one_line_why_not() -> None:
    assert_one_line(netns_run("--probe", "bpf", cmd=["true"]), "not permitted")


def test_nothing_is_said_without_being_asked() -> None:
    result = netns_run(cmd=["true"])
    assert (result.status, result.stderr) == (0, ""), result.told()


def test_doctor_says_what_is_lost() -> None:
    found = checks()
    assert not found["probe"]["is_present"]
    assert not found["probe: bpf"]["is_present"]
    assert found["gateway"]["is_present"]
