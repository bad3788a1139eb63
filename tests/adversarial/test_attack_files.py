"""What CMD leaves for the next root run: the audit, the policy, and the links on the way to them.

Every attack here worked against a released checkout once; CMD runs as uid 0 and as a stranger who
called sudo, in a directory of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from netns_runtime.errors import UsageError
from netns_runtime.layout import RUN_DIR
from netns_runtime.namespace.filesystem import Host, View, may_be_written, plan_view
from netns_runtime.namespace.filesystem_protect import Identity
from tests.support.run import Running, netns_run

if TYPE_CHECKING:
    from tests.support.run import Result

STRANGER = 54321
POLICY = "network_policies: {a: {endpoints: [{host: a.test, port: 443}]}}\n"
TRY_EVERYTHING = """
try() { (eval "$1") 2>/dev/null && echo "$1"; }
try ': > audit'; try 'echo forged >> audit'; try 'ln audit other'; try 'mv audit moved'
try 'rm -f audit'; try 'mv ../work ../elsewhere'; try 'chmod 666 audit'
exit 0
"""


def run_as(uid: int, *options: str, script: str, cwd: Path, fds: tuple[int, ...] = ()) -> Result:
    env = {"SUDO_UID": str(uid), "SUDO_GID": str(uid)} if uid else {}
    return netns_run(*options, cmd=["sh", "-c", script], cwd=cwd, env=env, pass_fds=fds)


@pytest.fixture(params=[0, STRANGER], ids=["root", "stranger"])
def uid(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def work(tmp_path: Path, uid: int) -> Path:
    directory = tmp_path / "work"
    directory.mkdir()
    os.chown(directory, uid, uid)
    return directory


@pytest.mark.parametrize("is_there", [False, True], ids=["made-by-us", "owned-by-cmd"])
@pytest.mark.parametrize("way", ["name", "descriptor"])
def test_cmd_cannot_touch_the_audit_beside_it(
    work: Path, uid: int, way: str, is_there: bool
) -> None:
    path = work / "audit"
    if is_there:
        path.touch()
        os.chown(path, uid, uid)
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        target = "audit" if way == "name" else f"fd:{fd}"
        result = run_as(uid, "--audit", target, script=TRY_EVERYTHING, cwd=work, fds=(fd,))
    finally:
        os.close(fd)
    assert (result.status, result.stdout) == (0, ""), result.told()
    events = [json.loads(line)["event"] for line in path.read_text().splitlines()]
    assert events == ["sandbox.started", "sandbox.exited"]
    assert path.stat().st_nlink == 1


def test_cmd_cannot_write_into_a_fifo_that_is_the_audit(work: Path, uid: int) -> None:
    path = work / "audit"
    os.mkfifo(path)
    os.chown(path, uid, uid)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        result = run_as(uid, "--audit", "audit", script="echo forged >> audit", cwd=work)
        events = [json.loads(line)["event"] for line in os.read(reader, 65536).splitlines()]
    finally:
        os.close(reader)
    assert result.status != 0, result.told()
    assert events == ["sandbox.started", "sandbox.exited"]


def test_a_link_that_cmd_planted_does_not_say_where_root_appends(work: Path, uid: int) -> None:
    elsewhere = work.parent / "elsewhere"
    elsewhere.mkdir()
    (work / "logs").symlink_to(elsewhere)
    os.chown(work / "logs", uid, uid, follow_symlinks=False)
    result = run_as(uid, "--audit", "logs/audit", script="echo ran", cwd=work)
    assert (result.status, result.stdout) == (125, ""), result.told()
    assert "--audit logs" in result.stderr
    assert not list(elsewhere.iterdir())


def test_a_second_name_that_cmd_gave_the_audit_is_refused(work: Path, uid: int) -> None:
    (work / "audit").touch()
    (work / "other").hardlink_to(work / "audit")
    result = run_as(uid, "--audit", "audit", script="echo ran", cwd=work)
    assert (result.status, result.stdout) == (125, ""), result.told()
    assert "hard link" in result.stderr


def test_the_audit_is_not_kept_for_cmd(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    fds = [os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) for _ in range(2)]
    try:
        same = (str(fds[0]), str(fds[0]))
        for audit, kept in (same, (str(fds[0]), str(os.dup(fds[0])))):
            fds.append(int(kept))
            options = ("--audit", f"fd:{audit}", "--keep-fd", kept)
            result = run_as(0, *options, script="echo ran", cwd=tmp_path, fds=tuple(fds))
            assert (result.status, result.stdout) == (125, ""), result.told()
            assert f"--keep-fd {kept}" in result.stderr
    finally:
        for fd in set(fds):
            os.close(fd)


@pytest.mark.parametrize("linked", ["file", "directory"])
def test_a_policy_behind_a_link_that_cmd_could_replace_is_refused(
    work: Path, uid: int, linked: str
) -> None:
    (work / "real").mkdir()
    (work / "real/policy.yaml").write_text(POLICY)
    link = work / ("policy.yaml" if linked == "file" else "current")
    link.symlink_to("real/policy.yaml" if linked == "file" else "real")
    named = "policy.yaml" if linked == "file" else "current/policy.yaml"
    result = run_as(uid, "--policy", named, script="echo ran", cwd=work)
    assert (result.status, result.stdout) == (125, ""), result.told()
    assert str(work / "real/policy.yaml") in result.stderr
    by_its_path = run_as(uid, "--policy", "real/policy.yaml", script="echo ran", cwd=work)
    assert by_its_path.stdout == "ran\n", by_its_path.told()


def test_a_policy_behind_a_link_of_root_is_taken(tmp_path: Path) -> None:
    (tmp_path / "real.yaml").write_text(POLICY)
    (tmp_path / "policy.yaml").symlink_to("real.yaml")
    (tmp_path / "work").mkdir()
    result = run_as(
        STRANGER, "--policy", "../policy.yaml", script="echo ran", cwd=tmp_path / "work"
    )
    assert result.stdout == "ran\n", result.told()


@pytest.mark.parametrize("option", [["--writable", str(RUN_DIR)], []], ids=["named", "cwd"])
def test_our_state_and_control_sockets_cannot_be_let_in(option: list[str]) -> None:
    RUN_DIR.mkdir(mode=0o700, exist_ok=True)
    cwd = Path("/") if option else RUN_DIR
    result = run_as(0, *option, script="echo ran; ls -A", cwd=cwd)
    assert (result.status, result.stdout) == (125, ""), result.told()
    view = View(writable=(option[1],) if option else ())
    with pytest.raises(UsageError, match="netns-run's own"):
        plan_view(view, Identity(0, 0), str(cwd), Host((), frozenset(), ()))


def test_uid_0_does_not_get_the_home_of_root_by_starting_there() -> None:
    assert not may_be_written("/root")
    assert may_be_written("/root/project")


@pytest.mark.xfail(
    strict=True,
    reason="a rename over a mount point from outside detaches it (Linux 3.18, detach_mounts)",
)
def test_a_policy_that_an_editor_replaced_meanwhile_stays_out_of_reach(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    for path in (tmp_path, policy):
        os.chown(path, STRANGER, STRANGER)
    script = "echo up; read line; echo forged >> policy.yaml && echo wrote; exit 0"
    env = {"SUDO_UID": str(STRANGER), "SUDO_GID": str(STRANGER)}
    with Running(
        *("--policy", "policy.yaml"),
        cmd=["sh", "-c", script],
        cwd=tmp_path,
        env=env,
        stdin=subprocess.PIPE,
    ) as running:
        assert running.line() == "up\n"
        edited = tmp_path / "policy.yaml.new"
        edited.write_text(POLICY)
        os.chown(edited, STRANGER, STRANGER)
        edited.rename(policy)
        running.tell("")
        result = running.wait(10)
    assert result.stdout == "", result.told()
    assert policy.read_text() == POLICY
