"""Real clients that ignore the proxy, as a table, and a way to run them all in one sandbox.

Some ignore it by nature and keep the variables that name it; the rest run without them, as if a
program had never read them. Each gets a host of its own below the batch's suffix, so that an audit
line tells whose it is. `Outcome` is how a client ended and every event about its host.
"""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any, Final

from netns_runtime import layout
from netns_runtime.environment import PROXY_VARIABLES
from tests.support.clients import node, node_version, python, trust
from tests.support.lab import CHECKOUT
from tests.support.run import CLIENT_PYTHON, PYTHON, netns_run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tests.support.lab import Lab
    from tests.support.run import Result

SCRIPT: Final = str(CHECKOUT / "tests/support/batch_script.py")
PROGRAMS: Final = CHECKOUT / ".venv/programs"
SOURCES: Final = CHECKOUT / "tests/e2e"
GO: Final = PROGRAMS / "get"
REPOSITORY: Final = "repo.git"
DROPPED: Final = [*PROXY_VARIABLES, "JAVA_TOOL_OPTIONS"]

HTTP: Final = ("http", "https")
HELLO: Final = "hello from {host}"
ECHOED: Final = "hello from a websocket"
NO_NAME: Final = "ENOTFOUND"


@dataclass(frozen=True)
class Direct:
    """A client. `argv` may hold {url}, {host}, {authority} (an address
    in brackets), {family} (4 or 6) and {ca}.

    `exe` ends the path of the executable that connects; `said` is in its output when it got
    through, `unknown` when the name was refused, `denied` when a proxy that it uses said 403.
    `keeps`: it has the proxy variables, and ignores them unless it is one of `TOLD`.
    """

    name: str
    argv: tuple[str, ...]
    exe: str
    unknown: str
    schemes: tuple[str, ...] = HTTP
    said: str = HELLO
    stdin: str = ""
    keeps: bool = False
    denied: str = ""

    @property
    def label(self) -> str:
        return self.name.lower().replace(" ", "-").replace("(", "").replace(")", "")


PYTHON_EXE: Final = os.path.basename(os.path.realpath(PYTHON))
JAVA: Final = ("java", "-XX:TieredStopAtLevel=1", "-cp", str(PROGRAMS), "Get", "{url}")
RUBY: Final = """
    require "net/http"
    answer = Net::HTTP.get_response(URI(ARGV[0]))
    print answer.body
    exit answer.is_a?(Net::HTTPSuccess)
"""
SSH: Final = (
    "ssh -F none -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR "
    "-o BatchMode=yes -{family}"
)
CLONE: Final = """
    into=$(mktemp -d) && git -c core.sshCommand="$2" clone -q "$1" "$into" &&
    git -C "$into" log --format=%s
"""
# The lab closes as web servers do, without a close_notify.
S_CLIENT: Final = "openssl s_client -{family} -quiet -ignore_unexpected_eof -CAfile {ca}"
SMTP: Final = """
import smtplib, sys
with smtplib.SMTP(sys.argv[1], timeout=10) as server:
    server.sendmail("a@lab.test", ["b@lab.test"], "Subject: hello")
    print(*server.noop())
"""

DIRECT: Final[tuple[Direct, ...]] = (
    Direct(
        "curl",
        ("curl", "-sS", "-f", "-{family}", "--max-time", "10", "--noproxy", "*", "{url}"),
        "/curl",
        "Could not resolve host",
        keeps=True,
    ),
    Direct(
        "wget",
        (
            *("wget", "-nv", "-O", "-", "-{family}", "--tries=1", "--timeout=10", "--no-proxy"),
            *("--ca-certificate={ca}", "{url}"),
        ),
        "/wget",
        "unable to resolve",
        keeps=True,
    ),
    Direct(
        "git",
        ("sh", "-c", CLONE, "git", "{url}files/" + REPOSITORY, "false"),
        "/git-remote-http",
        "Could not resolve host",
        said="first",
    ),
    Direct(
        "git over ssh",
        ("sh", "-c", CLONE, "git", "ssh://git@{authority}/" + REPOSITORY, SSH),
        "/ssh",
        "Could not resolve hostname",
        ("ssh",),
        said="first",
        keeps=True,
    ),
    Direct(
        "openssl",
        (
            *S_CLIENT.split(),
            "-connect",
            "{authority}:443",
            "-servername",
            "{host}",
            "-verify_return_error",
        ),
        "/openssl",
        "BIO_lookup",
        ("https",),
        stdin="GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n",
        keeps=True,
    ),
    Direct("node fetch", (*node("fetch_builtin.js"), "{url}"), "/node", NO_NAME),
    Direct("node http", (*node("get_http.js"), "{url}", "{family}"), "/node", NO_NAME),
    # Node 24 lets NODE_USE_ENV_PROXY decide for this one as well.
    Direct("undici", (*node("fetch_undici_direct.js"), "{url}"), "/node", NO_NAME),
    Direct(
        "ws",
        (*node("ws_direct.js"), "{url}", "{family}"),
        "/node",
        NO_NAME,
        ("ws", "wss"),
        ECHOED,
        keeps=True,
    ),
    *(
        [
            Direct(
                "node WebSocket",
                (*node("ws_builtin.js"), "{url}"),
                "/node",
                "1006",
                ("wss",),
                ECHOED,
            )
        ]
        if node_version() >= (22, 0)
        else []
    ),
    Direct("requests", (*python("get_requests.py"), "{url}"), PYTHON_EXE, "Name or service"),
    Direct("httpx", (*python("get_httpx.py"), "{url}"), PYTHON_EXE, "Name or service"),
    Direct(
        "aiohttp",
        (*python("get_aiohttp_direct.py"), "{url}"),
        PYTHON_EXE,
        "Name or service",
        keeps=True,
    ),
    Direct("urllib", (*python("get_urllib.py"), "{url}"), PYTHON_EXE, "Name or service"),
    Direct(
        "websockets",
        (*python("ws_websockets.py"), "{url}"),
        PYTHON_EXE,
        "Name or service",
        ("ws", "wss"),
        ECHOED,
    ),
    Direct("Go", (str(GO), "{url}", "{family}"), "/get", "no such host", keeps=True),
    Direct("Java", JAVA, "/java", "UnresolvedAddressException"),
    Direct("Ruby", ("ruby", "-e", RUBY, "{url}"), "/ruby", "getaddrinfo"),
    Direct("Perl LWP", ("lwp-request", "-t", "10s", "{url}"), "/perl", "Can't connect"),
    Direct(
        "psql",
        (
            *("psql", "-X", "-A", "-t", "-c", "select 'anything'", "-U", "lab"),
            *("-h", "{host}", "lab"),
        ),
        "/psql",
        "could not translate host name",
        ("postgres",),
        "hello from the lab",
        keeps=True,
    ),
    Direct(
        "redis-cli",
        ("redis-cli", "-h", "{host}", "ping"),
        "/redis-cli",
        "Name or service",
        ("redis",),
        "PONG",
        keeps=True,
    ),
    Direct(
        "smtplib",
        (CLIENT_PYTHON, "-c", SMTP, "{host}"),
        PYTHON_EXE,
        "Name or service",
        ("smtp",),
        "250",
        keeps=True,
    ),
)


TOLD: Final[tuple[Direct, ...]] = (
    Direct("Go", (str(GO), "-proxy", "{url}"), "/get", "", keeps=True, denied="403|Forbidden"),
    Direct("Java", JAVA, "/java", "", keeps=True, denied="403|refused this request"),
    Direct("Ruby", ("ruby", "-e", RUBY, "{url}"), "/ruby", "", keeps=True, denied="403|policy"),
    Direct(
        "Perl LWP",
        ("lwp-request", "{url}"),
        "/perl",
        "",
        keeps=True,
        denied="403|refused this request",
    ),
)
"""Languages whose clients use the proxy that the variables name. See also `clients.CLIENTS`."""


@dataclass(frozen=True)
class Case:
    """A client and the scheme it is to speak."""

    client: Direct
    scheme: str

    def __str__(self) -> str:
        return f"{self.client.name} {self.scheme}"

    def host(self, suffix: str) -> str:
        """A host below `suffix` that is this case's own."""
        return f"{self.client.label}-{self.scheme}.{suffix}"

    def address(self, version: str) -> str:
        """A literal address that is this case's own, where nobody is."""
        number = CASES.index(self)
        return f"203.0.113.{100 + number}" if version == "4" else f"2001:db8:0:9::{number + 1:x}"

    def asked(self, host: str, family: str, lab: Lab) -> dict[str, Any]:
        """What `batch_script` wants to know."""
        values = {"host": host, "family": family, "ca": lab.ca_file}
        values["authority"] = f"[{host}]" if ":" in host else host
        values["url"] = f"{self.scheme}://{values['authority']}/"
        argv = [_filled(word, values) for word in self.client.argv]
        stdin = _filled(self.client.stdin, values)
        return {"argv": argv, "stdin": stdin, "keeps": self.client.keeps}


def _filled(text: str, values: dict[str, Any]) -> str:
    for name, value in values.items():
        text = text.replace("{" + name + "}", str(value))
    return text


CASES: Final = [Case(client, scheme) for client in DIRECT for scheme in client.schemes]
TOLD_CASES: Final = [Case(client, scheme) for client in TOLD for scheme in client.schemes]


@dataclass(frozen=True)
class Outcome:
    """How one client ended. `ended` is seconds since the epoch."""

    host: str
    status: int | None
    said: str
    ended: float
    events: list[dict[str, Any]] = field(repr=False)

    def of(self, event: str) -> list[dict[str, Any]]:
        """The events of that name about its host."""
        return [line for line in self.events if line["event"] == event]

    def seconds_since(self, event: dict[str, Any]) -> float:
        """How long after an event it ended."""
        return self.ended - datetime.fromisoformat(event["time"]).timestamp()

    def told(self) -> str:
        lines = "\n".join(json.dumps(line) for line in self.events)
        return f"{self.host}: status {self.status}\n{self.said}\n--- audit\n{lines}"


@cache
def build_programs() -> None:
    """Build the Go and Java clients unless they are newer than their sources."""
    PROGRAMS.mkdir(exist_ok=True)
    go, java = SOURCES / "go/get.go", SOURCES / "java/Get.java"
    environment = {
        **os.environ,
        "CGO_ENABLED": "0",
        "GO111MODULE": "off",
        "GOTOOLCHAIN": "local",
        "GOCACHE": str(PROGRAMS / "cache"),
    }
    if not _is_newer(GO, go):
        words = ["go", "build", "-trimpath", "-o", str(GO), str(go)]
        subprocess.run(words, env=environment, check=True)
    if not _is_newer(PROGRAMS / "Get.class", java):
        subprocess.run(["javac", "-d", str(PROGRAMS), str(java)], check=True)


def _is_newer(built: Path, source: Path) -> bool:
    return built.exists() and built.stat().st_mtime > source.stat().st_mtime


def make_repository(lab: Lab) -> None:
    """A bare repository with one commit, `first`, under the lab's /files/."""
    script = f"""
        git init -q -b main tree && cd tree
        git -c user.name=lab -c user.email=lab@lab.test commit -q --allow-empty -m first
        cd .. && git clone -q --bare tree {REPOSITORY} && git -C {REPOSITORY} update-server-info
    """
    if not (lab.www / REPOSITORY).exists():
        subprocess.run(["sh", "-ec", script], cwd=lab.www, check=True, capture_output=True)


def run_batch(
    lab: Lab, hosts: Mapping[Case, str], family: str, *options: str
) -> tuple[dict[Case, Outcome], Result]:
    """Run the cases in one sandbox, each against its host, which no other has."""
    clients = {host: case.asked(host, family, lab) for case, host in hosts.items()}
    environment = {**trust(lab), "LC_ALL": "C.UTF-8"}
    asked = {"drop": DROPPED, "env": environment, "clients": clients}
    result = netns_run(
        *options, cmd=[PYTHON, SCRIPT], lab=lab, input=json.dumps(asked), timeout=120
    )
    assert result.status == 0, result.told()
    # Or the token bucket may have kept a line from us that a test waits for.
    assert result.event("sandbox.exited")["suppressed"] == 0, result.told()
    ended = json.loads(result.stdout)
    return {case: _outcome(host, ended[host], result) for case, host in hosts.items()}, result


def below(suffix: str, cases: Sequence[Case] = CASES) -> dict[Case, str]:
    """The cases, each with its host below `suffix`."""
    return {case: case.host(suffix) for case in cases}


def _outcome(host: str, ended: dict[str, Any], result: Result) -> Outcome:
    addresses = {host, *_virtual_addresses(host, result)}
    events = [
        event
        for event in result.audit
        if event.get("host") == host or event.get("address") in addresses
    ]
    return Outcome(host, ended["status"], ended["stdout"] + ended["stderr"], ended["ended"], events)


def _virtual_addresses(host: str, result: Result) -> set[str]:
    """What stands for a host inside: a refused connect may have been told by its address alone."""
    answered = [IPv4Address(event["address"]) for event in result.events("dns.answered", host=host)]
    prefix = int(layout.VIRTUAL_IPV6.network_address)
    return {str(form) for four in answered for form in (four, IPv6Address(prefix | int(four)))}
