"""The command lines of `why` and `trace`, and pages that a sandbox cannot steer."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from netns_runtime.debug import why
from netns_runtime.debug.asking import parse
from netns_runtime.debug.trace import parse as parse_trace
from netns_runtime.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("words", "host", "port", "path"),
    [
        (["A.test."], "a.test", None, None),
        (["a.test:8443"], "a.test", 8443, None),
        (["[2001:db8::1]:80"], "2001:db8::1", 80, None),
        (["2001:db8::1"], "2001:db8::1", None, None),
        (["https://a.test/x?y=1#z"], "a.test", 443, "/x?y=1"),
        (["--url", "wss://a.test"], "a.test", 443, "/"),
        (["--url=http://u:p@a.test:81/"], "a.test", 81, "/"),
        (["a.test:444", "--url", "/only/path"], "a.test", 444, "/only/path"),
    ],
)
def test_a_question_is_read(
    words: list[str], host: str, port: int | None, path: str | None
) -> None:
    asking = parse(words)
    assert (asking.host, asking.port, asking.path) == (host, port, path)
    assert asking.is_websocket == ("wss://a.test" in words)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["a.test", "b.test"],
        ["a.test", "--bogus"],
        ["a.test", "--url"],
        ["a.test", "--exe", "x", "--exe", "y"],
        ["a.test:0"],
        ["a.test:x"],
        ["a b"],
        ["--url", "ftp://a.test/"],
        ["b.test", "--url", "https://a.test/"],
        ["\x1b[31m"],
    ],
)
def test_a_wrong_question_is_one_line_with_a_remedy(words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        parse(words)
    assert caught.value.remedy
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "words", [["--action", "x"], ["--for", "-1"], ["--for", "nan"], ["--host"], ["a", "b"], ["-x"]]
)
def test_a_wrong_trace_is_one_line_with_a_remedy(words: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        parse_trace(words)
    assert caught.value.remedy


def audit_of(tmp_path: Path, *events: dict[str, Any]) -> str:
    path = tmp_path / "audit"
    base = {"time": "2026-01-01T00:00:00.000000Z", "sandbox": "s"}
    path.write_text("".join(json.dumps({**base, **event}) + "\n" for event in events))
    return str(path)


HOSTILE = {
    "event": "flow.decided",
    "flow": 1,
    "host": "a.test",
    "port": 443,
    "pid": 5,
    "comm": "\x1b]0;owned\x07\u202e",
    "entry": "redirected",
    "action": "refuse",
    "reason": "http_request_denied",
    "said_by": "policy",
    "detail": "no\nrule\x1b[2J",
    "remedy": "--allow a.test:443\r\n",
}


def test_nothing_of_the_sandboxes_reaches_the_terminal_raw(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert why.main(["a.test", "--from", audit_of(tmp_path, HOSTILE)], False) == 0
    page = capsys.readouterr().out
    assert page.isascii()
    assert all(line.isprintable() for line in page.splitlines())
    assert "no\\nrule" in page


def test_events_of_a_newer_version_do_not_break_an_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strange = [
        {"event": "quic.closed", "host": "a.test", "flow": 1, "port": "many"},
        {"event": "flow.closed", "host": "a.test", "flow": 2, "reason": "new_reason", "port": 443},
        {"event": "flow.decided", "host": "a.test", "flow": "x", "status": [], "port": 443},
        {"event": "http.request", "host": "a.test", "flow": 3, "status": "odd", "port": None},
    ]
    for words in (["a.test"], ["a.test:443"], ["a.test", "--url", "/x"]):
        assert why.main([*words, "--from", audit_of(tmp_path, *strange)], True) == 0
    assert "newer version" in capsys.readouterr().out


def test_an_audit_alone_says_what_it_does_not_know(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    audit = audit_of(tmp_path, {"event": "sandbox.started"})
    assert why.main(["never.test", "--from", audit], True) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["stops_at"], found["verdict"], found["attempts"]) == (None, "unknown", [])
    assert "--policy FILE" in found["cause"]
