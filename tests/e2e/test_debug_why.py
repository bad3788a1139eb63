"""`netns-debug why` against faults that the test made: it names that fault and no other.

Each row of FAULTS breaks one layer, lets a client run into it, and asks live and then again from
the audit file alone. What is said to allow it is tried.
"""

from __future__ import annotations

import json
import os
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import world
from tests.support.debug_shell import CURL, PAST, Shell, why
from tests.support.run import netns_debug, netns_run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.lab import Lab

POLICY = """\
version: 1
network_policies:
  apis:
    endpoints:
      - {host: api.lab.test, port: 443, protocol: rest, rules: [{allow: {method: GET, path: /ok}}]}
      - {host: web.lab.test, port: 443, tls: terminate}
      - {host: web.lab.test, ports: [80, 9, 7004]}
      - {host: private.lab.test, port: 80}
      - {host: blackhole.lab.test, port: 80}
      - {host: unreachable.lab.test, port: 80}
      - {host: servfail.lab.test, port: 80}
      - {host: expired.lab.test, port: 443, tls: terminate}
      - {host: unknown-issuer.lab.test, port: 443, tls: terminate}
  tool:
    binaries: [{path: /usr/bin/nc.nobody}, {path: /usr/bin/env}]
    endpoints:
      - {host: other.test, port: 80}
"""


@dataclass(frozen=True)
class Fault:
    """`options` of netns-run, the client's command, the question, and what must be said."""

    name: str
    command: str
    question: str
    step: str
    said_by: str
    reason: str
    words: str = ""
    change: str | None = None
    options: tuple[str, ...] = ()
    has_policy: bool = True


FAULTS = [
    Fault(
        *("name not covered, past the proxy", f"{PAST} https://v4.lab.test/", "v4.lab.test:443"),
        *("dns", "policy", "name_not_allowed", "no rule covers v4.lab.test"),
        "--allow v4.lab.test:443",
    ),
    Fault(
        *("name not allowed, by the proxy", f"{CURL} http://v4.lab.test/", "v4.lab.test:80"),
        *("decision", "policy", "http_request_denied", "no rule allows v4.lab.test:80"),
        "--allow v4.lab.test:80",
    ),
    Fault(
        *("port not allowed", f"{CURL} http://web.lab.test:8080/", "web.lab.test:8080"),
        *("decision", "policy", "http_request_denied", "not 8080"),
        "--allow web.lab.test:8080",
    ),
    Fault(
        *("port not allowed, redirected", f"{PAST} http://web.lab.test:8080/", "web.lab.test:8080"),
        *("decision", "policy", "http_request_denied", "not 8080"),
        "--allow web.lab.test:8080",
    ),
    Fault(
        *("executable not allowed", f"{CURL} http://other.test/", "other.test:80"),
        *("decision", "policy", "http_request_denied", "this is /usr/bin/curl"),
        "`binaries` of tool",
    ),
    Fault(
        *("direct to an address", f"{PAST} http://203.0.113.10/", "203.0.113.10:80"),
        *("hook", "sandbox", "direct_tcp", "a direct tcp connect to 203.0.113.10:80 was refused"),
        "--allow 203.0.113.10:80",
    ),
    Fault(
        *("direct, counted by nft alone", f"{PAST} http://203.0.113.10/", "203.0.113.10:80"),
        *(
            "gateway",
            "sandbox",
            "direct_tcp",
            "a direct tcp connect to 203.0.113.10:80 was refused",
        ),
        "--allow 203.0.113.10:80",
        options=("--probe", "nft"),
    ),
    Fault(
        *("--redirect off", f"{PAST} http://web.lab.test/", "web.lab.test:80"),
        *("hook", "sandbox", "direct_tcp", "stands for web.lab.test"),
        "--redirect on",
        options=("--redirect", "off"),
    ),
    Fault(
        *("private address", f"{CURL} http://private.lab.test/", "private.lab.test:80"),
        *("screening", "policy", "destination_ip_prohibited", "10.1.2.3"),
        "allowed_ips: [10.1.2.3]",
    ),
    Fault(
        *("upstream does not resolve", f"{CURL} http://servfail.lab.test/", "servfail.lab.test:80"),
        *("resolve", "upstream", "dns_error", "could not be resolved"),
    ),
    Fault(
        *("upstream refuses", f"{CURL} http://web.lab.test:9/", "web.lab.test:9"),
        *("dial", "upstream", "connection_refused", "refused the connection"),
    ),
    Fault(
        *(
            "no route to upstream",
            f"{CURL} http://unreachable.lab.test/",
            "unreachable.lab.test:80",
        ),
        *("dial", "upstream", "destination_ip_unroutable", "cannot be reached"),
    ),
    Fault(
        *("upstream resets", f"{CURL} -p -x http://10.200.0.1:3128 http://web.lab.test:7004/", ""),
        *("traffic", "upstream", "connection_terminated", "reset"),
    ),
    Fault(
        *("certificate expired", f"{CURL} -k https://expired.lab.test/", "expired.lab.test:443"),
        *("tls", "upstream", "tls_certificate_error", "has expired"),
    ),
    Fault(
        *("issuer unknown", f"{CURL} -k https://unknown-issuer.lab.test/", ""),
        *("tls", "upstream", "tls_certificate_error", "authority that is not"),
    ),
    Fault(
        *("client trusts nobody", f"{CURL} --cacert $PWD/none.pem https://web.lab.test/x", ""),
        *("tls", "client", "client_tls_error", "the client ended the connection"),
    ),
    Fault(
        *("request not allowed", f"{CURL} -X POST https://api.lab.test/no", "api.lab.test:443"),
        *("traffic", "policy", "http_request_denied", "does not allow POST /no"),
        "add `- allow: {method: POST, path: /no}`",
    ),
    Fault(
        *("upstream's own 403", f"{CURL} https://web.lab.test/status/403", "web.lab.test:443"),
        *("traffic", "upstream", "", "status 403"),
    ),
    Fault(
        *("upstream's own 429", f"{CURL} https://web.lab.test/status/429", "web.lab.test:443"),
        *("traffic", "upstream", "", "status 429"),
    ),
]


@pytest.fixture
def policy(tmp_path: Path) -> str:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY, encoding="ascii")
    return str(path)


@pytest.fixture
def shell_of(lab: Lab) -> Iterator[Any]:
    with ExitStack() as stack:
        numbers = count()

        def start(*options: str) -> Shell:
            name = f"why-{os.getpid()}-{next(numbers)}"
            return stack.enter_context(Shell(lab, name, *options))

        yield start


def question_of(fault: Fault) -> str:
    if fault.question:
        return fault.question
    url = next(word for word in fault.command.split()[::-1] if "://" in word)
    host = url.split("/")[2]
    return host if ":" in host else f"{host}:{443 if url.startswith('https') else 80}"


def check(found: dict[str, Any], fault: Fault, *, has_policy: bool) -> None:
    told = json.dumps(found, indent=1)
    assert found["stops_at"] == fault.step, told
    assert [step["step"] for step in found["steps"] if step["state"] == "stop"] == [fault.step]
    assert found["said_by"] == fault.said_by, told
    assert found["reason"] == (fault.reason or None), told
    assert fault.words in found["cause"], told
    assert found["is_observed"], told
    assert found["attempts"][-1].get("comm") == ("curl" if "nft" not in fault.options else None), (
        told
    )
    if fault.change is None:
        assert found["changes"] == [], told
        assert found["policy_helps"] is False
        assert found["advice"], told
    elif has_policy:
        assert any(fault.change in change for change in found["changes"]), told


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_the_fault_that_was_made_is_named_and_no_other(
    shell_of: Any, policy: str, tmp_path: Path, fault: Fault
) -> None:
    shell = shell_of("--policy", policy, *fault.options)
    shell.do(fault.command)
    if "nft" in fault.options:
        shell.do("sleep 0.4")
    check(shell.why(question_of(fault)), fault, has_policy=True)
    page = netns_debug("why", question_of(fault), "--sandbox", shell.name).stdout
    assert all(len(line) <= 80 or " " not in line.strip() for line in page.splitlines()), page
    assert "\x1b" not in page

    audit = tmp_path / "audit.jsonl"
    audit.write_text("".join(json.dumps(line) + "\n" for line in shell.running.audit()))
    check(why(question_of(fault), "--from", str(audit)), fault, has_policy=False)


def test_a_server_that_does_not_answer_is_told_from_one_that_refuses(
    shell_of: Any, policy: str
) -> None:
    shell = shell_of("--policy", policy)
    shell.do("curl -s -m 2 http://blackhole.lab.test/")
    shell.do("sleep 0.2")
    found = shell.why("blackhole.lab.test:80")
    # The proxy goes on dialling when the client has given up: nothing is known before it has.
    assert (found["stops_at"], found["said_by"]) == (None, "unknown")
    assert "to 203.0.113.66:80, is under way for 2" in found["cause"]
    states = {step["step"]: step["state"] for step in found["steps"]}
    assert (states["screening"], states["dial"], states["tls"]) == ("ok", "unknown", "unknown")


def test_a_killed_upstream_is_told_by_the_next_attempt(shell_of: Any, policy: str) -> None:
    shell = shell_of("--policy", policy)
    assert shell.do(f"{CURL} http://web.lab.test/") == 0
    assert shell.why("web.lab.test:80")["stops_at"] is None
    shell.do(f"{CURL} http://web.lab.test:9/")
    assert shell.why("web.lab.test:80")["stops_at"] is None, "another port's fault"
    assert shell.why("web.lab.test:9")["stops_at"] == "dial"
    assert shell.why("web.lab.test")["port"] == 9, "the last attempt's port"


@pytest.mark.parametrize(
    ("command", "question"),
    [
        (f"{CURL} http://v4.lab.test/", "v4.lab.test:80"),
        (f"{PAST} http://v4.lab.test/", "v4.lab.test:80"),
        (f"{CURL} http://web.lab.test:8080/", "web.lab.test:8080"),
        (f"{PAST} http://192.0.2.10/", "192.0.2.10:80"),
    ],
)
def test_the_flag_that_is_said_to_allow_it_does(
    lab: Lab, shell_of: Any, policy: str, command: str, question: str
) -> None:
    shell = shell_of("--policy", policy)
    assert shell.do(f"{command} -f") != 0
    change = next(c for c in shell.why(question)["changes"] if c.startswith("--allow "))
    ran = netns_run("--policy", policy, *change.split(), cmd=["sh", "-c", f"{command} -f"], lab=lab)
    assert ran.status == 0, ran.told()


def test_the_policy_line_that_is_said_to_allow_a_request_does(
    lab: Lab, shell_of: Any, policy: str
) -> None:
    shell = shell_of("--policy", policy)
    shell.do(f"{CURL} https://api.lab.test/echo")
    [change] = shell.why("api.lab.test:443")["changes"]
    line = change.split("`")[1].removeprefix("- ")
    path = Path(policy)
    text = POLICY.replace("rules: [", f"rules: [{{{line}}}, ")
    path.write_text(text, encoding="ascii")
    command = ["sh", "-c", f"{CURL} -f https://api.lab.test/echo"]
    ran = netns_run("--policy", policy, cmd=command, lab=lab)
    assert ran.status == 0, ran.told()


def test_what_a_new_policy_allows_is_not_blamed_on_the_old_refusal(
    shell_of: Any, policy: str, tmp_path: Path
) -> None:
    shell = shell_of("--policy", policy)
    shell.do(f"{CURL} http://v4.lab.test/")
    assert shell.why("v4.lab.test:80")["stops_at"] == "decision"
    wider = tmp_path / "wider.yaml"
    wider.write_text(
        POLICY.replace("port: 80}", "port: 80}\n      - {host: v4.lab.test, port: 80}", 1)
    )
    assert netns_debug("policy", shell.name, "--set", str(wider)).returncode == 0
    found = shell.why("v4.lab.test:80")
    assert found["stops_at"] is None
    assert any("has changed since" in note for note in found["notes"])


def test_a_request_that_nobody_sent_is_judged_by_the_policy_in_force(
    shell_of: Any, policy: str
) -> None:
    shell = shell_of("--policy", policy)
    found = shell.why("--url", "https://api.lab.test/ok", "--method", "DELETE")
    assert (found["stops_at"], found["is_observed"]) == ("traffic", False)
    line = "add `- allow: {method: DELETE, path: /ok}` to `rules`"
    assert found["changes"] == [f"{line} at {policy}:5 of apis ({policy}:3)"]
    assert shell.why("--url", "https://api.lab.test/ok")["stops_at"] is None


def test_the_kernels_counters_stand_beside_the_answer(shell_of: Any, policy: str) -> None:
    shell = shell_of("--policy", policy)
    for _ in range(3):
        shell.do(f"{PAST} http://203.0.113.10/")
    counters = shell.why("203.0.113.10:80")["counters"]
    assert (counters["count"], counters["to_this_host"]) == (3, 3)
    assert shell.why("203.0.113.20:80")["counters"]["to_this_host"] == 0


def test_a_sandbox_that_has_gone_is_one_line_with_a_remedy() -> None:
    said = netns_debug("why", "web.lab.test", "--sandbox", "why-never")
    assert said.returncode == 125
    assert said.stderr == (
        "netns-debug: no sandbox called why-never is running: see netns-debug list; of one that "
        "has gone, its --audit file tells\n"
    )


def test_report_mode_says_what_would_be_refused(shell_of: Any, policy: str) -> None:
    shell = shell_of("--policy", policy, "--report")
    assert shell.do(f"{CURL} http://v4.lab.test/") == 0
    found = shell.why("v4.lab.test:80")
    assert found["stops_at"] is None
    assert any("--report lets it pass" in note for note in found["notes"])


def test_the_lab_has_what_the_faults_need() -> None:
    assert world.CLOSED_PORT == 9
    assert world.RESET_PORT == 7004
