"""scripts/bootstrap inside a tree that is to become a guest's root, without a network.

What bootstrap would download is fetched here, by the host's own pip and npm as they are configured,
for the tree's Python; bootstrap itself then runs in the tree, so what a guest has is what a user
gets. Nothing of the host's configuration stays in the tree. Errors are StepError; what was fetched
is kept for the next run.
"""

from __future__ import annotations

import re
import shutil
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.vm import cache

if TYPE_CHECKING:
    from collections.abc import Sequence

PROJECT: Final = "project"
INPUTS: Final = (
    *("pyproject.toml", "scripts/bootstrap", "tests/e2e/requirements.txt"),
    "tests/e2e/node/package.json",
)
NETWORK: Final = "check the network and the package sources, then run it again"
_PIP_FOR: Final = Path(__file__).with_name("pip_for.py")
# Raised when what is downloaded for the same needs changes.
_VERSION: Final = "2"
_SUPPLY: Final = "supply"
_PIP: Final = "check pip's configuration and the network"
_NPM: Final = "check npm's configuration and the network"


@dataclass(frozen=True, slots=True)
class Supply:
    """Directories of wheels, and one in which npm has installed the real clients."""

    wheels: Sequence[Path]
    npm: Path | None = None


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


def requirements(project: Path, extras: Sequence[str] = ()) -> list[str]:
    """The project's own needs and those of these extras, as pip takes them."""
    with (project / "pyproject.toml").open("rb") as file:
        described = tomllib.load(file)["project"]
    more = (described["optional-dependencies"][extra] for extra in extras)
    return [line for lines in (described["dependencies"], *more) for line in lines]


def clients(project: Path) -> list[str]:
    """The real clients from PyPI, as pip takes them."""
    return (project / "tests/e2e/requirements.txt").read_text(encoding="utf-8").split()


def packages(project: Path, tier: str) -> list[str]:
    """The Debian packages that bootstrap asks for, whatever this machine has."""
    words = [str(project / "scripts/bootstrap"), "--packages", tier]
    return cache.run("scripts/bootstrap --packages", words, remedy="report this").split()


def download_wheels(place: Path, python: str, wanted: Sequence[str]) -> Path:
    """A directory with what `wanted` needs, from the cache or PyPI."""

    def download(made: Path) -> None:
        made.mkdir()
        words = [sys.executable, str(_PIP_FOR), python, "-q", "download", "-d", str(made)]
        words += [*wheel_options(python), *wanted]
        cache.run("wheels from PyPI", words, remedy=_PIP)

    return cache.built(place / f"wheels-{python}-{cache.key_of(_VERSION, *wanted)}", download)


def download_npm(place: Path, project: Path) -> Path:
    """A directory with the real clients from npm, from the cache or fetched."""
    package = project / "tests/e2e/node/package.json"

    def download(made: Path) -> None:
        made.mkdir()
        shutil.copy2(package, made / package.name)
        words = ["npm", "install", "--prefix", str(made), "--no-package-lock", "--no-audit"]
        cache.run("clients from npm", [*words, "--no-fund", "--ignore-scripts"], remedy=_NPM)

    return cache.built(place / f"npm-{cache.key_of(package.read_bytes())}", download)


def gather(place: Path, project: Path, python: str, tier: str) -> Supply:
    """Everything that bootstrap would fetch for that tier but Debian's packages."""
    if tier != "test":
        return Supply([download_wheels(place, python, requirements(project))])
    wanted = (requirements(project, ["test"]), clients(project))
    wheels = [download_wheels(place, python, names) for names in wanted]
    return Supply(wheels, download_npm(place, project))


def _environment(supply: Supply) -> dict[str, str]:
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "PIP_NO_INDEX": "1",
        "PIP_NO_CACHE_DIR": "1",
        "PIP_FIND_LINKS": " ".join(f"/{_SUPPLY}/{path.name}" for path in supply.wheels),
        "PIP_ROOT_USER_ACTION": "ignore",
        "npm_config_offline": "true",
        "npm_config_cache": f"/{_SUPPLY}/npm",
    }


def provide(tree: Path, project: Path, tier: str, supply: Supply, more: Sequence[str] = ()) -> None:
    """Run bootstrap in the tree's /project; `more` are Python packages for its .venv besides."""
    inside = tree / PROJECT
    for name in INPUTS:
        (inside / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(project / name, inside / name)
    given = tree / _SUPPLY
    for path in supply.wheels:
        shutil.copytree(path, given / path.name)
    chroot = ["unshare", "--net", "chroot", str(tree)]
    environment = _environment(supply)

    def bootstrap(chosen: str) -> None:
        words = [*chroot, "/usr/bin/env", "-C", f"/{PROJECT}", "scripts/bootstrap", chosen]
        cache.run("bootstrap in the guest's root", words, remedy=NETWORK, env=environment)

    if supply.npm:
        # What npm finds installed it does not ask for; its cache is of no use to another npm.
        bootstrap("run")
        shutil.copytree(supply.npm, inside / ".venv/node", symlinks=True)
    bootstrap(tier)
    if more:
        words = [*chroot, f"/{PROJECT}/.venv/bin/python", "-m", "pip", "install", "-q", *more]
        cache.run("pip in the guest's root", words, remedy=NETWORK, env=environment)
    shutil.rmtree(given)


def key_parts(project: Path) -> list[bytes]:
    """What a tree depends on, for cache.key_of."""
    return [(project / name).read_bytes() for name in INPUTS]
