"""Turns a stock kernel's packages into what QEMU boots: kernel, initramfs and a modules image.

The initramfs holds a static busybox, `guest_initramfs.sh` and the modules that reach the disks, in
the order in which they depend on each other; everything else is on the modules image, where the
kernel finds it by itself as on an installed system. Errors are StepError; nothing half-made stays.
"""

from __future__ import annotations

import lzma
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from netns_runtime.errors import StepError
from tests.vm import cache

if TYPE_CHECKING:
    from tests.vm.archive import Archive
    from tests.vm.kernels import Kernel

HERE: Final = Path(__file__).parent
INIT: Final = HERE / "guest_initramfs.sh"
BOOT_MODULES: Final = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4")
# ext4 asks for it by name, which modules.dep does not tell; newer kernels have it as a library.
_MAY_BE_GONE: Final = frozenset({"crc32c_generic"})
# A guest without a screen, a sound card or a radio: what is left out is half of the image.
LEFT_OUT: Final = (
    *("drivers/gpu", "drivers/media", "drivers/infiniband", "drivers/iio", "drivers/staging"),
    *("drivers/net/wireless", "drivers/net/ethernet", "drivers/usb", "drivers/scsi", "sound"),
)
_REMEDY: Final = "remove the kernel's directory from the cache and run it again"


@dataclass(frozen=True, slots=True)
class Boot:
    """Paths in the cache."""

    kernel: Path
    initramfs: Path
    modules: Path


def in_order(dependencies: str, builtin: str, wanted: tuple[str, ...]) -> list[str]:
    """Paths of the modules, each after what it needs, from modules.dep and modules.builtin.

    What is built in is left out; a wanted module that is nowhere raises KeyError with its name.
    """
    needs = {}
    for line in dependencies.splitlines():
        path, _, rest = line.partition(":")
        needs[path] = rest.split()
    paths = {_module_name(path): path for path in needs}
    inside = {_module_name(path) for path in builtin.split()}
    found: dict[str, None] = {}

    def add(path: str) -> None:
        # modules.dep lists all of them, the most basic last.
        for needed in reversed(needs[path]):
            add(needed)
        found[path] = None

    for name in wanted:
        if name not in inside and (name in paths or name not in _MAY_BE_GONE):
            add(paths[name])
    return list(found)


def _module_name(path: str) -> str:
    return path.rpartition("/")[2].partition(".")[0].replace("-", "_")


def _plain(path: Path) -> bytes:
    data = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(data)
    if path.suffix == ".zst":
        raise StepError(
            f"module {path.name}: zstd is not read here", remedy="choose another kernel"
        )
    return data


def cpio(files: dict[str, tuple[int, bytes]]) -> bytes:
    """A newc archive (Documentation/driver-api/early-userspace/buffer-format.rst)."""
    out = bytearray()
    last = ("TRAILER!!!", (0, b""))
    for number, (name, (mode, data)) in enumerate([*sorted(files.items()), last], 1):
        label = name.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(label), 0)
        out += b"070701" + b"".join(b"%08X" % field for field in fields) + label
        out += bytes(-len(out) % 4) + data
        out += bytes(-len(out) % 4)
    return bytes(out)


def _initramfs(modules: Path) -> bytes:
    busybox = shutil.which("busybox")
    if busybox is None:
        raise StepError("busybox is not installed", remedy="apt-get install busybox-static")
    directories = ("bin", "dev", "modules", "proc", "root", "sys")
    files = dict.fromkeys(directories, (stat.S_IFDIR | 0o755, b""))
    files["bin/busybox"] = (stat.S_IFREG | 0o755, Path(busybox).read_bytes())
    files["init"] = (stat.S_IFREG | 0o755, INIT.read_bytes())
    texts = [(modules / name).read_text() for name in ("modules.dep", "modules.builtin")]
    try:
        order = in_order(texts[0], texts[1], BOOT_MODULES)
    except KeyError as error:
        raise StepError(f"kernel {modules.name}: no module {error}", remedy=_REMEDY) from error
    names = []
    for path in order:
        name = f"{_module_name(path)}.ko"
        names.append(name)
        files[f"modules/{name}"] = (stat.S_IFREG | 0o644, _plain(modules / path))
    files["modules/order"] = (stat.S_IFREG | 0o644, "".join(f"{name}\n" for name in names).encode())
    return cpio(files)


def file_system(tree: Path, image: Path, mebibytes: int, label: str) -> None:
    """An ext4 image with the tree in it; as long as it says, but only as big as what it holds."""
    words = ["mke2fs", "-q", "-t", "ext4", "-m", "0", "-O", "^has_journal", "-L", label]
    words += ["-E", "lazy_itable_init=1", "-d", str(tree), str(image), f"{mebibytes}M"]
    cache.run(f"image {label}", words, remedy="is the disk full?")


def size_of(tree: Path) -> int:
    """MiB that the tree's files take."""
    return sum(path.lstat().st_blocks for path in tree.rglob("*")) * 512 >> 20


def build_boot(place: Path, archive: Archive, kernel: Kernel) -> Boot:
    """Everything of that kernel, from the cache or built now."""
    key = cache.key_of(INIT.read_bytes(), repr((BOOT_MODULES, LEFT_OUT)), "2")
    directory = place / "kernels" / f"{kernel.release}-{key}"

    def build(made: Path) -> None:
        cache.remove_older(directory.parent, f"{kernel.release}-*", directory)
        cache.require_space(place, 1500, f"kernel {kernel.release}")
        made.mkdir()
        tree = made / "tree"
        archive.unpack(kernel.packages, tree)
        top = tree / "usr/lib/modules"
        modules = (top if top.is_dir() else tree / "lib/modules") / kernel.release
        images = [*tree.glob(f"boot/vmlinuz-{kernel.release}"), *modules.glob("vmlinuz*")]
        if not images or not modules.is_dir():
            raise StepError(
                f"kernel {kernel.release}: its packages hold no image or no modules",
                remedy="report this with the names of its packages",
            )
        shutil.copy(images[0], made / "vmlinuz")
        for name in LEFT_OUT:
            shutil.rmtree(modules / "kernel" / name, ignore_errors=True)
        root = modules.parent.parent.parent
        cache.run("depmod", ["depmod", "-b", root, kernel.release], remedy="apt-get install kmod")
        (made / "initramfs").write_bytes(_initramfs(modules))
        file_system(modules, made / "modules.img", size_of(modules) * 6 // 5 + 32, "modules")
        shutil.rmtree(tree)

    cache.built(directory, build)
    return Boot(directory / "vmlinuz", directory / "initramfs", directory / "modules.img")
