"""Wires the stages: from a Request to a running sandbox, its supervision and its end.

Kernel first: everything is set up by plain synchronous code inside one ExitStack, so that a failure
at any step undoes the steps before it, and only then does CMD run. The proxy process is started
first of all because it imports while the namespaces are built. Ends with CMD's exit status, or with
a NetnsError that names the step.
"""

from __future__ import annotations

import os
import socket
import sys
import sysconfig
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from netns_runtime import layout, proxyprocess, reclaim, state
from netns_runtime.audit import AuditLog
from netns_runtime.config import ProxyConfig
from netns_runtime.errors import NetnsError, StepError, step_error
from netns_runtime.firewall.ruleset import gateway_ruleset
from netns_runtime.namespace import cgroup, netns
from netns_runtime.namespace.netlink import apply_links, kernel_has_ipv6, link_plan
from netns_runtime.request import addresses_of_uplink
from netns_runtime.supervise import StatusWriter, Supervisor, complain, refuse_without_record

if TYPE_CHECKING:
    from netns_runtime.firewall.nft import Counters
    from netns_runtime.namespace.enter import EnterPlan
    from netns_runtime.probes.probe import Probe, Registration
    from netns_runtime.proxyprocess import ProxyProcess
    from netns_runtime.request import Request

BACKLOG = 4096


@dataclass(frozen=True, slots=True)
class Guard:
    """Which of the two counts: `mode` is bpf or nft, `lost` says what is lost without the probe."""

    mode: str
    registration: Registration | None
    lost: str = ""


def run(request: Request) -> int:
    """Run the request's command in a new sandbox; the exit status for netns-run."""
    spec = request.spec
    if os.geteuid() != 0:
        raise StepError("netns-run needs root", remedy="run sudo netns-run …")
    started = time.monotonic()
    with ExitStack() as stack:
        name = spec.name or state.generated_name()
        state.prepare()
        claim = stack.enter_context(state.claim(name))
        proxy = proxyprocess.start(request.uplink_fd)
        stack.callback(proxy.stop)
        audit = AuditLog(request.audit_fd, name, _teller() if spec.verbose else None)
        where = cgroup.hierarchies()
        cgroups = stack.enter_context(cgroup.create_cgroups(where, name, spec.limits))
        gateway_fd = stack.enter_context(netns.create_namespace("gateway namespace"))
        sandbox_fd = stack.enter_context(netns.create_namespace("sandbox namespace"))
        cookie = netns.cookie_of(sandbox_fd)
        record = _record(request, name, cookie, cgroups.unified, sandbox_fd, gateway_fd)
        claim.write(record)
        apply_links(
            link_plan(has_ipv6=kernel_has_ipv6()), sandbox_fd=sandbox_fd, gateway_fd=gateway_fd
        )
        _load_rules(gateway_fd)
        guard = _guard(request, cookie, cgroups.unified, stack)
        if guard.lost and spec.verbose:
            complain(guard.lost)
        _configure_proxy(request, name, cookie, gateway_fd, guard, proxy)
        plan = enter_plan(request, str(cgroups.unified))
        status = _supervise(
            request, stack, claim, record, audit, proxy, guard, plan, cgroups, gateway_fd, started
        )
    reclaim.reclaim_quietly()
    return status


def _record(
    request: Request, name: str, cookie: int, own: Path, sandbox_fd: int, gateway_fd: int
) -> state.Record:
    from netns_runtime.events import timestamp

    spec = request.spec
    descriptors = f"/proc/{os.getpid()}/fd"
    return state.Record(
        name=name,
        supervisor=os.getpid(),
        started=timestamp(),
        command=spec.command,
        uid=request.user.uid,
        cookie=cookie,
        cgroup=str(own),
        sandbox_ns=f"{descriptors}/{sandbox_fd}",
        gateway_ns=f"{descriptors}/{gateway_fd}",
        probe="starting",
        uplink=spec.uplink,
        policies=tuple(os.path.abspath(path) for path in spec.policies),
        allow=spec.allow,
        audit=spec.audit,
    )


def _load_rules(gateway_fd: int) -> None:
    from netns_runtime.firewall import nft

    netns.run_in(gateway_fd, lambda: nft.load(gateway_ruleset()))


def _read_rules(gateway_fd: int) -> Counters:
    from netns_runtime.firewall import nft

    return netns.run_in(gateway_fd, nft.read_counters)


def _guard(request: Request, cookie: int, own: Path, stack: ExitStack) -> Guard:
    """The probe, if it is wanted and can be had; otherwise nft alone, with what that loses."""
    wanted = request.spec.probe
    if wanted == "nft":
        return Guard("nft", None)
    from netns_runtime.probes.unavailable import ProbeUnavailable

    try:
        probe: Probe = _open_probe(request)
        stack.callback(probe.close)
        registration = probe.register(cookie, own)
    except ProbeUnavailable as error:
        if request.spec.verbose and error.details:
            sys.stderr.write(error.details + "\n")
        if wanted == "bpf":
            raise
        lost = "refused connects are counted by nft and not attributed to a process"
        return Guard("nft", None, f"no probe ({error}); {lost}")
    stack.callback(registration.close)
    return Guard("bpf", registration)


def _open_probe(request: Request) -> Probe:
    from netns_runtime.probes.pins import ensure_probe

    if request.spec.verbose:
        complain("opening the probe (the first launch after an upgrade compiles it)")
    return ensure_probe()


def _configure_proxy(
    request: Request,
    name: str,
    cookie: int,
    gateway_fd: int,
    guard: Guard,
    proxy: ProxyProcess,
) -> None:
    spec = request.spec
    listener = netns.run_in(gateway_fd, _listen)
    owners_fd = guard.registration.owners_fd() if guard.registration is not None else None
    # In its own network namespace the thread reads its own addresses; ours is the host's.
    own = (
        netns.run_in(request.uplink_fd, addresses_of_uplink)
        if request.uplink_fd is not None
        else addresses_of_uplink()
    )
    descriptors = {"explicit": listener.fileno()}
    if request.audit_fd is not None:
        descriptors["audit"] = request.audit_fd
    if owners_fd is not None:
        descriptors["owners"] = owners_fd
    config = ProxyConfig(
        sandbox=name,
        policy=request.policy,
        cookie=cookie,
        report=spec.report,
        redirect=spec.redirect,
        limits=spec.limits,
        use_system_resolver=not request.nameservers,
        nameservers=request.nameservers,
        own_addresses=own,
        descriptors=tuple(descriptors),
        verbose=spec.verbose,
    )
    try:
        proxy.configure(config, list(descriptors.values()))
    finally:
        listener.close()
        if owners_fd is not None:
            os.close(owners_fd)


def _listen() -> socket.socket:
    """The explicit proxy's socket: in the gateway, on 10.200.0.1 and no other address."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((str(layout.GATEWAY_IPV4), layout.PROXY_PORT))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise step_error("proxy socket in the gateway", error) from error
    return listener


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
    return tuple(dict.fromkeys(path for path in paths if os.path.exists(path)))


def enter_plan(request: Request, own_cgroup: str | None) -> EnterPlan:
    """How CMD enters: its environment, its view of the files, what it may not write."""
    from netns_runtime import trust
    from netns_runtime.environment import environment_of
    from netns_runtime.namespace.enter import Command, plan_enter
    from netns_runtime.namespace.filesystem import BoundFile, View
    from netns_runtime.namespace.filesystem_protect import Identity

    spec, user = request.spec, request.user
    files = [
        BoundFile(f"nameserver {layout.GATEWAY_IPV4}\n".encode(), ("/etc/resolv.conf",)),
    ]
    bundle = None
    if request.upstream_ca is not None:
        bundle = trust.system_store()
        system = Path(bundle).read_bytes() if bundle is not None else b""
        bundle = bundle or "/run/netns-runtime-ca.pem"
        files.append(BoundFile(trust.merged_bundle(system, request.upstream_ca), (bundle,)))
    environment = environment_of(
        os.environ,
        user=user.entry,
        sudo=user.is_sudo,
        bundle=bundle,
        exposed=spec.expose_sockets,
    )
    identity = Identity(user.uid, user.gid, user.groups)
    command = Command(spec.command, environment, request.directory, identity, spec.keep_fds)
    view = View(
        read_only=request.is_read_only,
        writable=spec.writable,
        expose_sockets=spec.expose_sockets,
        files=tuple(files),
        protected=protected_paths(request),
        cgroup=own_cgroup,
    )
    return plan_enter(command, view)


def _supervise(
    request: Request,
    stack: ExitStack,
    claim: state.Claim,
    record: state.Record,
    audit: AuditLog,
    proxy: ProxyProcess,
    guard: Guard,
    plan: EnterPlan,
    cgroups: cgroup.Cgroups,
    gateway_fd: int,
    started: float,
) -> int:
    from dataclasses import replace

    from netns_runtime.namespace.enter_launch import launch
    from netns_runtime.namespace.terminal import JobControl, Terminal
    from netns_runtime.refusals import Refusals

    spec = request.spec
    status_writer = StatusWriter(spec.status_fd)
    refusals = Refusals(audit, guard.registration, lambda: _read_rules(gateway_fd), complain)
    sandbox_fd = int(record.sandbox_ns.rpartition("/")[2])
    child = _launch(launch, plan, sandbox_fd, cgroups)
    ended = False
    try:
        job = JobControl(child, Terminal.controlling())
        stack.callback(job.close)

        def on_ready(pid: int) -> None:
            claim.write(replace(record, pid=pid, proxy=proxy.pid, probe=guard.mode))
            refuse_without_record(
                audit,
                pid=pid,
                uid=request.user.uid,
                probe=guard.mode,
                command=spec.command[0],
                detail=guard.lost or None,
            )
            status_writer.write(
                "started",
                sandbox=record.name,
                pid=pid,
                supervisor=record.supervisor,
                proxy=proxy.pid,
                cookie=record.cookie,
                cgroup=record.cgroup,
            )
            child.go()

        status = Supervisor(
            child=child,
            proxy=proxy,
            job=job,
            registration=guard.registration,
            refusals=refusals,
            audit=audit,
            on_ready=on_ready,
        ).run()
        ended = True
    finally:
        child.close()
        if not ended:
            status_writer.write("exited", sandbox=record.name, code=125)
    refusals.drain()
    refusals.poll_nft()
    proxy.stop()
    _write_exit(audit, status, refusals.totals(), started)
    status_writer.write("exited", sandbox=record.name, code=status)
    return status


def _launch(launch, plan, sandbox_fd: int, cgroups: cgroup.Cgroups):  # type: ignore[no-untyped-def]
    with ExitStack() as stack:
        fds = []
        for path in cgroups.all():
            fd = os.open(path / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            fds.append(fd)
        try:
            return launch(plan, netns_fd=sandbox_fd, cgroup_fds=fds)
        except OSError as error:
            raise step_error("sandbox process", error) from error


def _write_exit(audit: AuditLog, status: int, totals: dict[str, int], started: float) -> None:
    from netns_runtime.audit import AuditError

    try:
        audit.write(
            "sandbox.exited",
            code=status,
            duration_ms=round((time.monotonic() - started) * 1000),
            **totals,
        )
    except AuditError as error:
        complain(str(error))


def _teller():  # type: ignore[no-untyped-def]
    """`-v`: say on stderr what was refused, by whom, and what would allow it."""

    def tell(event: dict[str, object]) -> None:
        if event.get("action") != "refuse":
            return
        who = event.get("comm", "a process")
        pid = f" (pid {event['pid']})" if "pid" in event else ""
        where = event.get("host") or event.get("address") or "somewhere"
        port = f":{event['port']}" if "port" in event else ""
        complain(
            f"refused {who}{pid} to {where}{port}: {event.get('reason')}; {event.get('remedy')}"
        )

    return tell


__all__ = ["NetnsError", "run"]
