"""The mount table, aliases, socket tables and protection, as values."""

from __future__ import annotations

import os

import pytest

from netns_runtime.namespace.filesystem import may_be_written
from netns_runtime.namespace.filesystem_mounts import (
    Mount,
    aliases_of,
    is_below,
    mount_of,
    parse_mountinfo,
)
from netns_runtime.namespace.filesystem_protect import Identity, could_rename, could_write
from netns_runtime.namespace.sockets import BoundSocket, parse_unix_table

ROOT = Mount("/", "/", "8:1", "ext4")


def test_reads_a_line_with_escapes_and_optional_fields() -> None:
    text = "36 35 98:0 /mnt1 /mnt\\0402 rw,noatime master:1 shared:2 - ext3 /dev/root rw\n"
    assert parse_mountinfo(text) == (Mount("/mnt 2", "/mnt1", "98:0", "ext3"),)


def test_refuses_what_is_no_line_of_mountinfo() -> None:
    with pytest.raises(ValueError, match="not a line"):
        parse_mountinfo("36 35 98:0 /\n")


@pytest.mark.parametrize(
    ("path", "top", "expected"),
    [("/a", "/a", True), ("/a/b", "/a", True), ("/ab", "/a", False), ("/a", "/", True)],
)
def test_a_prefix_of_a_name_is_not_a_directory_above(path: str, top: str, expected: bool) -> None:
    assert is_below(path, top) is expected


def test_of_two_mounts_at_one_point_the_later_shows() -> None:
    later = Mount("/a", "/", "9:9", "tmpfs")
    assert mount_of("/a/b", (ROOT, Mount("/a", "/x", "8:1", "ext4"), later)) == later


def test_finds_a_file_behind_a_bind_mount_in_both_directions() -> None:
    mounts = (ROOT, Mount("/b", "/srv/a", "8:1", "ext4"))
    assert aliases_of("/srv/a/s", mounts) == ("/b/s", "/srv/a/s")
    assert aliases_of("/b/s", mounts) == ("/b/s", "/srv/a/s")


def test_finds_where_another_namespaces_path_is_here() -> None:
    theirs = (Mount("/", "/", "0:50", "overlay"), Mount("/app", "/srv/app", "8:1", "ext4"))
    assert aliases_of("/app/s", (ROOT,), theirs) == ("/srv/app/s",)
    assert aliases_of("/etc/s", (ROOT,), theirs) == ()


def test_takes_listeners_and_datagram_sockets_with_a_path() -> None:
    text = (
        "Num       RefCount Protocol Flags    Type St Inode Path\n"
        "0000000000000000: 00000002 00000000 00010000 0001 01 11 /run/listens here\n"
        "0000000000000000: 00000002 00000000 00000000 0002 01 12 /dev/log\n"
        "0000000000000000: 00000002 00000000 00010000 0001 01 13 @abstract\n"
        "0000000000000000: 00000003 00000000 00000000 0001 03 14 /run/accepted\n"
        "0000000000000000: 00000003 00000000 00000000 0001 03 15\n"
    )
    assert parse_unix_table(text) == {
        BoundSocket("/run/listens here", 11),
        BoundSocket("/dev/log", 12),
    }


def status(mode: int, uid: int = 0) -> os.stat_result:
    return os.stat_result((mode, 0, 0, 1, uid, 0, 0, 0, 0, 0))


CMD = Identity(1000, 1000)


@pytest.mark.parametrize(
    ("mode", "uid", "expected"),
    [
        (0o755, 0, False),
        (0o400, 1000, True),  # an owner can chmod
        (0o775, 0, True),  # a group, or an ACL's mask
        (0o757, 0, True),
    ],
)
def test_who_could_write(mode: int, uid: int, expected: bool) -> None:
    assert could_write(status(mode, uid), CMD) is expected


@pytest.mark.parametrize(
    ("above", "own", "expected"),
    [
        (status(0o755), status(0o755, 1000), False),
        (status(0o755, 1000), status(0o755), True),
        (status(0o1777), status(0o755), False),
        (status(0o1777), status(0o755, 1000), True),
        (status(0o1777, 1000), status(0o755), True),
        (status(0o777), status(0o755), True),
    ],
)
def test_who_could_rename(above: os.stat_result, own: os.stat_result, expected: bool) -> None:
    assert could_rename("/a/b", CMD, {"/a": above, "/a/b": own}.__getitem__) is expected


@pytest.mark.parametrize(
    ("cwd", "expected"),
    [
        ("/", False),
        ("/etc", False),
        ("/usr/lib/x", False),
        ("/var", False),
        ("/var/lib/dpkg/x", False),
        ("/home/u/p", True),
        ("/root/p", True),
        ("/etcetera", True),
        ("/var/tmp/p", True),
    ],
)
def test_where_starting_makes_a_directory_writable(cwd: str, expected: bool) -> None:
    assert may_be_written(cwd) is expected
