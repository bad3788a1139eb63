"""`--audit-format ocsf`: both processes write OCSF, and every line keeps the contract's event."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.support.ocsf import VERSIONS, faults
from tests.support.run import netns_debug, netns_run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.lab import Lab

SCRIPT = """
curl -s http://web.lab.test/echo/a; curl -s https://web.lab.test/; curl -s http://other.test/
getent hosts nowhere.test; curl -s --noproxy '*' http://203.0.113.9/; true
"""


def test_every_line_of_supervisor_and_proxy_is_valid(lab: Lab, tmp_path: Path) -> None:
    audit = tmp_path / "audit.jsonl"
    result = netns_run(
        *("--audit", str(audit), "--audit-format", "ocsf", "--allow", "web.lab.test"),
        cmd=["sh", "-c", SCRIPT],
        lab=lab,
    )
    assert result.status == 0, result.told()
    lines = [json.loads(line) for line in audit.read_text().splitlines()]
    assert [(v, f, line) for line in lines for v in VERSIONS for f in faults(line, v)] == []
    seen = {line["unmapped"]["event"]: line["class_uid"] for line in lines}
    assert seen == {
        "sandbox.started": 6002,
        "flow.decided": 4001,
        "flow.closed": 4001,
        "http.request": 4002,
        "dns.refused": 4003,
        "connect.refused": 4001,
        "sandbox.exited": 6002,
    }, result.stderr
    refused = [line for line in lines if line.get("action_id") == 2]
    assert {line["unmapped"].get("host") or line["dst_endpoint"]["ip"] for line in refused} == {
        "other.test",
        "nowhere.test",
        "203.0.113.9",
    }


def test_the_explaining_commands_read_it_too(lab: Lab, tmp_path: Path) -> None:
    audit = tmp_path / "audit.jsonl"
    netns_run(
        *("--audit", str(audit), "--audit-format", "ocsf", "--report"),
        cmd=["curl", "-s", "http://web.lab.test/echo/a"],
        lab=lab,
    )
    told = netns_debug("learn", "--from", str(audit))
    assert told.returncode == 0, told.stderr
    assert "allow: {method: GET, path: /echo/a}" in told.stdout
