"""Unmodified clients that honour the proxy variables: what they get, and what the audit says."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support import world
from tests.support.clients import CLIENTS, Client, trust
from tests.support.run import netns_run

if TYPE_CHECKING:
    from tests.support.lab import Lab
    from tests.support.run import Result

PAIRS = [
    pytest.param(client, scheme, id=f"{client.name} {scheme}")
    for client in CLIENTS
    for scheme in client.schemes
]
PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}
# wget without --ca-certificate reads the system's store only.
EXTRA = {"wget": lambda lab: [f"--ca-certificate={lab.ca_file}"]}


def run_client(lab: Lab, client: Client, url: str, *options: str) -> Result:
    extra = EXTRA.get(client.name, lambda _: [])(lab)
    return netns_run(*options, cmd=[*client.argv, *extra, url], lab=lab, env=trust(lab))


@pytest.mark.parametrize(("client", "scheme"), PAIRS)
def test_reaches_an_allowed_host(lab: Lab, client: Client, scheme: str) -> None:
    result = run_client(lab, client, f"{scheme}://web.lab.test/", "--allow", "web.lab.test")
    assert result.status == 0, result.told()
    assert result.stdout.startswith("hello from"), result.told()
    assert result.stderr == "" or client.name == "wget", result.told()
    # Plain HTTP inside a CONNECT tunnel is decided once for the tunnel and again for each request.
    decisions = result.events("flow.decided")
    wanted = {"action": "allow", "entry": "explicit", "host": "web.lab.test"}
    for decided in decisions:
        told = {key: decided[key] for key in ("action", "entry", "host", "port")}
        assert told == {**wanted, "port": PORTS[scheme]}, result.told()
        assert "--allow" in decided["rule"], result.told()
    assert len({decided["protocol"] for decided in decisions}) == len(decisions) > 0, result.told()
    closed = result.event("flow.closed")
    assert closed["bytes_in"] > 0, result.told()
    assert closed["bytes_out"] > 0, result.told()
    assert closed["duration_ms"] >= 0, result.told()


@pytest.mark.parametrize(("client", "scheme"), PAIRS)
def test_is_told_403_for_a_host_that_is_not_listed(lab: Lab, client: Client, scheme: str) -> None:
    result = run_client(lab, client, f"{scheme}://other.test/", "--allow", "web.lab.test")
    words = client.denied_plain if scheme in ("http", "ws") else client.denied_tunnel
    assert result.status not in (0, 125, 126, 127), result.told()
    assert words in result.stdout + result.stderr, result.told()
    for decided in result.events("flow.decided"):
        assert decided["action"] == "refuse", result.told()
        assert decided["said_by"] == "policy", result.told()
        assert (decided["host"], decided["port"]) == ("other.test", PORTS[scheme])
    assert result.events("flow.decided"), result.told()
    assert lab.connections_seen() == []
    assert lab.queries_seen() == []


def test_names_the_process_that_opened_the_flow(lab: Lab) -> None:
    result = netns_run(
        *("--allow", "web.lab.test"), cmd=["curl", "-sSf", "http://web.lab.test/"], lab=lab
    )
    decided = result.event("flow.decided")
    assert decided["comm"] == "curl", result.told()
    assert decided["exe"].endswith("/curl"), result.told()
    assert decided["pid"] > 1, result.told()


def test_carries_ipv6_authorities(lab: Lab) -> None:
    url = f"http://[{world.WEB_IPV6}]/"
    allow = f"[{world.WEB_IPV6}]:80"
    result = netns_run("--allow", allow, cmd=["curl", "-sSfg", url], lab=lab)
    assert result.status == 0, result.told()
    assert (world.WEB_IPV6, 80) in lab.connections_seen()


def test_reaches_a_host_that_has_ipv6_only(lab: Lab) -> None:
    result = netns_run(
        *("--allow", "v6.lab.test"), cmd=["curl", "-sSf", "http://v6.lab.test/"], lab=lab
    )
    assert result.status == 0, result.told()
    assert lab.connections_seen() == [(world.WEB_IPV6, 80)]


@pytest.mark.parametrize("host", ["WEB.Lab.Test", "web.lab.test."])
def test_knows_a_host_by_any_spelling(lab: Lab, host: str) -> None:
    result = netns_run(
        *("--allow", "web.lab.test"), cmd=["curl", "-sSf", f"http://{host}/"], lab=lab
    )
    assert result.status == 0, result.told()
    assert result.event("flow.decided")["host"] == "web.lab.test"


def test_a_wildcard_is_labels_below_and_not_the_bare_name(lab: Lab) -> None:
    hosts = ["a.wild.test", "a.b.wild.test", "wild.test"]
    command = ["curl", "-s", "-w", "%{stderr}%{http_code} "]
    command += [word for host in hosts for word in ("-o", "/dev/null", f"http://{host}/")]
    result = netns_run("--allow", "*.wild.test", cmd=command, lab=lab)
    assert result.stderr.split() == ["200", "200", "403"], result.told()


def test_clones_with_git_over_https(lab: Lab) -> None:
    setup = """
        git init -q -b main tree && cd tree
        git -c user.name=lab -c user.email=lab@lab.test commit -q --allow-empty -m 'first'
        cd .. && git clone -q --bare tree repo.git && git -C repo.git update-server-info
    """
    clone = """
        rm -rf clone && git clone -q https://web.lab.test/files/repo.git clone
        git -C clone log --format=%s
    """

    if not (lab.www / "repo.git").exists():
        subprocess.run(["sh", "-ec", setup], cwd=lab.www, check=True, capture_output=True)
    result = netns_run(
        *("--allow", "web.lab.test:443"), cmd=["sh", "-ec", clone], lab=lab, env=trust(lab)
    )
    assert result.stdout == "first\n", result.told()


def test_git_says_403_for_a_host_that_is_not_listed(lab: Lab) -> None:
    result = netns_run(
        cmd=["git", "ls-remote", "https://web.lab.test/files/repo.git"], lab=lab, env=trust(lab)
    )
    assert result.status == 128, result.told()
    assert "403" in result.stderr, result.told()


@pytest.mark.parametrize(("allowed", "words"), [(True, "Verify return code: 0"), (False, "403")])
def test_openssl_connects_through_the_proxy(lab: Lab, allowed: bool, words: str) -> None:
    command = "openssl s_client -proxy 10.200.0.1:3128 -connect web.lab.test:443"
    words_ = [*command.split(), "-servername", "web.lab.test", "-CAfile", str(lab.ca_file)]
    options = ["--allow", "web.lab.test"] if allowed else []
    result = netns_run(*options, cmd=words_, lab=lab)
    assert words in result.stdout + result.stderr, result.told()


def test_the_403_names_the_rule_and_the_remedy(lab: Lab) -> None:
    result = netns_run(
        *("--allow", "web.lab.test"), cmd=["curl", "-si", "http://other.test/"], lab=lab
    )
    head, _, body = result.stdout.partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 403 "), result.told()
    assert "proxy-status: " in head.lower(), result.told()
    assert "http_request_denied" in head, result.told()
    assert "other.test" in body, result.told()
    assert "--allow other.test" in body, result.told()


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("nowhere.lab.test", 502),
        ("servfail.lab.test", 502),
        ("unreachable.lab.test", 502),
        ("web.lab.test:9", 502),
    ],
)
def test_a_failure_of_upstream_is_not_told_as_a_refusal(lab: Lab, host: str, status: int) -> None:
    command = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", f"http://{host}/"]
    name = host.partition(":")[0]
    result = netns_run("--allow", f"{name}:*", cmd=command, lab=lab)
    assert int(result.stdout) == status, result.told()
    said_by = {line.get("said_by") for line in result.audit if line.get("reason")}
    assert said_by == {"upstream"}, result.told()


@pytest.mark.parametrize(
    "host",
    [
        *("private", "private172", "private192", "cgnat", "metadata", "metadata6", "loopback"),
        *("mapped", "nat64", "6to4", "uplink"),
    ],
)
def test_never_dials_an_address_that_screening_refuses(lab: Lab, host: str) -> None:
    url = f"http://{host}.lab.test/"
    command = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", url]
    result = netns_run("--allow", "*.lab.test", cmd=command, lab=lab)
    assert result.stdout == "403", result.told()
    assert lab.connections_seen() == [], "the lab answers there, so it would have been reached"


def test_dials_only_the_public_one_of_two_addresses(lab: Lab) -> None:
    result = netns_run(
        *("--allow", "mixed.lab.test"), cmd=["curl", "-sf", "http://mixed.lab.test/"], lab=lab
    )
    assert all(address == world.WEB_IPV4 for address, _ in lab.connections_seen()), result.told()


@pytest.mark.parametrize("host", ["slow6.lab.test", "half.lab.test"])
def test_a_dead_address_does_not_hide_a_live_one(lab: Lab, host: str) -> None:
    command = ["curl", "-s", "-w", " %{time_total}", f"http://{host}/"]
    result = netns_run("--allow", host, cmd=command, lab=lab)
    text, _, seconds = result.stdout.rpartition(" ")
    assert text.startswith("hello"), result.told()
    assert float(seconds) < 2, result.told()


def test_a_response_is_passed_on_unaltered(lab: Lab) -> None:
    paths = {"bytes/300000": 300000, "until-close/70000": 70000, "chunked/5": 40}
    urls = [f"http://web.lab.test/{path}" for path in paths]
    command = ["curl", "-sS", "-w", "%{stderr}%{size_download}\n"]
    command += [word for url in urls for word in ("-o", "/dev/null", url)]
    result = netns_run("--allow", "web.lab.test", cmd=command, lab=lab)
    assert [int(size) for size in result.stderr.split()] == list(paths.values()), result.told()


def test_uploads_arrive_whole(lab: Lab) -> None:
    command = ["curl", "-sS", "-T", "-", "http://web.lab.test/upload"]
    result = netns_run("--allow", "web.lab.test", cmd=command, lab=lab, input="x" * 500_000)
    assert result.stdout == "500000\n", result.told()


def test_report_lets_through_what_the_policy_would_refuse_and_says_so(lab: Lab) -> None:
    result = netns_run("--report", cmd=["curl", "-sf", "http://other.test/"], lab=lab)
    assert result.status == 0, result.told()
    decided = result.event("flow.decided")
    assert decided["action"] == "allow", result.told()
    assert decided.get("remedy") or decided.get("detail") or decided.get("reason"), result.told()


def test_report_does_not_lift_screening(lab: Lab) -> None:
    command = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "http://metadata.lab.test/"]
    assert netns_run("--report", cmd=command, lab=lab).stdout == "403"
    assert lab.connections_seen() == []
