"""What CMD sees of the file system: covers placed first, then bubblewrap's mount operations.

The tree is the host's, as CMD's user may use it, without the kernel's own controls (/sys, the
writable rest of /proc, every mount of their kind), without other people's run-time places (/run,
/tmp), and without sockets to reach host services by. `plan_view` reads the host and changes
nothing; it ends with a `ViewPlan`, or with UsageError for a path that cannot be let in.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from netns_runtime import layout
from netns_runtime.errors import UsageError
from netns_runtime.namespace.filesystem_mounts import (
    KERNEL_FILESYSTEMS,
    Mount,
    is_below,
    parse_mountinfo,
)
from netns_runtime.namespace.filesystem_protect import Cover, How, Identity, protect
from netns_runtime.namespace.sockets import host_socket_paths

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

KERNEL_PLACES: Final = ("/proc", "/sys", "/dev")
# What language runtimes size their thread pools and heaps by; nothing in it acts when read.
HARMLESS_SYSFS: Final = (
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",
    "/sys/kernel/mm/transparent_hugepage",
    "/sys/kernel/mm/hugepages",
)
# Where uid 0 finds something that root outside executes: never writable because CMD starts there.
SYSTEM_PLACES: Final = (
    *("/bin", "/boot", "/etc", "/lib", "/lib32", "/lib64", "/sbin", "/usr"),
    *("/var/lib/dpkg", "/var/lib/systemd", "/var/spool"),
)
# Holds .bashrc and .ssh/authorized_keys; a directory below it may be worked in.
HOME_OF_ROOT: Final = "/root"
LINKS_OF_PROC: Final = frozenset({"self", "thread-self", "mounts", "net"})


@dataclass(frozen=True, slots=True)
class BoundFile:
    """Content that replaces the files at `destinations`: bytes, or a descriptor read from 0."""

    content: bytes | int
    destinations: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class View:
    """What was asked for. Paths are the user's, absolute or relative to the working directory.

    `protected` is what root executes or reads next time, `hidden` what CMD must not even read: real
    paths of files that hold secrets. `cgroup` is the sandbox's own directory
    of the cgroup v2 tree, shown read-only at /sys/fs/cgroup.
    """

    read_only: bool = False
    writable: tuple[str, ...] = ()
    expose_sockets: tuple[str, ...] = ()
    files: tuple[BoundFile, ...] = ()
    protected: tuple[str, ...] = ()
    hidden: tuple[str, ...] = ()
    cgroup: str | None = None


@dataclass(frozen=True, slots=True)
class Host:
    """The host as found: its mounts, the socket paths in use, the writable entries of /proc."""

    mounts: tuple[Mount, ...]
    sockets: frozenset[str]
    proc_covers: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class ViewPlan:
    """`covers` go on first; `operations` are bubblewrap options, in order.

    `files` are (content, destination) pairs that exist or can be made in a private place; `missing`
    are destinations that could only be made by writing to the host, and so were not.
    """

    covers: tuple[Cover, ...]
    operations: tuple[tuple[str, ...], ...]
    files: tuple[tuple[bytes | int, str], ...]
    missing: tuple[str, ...] = field(default=())


def read_host() -> Host:
    """Look at the host. Raises OSError where /proc is not what Linux promises."""
    with open("/proc/self/mountinfo", "rb") as table:
        mounts = parse_mountinfo(os.fsdecode(table.read()))
    return Host(mounts, host_socket_paths(mounts), tuple(_proc_covers()))


def _proc_covers() -> Iterable[tuple[str, str]]:
    """(entry, source) for each entry of /proc that somebody may write or only root may read.

    Directories and writable files are bound read-only; what root alone may read is /dev/null,
    since uid 0 without capabilities still owns it. bubblewrap knows only four of them.
    """
    for entry in sorted(os.scandir("/proc"), key=lambda entry: entry.name):
        if entry.name.isdigit() or entry.name in LINKS_OF_PROC or entry.is_symlink():
            continue
        mode = entry.stat().st_mode
        if not mode & stat.S_IROTH and not stat.S_ISDIR(mode):
            yield entry.path, "/dev/null"
        elif stat.S_ISDIR(mode) or mode & 0o222:
            yield entry.path, entry.path


def plan_view(
    view: View,
    identity: Identity,
    cwd: str,
    host: Host,
    runtime_dir: str | None = None,
) -> ViewPlan:
    """Compute the view of one sandbox. Raises UsageError for a path that cannot be let in.

    Mounting is in the order of the list: what comes later lies over what came before.
    """
    if is_below(cwd, str(layout.RUN_DIR)):
        raise UsageError(f"the working directory: {cwd} is netns-run's own", remedy="leave it")
    writable = [_resolve(path, cwd, "--writable") for path in view.writable]
    exposed = [_resolve(path, cwd, "--expose-socket") for path in view.expose_sockets]
    read_only = view.read_only and "/" not in writable
    hidden = hidden_places(runtime_dir)
    operations = [
        ("--ro-bind" if read_only else "--bind", "/", "/"),
        ("--proc", "/proc"),
        *(("--ro-bind-try", source, entry) for entry, source in host.proc_covers),
        *_kernel_places(view.cgroup),
        *_hiding(hidden),
        *_let_in(cwd, writable, exposed, hidden, read_only=read_only),
    ]
    operations += [
        ("--perms", "0755", "--dir", above)
        for replacement in view.files
        for destination in replacement.destinations
        for above in _above(os.path.realpath(destination), hidden)
    ]
    files = [
        (replacement.content, os.path.realpath(destination))
        for replacement in view.files
        for destination in replacement.destinations
    ]
    can_bind = {path for _, path in files if os.path.exists(path) or _is_under(path, hidden)}
    return ViewPlan(
        covers=(
            *protect(view.protected, identity, host.mounts, view.hidden),
            *_kernel_mounts(host.mounts),
            *_sockets(host.sockets, exposed),
        ),
        operations=tuple(operations),
        files=tuple(pair for pair in files if pair[1] in can_bind),
        missing=tuple(path for _, path in files if path not in can_bind),
    )


def hidden_places(runtime_dir: str | None) -> tuple[str, ...]:
    """Where the host keeps sockets and other people's files: private and empty inside."""
    places = ["/run", "/tmp"]
    if os.path.isdir("/var/run") and not os.path.islink("/var/run"):
        places.append("/var/run")
    if runtime_dir is not None and os.path.isdir(runtime_dir):
        resolved = os.path.realpath(runtime_dir)
        if not _is_under(resolved, places) and resolved != "/":
            places.append(resolved)
    return tuple(places)


def _kernel_places(cgroup: str | None) -> Iterable[tuple[str, ...]]:
    yield ("--tmpfs", "/sys")
    for place in HARMLESS_SYSFS:
        yield ("--ro-bind-try", place, place)
    if cgroup is not None:
        yield ("--ro-bind", cgroup, "/sys/fs/cgroup")
    yield ("--remount-ro", "/sys")
    yield ("--dev", "/dev")
    yield ("--perms", "1777", "--tmpfs", "/dev/shm")
    yield ("--mqueue", "/dev/mqueue")


def _hiding(hidden: Sequence[str]) -> Iterable[tuple[str, ...]]:
    for place in hidden:
        mode = "1777" if place == "/tmp" else "0755"
        yield ("--perms", mode, "--tmpfs", place)
    yield ("--perms", "1777", "--dir", "/run/lock")


def _let_in(
    cwd: str,
    writable: Sequence[str],
    exposed: Sequence[str],
    hidden: Sequence[str],
    *,
    read_only: bool,
) -> Iterable[tuple[str, ...]]:
    """Bind back what the user named. A hidden place itself, or one above it, stays hidden."""
    paths = []
    if _is_strictly_under(cwd, hidden) or (read_only and may_be_written(cwd, hidden)):
        paths.append(cwd)
    paths += [
        path
        for path in writable
        if path not in ("/", *hidden) and (read_only or _is_under(path, hidden))
    ]
    paths += [path for path in exposed if _is_under(path, hidden)]
    for path in sorted(set(paths)):
        # bubblewrap would make these directories for root alone.
        for above in _above(path, hidden):
            yield ("--perms", "0755", "--dir", above)
        yield ("--bind", path, path)


def _above(path: str, hidden: Sequence[str]) -> Iterable[str]:
    """The directories between a hidden place and a path strictly under it, outermost first."""
    between = []
    while _is_strictly_under(above := os.path.dirname(path), hidden):
        between.append(above)
        path = above
    return reversed(between)


def may_be_written(cwd: str, hidden: Sequence[str] = ()) -> bool:
    """Whether starting in `cwd` makes it writable under --read-only.

    Not /, not a place of the system or root's home, and nothing that contains one: root outside
    trusts those.
    """
    guarded = (*SYSTEM_PLACES, *KERNEL_PLACES, *hidden, HOME_OF_ROOT)
    if any(is_below(place, cwd) for place in guarded):
        return False
    return not _is_under(cwd, (*SYSTEM_PLACES, *KERNEL_PLACES))


def _kernel_mounts(mounts: Iterable[Mount]) -> Iterable[Cover]:
    """Covers for the kernel's file systems wherever they are mounted besides /proc, /sys, /dev."""
    points = {mount.point for mount in mounts if mount.kind in KERNEL_FILESYSTEMS}
    for point in sorted(points):
        if not _is_under(point, KERNEL_PLACES) and os.path.lexists(point):
            yield Cover(point, How.HIDE, must=True)


def _sockets(paths: Iterable[str], exposed: Sequence[str]) -> Iterable[Cover]:
    for path in sorted(paths):
        if _is_under(path, KERNEL_PLACES) or os.path.realpath(path) in exposed:
            continue
        try:
            if stat.S_ISSOCK(os.lstat(path).st_mode):
                yield Cover(path, How.HIDE)
        except OSError:
            continue


def _resolve(path: str, cwd: str, option: str) -> str:
    resolved = os.path.realpath(os.path.join(cwd, path))
    if not os.path.exists(resolved):
        raise UsageError(f"{option} {path}: there is no such path", remedy="make it first")
    if _is_under(resolved, KERNEL_PLACES):
        raise UsageError(
            f"{option} {path}: {resolved} belongs to the kernel",
            remedy="name a path outside /proc, /sys and /dev",
        )
    if is_below(resolved, str(layout.RUN_DIR)):
        raise UsageError(f"{option} {path}: it is netns-run's own", remedy="name another path")
    return resolved


def _is_under(path: str, places: Iterable[str]) -> bool:
    return any(is_below(path, place) for place in places)


def _is_strictly_under(path: str, places: Iterable[str]) -> bool:
    return any(is_below(path, place) and path != place for place in places)
