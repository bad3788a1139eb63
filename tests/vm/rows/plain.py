"""On any stock kernel: who ignores the proxy is carried by name, and doctor misses nothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.run import netns_run
from tests.vm.rows.claims import checks, connects

if TYPE_CHECKING:
    from tests.support.lab import Lab


@pytest.mark.parametrize("family", ["-4", "-6"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_client_that_ignores_the_proxy_is_carried(lab: Lab, family: str, scheme: str) -> None:
    words = ["curl", family, "-sSf", "-m", "20", "--noproxy", "*", "--cacert", str(lab.ca_file)]
    result = netns_run(
        "--allow", "web.lab.test", cmd=[*words, f"{scheme}://web.lab.test/"], lab=lab, timeout=60
    )
    assert result.status == 0, result.told()
    decided = result.event("flow.decided", action="allow", entry="redirected")
    assert (decided["host"], decided["comm"]) == ("web.lab.test", "curl"), result.told()


def test_a_name_that_is_not_listed_is_refused(lab: Lab) -> None:
    words = ["curl", "-sSf", "-m", "20", "--noproxy", "*", "http://other.test/"]
    result = netns_run("--allow", "web.lab.test", cmd=words, lab=lab, timeout=60)
    assert result.status == 6, result.told()
    assert result.events("dns.refused", host="other.test"), result.told()
    assert lab.connections_seen() == []


def test_the_probe_needs_no_kernel_headers() -> None:
    assert list(Path("/usr/src").glob("linux-headers*")) == []
    assert list(Path("/lib/modules").glob("*/build/include")) == []
    names, result = connects("--probe", "bpf", to=[("192.0.2.10", 80)] * 5)
    assert names == ["ECONNREFUSED"] * 5
    assert result.event("sandbox.exited")["counted_bpf"] == 5
    assert result.events("connect.refused")[0]["exe"].startswith("/usr/bin/python3")


def test_doctor_misses_nothing() -> None:
    assert [name for name, check in checks().items() if not check["is_present"]] == []
