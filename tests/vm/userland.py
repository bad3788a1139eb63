"""The guest's root file system: a Debian release with what scripts/bootstrap installs, and .venv.

mmdebstrap makes the tree and scripts/bootstrap itself runs inside (provision). The image is kept
until one of its inputs changes. Errors are StepError; an interrupted build starts over, downloads
do not.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from netns_runtime.errors import StepError
from tests.vm import cache, provision
from tests.vm.image import file_system, size_of

if TYPE_CHECKING:
    from pathlib import Path

    from tests.vm.archive import Archive

# First what scripts/bootstrap would ask for, then what the tests of SUITE run.
PACKAGES: Final = (
    *("python3", "python3-venv", "python3-bpfcc", "python3-nftables", "python3-seccomp"),
    *("nftables", "bubblewrap", "ca-certificates"),
    *("kmod", "procps", "sudo", "util-linux"),
    *("curl", "wget", "git", "openssl", "iproute2"),
)
# Tools that look at sources or at schemas, and have nothing to do with a kernel.
_NOT_IN_A_GUEST: Final = (
    *("ruff", "mypy", "clang-format", "types-", "setuptools"),
    *("ocsf-json-schema", "jsonschema"),
)
_NOT_READ: Final = ("usr/share/man", "usr/share/locale")
_SPARE: Final = 3072
# Raised when what is done to the tree below changes.
_VERSION: Final = "1"


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


def requirements(project: Path) -> list[str]:
    """What .venv needs in a guest: the project's own and those of its tests."""
    found = provision.requirements(project, ["test"])
    return [line for line in found if not line.startswith(_NOT_IN_A_GUEST)]


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


def _base(place: Path, archive: Archive, userland: Userland) -> Path:
    """What mmdebstrap makes, as a tar: the same until the packages that are asked for change."""
    key = cache.key_of(userland.release, *userland.packages)
    base = place / "userlands" / f"{userland.label}-{key}.tar"

    def build(made: Path) -> None:
        cache.remove_older(base.parent, f"{userland.label}-*.tar", base)
        cache.require_space(place, 4096, f"userland {userland.release}")
        archive.bootstrap(userland.release, userland.packages, made, "tar", _NOT_READ)

    return cache.built(base, build)


def build_userland(place: Path, archive: Archive, project: Path, userland: Userland) -> Path:
    """The ext4 image, from the cache or built now."""
    if os.geteuid() != 0:
        raise StepError("a root file system is made by root", remedy="run it again with sudo")
    needs = [*userland.packages, *requirements(project)]
    key = cache.key_of(_VERSION, *needs, *provision.key_parts(project))
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
            python = provision.python_of(os.listdir(tree / "usr/bin"))
            wheels = provision.download_wheels(place, python, wanted)
            provision.provide(tree, project, "run", provision.Supply([wheels]), wanted)
            _finish(tree)
            file_system(tree, made, size_of(tree) * 11 // 10 + _SPARE, "root")
        finally:
            cache.remove(tree)

    return cache.built(image, build)
