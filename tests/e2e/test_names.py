"""Names inside a sandbox, as each resolver that programs bring along sees them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import ip_address
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, Final

import pytest

from netns_runtime import layout
from tests.support.clients import node
from tests.support.direct import GO, build_programs
from tests.support.run import PYTHON, Running, netns_run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.lab import Lab
    from tests.support.run import Result

ALLOWED: Final = ("--allow", "web.lab.test", "--allow", "*.wild.test")

GETADDRINFO: Final = """
import json, socket, sys, time
def ask(host):
    start = time.monotonic()
    try:
        found = sorted({info[4][0] for info in socket.getaddrinfo(host, 443)})
    except socket.gaierror as error:
        found = {socket.EAI_NONAME: "EAI_NONAME", socket.EAI_AGAIN: "EAI_AGAIN"}[error.errno]
    return [found, time.monotonic() - start]
print(json.dumps({host: ask(host) for host in sys.argv[1:]}))
"""


def getaddrinfo(lab: Lab, *hosts: str, options: tuple[str, ...] = ALLOWED) -> tuple[Any, Result]:
    result = netns_run(*options, cmd=[PYTHON, "-c", GETADDRINFO, *hosts], lab=lab)
    assert result.status == 0, result.told()
    return json.loads(result.stdout), result


def is_virtual(address: str) -> bool:
    parsed = ip_address(address)
    return parsed in layout.VIRTUAL_IPV4 or parsed in layout.VIRTUAL_IPV6


def test_every_resolver_gives_the_same_two_virtual_addresses(lab: Lab) -> None:
    build_programs()
    host = "web.lab.test"
    script = f"""
        getent ahosts {host} | cut -d' ' -f1 | sort -u | tr '\\n' ' '; echo
        {GO} lookup {host} | sort | tr '\\n' ' '; echo
        {" ".join(node("resolve.js"))} {host}
        {PYTHON} -c '{GETADDRINFO}' {host}
    """
    result = netns_run(*ALLOWED, cmd=["sh", "-ec", script], lab=lab)
    assert result.status == 0, result.told()
    glibc, go, from_node, from_python = result.stdout.splitlines()
    four, six = sorted(glibc.split(), key=lambda text: ip_address(text).version)
    assert ip_address(four) in layout.VIRTUAL_IPV4, result.told()
    assert ip_address(six) in layout.VIRTUAL_IPV6, result.told()
    assert set(go.split()) == {four, six}, result.told()
    told = json.loads(from_node)
    assert (told["resolve4"], told["resolve6"]) == ([four], [six]), result.told()
    assert set(told["lookup"]) == {four, six}, result.told()
    assert told["resolveMx"] == "ENODATA", result.told()
    assert set(json.loads(from_python)[host][0]) == {four, six}, result.told()
    answered = result.event("dns.answered")
    assert (answered["host"], answered["address"]) == (host, four), result.told()


def test_a_name_is_not_looked_up_outside_before_it_is_dialled(lab: Lab) -> None:
    getaddrinfo(lab, "web.lab.test", "a.wild.test", "secret-for-you.unlisted.test")
    assert lab.queries_seen() == []


def test_names_keep_their_addresses_and_share_none(lab: Lab) -> None:
    hosts = [f"host-{number}.wild.test" for number in range(40)]
    script = f"{PYTHON} -c '{GETADDRINFO}' " + " ".join(hosts)
    result = netns_run(*ALLOWED, cmd=["sh", "-ec", f"{script}; {script}"], lab=lab)
    first, second = (json.loads(line) for line in result.stdout.splitlines())
    addresses = {host: found for host, (found, _) in first.items()}
    assert {host: found for host, (found, _) in second.items()} == addresses
    every = [address for found in addresses.values() for address in found]
    assert len(set(every)) == len(every) == 80, result.told()
    assert all(map(is_virtual, every)), result.told()


@pytest.mark.parametrize("host", ["WEB.Lab.Test", "web.lab.test.", "Web.lab.test."])
def test_a_name_means_the_same_in_any_spelling(lab: Lab, host: str) -> None:
    told, result = getaddrinfo(lab, "web.lab.test", host)
    assert told[host][0] == told["web.lab.test"][0], result.told()


def test_an_address_leads_back_to_its_name(lab: Lab) -> None:
    script = """
        for family in ahostsv4 ahostsv6; do
            address=$(getent $family web.lab.test | head -n 1 | cut -d' ' -f1)
            getent hosts $address
        done
        python3 -c 'import socket; print(*socket.gethostbyaddr("10.200.0.1")[:1])'
    """
    result = netns_run(*ALLOWED, cmd=["sh", "-ec", script], lab=lab)
    *names, gateway = [line.split()[-1] for line in result.stdout.splitlines()]
    assert names == ["web.lab.test"] * 2, result.told()
    assert gateway == "gateway.netns-runtime.internal", result.told()


@pytest.mark.parametrize("address", ["192.0.2.10", "10.200.0.7", "198.18.0.1"])
def test_a_foreign_address_leads_to_no_name(lab: Lab, address: str) -> None:
    result = netns_run(*ALLOWED, cmd=["getent", "hosts", address], lab=lab)
    assert result.status == 2, result.told()
    assert lab.queries_seen() == []


def test_localhost_is_inside_for_every_resolver(lab: Lab) -> None:
    build_programs()
    script = f"""
        getent ahostsv4 localhost | head -n 1
        {GO} lookup localhost | tr '\\n' ' '; echo
        {" ".join(node("resolve.js"))} localhost
    """
    result = netns_run(cmd=["sh", "-ec", script], lab=lab)
    getent, go, from_node = result.stdout.splitlines()
    assert getent.split()[0] == "127.0.0.1", result.told()
    assert set(go.split()) == {"127.0.0.1", "::1"}, result.told()
    told = json.loads(from_node)
    assert told["resolve4"] == ["127.0.0.1"], result.told()
    assert set(told["lookup"]) == {"127.0.0.1", "::1"}, result.told()
    assert result.events("dns.refused") == []


def test_a_server_of_its_own_is_reached_by_the_name_localhost(lab: Lab) -> None:
    script = """
        python3 -m http.server --bind 127.0.0.1 8123 >/dev/null 2>&1 &
        curl -sS --retry 20 --retry-delay 0 --retry-connrefused -o /dev/null \
            -w '%{http_code} %{remote_ip}' http://localhost:8123/
        kill $!
    """
    result = netns_run(cmd=["sh", "-c", script], lab=lab)
    assert result.stdout == "200 127.0.0.1", result.told()
    assert result.events("connect.refused") == []


@pytest.mark.parametrize(
    "host",
    ["lab.test", "wild.test", "web.lab.test.evil.test", "xweb.lab.test", "a_b.unlisted.test"],
)
def test_an_unlisted_name_is_refused_at_once_and_its_process_named(lab: Lab, host: str) -> None:
    told, result = getaddrinfo(lab, host)
    found, seconds = told[host]
    assert found == "EAI_NONAME", result.told()
    assert seconds < 0.5, result.told()
    refused = result.event("dns.refused", host=host)
    assert refused["reason"] == "name_not_allowed", result.told()
    assert refused["exe"].startswith("/usr/bin/python3"), result.told()
    assert refused["pid"] > 1, result.told()
    assert host in refused["detail"], result.told()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        pytest.param(("getent", "hosts"), "", id="getent"),
        pytest.param((str(GO), "lookup"), "no such host", id="go"),
        pytest.param(node("resolve.js"), '"resolve4":"ENOTFOUND"', id="c-ares"),
    ],
)
def test_each_resolver_is_refused_and_named(lab: Lab, words: tuple[str, ...], said: str) -> None:
    build_programs()
    result = netns_run(*ALLOWED, cmd=[*words, "other.test"], lab=lab)
    assert said in result.stdout + result.stderr, result.told()
    refused = result.events("dns.refused", host="other.test")[0]
    assert os.path.basename(words[0]) in refused["exe"], result.told()
    assert refused["remedy"] == "--allow other.test", result.told()
    assert lab.queries_seen() == []


def test_report_resolves_what_it_would_refuse_and_says_so(lab: Lab) -> None:
    told, result = getaddrinfo(lab, "other.test", options=("--report",))
    assert all(map(is_virtual, told["other.test"][0])), result.told()
    answered = result.event("dns.answered", host="other.test")
    assert answered["remedy"] == "--allow other.test", result.told()


# Where glibc's nss-resolve, nscd, sssd and avahi ask, and D-Bus, by which resolved is asked too.
DAEMONS: Final = (
    "/run/systemd/resolve/io.systemd.Resolve",
    "/run/nscd/socket",
    "/run/avahi-daemon/socket",
    "/run/dbus/system_bus_socket",
    "/var/lib/sss/pipes/nss",
)
REACH: Final = """
import socket, sys
for path in sys.argv[1:]:
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.connect(path)
            print("reached", path)
        except OSError as error:
            print(type(error).__name__)
"""


def hang_up_on_everybody(sock: socket.socket) -> None:
    with suppress(OSError):
        while True:
            sock.accept()[0].close()


@contextmanager
def listening(path: Path) -> Iterator[None]:
    """A socket there unless the host has one, so that the test cannot pass by its absence.

    It hangs up on everybody at once: glibc on the host asks nscd too, and would wait for an answer.
    """
    if path.exists():
        yield
        return
    missing = next((p for p in [*path.parents][::-1] if not p.exists()), None)
    path.parent.mkdir(parents=True, exist_ok=True)
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.bind(str(path))
        sock.listen()
        Thread(target=hang_up_on_everybody, args=(sock,), daemon=True).start()
        yield
    finally:
        sock.shutdown(socket.SHUT_RDWR)
        sock.close()
        path.unlink()
        for parent in path.parents:
            if missing is None or not parent.is_relative_to(missing):
                break
            parent.rmdir()


def test_the_hosts_resolver_daemons_cannot_be_asked(lab: Lab) -> None:
    command = [PYTHON, "-c", REACH, *DAEMONS]
    with ExitStack() as stack:
        for path in DAEMONS:
            stack.enter_context(listening(Path(path)))
        outside = subprocess.run(command, capture_output=True, text=True, check=True)
        assert outside.stdout.count("reached") == len(DAEMONS), outside
        result = netns_run(cmd=command, lab=lab)
    lines = result.stdout.splitlines()
    assert len(lines) == len(DAEMONS), result.told()
    assert "reached" not in result.stdout, result.told()


def test_the_hosts_own_files_are_as_they_were(lab: Lab) -> None:
    files = [Path("/etc") / name for name in ("resolv.conf", "nsswitch.conf", "hosts")]
    before = [path.read_bytes() for path in files]
    script = "grep -h . /etc/resolv.conf; grep ^hosts: /etc/nsswitch.conf; echo; read wait"
    with Running(cmd=["sh", "-c", script], lab=lab, stdin=subprocess.PIPE) as running:
        assert running.line() == "nameserver 10.200.0.1\n"
        assert running.line().split() == ["hosts:", "files", "dns"]
        assert [path.read_bytes() for path in files] == before
        assert running.wait(given=b"\n").status == 0
    assert [path.read_bytes() for path in files] == before
