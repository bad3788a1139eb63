"""Real runtimes trust what is terminated, and --upstream-ca's roots where nothing is."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pytest

from tests.support.clients import node, python
from tests.support.direct import (
    CLONE,
    GO,
    REPOSITORY,
    RUBY,
    SCRIPT,
    SOURCES,
    build_programs,
    make_repository,
)
from tests.support.run import CLIENT_PYTHON, NODE_MODULES, PYTHON, Result, netns_run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.lab import Lab

CLIENT_BIN: Final = os.path.dirname(CLIENT_PYTHON)
# A shell that cron, su or a build tool started: nothing of our environment is left.
BARE: Final = ("env", "-i", "PATH=/usr/bin:/bin")
GRAB: Final = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=10).read())"
# The lab closes as web servers do, without a close_notify.
S_CLIENT: Final = (
    "openssl s_client -quiet -ignore_unexpected_eof -verify_return_error -verify_hostname {host}"
)
GET: Final = "GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
FETCH: Final = "console.log(await (await fetch(Deno.args[0])).text())"

POLICY: Final = """
version: 1
network_policies:
  inspected:
    endpoints:
      - {host: "*.four.test", port: 443, protocol: rest, access: full}
  tunnelled:
    endpoints:
      - {host: "*.pool.test", port: 443}
"""


@dataclass(frozen=True)
class Client:
    """`argv` and `stdin` may hold {url} and {host}; `said` is in its output when it got through."""

    name: str
    argv: tuple[str, ...]
    said: str = "hello from {host}"
    stdin: str = ""
    status: int = 0

    def __str__(self) -> str:
        return self.name

    def host(self, suffix: str) -> str:
        return f"{self.name.replace(' ', '-').lower()}.{suffix}"


def filled(text: str, host: str) -> str:
    return text.replace("{url}", f"https://{host}/").replace("{host}", host)


CLIENTS: Final = (
    Client("curl", ("curl", "-sSf", "--max-time", "10", "{url}")),
    Client("curl bare", (*BARE, "curl", "-sSf", "--max-time", "10", "{url}")),
    Client("wget", ("wget", "-nv", "-O", "-", "--tries=1", "--timeout=10", "{url}")),
    Client("wget bare", (*BARE, "wget", "-nv", "-O", "-", "--tries=1", "--timeout=10", "{url}")),
    Client("git", ("sh", "-c", CLONE, "git", "{url}files/" + REPOSITORY, "false"), said="first"),
    Client(
        "git bare",
        (*BARE, "sh", "-c", CLONE, "git", "{url}files/" + REPOSITORY, "false"),
        said="first",
    ),
    Client(
        "openssl",
        (*S_CLIENT.split(), "-connect", "{host}:443", "-servername", "{host}"),
        stdin=GET,
    ),
    Client(
        "openssl bare",
        (*BARE, *S_CLIENT.split(), "-connect", "{host}:443", "-servername", "{host}"),
        stdin=GET,
    ),
    Client("urllib", (*python("get_urllib.py"), "{url}")),
    Client("urllib bare", (*BARE, PYTHON, "-c", GRAB, "{url}")),
    Client("requests", (*python("get_requests.py"), "{url}")),
    Client("httpx", (*python("get_httpx.py"), "{url}")),
    Client("aiohttp", (*python("get_aiohttp.py"), "{url}")),
    Client(
        "pip",
        (CLIENT_PYTHON, "-m", "pip", "download", "-d", "/tmp/pip", "-i", "{url}simple", "nosuch"),
        said="No matching distribution found for nosuch",
        status=1,
    ),
    Client("node http", (*node("get_http.js"), "{url}", "4")),
    Client("node fetch", (*node("fetch_builtin.js"), "{url}")),
    Client("undici", (*node("fetch_undici.js"), "{url}")),
    Client("deno", (f"{CLIENT_BIN}/deno", "eval", FETCH, "{url}")),
    Client("Go", (str(GO), "-proxy", "{url}")),
    Client("Go bare", (*BARE, str(GO), "{url}", "4")),
    Client("Java", ("java", "-XX:TieredStopAtLevel=1", str(SOURCES / "java/Trust.java"), "{url}")),
    Client(
        "Java bare",
        (*BARE, "java", "-XX:TieredStopAtLevel=1", str(SOURCES / "java/Trust.java"), "{url}"),
    ),
    Client("Ruby", ("ruby", "-e", RUBY, "{url}")),
    Client("Ruby bare", (*BARE, "ruby", "-e", RUBY, "{url}")),
    Client("Perl LWP", ("lwp-request", "{url}")),
    Client("Perl LWP bare", (*BARE, "lwp-request", "{url}")),
    # rustls, and its roots by rustls-native-certs.
    Client(
        "uv",
        (
            *(f"{CLIENT_BIN}/uv", "pip", "install", "--no-cache", "--target", "/tmp/uv"),
            *("--python", PYTHON, "-i", "{url}simple", "nosuch"),
        ),
        said="Expected JSON or HTML",
        status=1,
    ),
)


@dataclass(frozen=True)
class Batch:
    outcomes: dict[str, dict[str, object]]
    result: Result


@pytest.fixture(scope="module")
def batches(lab_of_all: Lab) -> dict[str, Batch]:
    """All clients in one sandbox, once to hosts that are terminated and once to tunnelled ones."""
    build_programs()
    make_repository(lab_of_all)
    policy = lab_of_all.directory / "trust.yaml"
    policy.write_text(POLICY)
    found = {}
    for suffix in ("four.test", "pool.test"):
        hosts = {client.host(suffix): client for client in CLIENTS}
        asked = {
            "drop": [],
            "env": {
                "LC_ALL": "C.UTF-8",
                "NODE_PATH": NODE_MODULES,
                "DENO_DIR": "/tmp/deno",
                "HOME": "/tmp",
            },
            "clients": {
                host: {
                    "argv": [filled(word, host) for word in client.argv],
                    "stdin": filled(client.stdin, host),
                    "keeps": True,
                }
                for host, client in hosts.items()
            },
        }
        result = netns_run(
            *("--policy", str(policy)),
            cmd=[PYTHON, SCRIPT],
            lab=lab_of_all,
            input=json.dumps(asked),
            timeout=180,
        )
        assert result.status == 0, result.told()
        found[suffix] = Batch(json.loads(result.stdout), result)
    return found


def told(batch: Batch, host: str) -> str:
    lines = [json.dumps(line) for line in batch.result.audit if line.get("host") == host]
    outcome = batch.outcomes[host]
    said = f"{outcome['stdout']}{outcome['stderr']}"
    return "\n".join([f"{host}: status {outcome['status']}", said, *lines])


def check(batch: Batch, client: Client, host: str) -> None:
    outcome = batch.outcomes[host]
    assert outcome["status"] == client.status, told(batch, host)
    said = f"{outcome['stdout']}{outcome['stderr']}"
    assert client.said.replace("{host}", host) in said, told(batch, host)


every_client = pytest.mark.parametrize("client", CLIENTS, ids=str)


@every_client
def test_trusts_a_terminated_host(batches: dict[str, Batch], client: Client) -> None:
    batch, host = batches["four.test"], client.host("four.test")
    check(batch, client, host)
    # Only who sees the requests can tell of them.
    assert batch.result.events("http.request", host=host, said_by="upstream"), told(batch, host)


@every_client
def test_trusts_the_roots_of_upstream_ca_in_a_tunnel(
    batches: dict[str, Batch], client: Client
) -> None:
    batch, host = batches["pool.test"], client.host("pool.test")
    check(batch, client, host)
    assert batch.result.events("flow.closed", host=host), told(batch, host)
    assert batch.result.events("http.request", host=host) == [], told(batch, host)


def inside(lab: Lab, script: str, *options: str) -> Result:
    policy = lab.directory / "trust.yaml"
    policy.write_text(POLICY)
    return netns_run("--policy", str(policy), *options, cmd=["sh", "-c", script], lab=lab)


def test_keytool_reads_the_store_with_every_root_and_ours(lab: Lab) -> None:
    script = "keytool -list -keystore /run/netns-runtime/ca-java.jks -storepass changeit"
    result = inside(lab, script)
    assert result.status == 0, result.told()
    with open("/etc/ssl/certs/ca-certificates.crt", encoding="ascii") as bundle:
        system = bundle.read().count("BEGIN CERTIFICATE")
    assert f"contains {system + 2} entries" in result.stdout, result.told()


def test_no_key_is_inside_and_nothing_is_on_the_host(lab: Lab, tmp_path: Path) -> None:
    places = ["/etc/ssl", "/usr/lib/ssl"]
    before = subprocess.run(["find", *places, "-printf", "%p %s %T@\n"], capture_output=True)
    result = inside(lab, "cat $SSL_CERT_FILE $NODE_EXTRA_CA_CERTS; ls -l /run/netns-runtime; env")
    after = subprocess.run(["find", *places, "-printf", "%p %s %T@\n"], capture_output=True)
    assert before.stdout == after.stdout
    assert "BEGIN CERTIFICATE" in result.stdout
    assert "PRIVATE" not in result.stdout
    assert not os.path.exists("/run/netns-runtime/ca-extra.pem")


def test_each_sandbox_has_an_authority_of_its_own(lab: Lab) -> None:
    bundles = [inside(lab, "cat $NODE_EXTRA_CA_CERTS").stdout for _ in range(2)]
    first, second = (set(text.split("-----BEGIN CERTIFICATE-----\n")[1:]) for text in bundles)
    assert len(first) == len(second) == 2
    assert len(first & second) == 1  # the lab's


def test_without_rules_there_is_no_authority(lab: Lab) -> None:
    result = netns_run("--allow", "web.lab.test", cmd=["cat", "/etc/ssl/certs/ca-certificates.crt"])
    with open("/etc/ssl/certs/ca-certificates.crt", encoding="ascii") as bundle:
        assert result.stdout == bundle.read()


def test_the_bundle_cannot_be_changed_from_inside(lab: Lab) -> None:
    result = inside(lab, "echo x >> /etc/ssl/certs/ca-certificates.crt", "--user", "root")
    assert result.status != 0
    assert result.stderr.strip(), result.told()


def test_a_client_that_pins_is_told_to_be_skipped(lab: Lab) -> None:
    script = f"curl -sS --cacert {lab.ca_file} https://pins.four.test/"
    result = inside(lab, script)
    assert result.status == 60, result.told()
    closed = result.event("flow.closed", host="pins.four.test")
    assert (closed["reason"], closed["said_by"]) == ("client_tls_error", "sandbox")
    assert "pins.four.test in the policy with `tls: skip`" in closed["remedy"]


UPSTREAMS: Final = {
    "expired": "has expired",
    "not-yet": "is not valid yet",
    "wronghost": "is for another name",
    "unknown-issuer": "an authority that is not known here",
}


@pytest.mark.parametrize("name", UPSTREAMS)
def test_a_bad_certificate_of_upstream_is_upstreams_fault(lab: Lab, name: str) -> None:
    host = f"{name}.lab.test"
    policy = lab.directory / "bad.yaml"
    policy.write_text(POLICY.replace("*.four.test", host))
    result = netns_run(
        *("--policy", str(policy)), cmd=["curl", "-sS", "-i", f"https://{host}/"], lab=lab
    )
    assert "HTTP/1.1 502 " in result.stdout, result.told()
    assert "error=tls_certificate_error" in result.stdout, result.told()
    closed = result.event("flow.closed", host=host)
    assert (closed["reason"], closed["said_by"]) == ("tls_certificate_error", "upstream")
    assert UPSTREAMS[name] in closed["detail"], result.told()
