"""Which stock kernels the archive offers, and which of them a name means. Pure.

A name is a version prefix and a flavour: `6.1`, `6.12-cloud`, `7`, `newest`. It stands for the
newest version offered that starts so, because backports withdraw versions without notice. A name
that matches nothing raises StepError with the names that would have.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from netns_runtime.errors import StepError

if TYPE_CHECKING:
    from collections.abc import Iterable

DEFAULT: Final = ("6.1", "6.1-cloud", "6.12", "6.12-cloud", "6.18", "6.18-cloud", "7", "7-cloud")
QUICK: Final = ("6.12",)
FLAVOURS: Final = ("", "cloud", "rt")
_PACKAGE: Final = re.compile(
    r"linux-(?:image|binary)-(?P<release>(?P<version>\d+\.\d+\.\d+)(?:-\d+)?(?:\+deb(?P<debian>\d+)[\d.]*)?"
    r"(?:-(?P<flavour>cloud|rt))?-amd64)"
)
_PARTS: Final = ("base", "binary", "modules", "image")
_NAME: Final = re.compile(r"(?P<version>newest|\d+(?:\.\d+){0,3})(?:-(?P<flavour>cloud|rt))?")
_USERLANDS: Final = {"": "bookworm", "12": "bookworm", "13": "trixie"}


@dataclass(frozen=True, slots=True)
class Kernel:
    """`release` is what `uname -r` says. `packages` hold the image and its modules."""

    release: str
    version: tuple[int, ...]
    flavour: str
    debian: str
    packages: tuple[str, ...]

    @property
    def userland(self) -> str:
        """The Debian release whose kernel it is."""
        return _USERLANDS.get(self.debian, "trixie")


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", text))


def offered(names: Iterable[str]) -> list[Kernel]:
    """The kernels among package names, oldest first.

    Up to 6.18 one signed linux-image package holds everything; since then it is split in up to
    four, of which linux-base has the list of what is built in.
    """
    present = set(names)
    found = {}
    for name in present:
        matched = _PACKAGE.fullmatch(name)
        if matched is None:
            continue
        release = matched["release"]
        parts = (f"linux-{part}-{release}" for part in _PARTS)
        found[release] = Kernel(
            release,
            _numbers(release.partition("+")[0].removesuffix("-amd64")),
            matched["flavour"] or "",
            matched["debian"] or "",
            tuple(part for part in parts if part in present),
        )
    return sorted(found.values(), key=lambda kernel: (kernel.version, kernel.release))


def choose(name: str, kernels: list[Kernel]) -> Kernel:
    """The newest kernel that the name fits. Raises StepError."""
    matched = _NAME.fullmatch(name)
    if matched is not None:
        wanted = () if matched["version"] == "newest" else _numbers(matched["version"])
        for kernel in reversed(kernels):
            if kernel.version[: len(wanted)] == wanted and kernel.flavour == (
                matched["flavour"] or ""
            ):
                return kernel
    raise StepError(
        f"kernel {name!r}: the archive offers none", remedy=f"one of: {' '.join(series(kernels))}"
    )


def series(kernels: list[Kernel]) -> list[str]:
    """The names that choose() knows, as short as they are distinct: `6.12`, `6.12-cloud`."""
    found: dict[str, None] = {}
    for kernel in kernels:
        major, minor = kernel.version[:2]
        found[f"{major}.{minor}" + (f"-{kernel.flavour}" if kernel.flavour else "")] = None
    return list(found)
