"""`scripts/vm-box`: a Vagrant box for libvirt, from distribution packages alone.

A Debian with its stock kernel, sshd, sudo, rsync and the user `vagrant`, whose key is the one that
vagrant itself ships; and with all that `scripts/bootstrap test` installs for this checkout, so that
the machine needs no network to run its tests. GRUB is written where grub-install would put it, so
no loop device is needed. Ends with 0 and the box's path on standard output, or with 125 and one
line; a box that is there is not built again.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from netns_runtime.errors import StepError
from tests.vm import cache, ending, provision, tools
from tests.vm.archive import open_archive
from tests.vm.image import file_system
from tests.vm.provision import NETWORK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.vm.archive import Archive

CHECKOUT: Final = Path(__file__).resolve().parents[2]
DEBIAN: Final = {"debian12": "bookworm", "debian13": "trixie"}
_DHCP: Final = {"bookworm": "isc-dhcp-client", "trixie": "dhcpcd-base"}
PACKAGES: Final = (
    *("systemd-sysv", "udev", "dbus", "ifupdown", "openssh-server", "sudo", "rsync"),
    *("ca-certificates", "grub-pc-bin", "initramfs-tools", "zstd", "procps", "iproute2"),
)
# Where vagrant keeps the pair that every box is made with.
_KEYS: Final = (
    "/usr/share/rubygems-integration/all/gems/vagrant-*/keys/vagrant.pub",
    "/opt/vagrant/embedded/gems/gems/vagrant-*/keys/vagrant.pub",
)
_SECTOR: Final = 512
_START: Final = 2048
_GIBIBYTES: Final = 12
_VERSION: Final = "3"
# Out of a package that may start a daemon, as scripts/bootstrap takes it.
_PROMTOOL: Final = {"bookworm": "prometheus", "trixie": "promtool"}
_WHEELS: Final = "usr/local/share/netns-runtime/wheels"
_PIP: Final = f"[global]\nfind-links = /{_WHEELS}\nretries = 1\ntimeout = 10\n"
_COMPRESSION: Final = ("-c", "-W", "-m", "4", "-o", "compression_type=zstd")
_COMMAND_LINE: Final = "root=/dev/vda1 rw net.ifnames=0 console=tty0 console=ttyS0"
_GRUB: Final = f"""\
set timeout=0
menuentry Debian {{
  linux /vmlinuz {_COMMAND_LINE}
  initrd /initrd.img
}}
"""
FILES: Final = {
    "etc/hostname": "netns-runtime\n",
    "etc/hosts": "127.0.0.1 localhost\n127.0.1.1 netns-runtime\n::1 localhost\n",
    "etc/fstab": "/dev/vda1 / ext4 defaults,noatime 0 1\n",
    "etc/network/interfaces": "auto lo eth0\niface lo inet loopback\niface eth0 inet dhcp\n",
    "etc/sudoers.d/vagrant": "vagrant ALL=(ALL) NOPASSWD: ALL\n",
    "etc/ssh/sshd_config.d/vagrant.conf": "UseDNS no\nPasswordAuthentication no\n",
    "boot/grub/grub.cfg": _GRUB,
}
VAGRANTFILE: Final = """\
Vagrant.configure("2") do |config|
  config.ssh.insert_key = false
  config.vm.provider("libvirt") { |machine| machine.disk_bus = "virtio" }
end
"""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which box. A `bare` one has a Debian alone, not what the tests need besides."""

    name: str = "debian12"
    cloud: bool = False
    bare: bool = False

    @property
    def label(self) -> str:
        parts = (self.name, *("cloud",) * self.cloud, *("bare",) * self.bare)
        return f"netns-{'-'.join(parts)}"


def partition_table(start: int, sectors: int) -> bytes:
    """The last 72 bytes of a master boot record: one active Linux partition."""
    # Heads and cylinders are past what fits (0xfeffff), so every reader goes by the sector numbers.
    entry = struct.pack("<B3sB3sII", 0x80, b"\xfe\xff\xff", 0x83, b"\xfe\xff\xff", start, sectors)
    return b"NETN\0\0" + entry + bytes(48) + b"\x55\xaa"


def boot_record(boot: bytes, sectors: int) -> bytes:
    """GRUB's boot.img with the table; its defaults look for core.img in sector 1."""
    if len(boot) != _SECTOR:
        raise StepError("GRUB's boot.img is not one sector", remedy="reinstall grub-pc-bin")
    code = bytearray(boot[:440])
    # As grub-bios-setup does for a hard disk: do not trust the drive number the BIOS passes on.
    code[0x66:0x68] = b"\x90\x90"
    return bytes(code) + partition_table(_START, sectors)


def metadata(gibibytes: int) -> str:
    """What vagrant-libvirt reads first."""
    return json.dumps({"provider": "libvirt", "format": "qcow2", "virtual_size": gibibytes})


def public_key() -> str:
    """vagrant's own; raises StepError where vagrant is not installed."""
    for pattern in _KEYS:
        for path in Path("/").glob(pattern.lstrip("/")):
            return path.read_text(encoding="ascii")
    raise StepError("vagrant's public key is not there", remedy="apt-get install vagrant")


def _tree(tree: Path, archive: Archive, release: str, packages: Sequence[str]) -> None:
    # With the manual pages: a Java without their directory cannot be configured.
    archive.bootstrap(release, packages, tree, "directory", ())
    for name, text in FILES.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text, encoding="utf-8")
    (tree / "etc/sudoers.d/vagrant").chmod(0o440)
    inside = "useradd -m -s /bin/bash vagrant && install -d -m 700 -o vagrant -g vagrant {0}"
    script = inside.format("/home/vagrant/.ssh") + " && systemctl enable ssh networking"
    script += " && rm -f /etc/ssh/ssh_host_*_key* && ssh-keygen -A -q && apt-get clean"
    cache.run("user vagrant", ["chroot", str(tree), "sh", "-ec", script], remedy=NETWORK)
    keys = tree / "home/vagrant/.ssh/authorized_keys"
    keys.write_text(public_key(), encoding="ascii")
    owner = keys.parent.stat()
    os.chown(keys, owner.st_uid, owner.st_gid)
    keys.chmod(0o600)


def _core(tree: Path) -> bytes:
    """GRUB with what it takes to reach its modules, made inside the tree."""
    words = ["grub-mkimage", "-O", "i386-pc", "-o", "/boot/grub/core.img", "-p"]
    words += ["(hd0,msdos1)/boot/grub", "biosdisk", "part_msdos", "ext2", "normal", "linux"]
    cache.run("grub-mkimage", ["chroot", str(tree), *words], remedy="report this")
    return (tree / "boot/grub/core.img").read_bytes()


def write_disk(disk: Path, tree: Path, gibibytes: int) -> None:
    """A raw disk: boot record, GRUB in the gap behind it, one ext4 partition."""
    core = _core(tree)
    if len(core) > (_START - 1) * _SECTOR:
        raise StepError("GRUB does not fit before the first partition", remedy="report this")
    boot = (tree / "usr/lib/grub/i386-pc/boot.img").read_bytes()
    sectors = gibibytes * (1 << 30) // _SECTOR - _START
    part = disk.with_suffix(".part")
    file_system(tree, part, sectors * _SECTOR >> 20, "root")
    with disk.open("wb") as file:
        file.write(boot_record(boot, sectors))
        file.write(core)
        file.truncate((_START + sectors) * _SECTOR)
    words = ["dd", f"if={part}", f"of={disk}", f"seek={_START}", "bs=512", "conv=notrunc,sparse"]
    cache.run("disk", words, remedy="is the disk full?")
    part.unlink()


def _pack(made: Path, disk: Path) -> None:
    image = disk.with_suffix(".qcow2")
    words = ["qemu-img", "convert", *_COMPRESSION, "-O", "qcow2", str(disk), str(image)]
    cache.run("qemu-img", words, remedy="apt-get install qemu-utils")
    disk.unlink()
    parts = {"metadata.json": metadata(_GIBIBYTES), "Vagrantfile": VAGRANTFILE}
    with tarfile.open(made, "w") as box:
        for name, text in parts.items():
            path = image.with_name(name)
            path.write_text(text, encoding="utf-8")
            box.add(path, name)
        box.add(image, "box.img")


def _provide(tree: Path, place: Path, archive: Archive, release: str) -> None:
    """All that `scripts/bootstrap test` would download in the machine, so that it need not."""
    unpacked = tree.with_name("promtool")
    archive.unpack([f"{_PROMTOOL[release]}/{release}"], unpacked)
    shutil.copy2(unpacked / "usr/bin/promtool", tree / "usr/local/bin/promtool")
    python = provision.python_of(os.listdir(tree / "usr/bin"))
    supply = provision.gather(place, CHECKOUT, python, "test")
    provision.provide(tree, CHECKOUT, "test", supply)
    # For another checkout inside, and for the tests that make one.
    shutil.copytree(supply.wheels[0], tree / _WHEELS)
    (tree / "etc/pip.conf").write_text(_PIP, encoding="utf-8")


def build_box(place: Path, choice: Choice) -> Path:
    """The box's path, from the cache or built now."""
    if os.geteuid() != 0:
        raise StepError("a root file system is made by root", remedy="run it again with sudo")
    tools.require(["mmdebstrap", "mke2fs", "qemu-img", *(() if choice.bare else ("npm",))])
    release = DEBIAN[choice.name]
    kernel = "linux-image-cloud-amd64" if choice.cloud else "linux-image-amd64"
    packages = [*PACKAGES, _DHCP[release], kernel]
    inputs: list[bytes] = []
    if not choice.bare:
        packages += provision.packages(CHECKOUT, "test")
        inputs += provision.key_parts(CHECKOUT)
    key = cache.key_of(_VERSION, repr(FILES), _PIP, *packages, public_key(), VAGRANTFILE, *inputs)
    box = place / "boxes" / f"{choice.label}-{key}.box"

    def build(made: Path) -> None:
        cache.remove_older(box.parent, f"{choice.label}-{'?' * len(key)}.box", box)
        cache.require_space(place, 6144 if choice.bare else 12288, f"box {choice.label}")
        ending.say("vm-box", f"building {choice.label}: some minutes")
        work = made.with_suffix(".work")
        cache.remove(work)
        work.mkdir()
        try:
            archive = open_archive(place)
            _tree(work / "tree", archive, release, packages)
            if not choice.bare:
                _provide(work / "tree", place, archive, release)
            write_disk(work / "disk.raw", work / "tree", _GIBIBYTES)
            shutil.rmtree(work / "tree")
            _pack(made, work / "disk.raw")
        finally:
            cache.remove(work)

    return cache.built(box, build)


def _run(arguments: Sequence[str]) -> int:
    parser = ending.Parser(prog="scripts/vm-box", description=__doc__)
    parser.add_argument("name", nargs="?", default="debian12", choices=tuple(DEBIAN))
    parser.add_argument("--cloud", action="store_true", help="Debian's kernel for clouds")
    parser.add_argument(
        "--bare", action="store_true", help="Debian alone: the machine downloads what tests need"
    )
    options = parser.parse_args(arguments)
    place = cache.open_cache()
    with cache.only_one(place):
        box = build_box(place, Choice(options.name, options.cloud, options.bare))
    if not tools.has_kvm():
        ending.say("vm-box", "no KVM here: the Vagrantfile takes QEMU's software emulation")
    sys.stdout.write(f"{box}\n")
    return 0


def main(arguments: Sequence[str]) -> int:
    return ending.ended("vm-box", lambda: _run(arguments))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
