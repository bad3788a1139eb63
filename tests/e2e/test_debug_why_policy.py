"""`netns-debug why --policy FILE`, and the line of the rule by which a real attempt was refused."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tests.support.debug_shell import CURL, Shell, why
from tests.support.run import netns_debug, netns_run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.lab import Lab

LIVE = """\
version: 1
network_policies:
  pages:
    endpoints:
      - {host: web.lab.test, port: 80}
  apis:
    endpoints:
      - host: api.lab.test
        port: 443
        protocol: rest
        rules:
          - allow: {method: GET, path: "/**"}
        deny_rules:
          - {method: GET, path: /secret}
  tool:
    binaries: [{path: /usr/bin/env}]
    endpoints:
      - {host: other.test, port: 80}
"""
OTHER = """\
version: 1
network_policies:
  others:
    endpoints:
      - {host: v4.lab.test, port: 80}
"""


@pytest.fixture
def live(tmp_path: Path) -> Path:
    file = tmp_path / "live.yaml"
    file.write_text(LIVE)
    return file


@pytest.fixture
def other(tmp_path: Path) -> Path:
    file = tmp_path / "other.yaml"
    file.write_text(OTHER)
    return file


@pytest.fixture
def shell(lab: Lab, live: Path) -> Iterator[Shell]:
    with Shell(lab, f"why-policy-{os.getpid()}", "--policy", str(live)) as one:
        yield one


def test_a_policy_that_would_allow_what_the_live_one_refused_says_so_and_does(
    lab: Lab, shell: Shell, other: Path
) -> None:
    shell.do(f"{CURL} http://v4.lab.test/")
    assert shell.why("v4.lab.test:80")["stops_at"] == "decision"
    found = shell.why("v4.lab.test:80", "--policy", str(other))
    assert (found["stops_at"], found["is_observed"]) == (None, False), found
    assert found["judged_by"] == f"--policy {other}"
    [note] = [note for note in found["notes"] if "the policy given here" in note]
    assert "http_request_denied" in note
    decision = next(step for step in found["steps"] if step["step"] == "decision")
    assert decision["rule"] == f"others ({other}:3), endpoint at line 5"
    command = ["sh", "-c", f"{CURL} -f http://v4.lab.test/"]
    assert netns_run("--policy", str(other), cmd=command, lab=lab).status == 0


def test_a_policy_that_would_refuse_what_the_live_one_allowed_says_so_and_does(
    lab: Lab, shell: Shell, other: Path
) -> None:
    assert shell.do(f"{CURL} -f http://web.lab.test/") == 0
    assert shell.why("web.lab.test:80")["stops_at"] is None
    found = shell.why("web.lab.test:80", "--policy", str(other))
    assert (found["stops_at"], found["said_by"]) == ("decision", "policy"), found
    assert found["is_observed"] is False, "the attempt that is on record passed"
    assert found["changes"][0] == "--allow web.lab.test:80"
    assert "nobody tried it yet" in netns_debug(
        "why", "web.lab.test:80", "--sandbox", shell.name, "--policy", str(other)
    ).stdout.replace("\n  ", " ")
    command = ["sh", "-c", f"{CURL} -f http://web.lab.test/"]
    assert netns_run("--policy", str(other), cmd=command, lab=lab).status != 0


def test_several_policies_are_judged_as_one(shell: Shell, live: Path, other: Path) -> None:
    both = ("--policy", str(live), "--policy", str(other))
    for host in ("web.lab.test:80", "v4.lab.test:80"):
        assert why(host, *both)["stops_at"] is None, "without a sandbox"
        assert shell.why(host, *both)["stops_at"] is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "No such file or directory"),
        ("network_policies: {a: {hosts: []}}\n", "policy.yaml:1"),
    ],
)
def test_a_policy_that_does_not_load_is_one_line(
    tmp_path: Path, text: str | None, said: str
) -> None:
    file = tmp_path / "policy.yaml"
    if text is not None:
        file.write_text(text)
    done = netns_debug("why", "web.lab.test:80", "--policy", str(file))
    assert done.returncode == 125
    assert done.stderr.count("\n") == 1, done.stderr
    assert said in done.stderr


@pytest.mark.parametrize(
    ("command", "question", "step", "rule", "line"),
    [
        ("http://web.lab.test:8080/", "web.lab.test:8080", "decision", "pages", 3),
        ("http://other.test/", "other.test:80", "decision", "tool", 15),
        ("-X POST https://api.lab.test/no", "api.lab.test:443", "traffic", "apis", 6),
        ("https://api.lab.test/secret", "api.lab.test:443", "traffic", "apis", 6),
    ],
)
def test_an_observed_refusal_names_its_rule_by_file_and_line(
    shell: Shell, live: Path, command: str, question: str, step: str, rule: str, line: int
) -> None:
    shell.do(f"{CURL} {command}")
    found = shell.why(question)
    assert (found["stops_at"], found["is_observed"]) == (step, True), found
    [stop] = [one for one in found["steps"] if one["state"] == "stop"]
    assert stop["rule"] == f"{rule} ({live}:{line})"
    assert LIVE.splitlines()[line - 1].strip() == f"{rule}:"
    refusals = [event for event in shell.running.audit() if event.get("action") == "refuse"]
    assert {event["rule"] for event in refusals} == {stop["rule"]}, "as the audit has it"
    page = netns_debug("why", question, "--sandbox", shell.name).stdout
    assert f"({live}:{line})" in page
