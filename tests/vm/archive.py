"""Debian's archive through apt, with lists of our own: the system's sources stay as they are.

Mirror, proxy and certificates come from the user's own apt configuration; the releases are ours.
Where apt has no Debian source (Ubuntu), NETNS_VM_MIRROR names one. Packages are downloaded and
unpacked, never installed. Errors are StepError: no mirror known, or one that cannot be reached.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from netns_runtime.errors import StepError
from tests.vm import cache

if TYPE_CHECKING:
    from collections.abc import Sequence

RELEASES: Final = ("bookworm", "bookworm-backports", "trixie", "trixie-backports")
KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MIRROR: Final = "NETNS_VM_MIRROR"
_NETWORK: Final = "check the network and apt's sources, then run it again: what is built is kept"
_FRESH: Final = 6 * 3600.0
_TARGETS: Final = "$(ORIGIN)|$(RELEASE)|$(REPO_URI)"
_MAIN: Final = re.compile(r"[a-z]+(-updates|-backports)?")


def mirror_of(targets: str) -> str | None:
    """The URI from which apt takes Debian's main archive, of `ORIGIN|RELEASE|URI` lines."""
    for line in targets.splitlines():
        origin, _, rest = line.partition("|")
        release, _, uri = rest.partition("|")
        if origin == "Debian" and _MAIN.fullmatch(release) and uri:
            return uri
    return None


def find_mirror() -> str:
    """The user's own mirror, or what NETNS_VM_MIRROR says."""
    told = os.environ.get(MIRROR)
    if told:
        return told
    words = ["apt-get", "indextargets", "--format", _TARGETS, "Created-By: Packages"]
    found = mirror_of(cache.run("apt sources", words, remedy="Debian or Ubuntu is needed"))
    if found is None:
        raise StepError(
            "apt sources: none is Debian's archive",
            remedy=f"set {MIRROR} to the URI of a Debian mirror, or run apt-get update first",
        )
    return found


def source_lines(mirror: str, releases: Sequence[str]) -> str:
    """sources.list for these releases."""
    signed = f"[signed-by={KEYRING}] " if KEYRING.exists() else ""
    return "".join(f"deb {signed}{mirror} {release} main\n" for release in releases)


@dataclass(frozen=True, slots=True)
class Archive:
    """An apt root below `place`. `mirror` is what its sources name."""

    place: Path
    mirror: str

    def options(self) -> list[str]:
        settings = {
            "Dir::Etc::SourceList": self.place / "sources.list",
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::Etc::Preferences": "/dev/null",
            "Dir::Etc::PreferencesParts": "/dev/null",
            "Dir::State::Lists": self.place / "lists",
            "Dir::State::Status": "/dev/null",
            "Dir::Cache": self.place,
            "APT::Get::List-Cleanup": "false",
            "APT::Update::Post-Invoke-Success": "",
            "Acquire::Languages": "none",
        }
        return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]

    def update(self) -> None:
        """Fetch the lists of packages."""
        for directory in ("lists/partial", "archives/partial"):
            (self.place / directory).mkdir(parents=True, exist_ok=True)
        (self.place / "sources.list").write_text(
            source_lines(self.mirror, RELEASES), encoding="utf-8"
        )
        words = ["apt-get", *self.options(), "-q", "--error-on=any", "update"]
        cache.run("package lists", words, remedy=_NETWORK)

    def names(self, prefix: str) -> list[str]:
        """Every package whose name starts so."""
        words = ["apt-cache", *self.options(), "pkgnames", prefix]
        return cache.run("package names", words, remedy=_NETWORK).split()

    def unpack(self, packages: Sequence[str], target: Path) -> None:
        """Download these packages and extract their files below `target`."""
        words = [*("apt-get", *self.options(), "-q", "--print-uris", "download"), *packages]
        files = re.findall(r"^'[^']+' (\S+) \d+", cache.run("kernel", words, remedy=_NETWORK), re.M)
        debs = self.place / "archives" / "partial" / target.name
        cache.remove(debs)
        debs.mkdir(parents=True)
        here = Path.cwd()
        try:
            os.chdir(debs)
            words = ["apt-get", *self.options(), "-q", "download", *packages]
            cache.run(f"download {packages[0]}", words, remedy=_NETWORK)
        finally:
            os.chdir(here)
        if not files:
            raise StepError(f"download {packages[0]}: apt names no file", remedy=_NETWORK)
        target.mkdir(parents=True, exist_ok=True)
        for deb in sorted(debs.glob("*.deb")):
            cache.run(f"unpack {deb.name}", ["dpkg-deb", "-x", deb, target], remedy=_NETWORK)
        cache.remove(debs)

    def bootstrap(
        self,
        release: str,
        packages: Sequence[str],
        made: Path,
        form: Literal["tar", "directory"],
        left_out: Sequence[str],
    ) -> None:
        """A root file system of `release` with these packages and what they depend on.

        `left_out` are directories whose files are not unpacked.
        """
        settings = _apt_settings(made.with_name(made.name + ".apt"))
        scratch = made.with_name(made.name + ".tmp")
        cache.remove(scratch)
        scratch.mkdir()
        # It binds the machine's own /sys into the tree: in a mount namespace that binding ends with
        # it, however it ends, before anybody removes what was half made.
        words = ["unshare", "--mount", "--propagation=private"]
        words += ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--format={form}"]
        words += [f"--include={','.join(packages)}", f"--aptopt={settings}"]
        words += [f"--dpkgopt=path-exclude=/{name}/*" for name in left_out]
        words += [release, str(made), "-"]
        step = f"root file system of {release}"
        sources = source_lines(self.mirror, [release])
        environment = {**os.environ, "TMPDIR": str(scratch)}
        try:
            cache.run(step, words, remedy=_NETWORK, given=sources, env=environment)
        finally:
            settings.unlink()
            cache.remove(scratch)


def _apt_settings(made: Path) -> Path:
    """How the user's own apt reaches the network, as a file that mmdebstrap's apt reads."""
    dumped = cache.run("apt settings", ["apt-config", "dump"], remedy=_NETWORK)
    kept = [line for line in dumped.splitlines() if line.startswith("Acquire::")]
    kept = [line for line in kept if "IndexTargets" not in line]
    made.write_text("\n".join([*kept, 'Acquire::Languages "none";', ""]), encoding="utf-8")
    return made


def open_archive(place: Path) -> Archive:
    """The archive with lists of today; with older ones where the network is away."""
    archive = Archive(place / "apt", find_mirror())
    stamp = archive.place / "updated"
    age = time.time() - stamp.stat().st_mtime if stamp.exists() else None
    if age is None or age > _FRESH:
        try:
            archive.update()
            stamp.touch()
        except StepError:
            if age is None:
                raise
    return archive
