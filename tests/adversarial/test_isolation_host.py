"""Escapes by way of the host: /proc, /sys, mounted kernel controls, files root trusts, sockets.

Each attack is one program. It is run bare, or with the one defence taken out of the plan, and must
succeed; then in a sandbox as built, and must not.
"""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from netns_runtime.namespace.filesystem import View
from netns_runtime.namespace.filesystem_protect import Cover, How, Identity
from tests.support.enter import STRANGER, UID_0, python, run, run_bare

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netns_runtime.namespace.enter import EnterPlan

# Writes back what is there, so that succeeding changes nothing.
WRITE_BACK = "import sys;p=sys.argv[1];v=open(p).read();open(p,'w').write(v)"


def without_kernel_covers(plan: EnterPlan) -> EnterPlan:
    return replace(plan, view=replace(plan.view, covers=()))


@pytest.mark.parametrize("view", [View(read_only=True), View()], ids=["read-only", "writable"])
@pytest.mark.parametrize(
    "path",
    [
        "/proc/sys/kernel/core_pattern",
        "/proc/sys/kernel/hostname",
        "/proc/sys/vm/overcommit_memory",
        "/sys/kernel/mm/transparent_hugepage/khugepaged/defrag",
    ],
)
def test_uid_0_cannot_write_the_kernels_settings(path: str, view: View) -> None:
    attack = python(WRITE_BACK, path)
    assert run_bare(attack, identity=UID_0).status == 0
    outcome = run(attack, identity=UID_0, view=view)
    assert outcome.status == 1
    assert "Read-only file system" in outcome.stderr or "No such file" in outcome.stderr


def test_uid_0_finds_nothing_to_write_in_proc_outside_its_own_processes() -> None:
    script = (
        "import os\n"
        "for top, dirs, files in os.walk('/proc'):\n"
        "  if top == '/proc':\n"
        "    dirs[:] = [d for d in dirs if not d.isdigit() and 'self' not in d]\n"
        "  for name in files:\n"
        "    path = top + '/' + name\n"
        "    if os.path.islink(path): continue\n"
        "    try: os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK)); print(path)\n"
        "    except OSError: pass\n"
    )
    bare = run_bare(python(script), identity=UID_0).stdout.split()
    assert "/proc/sys/kernel/core_pattern" in bare
    found = run(python(script), identity=UID_0, view=View()).stdout.split()
    # Entries that only root may read are /dev/null inside, which opens and is nothing.
    are_null = [path for path in found if not os.lstat(path).st_mode & 0o004]
    assert found == are_null


def test_uid_0_cannot_reach_the_rest_of_sysfs() -> None:
    attack = ["test", "-e", "/sys/kernel/uevent_helper", "-o", "-e", "/sys/fs/cgroup/unified"]
    assert run_bare(attack, identity=UID_0).status == 0
    assert run(attack, identity=UID_0).status == 1
    assert run(["sh", "-c", "mkdir /sys/x || touch /sys/kernel/x"], identity=UID_0).status == 1


@contextmanager
def mounted(kind: str) -> Iterator[str]:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place:
        os.chmod(place, 0o755)
        subprocess.run(["mount", "-t", kind, kind, place], check=True)
        try:
            yield place
        finally:
            subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize(
    ("kind", "inside"),
    [
        ("proc", "sys/kernel/core_pattern"),
        ("sysfs", "kernel"),
        ("bpf", "."),
        ("cgroup2", "cgroup.procs"),
        ("tracefs", "tracing_on"),
        ("debugfs", "."),
        ("devpts", "."),
    ],
)
def test_the_kernels_file_systems_are_covered_wherever_they_are_mounted(
    kind: str, inside: str
) -> None:
    try:
        with mounted(kind) as place:
            attack = [
                "sh",
                "-c",
                f"test -w {place}/{inside} && test $(ls -A {place} | wc -l) -ge 0",
            ]
            view = View(read_only=False)
            assert run_bare(attack, identity=UID_0).status == 0
            bare = run(attack, identity=UID_0, view=view, change=without_kernel_covers)
            assert bare.status == 0, bare
            assert run(attack, identity=UID_0, view=view).status == 1
            assert run(["ls", "-A", place], identity=UID_0, view=view).stdout == ""
    except subprocess.CalledProcessError:
        pytest.fail(f"{kind} cannot be mounted here")


@contextmanager
def listening(path: str, kind: int = socket.SOCK_STREAM) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, kind) as server:
        server.bind(path)
        try:
            if not path.startswith("\0"):
                os.chmod(path, 0o777)
            if kind == socket.SOCK_STREAM:
                server.listen()
            yield server
        finally:
            with suppress(OSError, ValueError):
                os.unlink(path)


CONNECT = (
    "import _socket,sys;s=_socket.socket(1,int(sys.argv[2]));"
    "s.connect(sys.argv[1].replace('@','\\0'))"
)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
@pytest.mark.parametrize("where", ["/run", "/tmp", "/dev/shm", "/var/tmp", "@"])
def test_no_unix_socket_of_the_host_can_be_reached(where: str, kind: int) -> None:
    with tempfile.TemporaryDirectory(dir=where if where != "@" else "/tmp") as place:
        os.chmod(place, 0o755)
        path = f"{place}/s" if where != "@" else f"\0{place}/s"
        with listening(path, kind):
            attack = python(CONNECT, path.replace("\0", "@"), str(int(kind)))
            assert run_bare(attack).status == 0
            outcome = run(attack)
            assert outcome.status == 1
            assert "FileNotFoundError" in outcome.stderr or "ConnectionRefused" in outcome.stderr


def test_a_socket_is_covered_at_every_path_that_leads_to_it() -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as top:
        os.chmod(top, 0o755)
        for name in ("real", "alias"):
            os.mkdir(f"{top}/{name}")
        subprocess.run(["mount", "--bind", f"{top}/real", f"{top}/alias"], check=True)
        try:
            with listening(f"{top}/real/s"):
                attack = python(CONNECT, f"{top}/alias/s", "1")
                assert run(attack, change=without_kernel_covers).status == 0
                assert run(attack).status == 1
        finally:
            subprocess.run(["umount", f"{top}/alias"], check=True)


def test_a_socket_bound_by_a_relative_path_or_in_another_namespace_is_covered() -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place:
        os.chmod(place, 0o755)
        serve = (
            "import socket,os;s=socket.socket(1);s.bind('s');os.chmod('s',0o777);s.listen();"
            "print('up',flush=True);input()"
        )
        for prefix in ([], ["unshare", "--net"], ["unshare", "--mount"]):
            with subprocess.Popen(
                [*prefix, "/usr/bin/python3", "-c", serve],
                cwd=place,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            ) as server:
                assert server.stdout is not None
                assert server.stdin is not None
                server.stdout.readline()
                attack = python(CONNECT, f"{place}/s", "1")
                assert run_bare(attack).status == 0
                assert run(attack).status == 1, prefix
                server.stdin.close()
                server.wait()
            os.unlink(f"{place}/s")


def test_the_same_user_cannot_replace_what_root_runs_next() -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as top:
        home = Path(top) / "home"
        package = home / "src" / "checkout" / "package"
        package.mkdir(parents=True)
        launcher = package.parent / "launcher"
        launcher.write_text("original")
        (package / "module.py").write_text("original")
        for path in (home, *home.rglob("*")):
            os.chown(path, STRANGER.uid, STRANGER.gid)
        os.chmod(top, 0o755)
        attacks = {
            "write": f"echo evil > {launcher}",
            "unlink": f"rm -f {launcher}",
            "rename over": f"echo evil > {home}/e; mv -f {home}/e {launcher}",
            "chmod": f"chmod 777 {launcher}",
            "in package": f"echo evil > {package}/module.py",
            "beside": f"echo evil > {package}/trio.py",
            "rename it": f"mv {launcher} {home}/gone",
            "rename package": f"mv {package} {home}/gone",
            "rename checkout": f"mv {home}/src/checkout {home}/src/x",
            "rename src": f"mv {home}/src {home}/x",
        }
        view = View(protected=(str(launcher), str(package)))
        for name, attack in attacks.items():
            outcome = run(["sh", "-c", attack], view=view, cwd=str(home))
            assert outcome.status != 0, (name, outcome)
            assert launcher.read_text() == (package / "module.py").read_text() == "original", name
            assert os.listdir(package) == ["module.py"], name
        useful = f"echo mine > {home}/src/checkout/notes && rm {home}/src/checkout/notes"
        assert run(["sh", "-c", useful], view=view, cwd=str(home)).status == 0
        # Last, because it works: the same without the covers.
        last = attacks["rename src"]
        assert run(["sh", "-c", last], view=View(), cwd=str(home)).status == 0
        assert not launcher.exists()


def test_the_protection_holds_at_a_second_mount_of_the_same_place() -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as top:
        os.chmod(top, 0o755)
        for name in ("a", "b"):
            os.mkdir(f"{top}/{name}")
        launcher = Path(top) / "a" / "launcher"
        launcher.write_text("original")
        for path in (launcher.parent, launcher):
            os.chown(path, STRANGER.uid, STRANGER.gid)
        subprocess.run(["mount", "--bind", f"{top}/a", f"{top}/b"], check=True)
        try:
            attack = ["sh", "-c", f"echo evil > {top}/b/launcher"]
            assert run(attack, view=View(protected=(str(launcher),))).status != 0
            assert launcher.read_text() == "original"
            assert run(attack, view=View()).status == 0
            assert launcher.read_text() == "evil\n"
        finally:
            subprocess.run(["umount", f"{top}/b"], check=True)


def test_starting_in_a_place_of_the_system_does_not_make_it_writable_for_uid_0() -> None:
    for place in ("/", "/etc", "/usr/lib"):
        name = f"{place.rstrip('/')}/netns-runtime-was-here"
        try:
            assert run_bare(["touch", name], identity=UID_0).status == 0
        finally:
            os.unlink(name)
        assert run(["touch", name], identity=UID_0, cwd=place).status == 1
        assert not os.path.exists(name)


def test_a_mount_made_outside_after_launch_does_not_appear_inside() -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as top:
        os.chmod(top, 0o755)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", top], check=True)
        try:
            subprocess.run(["mount", "--make-shared", top], check=True)
            os.mkdir(f"{top}/later")
            script = (
                f"touch {top}/ready; while [ ! -e {top}/go ]; do sleep 0.02; done; ls {top}/later"
            )
            os.chmod(top, 0o777)
            mounter = subprocess.Popen(
                [
                    "sh",
                    "-c",
                    f"while [ ! -e {top}/ready ]; do sleep 0.02; done;"
                    f"mount -t proc proc {top}/later; touch {top}/go",
                ]
            )
            outcome = run(["sh", "-c", script])
            assert mounter.wait() == 0
            assert os.path.exists(f"{top}/later/sys")
            assert outcome.stdout == ""
        finally:
            subprocess.run(["umount", "-R", top], check=True)


def test_a_setuid_program_gains_nothing() -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as place:
        os.chmod(place, 0o755)
        program = f"{place}/id"
        Path(program).write_bytes(Path("/usr/bin/id").read_bytes())
        os.chmod(program, 0o4755)
        assert run_bare([program, "-u"]).stdout == "0\n"
        assert run([program, "-u"]).stdout == f"{STRANGER.uid}\n"


def test_has_no_capability_in_any_set_as_any_user() -> None:
    for identity in (STRANGER, UID_0, Identity(0, 0, (0, 4))):
        lines = run(["grep", "Cap", "/proc/self/status"], identity=identity).stdout.splitlines()
        assert len(lines) == 5
        assert all(line.endswith("0" * 16) for line in lines), lines


def test_a_link_put_in_the_way_of_a_cover_stops_the_launch(tmp_path: Path) -> None:
    """The plan names a path; a link there by the time of the launch is not followed by root."""
    target = tmp_path / "target"
    (target / "below").mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(target)

    def through_link(plan: EnterPlan) -> EnterPlan:
        cover = Cover(str(link / "below"), How.HIDE, must=True)
        return replace(plan, view=replace(plan.view, covers=(cover,)))

    outcome = run(["true"], change=through_link)
    assert outcome.status == 125
