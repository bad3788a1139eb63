"""netns-run as a command: exit statuses, streams, signals, and one line for each bad input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.support.lab import CHECKOUT
from tests.support.run import NETNS_RUN, PYTHON, Running, netns_run

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.lab import Lab


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("exit 0", 0),
        ("exit 1", 1),
        ("exit 77", 77),
        ("exit 255", 255),
        ("kill -TERM $$", 128 + signal.SIGTERM),
        ("kill -KILL $$", 128 + signal.SIGKILL),
        ("kill -SEGV $$", 128 + signal.SIGSEGV),
    ],
)
def test_ends_as_the_command_does(script: str, status: int) -> None:
    assert netns_run(cmd=["sh", "-c", script]).status == status


def test_says_127_for_a_command_that_does_not_exist() -> None:
    result = netns_run(cmd=["no-such-command-anywhere"])
    assert result.status == 127, result.told()
    assert one_line(result.stderr), result.told()
    assert "no-such-command-anywhere" in result.stderr


def test_says_126_for_a_file_that_is_no_program(lab: Lab) -> None:
    path = lab.work / "not-executable"
    path.write_text("text\n")
    result = netns_run(cmd=[str(path)], lab=lab)
    assert result.status == 126, result.told()
    assert one_line(result.stderr), result.told()


def test_streams_are_the_command_s_own() -> None:
    script = "cat; echo err >&2"
    result = netns_run(cmd=["sh", "-c", script], input="through a pipe\n")
    assert (result.stdout, result.stderr) == ("through a pipe\n", "err\n")


def test_binary_output_arrives_whole() -> None:
    result = netns_run(cmd=["head", "-c", "3000000", "/dev/zero"])
    assert len(result.stdout) == 3_000_000


def test_arguments_arrive_as_they_are() -> None:
    words = ["a b", "", "--help", "--", "ü", "$HOME", "new\nline"]
    script = "import json, sys; print(json.dumps(sys.argv[1:]))"
    result = netns_run(cmd=[PYTHON, "-c", script, *words])
    assert json.loads(result.stdout) == words


def test_works_without_the_double_dash() -> None:
    done = subprocess.run(
        [NETNS_RUN, "sh", "-c", "exit 5"], check=False, stdin=subprocess.DEVNULL, timeout=30
    )
    assert done.returncode == 5


def test_keeps_directory_and_environment(lab: Lab) -> None:
    script = 'printf "%s %s" "$PWD" "$MARK"'
    result = netns_run(cmd=["sh", "-c", script], lab=lab, env={"MARK": "kept"})
    assert result.stdout == f"{lab.work} kept", result.told()


def test_sets_the_proxy_variables_of_all_habits() -> None:
    result = netns_run(cmd=["env"])
    found = dict(line.split("=", 1) for line in result.stdout.splitlines() if "=" in line)
    proxy = "http://10.200.0.1:3128"
    for name in (
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
    ):
        assert found.get(name, "").rstrip("/") == proxy, name
    assert found["grpc_proxy"].rstrip("/") == proxy
    assert found["NODE_USE_ENV_PROXY"] == "1"
    for name in ("no_proxy", "NO_PROXY"):
        assert {"localhost", "127.0.0.1"} <= set(found[name].split(",")), name


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_passes_signals_to_the_command(number: signal.Signals) -> None:
    script = f"trap 'echo got; exit 9' {number.name[3:]}; echo ready; while :; do sleep 0.05; done"
    with Running(cmd=["sh", "-c", script]) as running:
        assert running.process.stdout is not None
        assert running.process.stdout.readline() == b"ready\n"
        running.process.send_signal(number)
        result = running.wait(10)
    assert result.status == 9, result.told()
    assert result.stdout == "got\n", result.told()


def test_ends_at_once_when_the_command_does(lab: Lab) -> None:
    start = time.monotonic()
    result = netns_run(cmd=["sh", "-c", "sleep 60 & exit 3"], lab=lab)
    assert result.status == 3
    assert time.monotonic() - start < 10


def one_line(text: str) -> bool:
    return text.startswith("netns-run: ") and text.count("\n") == 1 and text.endswith("\n")


def call(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        timeout=30,
    )


def policy_with(directory: Path, text: str) -> str:
    path = directory / "policy.yaml"
    path.write_text(text)
    return str(path)


BAD = [
    (["--no-such-option"], "--no-such-option"),
    (["--allow", "web.lab.test:99999"], "99999"),
    (["--allow", "web.lab.test:port"], "port"),
    (["--allow", ""], "--allow"),
    (["--allow", "a b"], "--allow"),
    (["--policy", "/no/such/policy.yaml"], "/no/such/policy.yaml"),
    (["--policy", "/"], "--policy"),
    (["--preset", "no-such-preset"], "--preset"),
    (["--uplink", "/etc/hostname"], "/etc/hostname"),
    (["--uplink", "no-such-namespace"], "no-such-namespace"),
    (["--uplink", "/proc/1/ns/mnt"], "/proc/1/ns/mnt"),
    (["--resolver", "not-an-address"], "not-an-address"),
    (["--resolver", "192.0.2.53:0"], "192.0.2.53"),
    (["--upstream-ca", "/etc/hostname"], "/etc/hostname"),
    (["--upstream-ca", "/no/such/ca.pem"], "/no/such/ca.pem"),
    (["--audit", "/no/such/directory/audit"], "/no/such/directory/audit"),
    (["--audit", "fd:999"], "999"),
    (["--audit", "fd:x"], "fd:x"),
    (["--status-fd", "999"], "999"),
    (["--status-fd", "x"], "x"),
    (["--keep-fd", "999"], "999"),
    (["--user", "no-such-user"], "no-such-user"),
    (["--limit", "flows=many"], "many"),
    (["--limit", "nothing=1"], "nothing"),
    (["--redirect", "perhaps"], "perhaps"),
    (["--probe", "magic"], "magic"),
    (["--expose-socket", "/no/such/socket"], "/no/such/socket"),
    (["--name", "../up"], "../up"),
]


@pytest.mark.parametrize(
    ("options", "named"), BAD, ids=lambda v: " ".join(v) if isinstance(v, list) else ""
)
def test_bad_input_is_one_line_and_125(options: list[str], named: str) -> None:
    done = call(NETNS_RUN, *options, "--", "echo", "ran")
    assert done.returncode == 125, done
    assert done.stdout == "", "the command ran"
    assert one_line(done.stderr), done.stderr
    assert named in done.stderr


def test_more_descriptors_than_a_launch_can_have_are_one_line_and_125() -> None:
    script = (
        "import os, resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))\n"
        "for number in range(10, 1100): os.dup2(0, number, inheritable=True)\n"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    words = [PYTHON, "-c", script, NETNS_RUN, "--", "true"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=20, check=False)
    assert (done.returncode, one_line(done.stderr)) == (125, True), done
    assert "descriptors were inherited" in done.stderr


def test_no_command_is_one_line_and_125() -> None:
    done = call(NETNS_RUN)
    assert done.returncode == 125
    assert one_line(done.stderr), done.stderr


def test_a_policy_with_a_typo_is_told_by_file_line_and_key(tmp_path: Path) -> None:
    policy = policy_with(
        tmp_path,
        "network_policies:\n  web:\n    endpoints:\n      - hots: web.lab.test\n",
    )
    done = call(NETNS_RUN, "--policy", policy, "--", "true")
    assert done.returncode == 125
    assert one_line(done.stderr), done.stderr
    assert f"{policy}:4" in done.stderr
    assert "hots" in done.stderr


def test_a_policy_that_is_no_yaml_is_one_line(tmp_path: Path) -> None:
    policy = policy_with(tmp_path, "network_policies: [\n")
    done = call(NETNS_RUN, "--policy", policy, "--", "true")
    assert (done.returncode, one_line(done.stderr)) == (125, True), done.stderr


def test_without_root_it_says_so() -> None:
    done = call("setpriv", "--reuid=65534", "--clear-groups", NETNS_RUN, "--", "true")
    assert done.returncode == 125, done
    assert one_line(done.stderr), done.stderr
    assert "sudo" in done.stderr


def test_status_fd_tells_started_and_exited(tmp_path: Path) -> None:
    with (tmp_path / "status").open("w+b") as status:
        fd = status.fileno()
        result = netns_run("--status-fd", str(fd), cmd=["sh", "-c", "exit 4"], pass_fds=[fd])
        lines = [json.loads(line) for line in (tmp_path / "status").read_text().splitlines()]
    assert result.status == 4
    assert "started" in json.dumps(lines[0]), lines
    assert "exited" in json.dumps(lines[-1]), lines
    assert 4 in lines[-1].values(), lines


def test_dry_run_changes_nothing_and_runs_nothing() -> None:
    result = netns_run("--dry-run", cmd=["sh", "-c", "echo ran"])
    assert result.status == 0, result.told()
    assert "ran\n" not in result.stdout.splitlines(keepends=True)
    assert "10.200.0.1" in result.stdout, result.told()


def test_a_file_for_the_audit_is_private_and_appended_to(lab: Lab) -> None:
    path = lab.directory / "audit.jsonl"
    for _ in range(2):
        subprocess.run([NETNS_RUN, "--audit", str(path), "--", "true"], check=True, timeout=30)
    events = [json.loads(line)["event"] for line in path.read_text().splitlines()]
    assert events.count("sandbox.started") == 2
    assert events.count("sandbox.exited") == 2
    assert os.stat(path).st_mode & 0o777 == 0o600
    path.unlink()


def test_the_launcher_works_through_a_symlink_and_from_elsewhere(tmp_path: Path) -> None:
    link = tmp_path / "run"
    link.symlink_to(CHECKOUT / "netns-run")
    second = tmp_path / "again"
    second.symlink_to("run")
    done = subprocess.run(
        [str(second), "--", "sh", "-c", "exit 6"], check=False, cwd="/", timeout=30
    )
    assert done.returncode == 6


def test_python_variables_of_the_caller_do_not_reach_ours(tmp_path: Path) -> None:
    (tmp_path / "trio.py").write_text("raise SystemExit('hijacked')\n")
    env = {"PYTHONPATH": str(tmp_path), "PYTHONHOME": "/nonexistent", "PYTHONSTARTUP": "/dev/null"}
    result = netns_run(cmd=["sh", "-c", "exit 8"], env=env, cwd=tmp_path)
    assert result.status == 8, result.told()
