"""The guest's root file system: a Debian release with what scripts/bootstrap installs, and .venv.

mmdebstrap makes the tree, wheels come through the host's pip, and scripts/bootstrap itself runs
inside, without a network, so that what it makes is what a user gets. The image is kept until
one of its inputs changes. Errors are StepError; an interrupted build starts over, downloads do not.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from netns_runtime.errors import StepError
from tests.vm import cache
from tests.vm.archive import source_lines
from tests.vm.image import file_system, size_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.vm.archive import Archive

PROJECT: Final = "project"
# First what scripts/bootstrap would ask for, then what the tests of SUITE run.
PACKAGES: Final = (
    *("python3", "python3-venv", "python3-bpfcc", "python3-nftables", "python3-seccomp"),
    *("nftables", "bubblewrap", "ca-certificates"),
    *("kmod", "procps", "sudo", "util-linux"),
    *("curl", "wget", "git", "openssl", "iproute2"),
)
INPUTS: Final = (
    *("pyproject.toml", "scripts/bootstrap", "tests/e2e/requirements.txt"),
    "tests/e2e/node/package.json",
)
# Tools that look at sources or at schemas, and have nothing to do with a kernel.
_NOT_IN_A_GUEST: Final = (
    *("ruff", "mypy", "clang-format", "types-"),
    *("ocsf-json-schema", "jsonschema"),
)
_NOT_READ: Final = ("man", "locale")
_SPARE: Final = 3072
# Raised when what is done to the tree below changes.
_VERSION: Final = "1"
_NETWORK: Final = "check the network and the package sources, then run it again"


@dataclass(frozen=True, slots=True)
class Userland:
    """A Debian release, with more packages than a plain row's where a row needs them."""

    release: str
    extra: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return "+".join((self.release, *self.extra))

    @property
    def packages(self) -> tuple[str, ...]:
        return (*PACKAGES, *self.extra)


def python_of(listing: Sequence[str]) -> str:
    """3.11 of names in usr/bin."""
    found = [name for name in listing if re.fullmatch(r"python3\.\d+", name)]
    return found[0].removeprefix("python") if found else "3"


def wheel_options(python: str) -> list[str]:
    """What makes pip download for that Python and glibc instead of the host's."""
    compact = python.replace(".", "")
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in range(36, 4, -1)]
    platforms += ["manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]
    words = ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    for abi in (f"cp{compact}", "abi3", "none"):
        words += ["--abi", abi]
    for platform in platforms:
        words += ["--platform", platform]
    return words


def requirements(project: Path) -> list[str]:
    """What .venv needs in a guest: the project's own and those of its tests."""
    import tomllib

    with (project / "pyproject.toml").open("rb") as file:
        described = tomllib.load(file)["project"]
    tests = described["optional-dependencies"]["test"]
    return [
        *described["dependencies"],
        *(line for line in tests if not line.startswith(_NOT_IN_A_GUEST)),
    ]


def _wheels(place: Path, python: str, wanted: Sequence[str]) -> Path:
    key = cache.key_of(python, *wanted)

    def download(made: Path) -> None:
        made.mkdir()
        words = [sys.executable, "-m", "pip", "-q", "download", "-d", str(made)]
        words += [*wheel_options(python), *wanted]
        cache.run("wheels from PyPI", words, remedy="check pip's configuration and the network")

    return cache.built(place / f"wheels-{python}-{key}", download)


def _bootstrap(tree: Path, project: Path, wheels: Path, wanted: Sequence[str]) -> None:
    inside = tree / PROJECT
    for name in INPUTS:
        (inside / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(project / name, inside / name)
    shutil.copytree(wheels, tree / "wheels")
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": "/wheels",
        "PIP_ROOT_USER_ACTION": "ignore",
    }
    chroot = ["chroot", str(tree)]
    words = [*chroot, "/usr/bin/env", "-C", f"/{PROJECT}", "scripts/bootstrap", "run"]
    cache.run("bootstrap in the guest's root", words, remedy=_NETWORK, env=environment)
    words = [*chroot, f"/{PROJECT}/.venv/bin/python", "-m", "pip", "install", "-q", *wanted]
    cache.run("pip in the guest's root", words, remedy=_NETWORK, env=environment)
    shutil.rmtree(tree / "wheels")


def _finish(tree: Path) -> None:
    texts = {
        "etc/hosts": "127.0.0.1 localhost guest\n::1 localhost\n",
        "etc/hostname": "guest\n",
        "etc/resolv.conf": "",
        "etc/apt/sources.list": "",
    }
    for name, text in texts.items():
        (tree / name).unlink(missing_ok=True)
        (tree / name).write_text(text, encoding="utf-8")
    for name in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man"):
        shutil.rmtree(tree / name, ignore_errors=True)
    (tree / "job").mkdir(exist_ok=True)


def _apt_settings(made: Path) -> Path:
    """How the user's own apt reaches the network, as a file that mmdebstrap's apt reads."""
    dumped = cache.run("apt settings", ["apt-config", "dump"], remedy=_NETWORK)
    kept = [line for line in dumped.splitlines() if line.startswith("Acquire::")]
    kept = [line for line in kept if "IndexTargets" not in line]
    made.write_text("\n".join([*kept, 'Acquire::Languages "none";', ""]), encoding="utf-8")
    return made


def _base(place: Path, archive: Archive, userland: Userland) -> Path:
    """What mmdebstrap makes, as a tar: the same until the packages that are asked for change."""
    key = cache.key_of(userland.release, *userland.packages)
    base = place / "userlands" / f"{userland.label}-{key}.tar"

    def build(made: Path) -> None:
        cache.remove_older(base.parent, f"{userland.label}-*.tar", base)
        cache.require_space(place, 4096, f"userland {userland.release}")
        settings = _apt_settings(made.with_name(made.name + ".apt"))
        words = ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--format=tar"]
        words += [f"--include={','.join(userland.packages)}", f"--aptopt={settings}"]
        words += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _NOT_READ]
        words += [userland.release, str(made), "-"]
        step = f"root file system of {userland.release}"
        sources = source_lines(archive.mirror, [userland.release])
        try:
            cache.run(step, words, remedy=_NETWORK, given=sources)
        finally:
            settings.unlink()

    return cache.built(base, build)


def build_userland(place: Path, archive: Archive, project: Path, userland: Userland) -> Path:
    """The ext4 image, from the cache or built now."""
    if os.geteuid() != 0:
        raise StepError("a root file system is made by root", remedy="run it again with sudo")
    texts = [(project / name).read_bytes() for name in INPUTS]
    key = cache.key_of(_VERSION, *userland.packages, *requirements(project), *texts)
    image = place / "userlands" / f"{userland.label}-{key}.img"

    def build(made: Path) -> None:
        base = _base(place, archive, userland)
        cache.require_space(place, 4096, f"userland {userland.release}")
        cache.remove_older(image.parent, f"{userland.label}-*.img", image)
        tree = made.with_suffix(".tree")
        cache.remove(tree)
        tree.mkdir()
        try:
            words = [
                *("tar", "-x", "-p", "--xattrs", "--xattrs-include=*"),
                "-f",
                str(base),
                "-C",
                str(tree),
            ]
            cache.run(f"unpacking {base.name}", words, remedy="is the disk full?")
            wanted = requirements(project)
            python = python_of(os.listdir(tree / "usr/bin"))
            _bootstrap(tree, project, _wheels(place, python, wanted), wanted)
            _finish(tree)
            file_system(tree, made, size_of(tree) * 11 // 10 + _SPARE, "root")
        finally:
            cache.remove(tree)

    return cache.built(image, build)
