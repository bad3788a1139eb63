"""netns-debug on a real terminal: coloured there and nowhere else, and never wider than it is."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from typing import TYPE_CHECKING

import pytest

from tests.support.clients import python
from tests.support.debug_shell import CURL, PAST, Shell
from tests.support.run import NETNS_DEBUG, environment, netns_debug

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.lab import Lab

CODES = re.compile(r"\x1b\[[0-9;]*m")
NAME = "a-sandbox-whose-name-is-not-at-all-short"
POLICY = """\
network_policies:
  sockets:
    endpoints:
      - {host: ws.lab.test, port: 443, protocol: websocket, access: full}
      - {host: web.lab.test, port: 80}
"""
COMMANDS = {
    "why": ("why", "v4.lab.test:80"),
    "why of a WebSocket": ("why", "--url", "wss://ws.lab.test/fail/close/4004/because"),
    "ws": ("ws", NAME),
    "flows": ("flows", NAME),
    "trace": ("trace", NAME, "--recent", "--for", "0.1"),
    "doctor": ("doctor", NAME),
    "list": ("list",),
    "show": ("show", NAME),
    "stats": ("stats", NAME),
}
COLOURED = ("why", "why of a WebSocket", "ws", "flows", "trace", "doctor")


@pytest.fixture(scope="module")
def shell(lab_of_all: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    policy: Path = tmp_path_factory.mktemp("terminal") / "policy.yaml"
    policy.write_text(POLICY)
    with Shell(lab_of_all, NAME, "--policy", str(policy)) as one:
        one.do(f"{CURL} http://web.lab.test/")
        one.do(f"{CURL} http://v4.lab.test/")
        one.do(f"{PAST} http://203.0.113.5:81/")
        item = '[{"url": "wss://ws.lab.test/fail/close/4004/because"}]'
        one.running.tell(f"echo '{item}' | {' '.join(python('ws_fail.py'))}")
        while not one.running.line().startswith("done"):
            pass
        yield one


def on_terminal(*words: str, columns: int, env: dict[str, str] | None = None) -> str:
    """What a terminal of that width shows; its own size, and no COLUMNS, unless `env` has it."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    variables = environment({"TERM": "xterm", **(env or {})})
    variables = {k: v for k, v in variables.items() if k in (env or {}) or k != "COLUMNS"}
    process = subprocess.Popen(
        [NETNS_DEBUG, *words], stdin=theirs, stdout=theirs, stderr=theirs, env=variables
    )
    os.close(theirs)
    shown = b""
    try:
        while True:
            try:
                data = os.read(ours, 65536)
            except OSError:  # EIO: nobody has the other side any more
                break
            shown += data
        assert process.wait(10) == 0, shown
    finally:
        os.close(ours)
        process.kill()
    return shown.decode().replace("\r\n", "\n")


def too_wide(text: str, width: int) -> list[str]:
    """Lines that are longer, but for a word that nobody would break (a path), and what it is of."""
    lines = [CODES.sub("", line) for line in text.splitlines()]
    return [line for line in lines if len(line) > width and len(line.split()) > 2]


@pytest.mark.parametrize("name", COLOURED)
def test_colour_is_on_a_terminal_and_nowhere_else(shell: Shell, name: str) -> None:
    words = COMMANDS[name]
    shown = on_terminal(*words, columns=80)
    assert CODES.search(shown), shown
    assert "\x1b" not in CODES.sub("", shown), "colours and nothing else"
    for variable in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert "\x1b" not in on_terminal(*words, columns=80, env=variable), variable
    assert "\x1b" not in netns_debug(*words).stdout
    assert "\x1b" not in netns_debug(*words, "--json").stdout


@pytest.mark.parametrize("columns", [60, 80, 132])
@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_is_wider_than_the_terminal(shell: Shell, name: str, columns: int) -> None:
    words = COMMANDS[name]
    by_size = on_terminal(*words, columns=columns)
    assert len(by_size.splitlines()) > 1
    assert not too_wide(by_size, columns), by_size
    # A person's COLUMNS is taken for the terminal's own word.
    by_variable = on_terminal(*words, columns=200, env={"COLUMNS": str(columns)})
    assert not too_wide(by_variable, columns), by_variable


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("list", "stats")])
def test_without_a_terminal_nothing_is_wider_than_80(shell: Shell, name: str) -> None:
    shown = netns_debug(*COMMANDS[name]).stdout
    assert shown
    assert not too_wide(shown, 80), shown


def test_a_program_gets_the_rows_of_list_whole(shell: Shell) -> None:
    [row] = netns_debug("list").stdout.splitlines()[1:]
    assert row.endswith('do eval "$line"; echo "done $?"; done')
    assert len(row) > 80
