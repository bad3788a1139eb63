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
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from netns_runtime import proxyprocess, reclaim, state
from netns_runtime.audit import AuditLog
from netns_runtime.capable import check_capable
from netns_runtime.config import ProxyConfig
from netns_runtime.control import listening
from netns_runtime.entering import enter_plan
from netns_runtime.events import timestamp
from netns_runtime.feed import Feed
from netns_runtime.gateway import Gateway
from netns_runtime.namespace import cgroup, netns
from netns_runtime.namespace.netlink import apply_links, kernel_has_ipv6, link_plan
from netns_runtime.request import addresses_of_uplink
from netns_runtime.running import launch_child, supervise
from netns_runtime.sandbox import Guard, Sandbox
from netns_runtime.supervise import complain, tell_refusal

if TYPE_CHECKING:
    from pathlib import Path

    from netns_runtime.namespace.enter_launch import Child
    from netns_runtime.probes.probe import Probe
    from netns_runtime.proxyprocess import ProxyProcess
    from netns_runtime.request import Request


def run(request: Request) -> int:
    """Run the request's command in a new sandbox; the exit status for netns-run."""
    check_capable()
    started = time.monotonic()
    with ExitStack() as stack:
        sandbox = _set_up(request, stack, started)
        status = supervise(request, stack, sandbox)
    reclaim.reclaim_quietly()
    return status


def _set_up(request: Request, stack: ExitStack, started: float) -> Sandbox:
    """Everything that encloses CMD, in order; `stack` undoes it from the last to the first."""
    spec = request.spec
    name = spec.name or state.generated_name()
    state.prepare()
    claim = stack.enter_context(state.claim(name))
    control = stack.enter_context(listening(name))
    has_authority = wants_authority(request)
    proxy = proxyprocess.start(request.uplink_fd, wants_ca=has_authority)
    stack.callback(proxy.stop)
    feed = Feed(proxy)
    stack.callback(feed.close)
    heard = partial(_heard, feed) if spec.verbose else feed.take
    audit = AuditLog(request.audit_fd, name, heard, spec.audit_format)
    cgroups = stack.enter_context(cgroup.create_cgroups(cgroup.hierarchies(), name, spec.limits))
    gateway_fd = stack.enter_context(netns.create_namespace("gateway namespace"))
    sandbox_fd = stack.enter_context(netns.create_namespace("sandbox namespace"))
    cookie = netns.cookie_of(sandbox_fd)
    # Recorded before the probe knows the cookie, so that nobody reclaims a living entry.
    record = _record(request, name, cookie, cgroups.unified, sandbox_fd, gateway_fd)
    claim.write(record)

    def launched(certificate: bytes | None) -> Child:
        plan = enter_plan(request, str(cgroups.unified), certificate)
        child = launch_child(plan, sandbox_fd, cgroups)
        stack.callback(child.close)
        return child

    # CMD's processes are made while the rest is set up; CMD itself waits for `go`. Where its files
    # hold the proxy's certificate, the rest is set up while the proxy makes that.
    child = None if has_authority else launched(None)
    apply_links(link_plan(has_ipv6=kernel_has_ipv6()), sandbox_fd=sandbox_fd, gateway_fd=gateway_fd)
    gateway = Gateway(gateway_fd, spec.redirect)
    gateway.load(request.policy.listed)
    guard = _guard(request, cookie, cgroups.unified, stack)
    if guard.lost and spec.verbose:
        complain(guard.lost)
    record = replace(record, pins=guard.pins)
    child = child or launched(proxy.certificate())
    _configure_proxy(request, record, gateway, guard, proxy)
    return Sandbox(
        *(claim, control, record, audit, proxy, child, guard, cgroups, sandbox_fd, gateway),
        feed,
        started,
        has_authority,
    )


def _heard(feed: Feed, event: dict[str, Any]) -> None:
    feed.take(event)
    tell_refusal(event)


def wants_authority(request: Request) -> bool:
    """Whether anything may be terminated: `--allow` alone says nothing about requests."""
    spec = request.spec
    return bool(spec.policies or spec.presets or spec.secrets or spec.inspect)


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
        presets=spec.presets,
        secrets=request.supplied.listed() if request.supplied is not None else (),
    )


def _guard(request: Request, cookie: int, own: Path, stack: ExitStack) -> Guard:
    """The probe, if it is wanted and can be had; otherwise nft alone, with what that loses."""
    wanted = request.spec.probe
    if wanted == "nft":
        return Guard("nft", None)
    from netns_runtime.probes.unavailable import ProbeUnavailable

    try:
        probe: Probe = _open_probe()
        stack.callback(probe.close)
        registration = probe.register(
            cookie, own, redirect=request.spec.redirect, listed=request.policy.listed
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


def _open_probe() -> Probe:
    from netns_runtime.probes.pins import ensure_probe

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
            audit_format=spec.audit_format,
            inspect=spec.inspect,
            upstream_ca=request.upstream_ca,
            **_secrets_of(request),
        )
        proxy.configure(config, [fd for _, fd in descriptors])
    if request.supplied is not None:
        request.supplied.forget()


def _secrets_of(request: Request) -> dict[str, Any]:
    """What the proxy gets to know of the secrets; where there are none, nothing."""
    supplied = request.supplied
    if supplied is None:
        return {}
    return {
        "secrets": supplied.for_proxy,
        "secrets_token": supplied.token,
        "readers": supplied.readers,
    }
