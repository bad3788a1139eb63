"""The lab itself: what other tests take for granted."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support import lab_traps, leftovers, world
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


def fetch(lab: Lab, url: str, *words: str, address: str = world.WEB_IPV4) -> str:
    """What curl says in the uplink: the response, or why it takes none."""
    host = url.split("/")[2]
    trusted = ("--cacert", str(lab.ca_file), "--resolve", f"{host}:443:{address}")
    done = lab.in_uplink("curl", "-sS", "-i", "--noproxy", "*", *trusted, *words, url)
    return done.stdout + done.stderr


@pytest.mark.parametrize("kind", lab_traps.BAD_CERTIFICATES)
def test_certificates_that_nobody_should_accept_are_not_accepted(lab: Lab, kind: str) -> None:
    said = fetch(lab, f"https://{kind}.lab.test/")
    assert said.startswith("curl: (60)"), said
    assert lab.requests_seen() == []


@pytest.mark.parametrize("version", ["--http1.1", "--http2"])
def test_a_service_takes_the_value_and_nothing_else(lab: Lab, version: str) -> None:
    lab.accept("OPENAI_API_KEY", "the-value")
    for token, status in (("the-value", " 200"), ("openshell:resolve:env:X", " 401")):
        words = (version, "-H", f"Authorization: Bearer {token}")
        said = fetch(lab, "https://api.openai.com/v1", *words, address=world.REAL_IPV4)
        assert status in said.splitlines()[0], said
    assert [seen["version"] for seen in lab.requests_seen()] == [
        "2" if version == "--http2" else "1.1"
    ] * 2
    assert [where for where, _ in lab.placeholders_seen()] == ["GET api.openai.com header"]


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("-d", "x=openshell%3Aresolve%3Aenv%3AX"), id="percent-encoded"),
        pytest.param(("-u", "openshell:resolve:env:X"), id="base64"),
        pytest.param(("-d", '{"x": "\\u006fpenshell:resolve:env:X"}'), id="JSON escape"),
    ],
)
def test_a_placeholder_is_noticed_however_it_is_dressed(lab: Lab, words: tuple[str, ...]) -> None:
    fetch(lab, "https://web.lab.test/", *words)
    assert len(lab.placeholders_seen()) == 1


def test_a_refused_upgrade_may_be_followed_by_a_plain_request(lab: Lab) -> None:
    upgrade = ("-H", "Connection: upgrade", "-H", "Upgrade: websocket")
    said = fetch(lab, "https://web.lab.test/upgrade/403", *upgrade)
    assert "no socket here: 403" in said, said
    assert "served without a socket" in fetch(lab, "https://web.lab.test/upgrade/403")
