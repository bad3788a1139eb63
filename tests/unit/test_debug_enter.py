"""What a second command is given: the supervisor's word, and of ours the terminal's kind alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from netns_runtime.debug import enter
from netns_runtime.errors import UsageError
from netns_runtime.namespace.enter_join import Joining, differences

ANSWER: dict[str, Any] = {
    "pid": 1,
    "env": {"SHELL": "/bin/zsh", "TERM": "dumb", "ODD": "\udcff"},
    "cwd": "/srv",
    "uid": 54321,
    "gid": 54322,
    "groups": [1, 2],
    "filters": ["AAAAAAAAAAA="],
    "cgroups": ["/sys/fs/cgroup/netns-runtime/x"],
}


def joining(*command: str, term: str | None = None, **changed: Any) -> Joining:
    return enter.joining_of(ANSWER | changed, command, 7, term)


def test_without_a_command_it_is_the_user_s_shell() -> None:
    assert joining().argv == ("/bin/zsh",)
    assert joining(env={}).argv == ("/bin/sh",)
    assert joining(env={"SHELL": "zsh"}).argv == ("/bin/sh",)
    assert joining("a", "b c").argv == ("a", "b c")


@pytest.mark.parametrize(
    ("term", "wanted"),
    [("xterm-256color", "xterm-256color"), (None, "dumb"), ("x\x1b[2J", "dumb"), ("", "dumb")],
)
def test_the_terminal_s_kind_is_ours_where_it_is_one(term: str | None, wanted: str) -> None:
    assert joining(term=term).env["TERM"] == wanted


def test_bytes_that_are_no_text_arrive_as_they_were() -> None:
    assert joining().job([0, 1, 2])["env"][b"ODD"] == b"\xff"


@pytest.mark.parametrize("words", [["a", "b"], ["--all"], ["a", "--"]])
def test_bad_words_are_refused(words: list[str]) -> None:
    with pytest.raises(UsageError):
        enter.main(words, False)


def test_a_process_that_is_held_less_is_told_apart() -> None:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    uid = os.getuid()
    assert "Seccomp:" in status
    mine = joining(uid=uid, gid=os.getgid(), groups=os.getgroups(), filters=[])
    found = differences(os.getpid(), os.getpid(), mine)
    assert found is not None
    assert found.split()[0] in {"CapPrm", "CapEff", "CapBnd", "NoNewPrivs"}
    other = joining(uid=uid + 1)
    assert (differences(os.getpid(), os.getpid(), other) or "").startswith("Uid ")
