"""`netns-debug ws` against a server that fails in each way: the way is named, and no other."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.clients import python
from tests.support.lab_fail import GOOD_ORIGIN
from tests.support.run import Running, netns_debug, netns_run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.lab import Lab
    from tests.support.run import Result

POLICY = """\
version: 1
network_policies:
  sockets:
    endpoints:
      - {host: ws.lab.test, port: 443, protocol: websocket, access: full}
      - {host: expired.lab.test, port: 443, protocol: websocket, access: full}
      - {host: v4.lab.test, ports: [80, 8080]}
      - {host: v4.lab.test, ports: [9, 7004]}
      - host: api.lab.test
        port: 443
        protocol: websocket
        rules:
          - allow: {method: GET, path: /fail/**}
          - allow: {method: WEBSOCKET_TEXT, path: /fail/**, message: {pointer: /op, in: [1]}}
"""
UPSTREAM, CLIENT = "upstream (ws.lab.test:443", "the client, "


@dataclass(frozen=True)
class Case:
    """What is opened, and how its end is to be told. `who` begins the sentence."""

    url: str
    kind: str
    who: str = UPSTREAM
    then: str = "wait"
    more: tuple[tuple[str, Any], ...] = ()
    evidence: str = ""


def at(path: str, host: str = "wss://ws.lab.test") -> str:
    return f"{host}/fail/{path}"


CASES = [
    *(
        Case(at(f"status/{status}"), f"handshake-{status}", evidence=f"status {status}")
        for status in (200, 301, 400, 401, 403, 404, 426, 429, 500, 502, 503)
    ),
    *(
        Case(at(f"close/{code}/because"), f"close-{code}", evidence="because")
        for code in (1001, 1002, 1003, 1007, 1008, 1009, 1011, 1012, 1013, 1014, 3456, 4004, 4999)
    ),
    *(
        Case(at(f"listen/{code}"), f"close-{code}", CLIENT, f"close {code}", evidence="as told")
        for code in (1001, 1003, 1008, 1010, 1011, 4321)
    ),
    Case(at("close/1008/rate%20limit%20exceeded"), "rate-limited"),
    Case(at("reset"), "cut", evidence="a TCP reset from upstream's side"),
    Case(at("end"), "cut", evidence="(FIN) from upstream's side"),
    Case(at("listen/reset"), "cut", CLIENT, "reset", evidence="the client's side"),
    Case(at("listen/end"), "cut", CLIENT, "end", evidence="(FIN) from the client's side"),
    Case(at("end/1.5"), "idle-timeout", evidence="after the same silence"),
    Case(at("end/1.51"), "idle-timeout", evidence="after the same silence"),
    Case(at("idle-close/1.1"), "idle-timeout", evidence="the reason that it gave says so"),
    Case(at("accept/wrong"), "bad-accept", CLIENT, evidence="does not answer"),
    Case(at("accept/none"), "bad-accept", CLIENT, evidence="no Sec-WebSocket-Accept"),
    Case(
        at("protocol/other"),
        "bad-subprotocol",
        CLIENT,
        more=(("offer", ["chat"]),),
        evidence="chose the subprotocol other; the client offered chat",
    ),
    Case(at("extension/x-lab"), "bad-extension", CLIENT, evidence="the extension x-lab"),
    Case(at("frame/text-not-utf8"), "close-1007", CLIENT),
    Case(at("frame/too-big"), "close-1009", CLIENT),
    Case(at("frame/reserved-opcode"), "broken-1002", "netns-runtime's proxy, because upstream"),
    Case(at("frame/continuation"), "broken-1002", "netns-runtime's proxy, because upstream"),
    Case(at("listen/m"), "broken-1002", "netns-runtime's proxy, because the client", "unmasked"),
    Case(at("hang-up"), "handshake-cut", evidence="connection_terminated"),
    Case(at("origin"), "close-1000", more=(("origin", GOOD_ORIGIN),)),
    Case(at("origin"), "handshake-403-origin", more=(("origin", "https://evil.test"),)),
    Case(at("listen/x", "wss://expired.lab.test"), "tls-certificate", "upstream (expired"),
    Case(
        at("listen/x", "wss://api.lab.test"),
        "message-refused",
        "netns-runtime, by policy",
        'send {"op": 2}',
    ),
    Case("wss://api.lab.test/other", "handshake-refused-by-policy", "netns-runtime, by policy"),
    Case(at("reset", "ws://v4.lab.test"), "relayed-cut", "upstream (v4.lab.test:80"),
    Case(at("close/1011", "ws://v4.lab.test"), "relayed", "unknown"),
    Case("wss://ws.unlisted.test/", "name-refused", "netns-runtime's resolver"),
    Case("wss://203.0.113.99/", "connect-refused", "netns-runtime's kernel hook"),
    Case("wss://web.lab.test:443/", "name-refused", "netns-runtime's resolver"),
    Case("ws://v4.lab.test:8080/not a path", "unreadable-request", "netns-runtime's proxy"),
    Case("ws://v4.lab.test:9/", "upstream-refused", "upstream (v4.lab.test:9"),
    Case("wss://v4.lab.test:7004/", "tunnel-cut", "upstream (v4.lab.test:7004"),
    Case(at("listen/distrust"), "client-tls", CLIENT, more=(("trust", False),)),
]


def items(cases: list[Case]) -> str:
    return json.dumps([{"url": c.url, "then": c.then, **dict(c.more)} for c in cases])


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("ws") / "policy.yaml"
    file.write_text(POLICY)
    return file


@pytest.fixture(scope="module")
def result(lab_of_all: Lab, policy: Path) -> Result:
    found = netns_run(
        *("--policy", str(policy)),
        cmd=python("ws_fail.py"),
        lab=lab_of_all,
        input=items(CASES),
        timeout=120,
    )
    assert found.stdout.count("\n") == len(CASES), found.told()
    return found


@pytest.fixture(scope="module")
def audit(result: Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("ws") / "audit.jsonl"
    file.write_text("".join(json.dumps(event) + "\n" for event in result.audit))
    return file


@pytest.fixture(scope="module")
def explained(audit: Path) -> dict[str, Any]:
    told = netns_debug("ws", "--from", str(audit), "--all", "--json")
    assert told.returncode == 0, told.stderr
    found: dict[str, Any] = json.loads(told.stdout)
    return found


def found_for(case: Case, explained: dict[str, Any]) -> list[dict[str, Any]]:
    scheme, _, rest = case.url.partition("://")
    where, _, path = rest.partition("/")
    host, _, port = where.partition(":")
    number = int(port or {"ws": 80, "wss": 443}[scheme])
    of_host = [
        told
        for told in explained["websockets"]
        if host in (told.get("host"), told.get("address")) and told.get("port") in (number, None)
    ]
    if case.kind in ("client-tls", "tunnel-cut"):
        return [told for told in of_host if not told["is_websocket"]]
    if case.kind in ("name-refused", "connect-refused", "unreadable-request"):
        return of_host
    origin = dict(case.more).get("origin")
    return [
        told for told in of_host if told.get("path") == f"/{path}" and told.get("origin") == origin
    ]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.url} {case.then}")
def test_names_the_way_it_failed_and_no_other(
    case: Case, explained: dict[str, Any], result: Result
) -> None:
    found = found_for(case, explained)
    assert [told["kind"] for told in found] == [case.kind], (found, result.told())
    assert found[0]["ended_by"].startswith(case.who), found
    assert case.evidence in "\n".join(found[0]["evidence"]), found
    assert found[0]["usually"], found
    assert found[0]["do"], found


def test_every_case_is_told_once(explained: dict[str, Any]) -> None:
    kinds = [told["kind"] for told in explained["websockets"] if told["is_websocket"]]
    wanted = [case.kind for case in CASES if found_for(case, explained)[0]["is_websocket"]]
    assert sorted(kinds) == sorted(wanted)


def test_a_person_reads_it_on_a_narrow_terminal(audit: Path) -> None:
    told = netns_debug("ws", "--from", str(audit))
    assert told.returncode == 0, told.stderr
    assert "close-4004" in told.stdout
    assert "\x1b" not in told.stdout
    long = [line for line in told.stdout.splitlines() if len(line) > 80 and " " in line.strip()]
    assert not long, long


def test_no_query_of_a_location_is_written_down(result: Result) -> None:
    [told] = result.events("http.request", path="/fail/status/301")
    assert "https://elsewhere.test/socket" in told["detail"]
    assert "hidden" not in json.dumps(result.audit)


def test_explains_what_just_happened_in_a_running_sandbox(lab: Lab, policy: Path) -> None:
    case = Case(at("close/4004/who"), "close-4004")
    script = "import sys; sys.stdin.readline()"
    command = f"{' '.join(python('ws_fail.py'))} <<< '{items([case])}'; python3 -c '{script}'"
    with Running(
        *("--policy", str(policy), "--name", "ws-live"),
        cmd=["bash", "-c", command],
        lab=lab,
        stdin=-1,
    ) as running:
        assert "4004" in running.line()
        told = netns_debug("ws", "ws-live", "--json")
        running.tell("")
        result = running.wait()
    assert told.returncode == 0, told.stderr + result.told()
    [found] = json.loads(told.stdout)["websockets"]
    assert found["kind"] == "close-4004", found
    assert found["ended_by"].startswith(UPSTREAM), found


def test_bad_input_is_one_line_with_a_remedy(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    for words in (["--from", str(empty)], ["no-such-sandbox"], ["--form"], ["--from"]):
        told = netns_debug("ws", *words)
        assert told.returncode == 125, words
        assert told.stderr.count("\n") == 1, told.stderr
        assert told.stdout == ""


def test_an_audit_cut_in_the_middle_of_a_line_is_explained_as_far_as_it_goes(
    audit: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut.jsonl"
    text = audit.read_text()
    cut.write_text(text[: len(text) // 2])
    told = netns_debug("ws", "--from", str(cut), "--all", "--json")
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    assert found["websockets"]
    assert any("cut" in note for note in found["notes"])
