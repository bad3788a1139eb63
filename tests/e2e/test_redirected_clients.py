"""Unmodified clients that ignore the proxy: carried by name, or refused at once and told why."""

from __future__ import annotations

import errno
import json
import re
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

import pytest

from netns_runtime import layout
from tests.support import world
from tests.support.direct import (
    CASES,
    Case,
    Outcome,
    below,
    build_programs,
    make_repository,
    run_batch,
)
from tests.support.lab_ssh import ssh_server
from tests.support.run import PYTHON, netns_run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from ipaddress import IPv4Network, IPv6Network

    from tests.support.lab import Lab

AT_ONCE: Final = 1.0
"""Seconds from the refusal to the client's own end, on a machine that runs two at a time."""
PORTS: Final = {
    "http": 80,
    "ws": 80,
    "https": 443,
    "wss": 443,
    "ssh": world.SSH_PORT,
    "smtp": world.SMTP_PORT,
    "postgres": world.POSTGRES_PORT,
    "redis": world.REDIS_PORT,
}
FAMILIES: Final = {"four": ("4", world.WEB_IPV4), "six": ("6", world.WEB_IPV6)}

REFUSED: Final = re.compile(
    "connection refused|ECONNREFUSED|failed to connect|couldn't connect|connect call failed"
    "|ConnectException|closed 1006",
    re.IGNORECASE,
)
CURL: Final = ("curl", "-sS", "--max-time", "10", "--noproxy", "*")

every_case = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.fixture(scope="module", autouse=True)
def everything_is_there(lab_of_all: Lab) -> Iterator[None]:
    build_programs()
    make_repository(lab_of_all)
    with ssh_server(lab_of_all):
        yield


@pytest.fixture(scope="module")
def allowed(lab_of_all: Lab) -> dict[str, dict[Case, Outcome]]:
    return {
        suffix: run_batch(
            lab_of_all, below(f"{suffix}.test"), family, "--allow", f"*.{suffix}.test:*"
        )[0]
        for suffix, (family, _) in FAMILIES.items()
    }


@pytest.fixture(scope="module")
def unlisted(lab_of_all: Lab) -> dict[Case, Outcome]:
    lab_of_all.forget()
    outcomes, _ = run_batch(lab_of_all, below("unlisted.test"), "4", "--allow", "web.lab.test:*")
    assert lab_of_all.queries_seen() == []
    assert lab_of_all.connections_seen() == []
    return outcomes


@pytest.fixture(scope="module")
def other_port(lab_of_all: Lab) -> dict[Case, Outcome]:
    lab_of_all.forget()
    outcomes, _ = run_batch(lab_of_all, below("four.test"), "4", "--allow", "*.four.test:9999")
    assert lab_of_all.queries_seen() == []
    assert lab_of_all.connections_seen() == []
    return outcomes


@pytest.fixture(scope="module")
def literal(lab_of_all: Lab) -> dict[str, dict[Case, Outcome]]:
    lab_of_all.forget()
    hosts = {version: {case: case.address(version) for case in CASES} for version in ("4", "6")}
    return {
        version: run_batch(lab_of_all, hosts[version], version, "--allow", "web.lab.test")[0]
        for version in hosts
    }


@pytest.fixture(scope="module")
def strict(lab_of_all: Lab) -> dict[Case, Outcome]:
    lab_of_all.forget()
    options = ("--redirect", "off", "--allow", "*.four.test:*")
    outcomes, _ = run_batch(lab_of_all, below("four.test"), "4", *options)
    assert lab_of_all.queries_seen() == []
    assert lab_of_all.connections_seen() == []
    return outcomes


@every_case
@pytest.mark.parametrize("suffix", FAMILIES)
def test_is_carried_to_an_allowed_name(
    allowed: dict[str, dict[Case, Outcome]], suffix: str, case: Case
) -> None:
    outcome = allowed[suffix][case]
    assert outcome.status == 0, outcome.told()
    assert case.client.said.replace("{host}", outcome.host) in outcome.said, outcome.told()


@every_case
@pytest.mark.parametrize("suffix", FAMILIES)
def test_is_written_down_with_its_name_and_process(
    allowed: dict[str, dict[Case, Outcome]], suffix: str, case: Case
) -> None:
    outcome = allowed[suffix][case]
    [answered] = outcome.of("dns.answered")
    assert f"*.{suffix}.test" in answered["rule"], outcome.told()
    decided = outcome.of("flow.decided")
    assert decided, outcome.told()
    for event in decided:
        assert (event["entry"], event["action"]) == ("redirected", "allow"), outcome.told()
        assert event["address"] == FAMILIES[suffix][1], outcome.told()
        assert event["port"] == PORTS[case.scheme], outcome.told()
        assert case.client.exe in event["exe"], outcome.told()
        assert event["pid"] > 1, outcome.told()
        assert event["comm"], outcome.told()
    closed = outcome.of("flow.closed")
    flows = {event["flow"] for event in decided}
    assert sorted(event["flow"] for event in closed) == sorted(flows), outcome.told()
    assert sum(event["bytes_in"] for event in closed) > 0, outcome.told()
    assert sum(event["bytes_out"] for event in closed) > 0, outcome.told()
    assert outcome.of("connect.refused") == []


@every_case
def test_is_refused_a_name_that_is_not_listed(unlisted: dict[Case, Outcome], case: Case) -> None:
    outcome = unlisted[case]
    assert outcome.status not in (0, 127, None), outcome.told()
    assert case.client.unknown in outcome.said, outcome.told()
    assert outcome.of("flow.decided") == [], outcome.told()


@every_case
def test_is_refused_such_a_name_at_once_and_the_line_names_its_process(
    unlisted: dict[Case, Outcome], case: Case
) -> None:
    outcome = unlisted[case]
    refused = outcome.of("dns.refused")
    assert refused, outcome.told()
    assert outcome.seconds_since(refused[0]) < AT_ONCE, outcome.told()
    assert refused[0]["remedy"] == f"--allow {outcome.host}", outcome.told()
    assert refused[0]["said_by"] == "policy", outcome.told()
    assert case.client.exe in refused[0]["exe"], outcome.told()
    assert refused[0]["pid"] > 1, outcome.told()


@every_case
def test_is_refused_a_port_that_is_not_listed(other_port: dict[Case, Outcome], case: Case) -> None:
    outcome = other_port[case]
    assert outcome.status not in (0, 127, None), outcome.told()
    assert case.client.said.replace("{host}", outcome.host) not in outcome.said, outcome.told()
    refused = outcome.of("flow.decided")
    assert refused, outcome.told()
    for event in refused:
        assert (event["entry"], event["action"]) == ("redirected", "refuse"), outcome.told()
        assert event["port"] == PORTS[case.scheme], outcome.told()
        assert event["said_by"] == "policy", outcome.told()
        assert f"--allow {outcome.host}:{PORTS[case.scheme]}" in event["remedy"], outcome.told()
        assert case.client.exe in event["exe"], outcome.told()
    assert outcome.seconds_since(refused[0]) < AT_ONCE, outcome.told()


@every_case
@pytest.mark.parametrize("version", ["4", "6"])
def test_is_refused_a_literal_address_at_once(
    literal: dict[str, dict[Case, Outcome]], version: str, case: Case
) -> None:
    outcome = literal[version][case]
    assert outcome.status not in (0, 127, None), outcome.told()
    assert REFUSED.search(outcome.said), outcome.told()
    refused = outcome.of("connect.refused")
    assert refused, outcome.told()
    for event in refused:
        target = f"[{outcome.host}]" if version == "6" else outcome.host
        assert f"--allow {target}:{PORTS[case.scheme]}" in event["remedy"], outcome.told()
        assert event["port"] == PORTS[case.scheme], outcome.told()
        assert (event["entry"], event["reason"]) == ("direct", "direct_tcp"), outcome.told()
        assert event["comm"], outcome.told()
    assert outcome.seconds_since(refused[0]) < AT_ONCE, outcome.told()
    assert outcome.of("flow.decided") == []


@every_case
def test_without_redirect_its_name_resolves_and_its_connect_is_refused(
    strict: dict[Case, Outcome], case: Case
) -> None:
    outcome = strict[case]
    assert outcome.status not in (0, 127, None), outcome.told()
    assert REFUSED.search(outcome.said), outcome.told()
    assert len(outcome.of("dns.answered")) == 1, outcome.told()
    refused = outcome.of("connect.refused")
    assert refused, outcome.told()
    for event in refused:
        assert event["remedy"].startswith("--redirect on "), outcome.told()
        assert event["port"] == PORTS[case.scheme], outcome.told()
        assert event["comm"], outcome.told()
    assert outcome.seconds_since(refused[0]) < AT_ONCE, outcome.told()


@pytest.mark.parametrize(
    ("family", "network"), [("-4", layout.VIRTUAL_IPV4), ("-6", layout.VIRTUAL_IPV6)]
)
@pytest.mark.parametrize("host", ["v4.lab.test", "v6.lab.test"])
def test_each_family_inside_leads_to_either_outside(
    lab: Lab, host: str, family: str, network: IPv4Network | IPv6Network
) -> None:
    command = [*CURL, family, "-o", "/dev/null", "-w", "%{remote_ip}", f"http://{host}/"]
    result = netns_run("--allow", host, cmd=command, lab=lab)
    assert ip_address(result.stdout) in network, result.told()
    outside = {"v4.lab.test": world.WEB_IPV4, "v6.lab.test": world.WEB_IPV6}[host]
    assert lab.connections_seen() == [(outside, 80)]


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("address", [world.WEB_IPV4, f"[{world.WEB_IPV6}]"])
def test_a_listed_literal_address_is_carried(lab: Lab, address: str, scheme: str) -> None:
    allow = f"{address}:{PORTS[scheme]}"
    command = [*CURL, "-g", f"{scheme}://{address}/"]
    result = netns_run("--allow", allow, cmd=command, lab=lab)
    assert result.status == 0, result.told()
    decided = result.event("flow.decided")
    assert (decided["entry"], decided["action"]) == ("redirected", "allow"), result.told()
    assert decided["rule"] == f"--allow {allow}", result.told()
    assert decided["comm"] == "curl", result.told()


VIRTUAL: Final = """
    address=$(getent ahostsv4 web.lab.test | head -n 1 | cut -d' ' -f1)
    exec curl -sS --noproxy '*' --resolve other.test:443:$address https://other.test/
"""


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(
            [*CURL, "--connect-to", "other.test:443:web.lab.test:443", "https://other.test/"],
            id="connect-to",
        ),
        pytest.param(["sh", "-ec", VIRTUAL], id="resolve"),
    ],
)
def test_a_server_name_that_is_not_the_hosts_is_refused(lab: Lab, command: list[str]) -> None:
    both = ("--allow", "web.lab.test", "--allow", "other.test")
    result = netns_run(*both, cmd=command, lab=lab)
    assert result.status == 35, result.told()
    assert "alert" in result.stderr, result.told()
    decided = result.event("flow.decided", action="refuse")
    assert (decided["host"], decided["reason"]) == ("web.lab.test", "sni_mismatch"), result.told()
    assert "other.test" in decided["detail"], result.told()
    assert lab.connections_seen() == []


def test_a_host_header_that_is_not_the_hosts_is_refused_also_in_a_later_request(lab: Lab) -> None:
    script = """
        curl -sS --noproxy '*' -o /dev/null -w '%{http_code} ' http://web.lab.test/ \
            --next -sS --noproxy '*' -H 'Host: other.test' -w '%{http_code}' http://web.lab.test/
    """
    both = ("--allow", "web.lab.test", "--allow", "other.test")
    result = netns_run(*both, cmd=["sh", "-ec", script], lab=lab)
    assert result.stdout.startswith("200 "), result.told()
    assert result.stdout.endswith("403"), result.told()
    assert "host_mismatch" in result.stdout, result.told()
    decided = result.event("flow.decided", action="refuse")
    assert (decided["host"], decided["reason"]) == ("web.lab.test", "host_mismatch"), result.told()
    assert [request["host"] for request in lab.requests_seen()] == ["web.lab.test"]


GREETED: Final = """
import socket, sys, time
with socket.create_connection(("web.lab.test", int(sys.argv[1])), timeout=10) as sock:
    start = time.monotonic()
    print(sock.recv(100).decode().strip(), time.monotonic() - start, sep="|")
    sock.sendall(b"and on it goes")
    print(sock.recv(100).decode())
"""


def test_a_server_that_speaks_first_is_heard_after_a_bounded_wait(lab: Lab) -> None:
    command = [PYTHON, "-c", GREETED, str(world.BANNER_PORT)]
    result = netns_run("--allow", "web.lab.test:*", cmd=command, lab=lab)
    greeting, echoed = result.stdout.splitlines()
    words, _, seconds = greeting.partition("|")
    assert words == "220 lab ready", result.told()
    assert float(seconds) < AT_ONCE, result.told()
    assert echoed == "and on it goes", result.told()


HALF_CLOSE: Final = """
import socket, sys
with socket.create_connection(("web.lab.test", int(sys.argv[1])), timeout=10) as sock:
    sock.sendall(b"x" * 100_000)
    sock.shutdown(socket.SHUT_WR)
    print(sock.recv(100).decode())
"""


def test_half_a_connection_may_close_before_the_other(lab: Lab) -> None:
    command = [PYTHON, "-c", HALF_CLOSE, str(world.HALF_CLOSE_PORT)]
    result = netns_run("--allow", "web.lab.test:*", cmd=command, lab=lab)
    assert result.stdout.strip() == "100000", result.told()
    closed = result.event("flow.closed")
    assert closed["bytes_out"] == 100_000, result.told()


QUIC: Final = """
import json, socket, sys, time
for family, kind, _, _, address in socket.getaddrinfo("web.lab.test", 443, type=socket.SOCK_DGRAM):
    for way in ("sendto", "connect"):
        start = time.monotonic()
        with socket.socket(family, kind) as sock:
            sock.settimeout(5)
            try:
                sock.connect(address) if way == "connect" else sock.sendto(b"initial", address)
                sock.send(b"initial")
                sock.recv(100)
                error = None
            except OSError as failed:
                error = failed.errno
        print(json.dumps([way, error, time.monotonic() - start]))
"""


def test_udp_to_an_allowed_name_fails_at_once_so_that_quic_falls_back(lab: Lab) -> None:
    result = netns_run("--allow", "web.lab.test", cmd=[PYTHON, "-c", QUIC], lab=lab)
    attempts = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(attempts) == 4, result.told()
    for _, error, seconds in attempts:
        assert error == errno.ECONNREFUSED, result.told()
        assert seconds < 0.2, result.told()
    refused = result.events("connect.refused")
    assert len(refused) == 4, result.told()
    for event in refused:
        assert (event["protocol"], event["reason"]) == ("udp", "direct_udp"), result.told()
        assert event["host"] == "web.lab.test", result.told()
        assert "TCP" in event["remedy"], result.told()
