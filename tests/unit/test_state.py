"""State files: a name is taken while its supervisor lives, and only then."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest

from netns_runtime import state
from netns_runtime.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path


def record(name: str = "a") -> state.Record:
    return state.Record(
        name=name,
        supervisor=1,
        started="2026-01-01T00:00:00.000000Z",
        command=("sh", "-c", "x"),
        uid=0,
        cookie=7,
        cgroup="/c",
        sandbox_ns="/s",
        gateway_ns="/g",
        probe="bpf",
        allow=("a.test",),
    )


def test_a_claimed_name_is_found_and_gone_afterwards(tmp_path: Path) -> None:
    with state.claim("a", tmp_path) as claim:
        claim.write(record())
        assert state.survey(tmp_path) == ([record()], frozenset({"a"}), [])
    assert state.survey(tmp_path) == ([], frozenset(), [])
    assert os.listdir(tmp_path) == []


def test_a_shorter_record_replaces_a_longer_one_whole(tmp_path: Path) -> None:
    with state.claim("a", tmp_path) as claim:
        claim.write(state.Record(**{**json.loads("{}"), **_fields(command=("x" * 500,))}))
        claim.write(record())
        assert state.survey(tmp_path)[0] == [record()]


def _fields(**changes: object) -> dict[str, object]:
    fields = {key: getattr(record(), key) for key in state.Record.__slots__}
    return {**fields, **changes}


def test_a_name_cannot_be_claimed_twice(tmp_path: Path) -> None:
    with (
        state.claim("a", tmp_path),
        pytest.raises(UsageError, match="a sandbox of that name is running"),
        state.claim("a", tmp_path),
    ):
        pass


def test_the_file_of_a_dead_supervisor_is_gone_and_can_be_claimed(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}", encoding="ascii")
    assert state.survey(tmp_path) == ([], frozenset(), [tmp_path / "a.json"])
    with state.claim("a", tmp_path):
        assert state.survey(tmp_path)[1] == {"a"}


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"format": 99}', '{"format": 1}'])
def test_a_record_that_cannot_be_read_is_a_sandbox_that_is_still_starting(
    tmp_path: Path, content: str
) -> None:
    with state.claim("a", tmp_path) as claim:
        os.write(claim.fd, content.encode("ascii"))
        assert state.survey(tmp_path) == ([], frozenset({"a"}), [])


def test_a_link_in_place_of_a_state_file_is_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("precious", encoding="ascii")
    (tmp_path / "a.json").symlink_to(target)
    with pytest.raises(Exception, match="ELOOP"), state.claim("a", tmp_path):
        pass
    assert target.read_text(encoding="ascii") == "precious"
