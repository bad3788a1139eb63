"""A Spec resolved on this machine: files read once, the user looked up, descriptors opened.

Everything a person can get wrong is found here, before anything is made: each error is one line and
nothing has changed. Files are opened once and used by content or descriptor afterwards, so what was
checked is what is used.
"""

from __future__ import annotations

import os
import pwd
import re
import socket
import stat
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address, ip_address
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from netns_runtime.audit import open_audit
from netns_runtime.errors import UsageError, file_error
from netns_runtime.namespace.netns import open_namespace
from netns_runtime.policy import Policy, parse_allow

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from netns_runtime.presets.account import Account
    from netns_runtime.spec import Spec
    from netns_runtime.supplied import Supplied


@dataclass(frozen=True, slots=True)
class User:
    """Who CMD runs as. `groups` holds every gid; `entry` is None for a uid without a name."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    entry: pwd.struct_passwd | None
    is_sudo: bool


@dataclass(frozen=True, slots=True)
class Request:
    """`spec` with what it names. Descriptors belong to the context that made the request."""

    spec: Spec
    user: User
    policy: Policy
    upstream_ca: bytes | None
    audit_fd: int | None
    uplink_fd: int | None
    nameservers: tuple[tuple[str, int], ...]
    directory: str
    supplied: Supplied | None = None

    @property
    def is_read_only(self) -> bool:
        """`--read-only`, or uid 0 by default; `--writable /` turns it off."""
        wanted = self.spec.read_only or self.user.uid == 0
        return wanted and "/" not in self.spec.writable

    @property
    def trees(self) -> tuple[str, ...] | None:
        """Where CMD may write at all; None is wherever modes allow."""
        return (self.directory, "/tmp", *self.spec.writable) if self.is_read_only else None

    def identify(self, policy: Policy) -> Policy:
        """Tie the policy's `binaries` to the inodes that CMD cannot write."""
        if all(rule.binaries is None for rule in policy.rules):
            return policy
        from netns_runtime.policy import identify_binaries

        gids = (self.user.gid, *self.user.groups)
        return identify_binaries(policy, (self.user.uid, gids), self.trees)

    def real_path(self, option: str, path: str) -> str:
        """Where `path` leads. Raises UsageError for a link on the way that CMD could replace;
        `option` is what stands before the path, as in `--audit` or `--secret NAME=file:`.

        A file is covered inside (entering.protected_paths); no mount can cover a link, and through
        one of its own CMD would choose what root reads or appends to the next time.
        """
        from netns_runtime.policy.reach import Reach, trail_of

        if self.user.uid == 0 and self.trees is None:
            return path
        reach = Reach(self.user.uid, frozenset((self.user.gid, *self.user.groups)), self.trees)
        try:
            trail = list(trail_of(path))
            step = reach.writable_step(path)
        except OSError:
            return path
        if step in trail and any(map(os.path.islink, trail[trail.index(step) :])):
            space = "" if option.endswith(":") else " "
            raise UsageError(
                f"{option}{space}{path}: CMD could replace a link on the way to it",
                remedy=f"name it by its real path, {trail[-1]}",
            )
        return trail[-1]


def resolve_user(wanted: str | None, environment: Mapping[str, str]) -> User:
    """`--user`, or who called sudo, or who we are. Raises UsageError for an unknown name."""
    sudo_uid = environment.get("SUDO_UID", "")
    is_sudo = sudo_uid.isascii() and sudo_uid.isdigit()
    if wanted is None:
        uid = _number("SUDO_UID", sudo_uid) if is_sudo else os.getuid()
        gid = environment.get("SUDO_GID", "")
        is_gid = is_sudo and gid.isascii() and gid.isdigit()
        fallback = _number("SUDO_GID", gid) if is_gid else uid
    else:
        uid, fallback = _uid_of(wanted), -1
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        entry = None
    if entry is None:
        gid_number = uid if fallback == -1 else fallback
        return User(uid, gid_number, (gid_number,), None, is_sudo)
    groups = tuple(os.getgrouplist(entry.pw_name, entry.pw_gid))
    return User(uid, entry.pw_gid, groups, entry, is_sudo)


def _uid_of(wanted: str) -> int:
    if wanted.isascii() and wanted.isdigit():
        return _number("--user", wanted)
    try:
        return pwd.getpwnam(wanted).pw_uid
    except KeyError as error:
        raise UsageError(
            f"--user {wanted}: no such user", remedy="name one from /etc/passwd, or give a uid"
        ) from error


def _number(name: str, digits: str) -> int:
    """A uid or gid. The highest number is -1, which setresuid(2) takes for "leave it as it is"."""
    if len(digits) > 10 or int(digits) >= (1 << 32) - 1:
        raise UsageError(f"{name} {digits}: not a uid or gid", remedy="use 0 to 4294967294")
    return int(digits)


def load_policies(
    spec: Spec, user: User | None = None, environment: Mapping[str, str] = MappingProxyType({})
) -> Policy:
    """Every `--policy`, `--preset` and `--allow`, merged. `user` and `environment` say whose
    configuration a preset reads."""
    allow = Policy(tuple(parse_allow(text) for text in spec.allow))
    if not spec.policies and not spec.presets:
        return allow
    from netns_runtime.policy.file import read_policy
    from netns_runtime.supply import merged, preset_policy

    files = [read_policy(path) for path in spec.policies]
    presets: list[Policy] = []
    if spec.presets:
        account = account_of(user or resolve_user(spec.user, environment), environment)
        presets = [preset_policy(name, account) for name in dict.fromkeys(spec.presets)]
    return merged(files, presets, allow)


def account_of(user: User, environment: Mapping[str, str]) -> Account:
    """The user as presets take one, with the home that CMD will see."""
    from netns_runtime.presets.account import Account

    home = user.entry.pw_dir if user.entry is not None else "/"
    if not user.is_sudo and user.uid == os.getuid():
        home = environment.get("HOME", home)
    return Account(user.uid, user.gid, user.groups, home, environment)


def nameservers_for(spec: Spec) -> tuple[tuple[str, int], ...]:
    """Whom to ask for upstream names; empty means the host's own resolver.

    With `--uplink` the host's daemons are never asked (a name would leave by the wrong way): the
    servers come from /etc/netns/NAME/resolv.conf, as `ip netns exec` has it, else /etc/resolv.conf.
    """
    if spec.resolver is not None:
        return (spec.resolver,)
    if spec.uplink is None:
        return ()
    places = [Path("/etc/resolv.conf")]
    if "/" not in spec.uplink:
        places.insert(0, Path("/etc/netns") / spec.uplink / "resolv.conf")
    for place in places:
        try:
            found = parse_resolv_conf(place.read_text(encoding="utf-8", errors="replace"))
        except OSError:
            continue
        if found:
            return found
    raise UsageError(
        f"--uplink {spec.uplink}: no name server is known for it", remedy="give --resolver ADDR"
    )


def parse_resolv_conf(text: str) -> tuple[tuple[str, int], ...]:
    """The `nameserver` lines of resolv.conf(5), port 53 each, without zone ids' duplicates."""
    found = re.findall(r"(?m)^[ \t]*nameserver[ \t]+([0-9A-Fa-f:.%a-z]+)", text)
    return tuple(dict.fromkeys((address, 53) for address in found))


def _check_descriptors(spec: Spec) -> None:
    named = [("--keep-fd", fd) for fd in spec.keep_fds]
    if spec.status_fd is not None:
        named.append(("--status-fd", spec.status_fd))
    for option, fd in named:
        try:
            os.fstat(fd)
        except OSError as error:
            raise UsageError(
                f"{option} {fd}: that descriptor is not open",
                remedy=f"pass an open one, for example with {fd}>file or {fd}<file",
            ) from error


def _check_sockets(spec: Spec) -> None:
    for path in spec.expose_sockets:
        try:
            is_socket = stat.S_ISSOCK(os.stat(path).st_mode)
        except OSError as error:
            raise file_error(f"--expose-socket {path}", error) from error
        if not is_socket:
            raise UsageError(
                f"--expose-socket {path}: not a unix socket", remedy="name the socket itself"
            )
    for path in spec.writable:
        if not os.path.exists(path):
            raise UsageError(
                f"--writable {path}: no such file or directory", remedy="make it first"
            )


@contextmanager
def resolve(spec: Spec, environment: Mapping[str, str]) -> Iterator[Request]:
    """Resolve and check everything the Spec names. Raises UsageError; closes what it opened."""
    with ExitStack() as stack:
        _check_descriptors(spec)
        _check_sockets(spec)
        user = resolve_user(spec.user, environment)
        policy = load_policies(spec, user, environment)
        upstream_ca = None
        if spec.upstream_ca is not None:
            from netns_runtime.trust import read_upstream_ca

            upstream_ca = read_upstream_ca(spec.upstream_ca)
        nameservers = nameservers_for(spec)
        uplink_fd = None
        if spec.uplink is not None:
            uplink_fd = open_namespace(spec.uplink)
            stack.callback(os.close, uplink_fd)
        try:
            directory = os.getcwd()
        except OSError as error:
            raise UsageError(
                f"the working directory: {error.strerror}", remedy="change to one that exists"
            ) from error
        found = Request(spec, user, policy, upstream_ca, None, uplink_fd, nameservers, directory)
        for path in spec.policies:
            found.real_path("--policy", path)
        if spec.upstream_ca is not None:
            found.real_path("--upstream-ca", spec.upstream_ca)
        found = _with_secrets(found, environment, stack)
        audit_fd = _open_audit(found, stack)
        yield replace(found, policy=found.identify(found.policy), audit_fd=audit_fd)


def _with_secrets(request: Request, environment: Mapping[str, str], stack: ExitStack) -> Request:
    """Read the secrets, where there are any; at the end at the latest they are let go of."""
    spec, policy = request.spec, request.policy
    if not spec.secrets and not policy.secrets:
        return request
    from netns_runtime.supply import supply

    supplied, notes = supply(
        spec, policy, environment, real_path=request.real_path, identify=request.identify
    )
    if supplied is not None:
        stack.callback(supplied.forget)
    policy = replace(policy, notes=(*policy.notes, *notes))
    return replace(request, policy=policy, supplied=supplied)


def _open_audit(request: Request, stack: ExitStack) -> int | None:
    target = request.spec.audit
    if target is None or request.spec.dry_run:
        return None
    if not target.startswith("fd:"):
        above, name = os.path.split(target)
        target = os.path.join(request.real_path("--audit", above or "."), name)
    audit = open_audit(target)
    stack.callback(os.close, audit)
    for fd in request.spec.keep_fds:
        if os.path.sameopenfile(fd, audit):
            raise UsageError(f"--keep-fd {fd}: it is the audit", remedy="keep that from CMD")
    return audit


def addresses_of_uplink() -> frozenset[IPv4Address | IPv6Address]:
    """The calling thread's namespace's own addresses but loopback, from /proc/thread-self/net.

    Loopback has a rule of its own in screening, which `allowed_ips` can lift as a range.
    """
    found: set[str] = set()
    try:
        lines = Path("/proc/thread-self/net/fib_trie").read_text(encoding="ascii").splitlines()
    except OSError:
        lines = []
    for line, following in pairwise(lines):
        if "/32 host LOCAL" in following:
            found.add(line.split()[-1])
    try:
        entries = Path("/proc/thread-self/net/if_inet6").read_text(encoding="ascii").split("\n")
    except OSError:
        entries = []
    found.update(
        socket.inet_ntop(socket.AF_INET6, bytes.fromhex(entry.split()[0]))
        for entry in entries
        if entry
    )
    addresses = map(ip_address, found)
    return frozenset(address for address in addresses if not address.is_loopback)
