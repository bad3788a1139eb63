"""How CMD enters its sandbox: the plan as a value, from which `enter_launch` makes processes.

The supervisor forks; the child joins network namespace and cgroup, covers what must not be seen,
and becomes bubblewrap, which makes the other namespaces and becomes our init (init.py), which runs
CMD. `plan_enter` is pure but for looking at the host, and `describe` tells the plan for --dry-run.
Ends with an `EnterPlan` or a NetnsError.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from netns_runtime.errors import UsageError
from netns_runtime.namespace.filesystem import Host, View, ViewPlan, plan_view, read_host
from netns_runtime.namespace.seccomp import filters_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from netns_runtime.namespace.filesystem_protect import Identity

BWRAP: Final = "/usr/bin/bwrap"
INTERPRETER: Final = "/usr/bin/python3"
# What init needs until CMD has started: to become CMD's user, to empty the bounding set, and to
# give CMD its XDG_RUNTIME_DIR.
INIT_CAPABILITIES: Final = ("CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP", "CAP_CHOWN")
SEPARATION: Final = (
    "--unshare-pid",
    "--unshare-ipc",
    "--unshare-cgroup-try",
    "--die-with-parent",
    "--as-pid-1",
    "--chdir",
    "/",
    "--cap-drop",
    "ALL",
)


@dataclass(frozen=True, slots=True)
class Command:
    """CMD as it was asked for. `env` is final; `cwd` is absolute; `keep_fds` are above 2."""

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str
    identity: Identity
    keep_fds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.argv or not self.argv[0]:
            raise UsageError("no command to run", remedy="name it after --")
        for number in self.keep_fds:
            if number <= 2:
                raise UsageError(
                    f"--keep-fd {number}: 0, 1 and 2 are kept anyway", remedy="leave it out"
                )
            if not os.path.exists(f"/proc/self/fd/{number}"):
                raise UsageError(
                    f"--keep-fd {number}: no such descriptor is open", remedy="open it first"
                )


@dataclass(frozen=True, slots=True)
class EnterPlan:
    """Everything that decides how isolated CMD is. `filters` are classic BPF programs."""

    command: Command
    view: ViewPlan
    filters: tuple[bytes, ...]
    runtime_dir: str | None
    separation: tuple[str, ...] = SEPARATION

    def describe(self) -> tuple[str, ...]:
        """One line for each thing that is done, in order."""
        identity = self.command.identity
        return (
            *(f"cover {cover.how.value} {cover.path}" for cover in self.view.covers),
            *("bwrap " + " ".join(operation) for operation in self.view.operations),
            *(f"replace {destination}" for _, destination in self.view.files),
            *(f"leave {destination}: it does not exist" for destination in self.view.missing),
            "bwrap " + " ".join(self.separation),
            f"seccomp {sum(map(len, self.filters)) // 8} instructions",
            f"run {' '.join(self.command.argv)!r} in {self.command.cwd!r}"
            f" as uid {identity.uid} gid {identity.gid}",
        )


def plan_enter(command: Command, view: View, host: Host | None = None) -> EnterPlan:
    """Compute how `command` is run. Looks at the host unless `host` says how it is.

    Raises UsageError for a path that cannot be let in, StepError without libseccomp.
    """
    runtime_dir = _runtime_dir(command.env)
    return EnterPlan(
        command,
        plan_view(view, command.identity, command.cwd, host or read_host(), runtime_dir),
        filters_of(),
        runtime_dir,
        (*SEPARATION, *own_hostname(os.uname().nodename)),
    )


def own_hostname(name: str) -> tuple[str, ...]:
    """A UTS namespace for a host name with a domain, which resolvers would append to every name.

    Without a `search` line glibc and Go take the domain of gethostname(2) for one (resolv.conf(5)).
    """
    label = name.partition(".")[0]
    return ("--unshare-uts", "--hostname", label) if label and label != name else ()


def _runtime_dir(env: Mapping[str, str]) -> str | None:
    """XDG_RUNTIME_DIR, if CMD gets one: an absolute, normalised path that is not the root."""
    named = env.get("XDG_RUNTIME_DIR", "")
    if not named.startswith("/") or os.path.normpath(named) != named or named == "/":
        return None
    resolved = os.path.realpath(named)
    hidden = resolved.startswith("/run/") or os.path.isdir(resolved)
    return resolved if hidden else None


def bwrap_arguments(
    plan: EnterPlan,
    *,
    file_fds: Sequence[int],
    filter_fds: Sequence[int],
) -> tuple[str, ...]:
    """bubblewrap's options once the descriptors have numbers; `file_fds` as in `view.files`."""
    arguments = [*plan.separation]
    for capability in INIT_CAPABILITIES:
        arguments += ["--cap-add", capability]
    for operation in plan.view.operations:
        arguments += operation
    for number, (_, destination) in zip(file_fds, plan.view.files, strict=True):
        arguments += ["--perms", "0444", "--ro-bind-data", str(number), destination]
    for number in filter_fds:
        arguments += ["--add-seccomp-fd", str(number)]
    return tuple(arguments)
