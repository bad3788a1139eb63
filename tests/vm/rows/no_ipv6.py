"""The kernel was started with ipv6.disable=1: sandboxes have IPv4 alone, and no way around it."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest

from tests.support.run import netns_run
from tests.vm.rows.claims import checks, connects

if TYPE_CHECKING:
    from tests.support.run import Result


def test_this_kernel_has_none() -> None:
    with pytest.raises(OSError, match="Address family"):
        socket.socket(socket.AF_INET6)


@pytest.mark.parametrize("probe", ["bpf", "nft"])
@pytest.mark.parametrize("redirect", ["on", "off"])
def test_ipv4_is_refused_and_counted(probe: str, redirect: str) -> None:
    targets = [("192.0.2.10", 80), ("10.200.0.1", 22), ("169.254.169.254", 80)]
    names, result = connects("--probe", probe, "--redirect", redirect, to=targets)
    assert names == ["ECONNREFUSED"] * 3, result.told()
    assert result.event("sandbox.exited")["count"] == 3, result.told()


def test_the_proxy_answers_and_refuses() -> None:
    words = ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "http://unlisted.test/"]
    result: Result = netns_run(cmd=words)
    assert result.stdout == "403", result.told()


def test_doctor_says_so() -> None:
    found = checks()
    assert not found["IPv6"]["is_present"]
    assert found["gateway"]["is_present"]
    assert found["probe"]["is_present"]
