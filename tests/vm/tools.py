"""The programs that building and booting need, installed from the distribution where missing.

QEMU comes from backports where the distribution's is older than 8: its software emulation was
measured two to four times slower. KVM is used only where the processor says that it can; a
/dev/kvm alone proves nothing. Errors are StepError with the apt-get command that would mend it.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Final

from netns_runtime.errors import StepError
from tests.vm import cache
from tests.vm.archive import source_lines

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.vm.archive import Archive

QEMU: Final = "qemu-system-x86_64"
PACKAGES: Final = {
    QEMU: "qemu-system-x86",
    "mmdebstrap": "mmdebstrap",
    "busybox": "busybox-static",
    "depmod": "kmod",
    "mke2fs": "e2fsprogs",
    "qemu-img": "qemu-utils",
    "dpkg-deb": "dpkg",
    "npm": "npm",
    "unshare": "util-linux",
    "setpriv": "util-linux",
    "vagrant": "vagrant",
    "libvirtd": "libvirt-daemon-system",
    "virsh": "libvirt-clients",
    "dnsmasq": "dnsmasq-base",
    "rsync": "rsync",
    "ssh": "openssh-client",
}
FOR_GUESTS: Final = (QEMU, "mmdebstrap", "busybox", "depmod", "mke2fs", "dpkg-deb")
_SLOW_BEFORE: Final = 8
_BACKPORTS: Final = {"bookworm": "bookworm-backports"}


def missing(programs: Sequence[str]) -> list[str]:
    """Packages of the programs that are not there."""
    return [PACKAGES[name] for name in programs if shutil.which(name) is None]


def major_of(version: str) -> int:
    """10 of `QEMU emulator version 10.0.2 (Debian …)`."""
    found = re.search(r"version (\d+)", version)
    return int(found[1]) if found else 0


def codename(release: str) -> str:
    """VERSION_CODENAME of os-release."""
    found = re.search(r'^VERSION_CODENAME="?([^"\n]*)', release, re.MULTILINE)
    return found[1] if found else ""


def install(packages: Sequence[str], options: Sequence[str] = ()) -> None:
    shown = " ".join(packages)
    if os.geteuid() != 0:
        raise StepError(f"not installed: {shown}", remedy=f"sudo apt-get install {shown}")
    words = [*("apt-get", "-q", "-y", "-o", "DPkg::Lock::Timeout=300"), *options]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}

    def apt(*command: str) -> None:
        cache.run(
            f"installing {shown}",
            [*words, *command],
            remedy=f"run apt-get update and apt-get install {shown}, and see what it says",
            env=environment,
        )

    install = ("install", "--no-install-recommends", *packages)
    try:
        apt(*install)
    except StepError:
        # A fresh machine has lists that are old, or none.
        apt("update")
        apt(*install)


def require(programs: Sequence[str]) -> None:
    """Install what is missing. Raises StepError."""
    packages = missing(programs)
    if packages:
        install(packages)


def quicken_qemu(archive: Archive) -> None:
    """Take QEMU from backports where it pays; what cannot be had is done without."""
    said = cache.run("qemu", [QEMU, "--version"], remedy="apt-get install qemu-system-x86")
    release = codename(Path("/etc/os-release").read_text(encoding="utf-8"))
    if major_of(said) >= _SLOW_BEFORE or release not in _BACKPORTS or has_kvm():
        return
    place = archive.place / "backports"
    (place / "lists/partial").mkdir(parents=True, exist_ok=True)
    releases = (release, _BACKPORTS[release])
    (place / "sources.list").write_text(source_lines(archive.mirror, releases), encoding="utf-8")
    options = ["-o", f"Dir::Etc::SourceList={place / 'sources.list'}"]
    options += ["-o", "Dir::Etc::SourceParts=/dev/null", "-o", f"Dir::State::Lists={place}/lists"]
    options += ["-o", "Dir::Cache::pkgcache=", "-o", "Dir::Cache::srcpkgcache="]
    cache.run("backports", ["apt-get", *options, "-q", "update"], remedy="check the network")
    install(["qemu-system-x86"], [*options, "-t", _BACKPORTS[release]])


def has_kvm(cpuinfo: str | None = None) -> bool:
    """Whether the processor virtualises and we may ask it to."""
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8") if cpuinfo is None else cpuinfo
    flags = re.search(r"^flags\s*:.*\b(vmx|svm)\b", text, re.MULTILINE)
    return flags is not None and os.access("/dev/kvm", os.R_OK | os.W_OK)
