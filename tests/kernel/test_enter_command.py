"""The command is itself: its end, its streams, its place, its user, and nothing more."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from netns_runtime.errors import UsageError
from netns_runtime.namespace.enter_launch import CannotExecute, Exited, Ready, Started
from netns_runtime.namespace.filesystem import BoundFile, View
from netns_runtime.namespace.filesystem_protect import Identity
from tests.support.enter import ROOT, STRANGER, UID_0, python, run

DRIVER = [sys.executable, "-m", "tests.support.enter"]


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("exit 0", 0),
        ("exit 3", 3),
        ("exit 255", 255),
        ("kill -KILL $$", 137),
        ("kill -TERM $$", 143),
        ("kill -SEGV $$", 139),
    ],
)
def test_ends_with_the_commands_own_status(script: str, status: int) -> None:
    outcome = run(["sh", "-c", script])
    assert outcome.status == status, outcome
    assert [type(event) for event in outcome.events] == [Ready, Started, Exited]


def test_a_command_that_does_not_exist_is_127() -> None:
    outcome = run(["no-such-command"])
    assert outcome.status == 127
    assert outcome.events[-1] == CannotExecute(2, "no-such-command: No such file or directory")


@pytest.mark.parametrize("name", ["/etc/passwd", "/usr"])
def test_a_command_that_cannot_be_executed_is_126(name: str) -> None:
    outcome = run([name])
    assert outcome.status == 126
    assert outcome.events[-1] == CannotExecute(13, f"{name}: Permission denied")


def test_a_script_without_an_interpreter_line_is_run_by_the_shell(tmp_path: Path) -> None:
    place = _open_to_all(tmp_path)
    script = place / "plain"
    script.write_text('echo "$0 $1"\n')
    script.chmod(0o755)
    assert run(["./plain", "one"], cwd=str(place)).stdout == "./plain one\n"


def test_finds_the_command_on_its_own_path(tmp_path: Path) -> None:
    place = _open_to_all(tmp_path)
    script = place / "only-here"
    script.write_text("#!/bin/sh\necho found\n")
    script.chmod(0o755)
    assert run(["only-here"], env={"PATH": f"/nowhere:{place}"}, cwd=str(place)).stdout == "found\n"


def test_the_end_of_the_command_ends_its_children() -> None:
    before = time.monotonic()
    outcome = run(["sh", "-c", "sleep 1000 & setsid sleep 1000 & echo started"])
    assert (outcome.status, outcome.stdout) == (0, "started\n")
    assert time.monotonic() - before < 5


def test_carries_stdin_stdout_and_stderr_apart() -> None:
    outcome = run(["sh", "-c", "cat; echo problem >&2"], stdin=b"\0raw\xff\n")
    assert outcome.stdout == "\0raw\\xff\n"
    assert outcome.stderr == "problem\n"


def test_a_closed_stdin_stays_closed() -> None:
    probe = "import os,sys\ntry: os.fstat(0)\nexcept OSError: sys.exit(9)"
    line = " ".join(f"'{word}'" for word in [*DRIVER, "{}", "--", *python("#")][:-1])
    done = subprocess.run(
        ["sh", "-c", f'{line} "$0" <&-', probe], cwd=ROOT, check=False, capture_output=True
    )
    assert done.returncode == 9, done


def test_keeps_environment_directory_user_and_groups() -> None:
    script = (
        "import os;print(os.getcwd(), os.environ.get('KEPT'), os.getresuid(), os.getresgid(),"
        " sorted(os.getgroups()), os.getpgrp() == os.getpid())"
    )
    identity = Identity(54_321, 54_322, (54_322, 54_323))
    outcome = run(python(script), identity=identity, env={"KEPT": "ä\udcff"}, cwd="/usr/share")
    assert outcome.stdout.strip().endswith(
        "(54321, 54321, 54321) (54322, 54322, 54322) [54322, 54323] True"
    )
    assert outcome.stdout.startswith("/usr/share ä\\udcff") or "/usr/share" in outcome.stdout


def test_a_working_directory_below_a_hidden_place_is_there_and_its_neighbours_are_not() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as place, tempfile.TemporaryDirectory(dir="/tmp"):
        os.chmod(place, 0o777)
        outcome = run(["sh", "-c", "ls /tmp; touch made"], cwd=place)
        assert outcome.stdout == f"{Path(place).name}\n", outcome
        assert (Path(place) / "made").exists()


def test_signals_have_their_default_action_and_none_is_blocked() -> None:
    outcome = run(["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"])
    assert outcome.stdout.split() == ["SigBlk:", "0" * 16, "SigIgn:", "0" * 16]


def test_sees_a_small_dev_with_room_for_shared_memory() -> None:
    script = "touch /dev/shm/x && echo hi >/dev/null && stat -c %a /dev/shm /tmp && ls /dev/pts"
    outcome = run(["sh", "-c", script])
    assert outcome.stdout == "1777\n1777\nptmx\n", outcome


def test_a_runtime_directory_is_private_and_the_users_own() -> None:
    place = "/run/user/54321"
    outcome = run(["stat", "-c", "%U %u %a", place], env={"XDG_RUNTIME_DIR": place})
    assert outcome.stdout.split()[1:] == ["54321", "700"], outcome
    assert not Path(place).exists()


def test_replaces_files_also_through_links_into_hidden_places() -> None:
    files = (
        BoundFile(b"nameserver 10.200.0.1\n", ("/etc/resolv.conf",)),
        BoundFile(b"bundle", ("/run/made/here.pem", "/etc/hosts", "/etc/none/such")),
    )
    before = Path("/etc/hosts").read_bytes()
    script = "cat /etc/resolv.conf /etc/hosts /run/made/here.pem; ls /etc/none"
    outcome = run(["sh", "-c", script], view=View(files=files))
    assert outcome.stdout == "nameserver 10.200.0.1\nbundlebundle"
    assert Path("/etc/hosts").read_bytes() == before
    assert not Path("/etc/none").exists()


def test_read_only_leaves_the_working_directory_and_what_was_named(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as here:
        named, other = tmp_path / "named", tmp_path / "other"
        named.mkdir()
        other.mkdir()
        view = View(read_only=True, writable=(str(named),))
        script = f"touch {here}/1; touch {named}/2; touch /tmp/3; touch {other}/4 /etc/5 /usr/6"
        outcome = run(["sh", "-c", script], view=view, identity=UID_0, cwd=here)
        assert (Path(here) / "1").exists()
        assert (named / "2").exists()
        assert outcome.stderr.count("Read-only file system") >= 2, outcome
        assert not any(map(os.path.exists, ("/etc/5", "/usr/6", "/tmp/3")))


def test_a_writable_path_that_does_not_exist_or_is_the_kernels_is_refused() -> None:
    for path in ("/no/such", "/proc/sys", "/sys"):
        with pytest.raises(UsageError, match=path):
            run(["true"], view=View(writable=(path,)))


def test_an_exposed_socket_can_be_reached_below_a_hidden_place() -> None:
    with tempfile.TemporaryDirectory(dir="/run") as place:
        os.chmod(place, 0o755)
        path = f"{place}/s"
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
            os.chmod(path, 0o666)
            server.listen()
            script = f"import _socket; s=_socket.socket(1,1); s.connect({path!r})"
            assert run(python(script)).status == 1
            assert run(python(script), view=View(expose_sockets=(path,))).status == 0


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGUSR2"])
def test_a_signal_to_the_supervisor_reaches_the_command(name: str) -> None:
    script = f"trap 'echo got; exit 42' {name[3:]}; echo ready; while :; do sleep 0.02; done"
    with subprocess.Popen(
        [*DRIVER, "{}", "--", "sh", "-c", script],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as driver:
        assert driver.stdout is not None
        assert driver.stdout.readline() == "ready\n"
        driver.send_signal(getattr(signal, name))
        assert driver.stdout.readline() == "got\n"
        assert driver.wait(5) == 42


def test_an_ignored_hangup_stays_ignored() -> None:
    script = "kill -HUP $$; echo alive"
    done = subprocess.run(
        ["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *DRIVER, "{}", "--", "sh", "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "alive\n", done


def test_a_kept_descriptor_arrives_and_no_other() -> None:
    read, write = os.pipe()
    try:
        os.set_inheritable(read, True)
        script = "import os;print(sorted(map(int, os.listdir('/proc/self/fd'))))"
        listing = json.loads(run(python(script), keep_fds=(write,)).stdout)
        assert listing[:3] == [0, 1, 2]
        assert write in listing
        assert read not in listing or listing[-1] == read  # listdir's own may take the number
        outcome = run(python(f"import os;os.write({write}, b'hello\\n')"), keep_fds=(write,))
        assert (outcome.status, os.read(read, 100)) == (0, b"hello\n")
    finally:
        os.close(read)
        os.close(write)


def _open_to_all(path: Path) -> Path:
    """Let a stranger through to `path`, which pytest makes for its own user alone."""
    for place in (path, *path.parents):
        if place.stat().st_mode & 0o077 == 0:
            place.chmod(0o755)
    return path


def test_a_stranger_is_who_runs_by_default() -> None:
    assert run(["id", "-u"]).stdout == f"{STRANGER.uid}\n"
