"""What goes past the proxy: refused at once with ECONNREFUSED, counted, and attributed."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import world
from tests.support.lab import CHECKOUT
from tests.support.run import PYTHON, Result, netns_run

if TYPE_CHECKING:
    from tests.support.lab import Lab

SCRIPT = str(CHECKOUT / "tests/support/probe_script.py")
PROBES = ["bpf", "nft"]
AT_ONCE = 0.2


def attempt(lab: Lab, attempts: list[Any], *options: str) -> tuple[list[dict[str, Any]], Result]:
    command = [PYTHON, SCRIPT, json.dumps(attempts)]
    result = netns_run(*options, "--redirect", "off", cmd=command, lab=lab)
    assert result.status == 0, result.told()
    outcomes: list[dict[str, Any]] = json.loads(result.stdout)
    return outcomes, result


def refused_in_totals(result: Result) -> int:
    """The exact number of refused direct connects, all reasons."""
    exited = result.event("sandbox.exited")
    assert exited["count"] == exited["counted_bpf"] + exited["counted_nft"], result.told()
    return int(exited["count"])


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("way", ["tcp", "tcp_nonblocking"])
@pytest.mark.parametrize(
    ("address", "port"),
    [
        pytest.param(world.WEB_IPV4, 80, id="ipv4"),
        pytest.param(world.WEB_IPV6, 443, id="ipv6"),
        pytest.param("::ffff:" + world.WEB_IPV4, 80, id="mapped"),
        pytest.param("10.200.0.1", 22, id="gateway's other port"),
        pytest.param("fd00:c8::1", 22, id="gateway's other port by ipv6"),
        pytest.param("169.254.169.254", 80, id="metadata"),
    ],
)
def test_refuses_tcp_at_once(lab: Lab, probe: str, way: str, address: str, port: int) -> None:
    outcomes, result = attempt(lab, [[way, address, port]] * 20, "--probe", probe)
    assert {o["errno"] for o in outcomes} == {"ECONNREFUSED"}, result.told()
    assert max(o["seconds"] for o in outcomes) < AT_ONCE, result.told()
    assert lab.connections_seen() == []


@pytest.mark.parametrize("probe", PROBES)
def test_counts_every_refused_connect(lab: Lab, probe: str) -> None:
    attempts = [["tcp", world.WEB_IPV4, 80], ["tcp", world.WEB_IPV6, 80]] * 101
    outcomes, result = attempt(lab, attempts, "--probe", probe)
    assert len(outcomes) == 202
    assert refused_in_totals(result) == 202, result.told()


@pytest.mark.parametrize("probe", PROBES)
@pytest.mark.parametrize("address", [world.DNS_IPV4, world.DNS_IPV6])
def test_refuses_connected_udp_with_an_errno(lab: Lab, probe: str, address: str) -> None:
    outcomes, result = attempt(lab, [["udp_connect", address, 53]], "--probe", probe)
    assert outcomes[0]["errno"] == "ECONNREFUSED", result.told()
    assert refused_in_totals(result) >= 1, result.told()
    assert lab.queries_seen() == []


def test_refuses_sendto_with_an_errno(lab: Lab) -> None:
    outcomes, result = attempt(lab, [["udp_sendto", world.DNS_IPV4, 53]], "--probe", "bpf")
    assert outcomes[0]["errno"] == "ECONNREFUSED", result.told()
    assert refused_in_totals(result) == 1, result.told()


def test_names_the_process_of_a_refused_connect(lab: Lab) -> None:
    command = ["curl", "-sS", "--noproxy", "*", f"http://{world.WEB_IPV4}/"]
    result = netns_run("--probe", "bpf", "--redirect", "off", cmd=command, lab=lab)
    assert result.status == 7, result.told()
    refused = result.event("connect.refused")
    assert refused["comm"] == "curl", result.told()
    assert refused["exe"].endswith("/curl"), result.told()
    assert refused["pid"] > 1, result.told()
    assert (refused["address"], refused["port"]) == (world.WEB_IPV4, 80), result.told()
    assert refused["entry"] == "direct", result.told()
    assert refused["action"] == "refuse", result.told()
    assert refused["protocol"] == "tcp", result.told()


def test_names_a_process_that_is_gone_already(lab: Lab) -> None:
    script = f"(exec 3<>/dev/tcp/{world.WEB_IPV4}/81) 2>/dev/null & wait"
    result = netns_run("--probe", "bpf", "--redirect", "off", cmd=["bash", "-c", script], lab=lab)
    assert result.event("connect.refused")["comm"] == "bash", result.told()


def test_nft_alone_still_writes_how_many_were_refused(lab: Lab) -> None:
    _, result = attempt(lab, [["tcp", world.WEB_IPV4, 80]] * 7, "--probe", "nft")
    exited = result.event("sandbox.exited")
    assert refused_in_totals(result) == 7, result.told()
    assert exited["counted_nft"] == 7, result.told()
    told = result.events("connect.refused", counted_by="nft")
    assert sum(line["count"] for line in told) == 7, result.told()


def test_loopback_inside_is_the_sandbox_own(lab: Lab) -> None:
    script = (
        "import socket; s = socket.create_server(('127.0.0.1', 0));"
        "c = socket.create_connection(s.getsockname()); c.send(b'x'); print(s.accept()[0].recv(1))"
    )
    result = netns_run(cmd=[PYTHON, "-c", script], lab=lab)
    assert result.stdout == "b'x'\n", result.told()
    assert refused_in_totals(result) == 0, result.told()


def test_a_flood_of_refusals_costs_no_count(lab: Lab) -> None:
    script = (
        "import socket, os\n"
        "for _ in range(4):\n"
        "  if not os.fork():\n"
        "    for _ in range(2500):\n"
        f"      s = socket.socket(); s.connect_ex(('{world.WEB_IPV4}', 80)); s.close()\n"
        "    os._exit(0)\n"
        "for _ in range(4): os.wait()\n"
    )
    result = netns_run(
        *("--probe", "bpf", "--redirect", "off"), cmd=[PYTHON, "-c", script], lab=lab
    )
    assert refused_in_totals(result) == 10_000, result.told()[:2000]
    assert 1 <= len(result.events("connect.refused")) < 10_000
