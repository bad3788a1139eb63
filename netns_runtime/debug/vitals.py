"""The checks of `netns-debug doctor SANDBOX`, one function each, from Looked to findings.

A function tries one thing where that thing lives (a thread in the sandbox's, the gateway's or the
uplink's network namespace) with a deadline, and names what it saw. NetnsError stands for a failure,
OSError for what could not be looked at; `doctor` makes findings of both.
"""

from __future__ import annotations

import ctypes
import os
import socket
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from netns_runtime import layout
from netns_runtime.counts import counts_of, unregistered_of
from netns_runtime.debug import places
from netns_runtime.debug.hostfirewall import concerns_of
from netns_runtime.errors import NetnsError
from netns_runtime.namespace import netns

if TYPE_CHECKING:
    from collections.abc import Callable

    from netns_runtime.state import Record

Verdict = Literal["ok", "warn", "fail", "unknown"]
T = TypeVar("T")

DEADLINE: Final = 2.0
IPV6_LEAST: Final = 1280
"""RFC 8200, 5: no link may have less."""
_NTP_ERROR: Final = 5
OWN_ROOTS: Final = "/run/netns-runtime/ca-extra.pem"
"""Inside: the roots of this sandbox alone (entering.py)."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One check. `remedy` is empty where nothing is to be done."""

    check: str
    verdict: Verdict
    detail: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Looked:
    """The sandbox as its record has it, and what its supervisor told; None: it did not answer."""

    record: Record
    enter: dict[str, Any] | None
    uplink: dict[str, Any] | None


def _inside(path: str, function: Callable[[], T]) -> T:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return netns.run_in(fd, function)
    finally:
        os.close(fd)


def _uplink_path(record: Record) -> str:
    return f"/proc/{record.proxy}/ns/net"


def command(looked: Looked) -> Finding:
    """CMD's process, and how many there are inside."""
    record = looked.record
    if looked.enter is None:
        state = places.state_of(record.supervisor)
        so_is = f", as its command (pid {record.pid}) is" if _is_stopped(record.pid) else ""
        return Finding(
            "supervisor",
            "fail",
            f"netns-run (pid {record.supervisor}) does not answer: it {state}{so_is}",
            "kill -CONT it" if state == "is stopped" else "kill it; netns-debug gc cleans up",
        )
    inside = Path(record.cgroup, "cgroup.procs").read_text(encoding="ascii").split()
    state = places.state_of(int(looked.enter["pid"]))
    detail = f"pid {looked.enter['pid']} {state}; {len(inside)} processes inside"
    return Finding("command", "warn" if state == "is stopped" else "ok", detail)


def _is_stopped(pid: int | None) -> bool:
    return places.state_of(pid) == "is stopped"


def proxy(looked: Looked) -> Finding:
    """Whether the proxy answers its supervisor, and accepts where the sandbox reaches it."""
    from netns_runtime.control import ask

    record = looked.record
    # Its answers come by way of the supervisor, which may be what is ill.
    answers = "is not asked: its supervisor does not answer"
    if looked.enter is not None:
        began = time.monotonic()
        try:
            ask(record.name, {"command": "tallies"}, DEADLINE)
        except NetnsError:
            state = places.state_of(record.proxy)
            remedy = "kill -CONT it" if state == "is stopped" else "start the sandbox again"
            detail = f"pid {record.proxy} does not answer: it {state}"
            return Finding("proxy", "fail", detail, remedy)
        answers = f"answers in {(time.monotonic() - began) * 1000:.0f} ms"
    where = (str(layout.GATEWAY_IPV4), layout.PROXY_PORT)
    try:
        _inside(record.sandbox_ns, lambda: socket.create_connection(where, DEADLINE).close())
    except OSError as error:
        what = f"{where[0]}:{where[1]} cannot be reached from inside: {error.strerror or error}"
        return Finding("proxy", "fail", what, "start the sandbox again")
    detail = f"pid {record.proxy} {answers}; {where[0]}:{where[1]} accepts"
    return Finding("proxy", "ok", detail)


def dns(looked: Looked) -> Finding:
    """The policy resolver, by UDP and by TCP."""
    where = (str(layout.GATEWAY_IPV4), layout.DNS_PORT)
    query = places.query_of("localhost", 1)

    def ask_both() -> dict[str, str]:
        return {
            "UDP": places.dns_over_udp(where, query, DEADLINE / 2),
            "TCP": places.dns_over_tcp(where, query, DEADLINE / 2),
        }

    wrong = {by: why for by, why in _inside(looked.record.sandbox_ns, ask_both).items() if why}
    if wrong:
        detail = "; ".join(f"{by}: {why}" for by, why in wrong.items())
        return Finding("dns", "fail", f"{where[0]} over {detail}", "is the proxy stopped?")
    return Finding("dns", "ok", f"{where[0]} answers over UDP and TCP")


def links(looked: Looked) -> Finding:
    """The veth pair: both ends up, with the same MTU."""
    record = looked.record
    where = {layout.SANDBOX_LINK: record.sandbox_ns, layout.GATEWAY_LINK: record.gateway_ns}
    ends = {name: _inside(path, partial(places.link_of, name)) for name, path in where.items()}
    told = ", ".join(f"{name} {mtu}" for name, (mtu, _) in ends.items())
    for name, (mtu, is_up) in ends.items():
        if not is_up:
            return Finding("link", "fail", f"{name} is down", "start the sandbox again")
        if mtu < IPV6_LEAST:
            detail = f"MTU of {name} is {mtu}: IPv6 needs {IPV6_LEAST}"
            return Finding("mtu", "fail", detail, "start the sandbox again")
    if len({mtu for mtu, _ in ends.values()}) > 1:
        detail = f"the two ends differ ({told}): long packets are lost between them"
        return Finding("mtu", "fail", detail, "start the sandbox again")
    return Finding("mtu", "ok", told)


def gateway(looked: Looked) -> Finding:
    """The gateway's nft rules."""
    from netns_runtime.firewall import nft
    from netns_runtime.firewall.ruleset import TABLE, gateway_ruleset

    objects = _inside(looked.record.gateway_ns, nft.read_ruleset)
    found = _rules_of(nft.canonical(objects))
    remedy = "start the sandbox again"
    if looked.uplink is not None:
        loaded = gateway_ruleset(redirect=looked.uplink["redirect"]).expected
        if found != _rules_of(nft.canonical(loaded)):
            detail = f"it has other rules ({len(found)} of them) than were loaded"
            return Finding("gateway", "fail", detail, remedy)
    others = {_table_of(entry) for entry in objects} - {TABLE, ""}
    if others:
        return Finding("gateway", "warn", f"there are tables of others: {', '.join(others)}")
    counted = counts_of(looked.record)["totals"]["count"]
    return Finding("gateway", "ok", f"{len(found)} rules; {counted} connects refused so far")


def _rules_of(objects: list[Any]) -> list[Any]:
    """All but those of `redirect`, which a policy's addresses change."""
    return [entry for entry in objects if entry[0] == "rule" and entry[1] != "redirect"]


def _table_of(entry: dict[str, Any]) -> str:
    (value,) = entry.values()
    return str(value.get("table", ""))


def unregistered(looked: Looked) -> list[Finding]:
    """What the probe refused and no sandbox's counts have; nothing to say without a probe."""
    if not looked.record.pins:
        return []
    count = unregistered_of(looked.record.pins)
    what = f"{count} connects" if count != 1 else "1 connect"
    detail = f"{what} refused that no sandbox's counts have, since the probe was loaded"
    if not count:
        return [Finding("unregistered", "ok", detail)]
    return [Finding("unregistered", "warn", detail, _UNREGISTERED)]


_UNREGISTERED: Final = (
    "a process in a sandbox's cgroup had another network namespace, or its netns-run was killed; "
    "netns-debug gc removes what killed ones left"
)


def probe(looked: Looked) -> Finding:
    """The pinned programs: attached to the sandbox's own cgroup, which they know."""
    from netns_runtime.probes import syscall
    from netns_runtime.probes.hooks import HOOKS
    from netns_runtime.probes.pins import open_set

    record = looked.record
    if not record.pins:
        detail = "none: nft alone refuses and counts, and refusals have no process"
        return Finding("probe", "warn", detail, "see netns-debug doctor")
    remedy = "nft still refuses and counts; start the sandbox again"
    try:
        with open_set(Path(record.pins)) as pinned:
            is_known = pinned.totals(record.cookie) is not None
    except OSError as error:
        return Finding("probe", "fail", f"{record.pins}: {error.strerror}", remedy)
    cgroup = os.open(record.cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        missing = []
        for hook in HOOKS:
            fd = syscall.open_pin(f"{record.pins}/{hook.program}")
            try:
                if syscall.id_of(fd) not in syscall.attached(cgroup, hook.attach_type):
                    missing.append(hook.name)
            finally:
                os.close(fd)
    finally:
        os.close(cgroup)
    if missing:
        detail = f"not attached to the sandbox's cgroup: {', '.join(missing)}"
        return Finding("probe", "fail", detail, remedy)
    if not is_known:
        return Finding("probe", "fail", "it does not know this sandbox: all is refused", remedy)
    return Finding("probe", "ok", f"{len(HOOKS)} hooks are attached, and it knows the sandbox")


def trust(looked: Looked) -> Finding:
    """The bundle that programs inside are told of: whole, with the sandbox's own authority."""
    if looked.enter is None or looked.uplink is None:
        return Finding("trust", "unknown", "the supervisor did not say what CMD was given")
    env, pid = looked.enter["env"], int(looked.enter["pid"])
    if not looked.uplink["own_roots"]:
        return Finding("trust", "ok", "nothing is terminated; programs use the host's store")
    name, extra = env.get("SSL_CERT_FILE", ""), OWN_ROOTS
    bundle, own = (places.certificates_of(places.read_inside(pid, path)) for path in (name, extra))
    if not own:
        return Finding("trust", "fail", f"{extra} holds no certificate")
    lacking = [cert for cert in own if cert not in bundle]
    if lacking:
        detail = f"{name} lacks {len(lacking)} of the {len(own)} own certificates"
        return Finding("trust", "fail", detail, "programs will not trust what is terminated")
    outside = [why for cert in own if (why := places.out_of_date(cert, time.time()))]
    if outside:
        return Finding("trust", "fail", f"a certificate of {extra} {outside[0]}", "check the clock")
    distrust = _distrusted(looked.record.name)
    detail = f"{name} has {len(bundle)} certificates, {len(own)} of this sandbox's own among them"
    if distrust:
        detail += f"; yet {distrust} clients ended as if they did not trust them"
        return Finding("trust", "warn", detail, "see netns-debug why HOST")
    return Finding("trust", "ok", detail)


def _distrusted(name: str) -> int:
    from netns_runtime.control import ask

    try:
        events = ask(name, {"command": "recent"}, DEADLINE).get("events", [])
    except NetnsError:
        return 0
    return sum(event.get("reason") == "client_tls_error" for event in events)


def clock(looked: Looked) -> Finding:
    """The sandbox has the host's clock; whether that is kept right."""
    if looked.enter is None:
        return Finding("clock", "unknown", "the supervisor did not say which process CMD is")
    own, theirs = (os.stat(f"/proc/{pid}/ns/time") for pid in ("self", looked.enter["pid"]))
    if (own.st_dev, own.st_ino) != (theirs.st_dev, theirs.st_ino):
        return Finding("clock", "warn", "CMD has a time namespace of its own")
    now = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    buffer = ctypes.create_string_buffer(256)
    state = ctypes.CDLL(None, use_errno=True).adjtimex(buffer)
    if state == _NTP_ERROR:
        detail = f"the host's, {now} UTC; the kernel does not know it to be synchronised"
        return Finding("clock", "warn", detail, "if it is wrong, certificates seem expired")
    if state < 0:
        return Finding("clock", "unknown", f"the host's, {now} UTC; synchronised or not is unknown")
    return Finding("clock", "ok", f"the host's, {now} UTC, synchronised")


def uplink(looked: Looked) -> Finding:
    """Routes of the namespace that the proxy dials from."""
    routes = _inside(_uplink_path(looked.record), places.default_routes)
    where = looked.record.uplink or "the host's network"
    if not routes:
        detail = f"{where} has no default route"
        return Finding("uplink", "warn", detail, "only addresses on its own links can be dialled")
    told = ", ".join(f"{link} (MTU {mtu})" for link, mtu in routes.items())
    if any(mtu < IPV6_LEAST for mtu in routes.values()):
        return Finding("uplink", "warn", f"{where}: default by {told}: below IPv6's {IPV6_LEAST}")
    return Finding("uplink", "ok", f"{where}: default by {told}")


def resolver(looked: Looked) -> list[Finding] | Finding:
    """Each name server that the proxy asks, from where it asks."""
    if looked.uplink is None:
        return Finding("resolver", "unknown", "the supervisor did not say which there are")
    servers = [(str(host), int(port)) for host, port in looked.uplink["nameservers"]]
    if not servers:
        text = Path("/etc/resolv.conf").read_text(encoding="utf-8", errors="replace")
        servers = places.nameservers_of(text)
    if not servers:
        return Finding("resolver", "fail", "no name server is known", "give --resolver ADDR")
    query = places.query_of("", 2)

    def ask_all() -> list[str]:
        return [places.dns_over_udp(server, query, DEADLINE) for server in servers[:3]]

    findings = []
    for (host, port), why in zip(
        servers, _inside(_uplink_path(looked.record), ask_all), strict=False
    ):
        if why:
            findings.append(Finding("resolver", "fail", f"{host}:{port}: {why}", _RESOLVER_REMEDY))
        else:
            findings.append(Finding("resolver", "ok", f"{host}:{port} answers from the uplink"))
    return findings


_RESOLVER_REMEDY: Final = "names cannot be resolved; check it, or give another --resolver"


def firewall(looked: Looked) -> Finding:
    """What of the uplink's nft rules may stop the proxy; iptables-legacy cannot be seen by nft."""
    from netns_runtime.firewall import nft

    def look() -> tuple[list[str], str]:
        return concerns_of(nft.read_ruleset()), places.legacy_tables()

    concerns, legacy = _inside(_uplink_path(looked.record), look)
    if concerns:
        more = f" (and {len(concerns) - 2} more)" if len(concerns) > 2 else ""
        detail = "; ".join(concerns[:2]) + more
        return Finding("firewall", "warn", detail, "look there where upstream is not reached")
    if legacy:
        detail = f"iptables-legacy has tables ({legacy}); what they drop is unknown to nft"
        return Finding("firewall", "unknown", detail, "see iptables-legacy-save")
    return Finding("firewall", "ok", "no nft rule of the uplink drops what the proxy sends")
