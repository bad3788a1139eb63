"""Which kernel a name means, and in which order its modules go in."""

from __future__ import annotations

import pytest

from netns_runtime.errors import StepError
from tests.vm.image import cpio, in_order
from tests.vm.kernels import choose, offered, series

NAMES = [
    *(
        "linux-image-6.1.0-50-amd64",
        "linux-image-6.1.0-9-amd64",
        "linux-image-6.1.0-50-cloud-amd64",
    ),
    *("linux-image-6.12.95+deb12-amd64", "linux-image-6.12.107+deb13-amd64"),
    *("linux-image-6.12.107+deb13-amd64-unsigned", "linux-image-6.12.107+deb13-amd64-dbg"),
    # Virtual and meta packages.
    *("linux-image-amd64", "linux-image-cloud-amd64", "linux-image-6.12-amd64"),
    *("linux-image-7.3.4+deb13-amd64", "linux-binary-7.3.4+deb13-amd64"),
    *("linux-modules-7.3.4+deb13-amd64", "linux-base-7.3.4+deb13-amd64", "linux-base-amd64"),
    *("linux-image-7.3.4+deb13-cloud-amd64", "linux-image-6.18.15+deb13-rt-amd64"),
    "linux-headers-6.1.0-50-amd64",
]
KERNELS = offered(NAMES)


@pytest.mark.parametrize(
    ("name", "release"),
    [
        ("6.1", "6.1.0-50-amd64"),
        ("6.1-cloud", "6.1.0-50-cloud-amd64"),
        ("6.12", "6.12.107+deb13-amd64"),
        ("6.12.95", "6.12.95+deb12-amd64"),
        ("6.18-rt", "6.18.15+deb13-rt-amd64"),
        ("7", "7.3.4+deb13-amd64"),
        ("7-cloud", "7.3.4+deb13-cloud-amd64"),
        ("newest", "7.3.4+deb13-amd64"),
        ("newest-rt", "6.18.15+deb13-rt-amd64"),
    ],
)
def test_a_name_is_the_newest_version_that_starts_so(name: str, release: str) -> None:
    assert choose(name, KERNELS).release == release


@pytest.mark.parametrize(
    "name", ["6.2", "6", "newest-gentoo", "", "6.1.0-50-amd64", "-cloud", "6.12-CLOUD", "../etc"]
)
def test_a_name_that_fits_nothing_is_one_line_with_those_that_would(name: str) -> None:
    kernels = [k for k in KERNELS if name != "6" or k.version[0] != 6]
    with pytest.raises(StepError, match=r"the archive offers none: one of: .*7\.3") as raised:
        choose(name, kernels)
    assert "\n" not in str(raised.value)


def test_six_point_one_is_not_six_point_twelve() -> None:
    assert choose("6.1", KERNELS).version[:2] == (6, 1)


def test_a_split_kernel_has_all_its_packages_and_an_older_one_has_one() -> None:
    parts = [name.split("-")[1] for name in choose("7", KERNELS).packages]
    assert parts == ["base", "binary", "modules", "image"]
    assert choose("6.1", KERNELS).packages == ("linux-image-6.1.0-50-amd64",)


@pytest.mark.parametrize(
    ("name", "release"), [("6.1", "bookworm"), ("6.12.95", "bookworm"), ("7", "trixie")]
)
def test_a_kernel_goes_with_the_debian_it_was_built_for(name: str, release: str) -> None:
    assert choose(name, KERNELS).userland == release


def test_the_names_offered_are_distinct_and_each_is_a_kernel() -> None:
    names = series(KERNELS)
    assert names == ["6.1", "6.1-cloud", "6.12", "6.18-rt", "7.3", "7.3-cloud"]
    assert all(choose(name, KERNELS) for name in names)


DEPENDENCIES = """\
kernel/fs/ext4/ext4.ko.xz: kernel/fs/jbd2/jbd2.ko.xz kernel/lib/crc16.ko.xz kernel/fs/mbcache.ko.xz
kernel/fs/jbd2/jbd2.ko.xz: kernel/lib/crc32.ko.xz
kernel/lib/crc16.ko.xz:
kernel/lib/crc32.ko.xz:
kernel/fs/mbcache.ko.xz:
kernel/drivers/block/virtio_blk.ko.xz: kernel/drivers/virtio/virtio-ring.ko.xz
kernel/drivers/virtio/virtio-ring.ko.xz:
"""
BUILTIN = "kernel/drivers/virtio/virtio_pci.ko\n"


def test_every_module_comes_after_what_it_needs_and_once() -> None:
    order = in_order(DEPENDENCIES, BUILTIN, ("virtio_pci", "virtio_blk", "ext4"))
    names = [path.rpartition("/")[2].partition(".")[0] for path in order]
    assert len(set(names)) == len(names) == 7
    assert names.index("virtio-ring") < names.index("virtio_blk")
    assert names.index("crc32") < names.index("jbd2") < names.index("ext4")


def test_a_module_that_is_nowhere_is_named() -> None:
    with pytest.raises(KeyError, match="xfs"):
        in_order(DEPENDENCIES, BUILTIN, ("xfs",))


def test_what_newer_kernels_have_as_a_library_may_be_missing() -> None:
    assert in_order(DEPENDENCIES, BUILTIN, ("crc32c_generic",)) == []


def test_an_archive_is_aligned_and_ends_with_its_trailer() -> None:
    made = cpio({"init": (0o100755, b"#!"), "dev": (0o040755, b"")})
    assert len(made) % 4 == 0
    assert made.startswith(b"070701")
    assert made.count(b"070701") == 3
    assert b"TRAILER!!!\0" in made[-20:]
