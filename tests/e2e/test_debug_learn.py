"""`netns-debug learn`: a run teaches a policy; a second run under it passes, and no more."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.clients import node
from tests.support.run import NETNS_DEBUG, NODE_MODULES, PYTHON, environment, netns_debug, netns_run

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.support.lab import Lab

FETCH = """
import sys, urllib.request as u
for word in sys.argv[1:]:
    method, _, url = word.partition(" ")
    data = b"x" if method == "POST" else None
    with u.urlopen(u.Request(url, data, method=method)) as answer:
        print(method, url, answer.status)
"""
REQUESTS = (
    "GET http://web.lab.test/echo/users/1234?name=somebody",
    "GET http://web.lab.test/echo/users/99",
    "POST http://web.lab.test/echo/users",
    "GET https://api.lab.test/bytes/10",
)


def fetch(*words: str) -> list[str]:
    return [PYTHON, "-c", FETCH, *words]


def learn(
    *words: str, lab: Lab, cmd: Sequence[str], timeout: float = 60
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [NETNS_DEBUG, "learn", *words, *lab.run_args(), "--", *cmd],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment({"NODE_PATH": NODE_MODULES}),
        check=False,
        stdin=subprocess.DEVNULL,
        cwd=lab.work,
    )


def test_a_second_run_under_the_policy_passes_and_nothing_else_does(
    lab: Lab, tmp_path: Path
) -> None:
    policy = tmp_path / "learned.yaml"
    taught = learn("-o", str(policy), lab=lab, cmd=fetch(*REQUESTS))
    assert taught.returncode == 0, taught.stderr
    again = netns_run("--policy", str(policy), cmd=fetch(*REQUESTS), lab=lab)
    assert again.status == 0, again.told() + policy.read_text()
    assert again.stdout == taught.stdout
    assert not again.events("flow.decided", action="refuse"), again.told()
    assert not again.events("http.request", action="refuse"), again.told()
    for other in (
        "DELETE http://web.lab.test/echo/users",
        "GET http://web.lab.test/files/x",
        "GET https://other.test/",
    ):
        result = netns_run("--policy", str(policy), cmd=fetch(other), lab=lab)
        assert result.status != 0, other


def test_plain_requests_are_learned_by_method_and_path_and_tunnels_by_host(
    lab: Lab, tmp_path: Path
) -> None:
    policy = tmp_path / "learned.yaml"
    learn("-o", str(policy), lab=lab, cmd=fetch(*REQUESTS))
    text = policy.read_text()
    assert "- {host: api.lab.test, port: 443}" in text
    assert '- allow: {method: GET, path: "/echo/users/*"}' in text
    assert "- allow: {method: POST, path: /echo/users}" in text
    assert "somebody" not in text


def test_with_requests_tls_is_learned_by_method_and_path_too(lab: Lab, tmp_path: Path) -> None:
    policy = tmp_path / "learned.yaml"
    taught = learn("-o", str(policy), "--requests", "--binaries", lab=lab, cmd=fetch(*REQUESTS))
    assert taught.returncode == 0, taught.stderr
    text = policy.read_text()
    assert '- allow: {method: GET, path: "/bytes/*"}' in text
    assert f"- {{path: {os.path.realpath(PYTHON)}}}" in text
    again = netns_run("--policy", str(policy), cmd=fetch(*REQUESTS), lab=lab)
    assert again.status == 0, again.told() + text
    refused = netns_run("--policy", str(policy), cmd=["curl", "-sSf", REQUESTS[0][4:]], lab=lab)
    assert refused.status != 0, "curl is none of the executables"


def test_a_slack_bot_that_ignores_the_proxy_teaches_its_own_policy(
    lab: Lab, tmp_path: Path
) -> None:
    policy = tmp_path / "learned.yaml"
    # To the lab's Slack each run is a bot of its own.
    first, second = ([*node("bolt_app.js"), "bolt4", f"{n}-{os.getpid()}"] for n in ("l1", "l2"))
    taught = learn("-o", str(policy), "--requests", lab=lab, cmd=first)
    assert taught.returncode == 0, taught.stderr
    text = policy.read_text()
    assert "- allow: {method: POST, path: /api/apps.connections.open}" in text
    assert "- allow: {method: WEBSOCKET_TEXT, path: /link/}" in text
    again = netns_run(
        *("--policy", str(policy)), cmd=second, lab=lab, env={"NODE_PATH": NODE_MODULES}
    )
    assert again.status == 0, again.told() + text
    assert again.stdout == taught.stdout
    assert not again.events("ws.message", action="refuse"), again.told()


def test_the_status_is_the_commands_and_the_policy_comes_after_its_output(lab: Lab) -> None:
    taught = learn(lab=lab, cmd=["sh", "-c", "echo said; getent hosts wild.test; exit 7"])
    assert taught.returncode == 7, taught.stderr
    assert taught.stdout.startswith("said\n")
    assert "host: wild.test" in taught.stdout.partition("version: 1")[2]


def test_json_is_alone_on_standard_output(lab: Lab) -> None:
    taught = learn("--json", lab=lab, cmd=["sh", "-c", "echo said"])
    told = json.loads(taught.stdout)
    assert told["status"] == 0
    assert "network_policies: {}" in told["policy"]
    assert "said" in taught.stderr


def test_what_report_mode_refuses_is_a_comment(lab: Lab) -> None:
    script = "curl -s http://10.1.2.3/; curl -s --noproxy '*' http://203.0.113.9/; true"
    text = learn(lab=lab, cmd=["sh", "-c", script]).stdout
    assert "#   curl to 10.1.2.3:80: destination_ip_prohibited" in text
    assert "#   curl to 203.0.113.9:80: direct_tcp" in text
    assert "network_policies: {}" in text


def test_learns_from_an_audit_and_shows_the_difference(lab: Lab, tmp_path: Path) -> None:
    audit, policy = tmp_path / "audit.jsonl", tmp_path / "policy.yaml"
    netns_run("--report", "--audit", str(audit), cmd=fetch(*REQUESTS[:2]), lab=lab)
    policy.write_text(
        "version: 1\nnetwork_policies:\n  spare:\n    endpoints:\n"
        "      - {host: spare.test, port: 443}\n"
    )
    told = netns_debug("learn", "--from", str(audit))
    assert told.returncode == 0, told.stderr
    assert '- allow: {method: GET, path: "/echo/users/*"}' in told.stdout
    told = netns_debug("learn", "--from", str(audit), "--diff", str(policy), "--json")
    found = json.loads(told.stdout)
    assert [item["path"] for item in found["missing"]] == ["/echo/users/1234", "/echo/users/99"]
    assert found["missing"][0]["remedy"] == "--allow web.lab.test:80"
    assert [line.partition(": ")[2] for line in found["unused"]] == ["spare.test:443 (line 5)"]
    told = netns_debug("learn", "--from", str(audit), "--diff", str(policy))
    assert "+ web.lab.test:80  GET /echo/users/1234" in told.stdout


def test_an_audit_that_is_cut_or_of_a_newer_version_teaches_what_can_be_read_and_says_so(
    lab: Lab, tmp_path: Path
) -> None:
    audit = tmp_path / "audit.jsonl"
    netns_run("--report", "--audit", str(audit), cmd=fetch(REQUESTS[0], REQUESTS[2]), lab=lab)
    whole = audit.read_bytes()
    both = [b'- allow: {method: GET, path: "/echo/users/*"}']
    both.append(b"- allow: {method: POST, path: /echo/users}")
    rules, text = learned_from(audit)
    assert (rules, b"# Note" in text) == (both, False)
    lines = whole.splitlines(keepends=True)
    (last,) = [n for n, line in enumerate(lines) if b'"POST"' in line]
    # As a full disk leaves it: in the middle of the line of the second request.
    audit.write_bytes(b"".join(lines[:last]) + lines[last][:60])
    rules, text = learned_from(audit)
    assert rules == both[:1], "the second's connection is known, and does not widen it"
    assert b"# Note: the last line is cut off in the middle; it is left out\n" in text
    # A newer version's: an event and a field that nobody knows, among those that we do.
    newer = b'{"event": "quic.opened", "time": "2030-01-01T00:00:00Z", "host": "q.test"}\n'
    added = [line.replace(b'{"event"', b'{"hue": {"a": [1]}, "event"', 1) for line in lines]
    audit.write_bytes(b"".join(added) + newer)
    rules, text = learned_from(audit)
    assert rules == both
    assert b"# Note: 1 events are of a newer version (quic.opened)\n" in text
    assert b"q.test" not in text
    as_json = json.loads(netns_debug("learn", "--from", str(audit), "--json").stdout)
    assert as_json["notes"] == ["1 events are of a newer version (quic.opened)"]


def learned_from(audit: Path) -> tuple[list[bytes], bytes]:
    """The lines that allow requests, and the whole policy, which loads."""
    told = netns_debug("learn", "--from", str(audit))
    assert told.returncode == 0, told.stderr
    policy = audit.with_name("learned.yaml")
    policy.write_text(told.stdout)
    judged = netns_debug("why", "web.lab.test:80", "--policy", str(policy), "--json")
    assert json.loads(judged.stdout)["stops_at"] is None, judged
    text = told.stdout.encode()
    return [line.strip() for line in text.splitlines() if b"allow:" in line], text


def test_an_interrupt_is_the_commands_and_what_it_did_until_then_is_learned(lab: Lab) -> None:
    script = (
        "getent hosts wild.test; trap 'echo caught; exit 3' INT TERM; while :; do sleep 0.1; done"
    )
    process = subprocess.Popen(
        [NETNS_DEBUG, "learn", *lab.run_args(), "--", "sh", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        cwd=lab.work,
    )
    try:
        assert process.stdout is not None
        assert "wild.test" in process.stdout.readline()
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 3, err
    assert out.startswith("caught\n")
    assert "host: wild.test" in out


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--",),
        ("--from",),
        ("--from", "/nonexistent"),
        ("--from", "/dev/null"),
        ("--from", "/dev/null", "--", "true"),
        ("--audit", "x", "--", "true"),
        ("--report", "--", "true"),
        ("--diff", "/nonexistent", "--", "true"),
        ("-o", "/etc/passwd", "--", "true"),
        ("--no-such-option", "--", "true"),
    ],
)
def test_bad_input_is_one_line_with_a_remedy(words: tuple[str, ...]) -> None:
    told = netns_debug("learn", *words)
    assert told.returncode == 125, told.stdout
    assert told.stderr.count("\n") == 1, told.stderr
    assert told.stdout == ""
