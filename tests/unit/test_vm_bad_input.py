"""scripts/test-vm and scripts/vm-box where something is missing: 125, one line, and the remedy.

apt is a script of a few lines on a PATH of its own, so nothing is asked of a network and each
failure has one cause.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from netns_runtime.errors import StepError
from tests.vm import box, guest, tools
from tests.vm.__main__ import main
from tests.vm.archive import Archive
from tests.vm.cache import built
from tests.vm.guest import words_of
from tests.vm.image import Boot, build_boot
from tests.vm.kernels import choose, offered

if TYPE_CHECKING:
    from collections.abc import Callable

KERNEL = "linux-image-6.12.1-amd64"
FETCHED = "E: Failed to fetch InRelease  Could not resolve host"


class Machine:
    """A PATH on which there is what a test puts there, and an empty cache."""

    def __init__(self, place: Path) -> None:
        self.cache = place / "cache" / "netns-runtime-vm"
        self.programs = place / "bin"
        self.programs.mkdir()
        self.calls = place / "calls"

    def has(self, name: str, script: str = "exit 0") -> None:
        path = self.programs / name
        path.write_text(f"#!/bin/sh\necho {name} $* >>{self.calls}\n{script}\n")
        path.chmod(0o755)

    def apt(self, *, update: str = "", install: str = "") -> None:
        """`update` and `install` are what those say as they fail; empty: they work."""
        cases = "".join(
            f"*' {word}'*) echo '{said}' >&2; exit 100 ;;\n"
            for word, said in (("update", update), ("install", install))
            if said
        )
        indextargets = "*indextargets*) echo 'Debian|bookworm|mirror' ;;\n"
        self.has("apt-get", f'case " $*" in\n{indextargets}{cases}esac')
        self.has("apt-cache", f"echo {KERNEL}")
        self.has("apt-config")

    def has_all(self) -> None:
        self.apt()
        for name in tools.PACKAGES:
            self.has(name, f"echo {name} version 10.0")
        # What is said to be run in namespaces is run.
        self.has("unshare", 'while case $1 in -*) ;; *) false ;; esac; do shift; done; exec "$@"')

    def was_asked(self, words: str) -> bool:
        return self.calls.exists() and words in self.calls.read_text()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    monkeypatch.setenv("PATH", str(made.programs))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("NETNS_VM_MIRROR", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    # However full the machine is on which the tests run.
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100 << 30))
    return made


def told(
    capsys: pytest.CaptureFixture[str], run: Callable[[list[str]], int], *words: str
) -> tuple[int, str]:
    """The status and the one line that tells it, behind what was begun."""
    status = run(list(words))
    said = capsys.readouterr()
    assert said.out == ""
    *begun, line = said.err.splitlines()
    assert begun in ([], ["vm-box: building netns-debian12: some minutes"])
    return status, line


def test_where_qemu_cannot_be_had_the_line_says_why_and_what_to_type(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.has_all()
    (machine.programs / tools.QEMU).unlink()
    machine.apt(install="E: Unable to locate package qemu-system-x86")
    status, line = told(capsys, main, "6.12")
    assert (status, line) == (
        125,
        "test-vm: installing qemu-system-x86: E: Unable to locate package qemu-system-x86:"
        " run apt-get update and apt-get install qemu-system-x86, and see what it says",
    )


def test_a_fresh_machine_s_lists_are_fetched_before_qemu_is_given_up(machine: Machine) -> None:
    lists = machine.programs / "lists"
    machine.has(
        "apt-get",
        f"case \" $*\" in *' update'*) : >{lists} ;; *' install'*) [ -e {lists} ] ;; esac",
    )
    tools.require([tools.QEMU])
    assert [line.split()[-1] for line in machine.calls.read_text().splitlines()] == [
        *("qemu-system-x86", "update", "qemu-system-x86")
    ]


def test_an_old_qemu_without_kvm_is_replaced_by_the_one_of_backports(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.has_all()
    machine.has(tools.QEMU, "echo QEMU emulator version 7.2.11")
    read = Path.read_text
    release = 'VERSION_CODENAME="bookworm"\n'
    monkeypatch.setattr(
        Path,
        "read_text",
        lambda path, **_: (
            {"/etc/os-release": release, "/proc/cpuinfo": "flags : fpu"}.get(str(path))
            or read(path, encoding="utf-8")
        ),
    )
    tools.quicken_qemu(Archive(machine.cache / "apt", "mirror"))
    last = machine.calls.read_text().splitlines()[-1]
    assert last.endswith("-t bookworm-backports install --no-install-recommends qemu-system-x86"), (
        last
    )


def test_without_root_what_is_missing_is_told_and_not_tried(
    machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.has_all()
    (machine.programs / "busybox").unlink()
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    status, line = told(capsys, main, "6.12")
    assert status == 125
    assert line == "test-vm: not installed: busybox-static: sudo apt-get install busybox-static"
    assert not machine.was_asked(" install ")


def test_without_a_network_the_line_says_so_and_that_what_is_built_is_kept(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.has_all()
    machine.apt(update=FETCHED)
    status, line = told(capsys, main, "6.12")
    assert status == 125
    assert line.startswith(
        f"test-vm: package lists: {' '.join(FETCHED.split())}: check the network"
    )
    assert line.endswith("what is built is kept")


def test_with_older_lists_a_missing_network_does_not_matter(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.has_all()
    assert main(["--list"]) == 0
    os.utime(machine.cache / "apt" / "updated", (0, 0))
    machine.apt(update=FETCHED)
    capsys.readouterr()
    assert main(["--list"]) == 0
    assert capsys.readouterr() == ("6.12         6.12.1-amd64\n", "")
    assert machine.was_asked(" update")


def test_an_unknown_kernel_is_told_with_those_there_are_before_anything_is_built(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.has_all()
    status, line = told(capsys, main, "9.9")
    assert (status, line) == (
        125,
        "test-vm: kernel '9.9': the archive offers none: one of: 6.12",
    )
    assert not (machine.cache / "kernels").exists()


@pytest.mark.parametrize(
    ("run", "words", "said"),
    [
        (main, ["--no-such"], "test-vm: unrecognized arguments: --no-such: scripts/test-vm --help"),
        (main, ["--seconds", "x"], "test-vm: argument --seconds: invalid float value: 'x': "),
        (main, ["--fallback", "no-such"], "test-vm: fallback 'no-such': unknown: one of: "),
        (box.main, ["debian99"], "vm-box: argument name: invalid choice: 'debian99' "),
    ],
)
def test_a_wrong_command_line_is_one_line_and_125(
    capsys: pytest.CaptureFixture[str], run: Callable[[list[str]], int], words: list[str], said: str
) -> None:
    status, line = told(capsys, run, *words)
    assert status == 125
    assert line.startswith(said), line


def test_where_no_space_is_left_nothing_is_begun(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.has_all()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=7 << 20))
    kernel = choose("6.12", offered([KERNEL]))
    with pytest.raises(StepError, match=r"needs 1500 MiB below .*, 7 MiB are free: free some"):
        build_boot(machine.cache, Archive(machine.cache, "mirror"), kernel)
    assert not machine.was_asked("download")
    assert list((machine.cache / "kernels").iterdir()) == []


def test_a_disk_that_fills_up_during_a_build_is_one_line_and_nothing_is_left(
    tmp_path: Path,
) -> None:
    def fills(made: Path) -> None:
        made.mkdir()
        raise OSError(errno.ENOSPC, "No space left on device", str(made))

    with pytest.raises(StepError, match=r"ENOSPC .*: free some space, or point XDG_CACHE_HOME"):
        built(tmp_path / "image", fills)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("run", [main, box.main])
def test_a_build_that_is_terminated_says_that_the_next_run_goes_on_and_it_does(
    machine: Machine,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    run: Callable[[list[str]], int],
) -> None:
    monkeypatch.setattr(box, "public_key", lambda: "ssh-rsa AAAA vagrant\n")
    machine.has_all()
    machine.has("apt-get", f"kill -TERM {os.getpid()}; exit 100")
    machine.has("mmdebstrap", f"kill -TERM {os.getpid()}; exit 1")
    name = "boxes" if run is box.main else "apt"
    before = signal.getsignal(signal.SIGTERM)
    status, line = told(capsys, run)
    assert (status, line.partition(": ")[2]) == (
        130,
        "interrupted: what is built is kept, run it again to go on",
    )
    assert signal.getsignal(signal.SIGTERM) == before
    assert not [path for path in (machine.cache / name).glob("*") if "partial" in path.name]
    machine.apt(install="none of it is asked for")
    machine.has("mmdebstrap", "echo 'E: it was tried' >&2; exit 1")
    if run is main:
        assert run(["--list"]) == 0
    else:
        status, line = told(capsys, run)
        assert (status, "E: it was tried" in line) == (125, True), line


def test_a_box_needs_vagrant_s_key_and_the_line_says_where_it_comes_from(
    machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.has_all()
    monkeypatch.setattr(box, "_KEYS", (f"{machine.cache}/*.pub",))
    assert told(capsys, box.main) == (
        125,
        "vm-box: vagrant's public key is not there: apt-get install vagrant",
    )


def test_a_box_without_network_or_space_is_one_line_and_leaves_nothing(
    machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.has_all()
    monkeypatch.setattr(box, "public_key", lambda: "ssh-rsa AAAA vagrant\n")
    machine.apt(update=FETCHED)
    status, line = told(capsys, box.main)
    assert (status, "Failed to fetch" in line, "check the network" in line) == (125, True, True)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=7 << 20))
    status, line = told(capsys, box.main)
    assert status == 125
    assert line.startswith("vm-box: box netns-debian12: needs 12288 MiB below "), line
    assert list((machine.cache / "boxes").iterdir()) == []


def test_what_is_half_made_has_nothing_of_this_machine_mounted_in_it(
    machine: Machine, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """mmdebstrap binds /sys into the tree; removing that after a kill would be removing cgroups."""
    machine.has_all()
    monkeypatch.setattr(box, "public_key", lambda: "ssh-rsa AAAA vagrant\n")
    machine.has("mmdebstrap", 'touch "$TMPDIR/begun"; echo "E: cut off" >&2; exit 1')
    assert told(capsys, box.main)[0] == 125
    assert machine.was_asked("unshare --mount --propagation=private mmdebstrap ")
    assert list((machine.cache / "boxes").iterdir()) == []


def test_a_guest_ends_with_whoever_started_it(tmp_path: Path) -> None:
    """SIGKILL leaves no emulator behind that burns two cores for half an hour."""
    boot = Boot(*[tmp_path] * 3)
    words = words_of(guest.Machine(boot, tmp_path), tmp_path)
    assert words[:3] == ["setpriv", "--pdeathsig", "KILL"]
