"""Wires the stages: from a Request to a running sandbox, its supervision and its end.

Kernel first: everything is set up by plain synchronous code inside one ExitStack, so that a failure
at any step undoes the steps before it, and only then does CMD run. The proxy process is started
first of all because it imports while the namespaces are built. Ends with CMD's exit status, or with
a NetnsError that names the step.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from netns_runtime import proxyprocess, reclaim, state
from netns_runtime.audit import AuditError, AuditLog
from netns_runtime.config import ProxyConfig
from netns_runtime.entering import enter_plan
from netns_runtime.errors import EXIT_FAILED, StepError, step_error
from netns_runtime.events import timestamp
from netns_runtime.gateway import CARRIES, Gateway
from netns_runtime.namespace import cgroup, netns
from netns_runtime.namespace.netlink import apply_links, kernel_has_ipv6, link_plan
from netns_runtime.request import addresses_of_uplink
from netns_runtime.supervise import StatusWriter, Supervisor, complain, tell_refusal

if TYPE_CHECKING:
    from pathlib import Path

    from netns_runtime.namespace.enter import EnterPlan
    from netns_runtime.namespace.enter_launch import Child
    from netns_runtime.probes.probe import Probe, Registration
    from netns_runtime.proxyprocess import ProxyProcess
    from netns_runtime.request import Request


@dataclass(frozen=True, slots=True)
class Guard:
    """Which of the two counts: `mode` is bpf or nft, `lost` says what is lost without the probe."""

    mode: str
    registration: Registration | None
    lost: str = ""
    pins: str = ""


@dataclass(frozen=True, slots=True)
class Sandbox:
    """One sandbox that is set up; everything in it is closed by the ExitStack that made it."""

    claim: state.Claim
    record: state.Record
    audit: AuditLog
    proxy: ProxyProcess
    guard: Guard
    cgroups: cgroup.Cgroups
    sandbox_fd: int
    gateway: Gateway
    started: float


def run(request: Request) -> int:
    """Run the request's command in a new sandbox; the exit status for netns-run."""
    if os.geteuid() != 0:
        raise StepError("netns-run needs root", remedy="run sudo netns-run …")
    started = time.monotonic()
    with ExitStack() as stack:
        sandbox = _set_up(request, stack, started)
        plan = enter_plan(request, str(sandbox.cgroups.unified))
        status = _supervise(request, stack, sandbox, plan)
    reclaim.reclaim_quietly()
    return status


def _set_up(request: Request, stack: ExitStack, started: float) -> Sandbox:
    """Everything that encloses CMD, in order; `stack` undoes it from the last to the first."""
    spec = request.spec
    name = spec.name or state.generated_name()
    state.prepare()
    claim = stack.enter_context(state.claim(name))
    proxy = proxyprocess.start(request.uplink_fd)
    stack.callback(proxy.stop)
    audit = AuditLog(request.audit_fd, name, tell_refusal if spec.verbose else None)
    cgroups = stack.enter_context(cgroup.create_cgroups(cgroup.hierarchies(), name, spec.limits))
    gateway_fd = stack.enter_context(netns.create_namespace("gateway namespace"))
    sandbox_fd = stack.enter_context(netns.create_namespace("sandbox namespace"))
    cookie = netns.cookie_of(sandbox_fd)
    # Recorded before the probe knows the cookie, so that nobody reclaims a living entry.
    record = _record(request, name, cookie, cgroups.unified, sandbox_fd, gateway_fd)
    claim.write(record)
    apply_links(link_plan(has_ipv6=kernel_has_ipv6()), sandbox_fd=sandbox_fd, gateway_fd=gateway_fd)
    gateway = Gateway(gateway_fd, spec.redirect and CARRIES)
    gateway.load(request.policy.listed)
    guard = _guard(request, cookie, cgroups.unified, stack)
    if guard.lost and spec.verbose:
        complain(guard.lost)
    record = replace(record, pins=guard.pins)
    _configure_proxy(request, record, gateway, guard, proxy)
    return Sandbox(claim, record, audit, proxy, guard, cgroups, sandbox_fd, gateway, started)


def _record(
    request: Request, name: str, cookie: int, own: Path, sandbox_fd: int, gateway_fd: int
) -> state.Record:
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


def _guard(request: Request, cookie: int, own: Path, stack: ExitStack) -> Guard:
    """The probe, if it is wanted and can be had; otherwise nft alone, with what that loses."""
    wanted = request.spec.probe
    if wanted == "nft":
        return Guard("nft", None)
    from netns_runtime.probes.unavailable import ProbeUnavailable

    try:
        probe: Probe = _open_probe(request)
        stack.callback(probe.close)
        registration = probe.register(
            cookie, own, redirect=request.spec.redirect and CARRIES, listed=request.policy.listed
        )
    except ProbeUnavailable as error:
        if request.spec.verbose and error.details:
            sys.stderr.write(error.details + "\n")
        if wanted == "bpf":
            raise
        lost = "refused connects are counted by nft and not attributed to a process"
        return Guard("nft", None, f"no probe ({error}); {lost}")
    stack.callback(registration.close)
    return Guard("bpf", registration, pins=str(probe.directory))


def _open_probe(request: Request) -> Probe:
    from netns_runtime.probes.pins import ensure_probe

    if request.spec.verbose:
        complain("opening the probe (the first launch after an upgrade compiles it)")
    return ensure_probe()


def _configure_proxy(
    request: Request,
    record: state.Record,
    gateway: Gateway,
    guard: Guard,
    proxy: ProxyProcess,
) -> None:
    spec = request.spec
    # In its own network namespace a thread reads its own addresses; without --uplink, the host's.
    own = (
        netns.run_in(request.uplink_fd, addresses_of_uplink)
        if request.uplink_fd is not None
        else addresses_of_uplink()
    )
    with ExitStack() as stack:
        descriptors = [(name, sock.fileno()) for name, sock in gateway.sockets(stack)]
        if request.audit_fd is not None:
            descriptors.append(("audit", request.audit_fd))
        if guard.registration is not None:
            owners_fd = guard.registration.owners_fd()
            stack.callback(os.close, owners_fd)
            descriptors.append(("owners", owners_fd))
        config = ProxyConfig(
            sandbox=record.name,
            policy=request.policy,
            cookie=record.cookie,
            report=spec.report,
            redirect=spec.redirect,
            limits=spec.limits,
            use_system_resolver=not request.nameservers,
            nameservers=request.nameservers,
            own_addresses=own,
            descriptors=tuple(name for name, _ in descriptors),
            verbose=spec.verbose,
        )
        proxy.configure(config, [fd for _, fd in descriptors])


def _supervise(request: Request, stack: ExitStack, sandbox: Sandbox, plan: EnterPlan) -> int:
    """Start CMD's processes, let CMD go when everything serves, and follow it to its end."""
    from netns_runtime.namespace.terminal import JobControl, Terminal
    from netns_runtime.refusals import Refusals

    status_writer = StatusWriter(request.spec.status_fd)
    refusals = Refusals(
        sandbox.audit,
        sandbox.guard.registration,
        sandbox.gateway.counters,
        complain,
    )
    child = _launch(plan, sandbox)
    status = EXIT_FAILED
    try:
        job = JobControl(child, Terminal.controlling())
        stack.callback(job.close)

        def on_ready(pid: int) -> None:
            _announce(request, sandbox, status_writer, pid)
            _let_go_of_streams()
            child.go()

        status = Supervisor(
            child=child,
            proxy=sandbox.proxy,
            job=job,
            registration=sandbox.guard.registration,
            refusals=refusals,
            on_ready=on_ready,
        ).run()
    finally:
        child.close()
        status_writer.write("exited", sandbox=sandbox.record.name, code=status)
    refusals.drain()
    refusals.poll_nft()
    sandbox.proxy.stop()
    _write_exit(sandbox.audit, status, refusals.totals(), sandbox.started)
    return status


def _announce(request: Request, sandbox: Sandbox, status_writer: StatusWriter, pid: int) -> None:
    """Record that CMD is about to run. A sandbox that cannot be recorded does not start."""
    record, guard = sandbox.record, sandbox.guard
    sandbox.claim.write(replace(record, pid=pid, proxy=sandbox.proxy.pid, probe=guard.mode))
    try:
        # Only CMD's name: arguments carry what people do not mean to publish.
        sandbox.audit.write(
            "sandbox.started",
            pid=pid,
            uid=request.user.uid,
            probe=guard.mode,
            command=request.spec.command[0],
            detail=guard.lost or None,
        )
    except AuditError as error:
        raise StepError(str(error), remedy="free some space, or name another --audit") from error
    status_writer.write(
        "started",
        sandbox=record.name,
        pid=pid,
        supervisor=record.supervisor,
        proxy=sandbox.proxy.pid,
        cookie=record.cookie,
        cgroup=record.cgroup,
    )


def _let_go_of_streams() -> None:
    """CMD has stdin and stdout now; held here too, their other ends would never see them close."""
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for number in (0, 1):
        os.dup2(null, number)
    os.close(null)


def _launch(plan: EnterPlan, sandbox: Sandbox) -> Child:
    from netns_runtime.namespace.enter_launch import launch

    with ExitStack() as stack:
        fds = []
        for path in sandbox.cgroups.all():
            fd = os.open(path / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            fds.append(fd)
        try:
            return launch(plan, netns_fd=sandbox.sandbox_fd, cgroup_fds=fds)
        except OSError as error:
            raise step_error("sandbox process", error) from error


def _write_exit(audit: AuditLog, status: int, totals: dict[str, int], started: float) -> None:
    try:
        audit.write(
            "sandbox.exited",
            code=status,
            duration_ms=round((time.monotonic() - started) * 1000),
            **totals,
        )
    except AuditError as error:
        complain(str(error))
