"""Which inodes a rule's `binaries` stand for, and what CMD's reach takes from them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from netns_runtime.address import HostPort
from netns_runtime.errors import UsageError
from netns_runtime.owner import Owner
from netns_runtime.policy import (
    Binary,
    Endpoint,
    Policy,
    Reach,
    Rule,
    decide,
    identify_binaries,
    read_policy,
)
from netns_runtime.policy import binaries as binaries_module
from netns_runtime.policy.binaries import kernel_device

SOMEBODY = os.getuid() + 12345
TARGET = HostPort("api.test", 443)


def executable(path: Path, mode: int = 0o755) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x7fELF")
    path.chmod(mode)
    return path


def policy_for(*paths: object) -> Policy:
    binaries = tuple(Binary(str(path)) for path in paths)
    return Policy((Rule("r (p.yaml:1)", (Endpoint("api.test", (443,)),), binaries),))


def identified(*paths: object, uid: int = SOMEBODY, gids: tuple[int, ...] = ()) -> Policy:
    return identify_binaries(policy_for(*paths), (uid, gids))


def names_of(policy: Policy) -> list[str]:
    return [
        Path(identity.path).name
        for rule in policy.rules
        for binary in rule.binaries or ()
        for identity in binary.identities
    ]


def owner_of(path: Path) -> Owner:
    status = path.stat()
    return Owner(1, "x", status.st_ino, kernel_device(status.st_dev), str(path))


def test_a_path_stands_for_its_inode(tmp_path: Path) -> None:
    curl = executable(tmp_path / "curl")
    wget = executable(tmp_path / "wget")
    policy = identified(curl)
    assert decide(policy, TARGET, owner_of(curl)).is_allowed
    assert not decide(policy, TARGET, owner_of(wget)).is_allowed
    assert policy.notes == ()


def test_a_file_put_in_its_place_later_is_another_inode(tmp_path: Path) -> None:
    curl = executable(tmp_path / "curl")
    policy = identified(curl)
    executable(tmp_path / "new").rename(curl)
    assert not decide(policy, TARGET, owner_of(curl)).is_allowed


def test_a_link_stands_for_what_it_leads_to(tmp_path: Path) -> None:
    real = executable(tmp_path / "python3.11")
    link = tmp_path / "python3"
    link.symlink_to("python3.11")
    assert decide(identified(link), TARGET, owner_of(real)).is_allowed


def test_globs_follow_openshell(tmp_path: Path) -> None:
    for name in ("jvm/a/bin/java", "jvm/b/bin/java", "jvm/bin/java", "jvm/a/b/c/java", "jvm/java"):
        executable(tmp_path / name)
    wanted = {
        "jvm/*/bin/java": 2,
        "jvm/**/java": 4,
        "jvm/**": 5,
        "jvm/[ab]/bin/jav?": 2,
        "jvm/j**a": 1,
        "jvm/*/nope": 0,
    }
    found = {glob: len(names_of(identified(tmp_path / glob))) for glob in wanted}
    assert found == wanted


@pytest.mark.parametrize("name", ["missing", "plain", "directory"])
def test_what_is_no_executable_file_names_nobody_and_is_noted(tmp_path: Path, name: str) -> None:
    executable(tmp_path / "plain", 0o644)
    (tmp_path / "directory").mkdir()
    policy = identified(tmp_path / name)
    assert names_of(policy) == []
    assert name in policy.notes[0]


def test_a_file_that_cmd_owns_names_nobody(tmp_path: Path) -> None:
    curl = executable(tmp_path / "curl", 0o555)
    policy = identified(curl, uid=os.getuid())
    assert names_of(policy) == []
    assert "CMD could write" in policy.notes[0]
    refused = decide(policy, TARGET, owner_of(curl))
    assert not refused.is_allowed
    assert "CMD's reach" in refused.detail


def test_a_file_that_anyone_may_write_names_nobody(tmp_path: Path) -> None:
    assert names_of(identified(executable(tmp_path / "curl", 0o777))) == []


def test_a_file_that_a_group_of_cmd_may_write_names_nobody(tmp_path: Path) -> None:
    curl = executable(tmp_path / "curl", 0o775)
    group = curl.stat().st_gid
    assert names_of(identified(curl, gids=(group,))) == []
    assert names_of(identified(curl, gids=(group + 1,))) == ["curl"]


def test_a_file_in_a_directory_that_cmd_may_write_names_nobody(tmp_path: Path) -> None:
    curl = executable(tmp_path / "open" / "curl")
    curl.parent.chmod(0o777)
    assert names_of(identified(curl)) == []


def test_a_link_in_a_directory_that_cmd_may_write_names_nobody(tmp_path: Path) -> None:
    executable(tmp_path / "safe" / "curl")
    (tmp_path / "open").mkdir()
    (tmp_path / "open" / "hop").symlink_to("../safe/curl")
    (tmp_path / "open").chmod(0o777)
    link = tmp_path / "safe" / "link"
    link.symlink_to("../open/hop")
    assert names_of(identified(link)) == []


def test_links_in_a_circle_name_nobody(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    assert names_of(identified(tmp_path / "a")) == []


def test_outside_the_writable_trees_owning_a_file_is_no_way_to_write_it(tmp_path: Path) -> None:
    curl = executable(tmp_path / "system" / "curl")
    (tmp_path / "work").mkdir()
    writer = (os.getuid(), ())
    policy = identify_binaries(policy_for(curl), writer, [str(tmp_path / "work")])
    assert names_of(policy) == ["curl"]
    policy = identify_binaries(policy_for(curl), writer, [str(tmp_path / "system")])
    assert names_of(policy) == []


def test_a_glob_that_looks_at_too_much_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(binaries_module, "MAX_ENTRIES", 10)
    for number in range(11):
        executable(tmp_path / str(number))
    with pytest.raises(UsageError, match=r"r \(p\.yaml:1\).*more than 10 files"):
        identified(tmp_path / "*")


def test_a_policy_without_binaries_is_left_as_it_is() -> None:
    policy = Policy((Rule("r", (Endpoint("api.test", (443,)),)),))
    assert identify_binaries(policy, (SOMEBODY, ())) is policy


def test_reads_a_policy_file(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("network_policies: {r: {endpoints: [{host: api.test, port: 443}]}}")
    policy = read_policy(str(path), Reach(SOMEBODY))
    assert policy.rules[0].text == f"r ({path}:1)"


def test_refuses_a_policy_that_cmd_could_write(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text("network_policies: {}")
    with pytest.raises(UsageError, match="CMD could write"):
        read_policy(str(path), Reach(os.getuid()))
    assert read_policy(str(path), None) == Policy()


@pytest.mark.parametrize("name", ["missing.yaml", ".", "p.yaml/x"])
def test_a_policy_that_cannot_be_read_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "p.yaml").write_text("")
    with pytest.raises(UsageError, match=r"^--policy "):
        read_policy(str(tmp_path / name))


def test_a_device_is_no_policy() -> None:
    with pytest.raises(UsageError, match="neither a file nor a pipe"):
        read_policy("/dev/zero")
