"""The lab itself: what other tests take for granted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support import leftovers, world
from tests.support.lab import CHECKOUT, Lab

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("address", [*world.FORBIDDEN_IPV4, f"[{world.FORBIDDEN_IPV6[0]}]"])
def test_addresses_that_screening_refuses_do_answer_in_the_uplink(lab: Lab, address: str) -> None:
    done = lab.in_uplink("curl", "-sSg", "--noproxy", "*", f"http://{address}/")
    assert done.stdout.startswith("hello"), done


def test_serves_https_under_its_own_authority(lab: Lab) -> None:
    resolve = f"web.lab.test:443:{world.WEB_IPV4}"
    trusted = ("--cacert", str(lab.ca_file), "--resolve", resolve)
    done = lab.in_uplink("curl", "-sS", "--noproxy", "*", *trusted, "https://web.lab.test/")
    assert done.stdout == "hello from web.lab.test\n", done
    assert lab.requests_seen()[0]["tls"] is True


def test_names_can_be_changed(fresh_lab: Lab) -> None:
    script = (
        "import dns.resolver; r = dns.resolver.Resolver(configure=False);"
        f"r.nameservers = ['{world.DNS_IPV4}'];"
        "print([r.resolve('new.test', 'A')[0].to_text() for _ in range(3)])"
    )
    fresh_lab.set_name("new.test", [["A 192.0.2.10"], ["A 10.1.2.3"]])
    done = fresh_lab.in_uplink(sys.executable, "-c", script)
    assert done.stdout == "['192.0.2.10', '10.1.2.3', '192.0.2.10']\n", done
    assert fresh_lab.queries_seen() == [("new.test", "A")] * 3


def test_vanishes_when_the_test_is_killed(tmp_path: Path) -> None:
    before = leftovers.snapshot()
    script = "from tests.support.lab import Lab\n"
    script += "with Lab() as lab: print(lab.uplink_pid, flush=True); input()"
    child = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
    )
    with child:
        assert child.stdout is not None
        assert int(child.stdout.readline()) > 0
        assert leftovers.left(before)
        child.send_signal(signal.SIGKILL)
    assert leftovers.wait_for_nothing(before) == []
