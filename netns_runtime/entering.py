"""What a request means for CMD's view: its files, its environment, what it may not write.

Joins the request with the stages that know how (environment, trust, namespace.enter). Ends with an
`EnterPlan`, or with a UsageError for a path that cannot be let in.
"""

from __future__ import annotations

import os
import stat
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Final

from netns_runtime import layout, trust
from netns_runtime.environment import Trusted, environment_of, with_secrets
from netns_runtime.namespace.enter import Command, plan_enter
from netns_runtime.namespace.filesystem import BoundFile, View
from netns_runtime.namespace.filesystem_protect import Identity

if TYPE_CHECKING:
    from netns_runtime.namespace.enter import EnterPlan
    from netns_runtime.request import Request

OWN_BUNDLE: Final = "/run/netns-runtime/ca-bundle.pem"
OWN_ROOTS: Final = "/run/netns-runtime/ca-extra.pem"
OWN_JAVA_STORE: Final = "/run/netns-runtime/ca-java.jks"


def protected_paths(request: Request) -> tuple[str, ...]:
    """What root executes or reads the next time, so that CMD must not be able to write it."""
    package = Path(__file__).resolve().parent
    launcher = package.parent / "netns-run"
    paths = [str(package), sys.prefix, sysconfig.get_path("purelib")]
    if launcher.is_file():
        # A checkout: scripts/ and bpf/ are executed or compiled by root as well.
        paths += [str(package.parent)]
    spec = request.spec
    paths += [os.path.abspath(path) for path in spec.policies]
    if spec.upstream_ca is not None:
        paths.append(os.path.abspath(spec.upstream_ca))
    paths += _audit_path(request)
    return tuple(dict.fromkeys(path for path in paths if os.path.exists(path)))


def _audit_path(request: Request) -> list[str]:
    """Where CMD would find the audit: what it did must not be its to rewrite."""
    if request.audit_fd is None:
        return []
    found = os.fstat(request.audit_fd)
    path = os.readlink(f"/proc/self/fd/{request.audit_fd}")
    is_file = stat.S_ISREG(found.st_mode) or stat.S_ISFIFO(found.st_mode)
    try:
        is_there = os.path.samestat(os.stat(path), found)
    except OSError:
        is_there = False
    return [path] if is_file and is_there else []


def name_files(nsswitch: Path, hostname: str) -> tuple[BoundFile, ...]:
    """What makes every resolver inside ask the policy resolver, and no daemon of the host.

    nsswitch.conf(5) keeps the host's other databases; hosts(5) knows this machine alone.
    """
    own = " ".join(dict.fromkeys((hostname, hostname.partition(".")[0])))
    hosts = (
        "127.0.0.1 localhost\n"
        "::1 localhost ip6-localhost ip6-loopback\n"
        f"{layout.SANDBOX_IPV4} {own}\n"
        f"{layout.SANDBOX_IPV6} {own}\n"
    )
    resolv = f"nameserver {layout.GATEWAY_IPV4}\n"
    try:
        lines = nsswitch.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = ["passwd: files", "group: files"]
    kept = [line for line in lines if not line.lstrip().startswith("hosts:")]
    switch = "\n".join([*kept, "hosts: files dns", ""])
    return (
        BoundFile(resolv.encode(), ("/etc/resolv.conf",)),
        BoundFile(hosts.encode("ascii", "replace"), ("/etc/hosts",)),
        BoundFile(switch.encode(), ("/etc/nsswitch.conf",)),
    )


def trust_files(roots: bytes) -> tuple[tuple[BoundFile, ...], Trusted]:
    """What makes CMD trust `roots` beside the system's, and where it finds that.

    The merged bundle lies over every store of the system that there is: what a program reads that
    never looks at a variable. A JVM gets a store of its own kind. Nothing is written to the host.
    """
    store = trust.system_store()
    merged = trust.merged_bundle(Path(store).read_bytes() if store is not None else b"", roots)
    where = Trusted(bundle=store or OWN_BUNDLE, extra=OWN_ROOTS, java=OWN_JAVA_STORE)
    java = trust.java_truststore(merged)
    return (
        BoundFile(merged, (where.bundle, *trust.other_stores(where.bundle))),
        BoundFile(roots, (where.extra,)),
        BoundFile(java, (where.java, *trust.java_stores())),
    ), where


def enter_plan(
    request: Request, own_cgroup: str | None, certificate: bytes | None = None
) -> EnterPlan:
    """How CMD enters: its environment, its view of the files, what it may not write.

    `certificate` is the sandbox's own authority's, where it has one.
    """
    spec, user = request.spec, request.user
    files = list(name_files(Path("/etc/nsswitch.conf"), os.uname().nodename))
    trusted = None
    if request.upstream_ca is not None or certificate is not None:
        added, trusted = trust_files((certificate or b"") + (request.upstream_ca or b""))
        files += added
    environment = environment_of(
        os.environ,
        user=user.entry,
        # A uid without an entry gets nothing of the caller's home either.
        sudo=user.is_sudo or user.uid != os.getuid(),
        trusted=trusted,
        exposed=spec.expose_sockets,
    )
    if request.supplied is not None:
        supplied = request.supplied
        environment = with_secrets(
            environment, supplied.secrets, supplied.token, supplied.read_from
        )
    identity = Identity(user.uid, user.gid, user.groups)
    command = Command(spec.command, environment, request.directory, identity, spec.keep_fds)
    view = View(
        read_only=request.is_read_only,
        writable=spec.writable,
        expose_sockets=spec.expose_sockets,
        files=tuple(files),
        protected=protected_paths(request),
        hidden=request.supplied.hidden if request.supplied is not None else (),
        cgroup=own_cgroup,
    )
    return plan_enter(command, view)
