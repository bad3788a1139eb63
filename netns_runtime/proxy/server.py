"""Serves sandboxes: their listening sockets, one relay, and the control socket.

`serve` runs until the supervisor says stop or ends; then every flow is closed, each with its
`flow.closed` line. `main` is the process: it imports everything, waits for its configuration, gives
up its privileges, says ready, and serves.
"""

from __future__ import annotations

import gc
import os
import signal
import socket
from contextlib import ExitStack, suppress
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

import idna
import trio

from netns_runtime import layout
from netns_runtime.audit import AuditLog
from netns_runtime.proxy import privileges
from netns_runtime.proxy.control import Control, receive_config
from netns_runtime.proxy.explicit import accept_clients
from netns_runtime.proxy.names import VirtualNames
from netns_runtime.proxy.peer import tune
from netns_runtime.proxy.redirected import serve_redirected
from netns_runtime.proxy.relay import Relay
from netns_runtime.proxy.reload import swap_policy
from netns_runtime.proxy.resolve import NameServers, Resolver, SystemResolver
from netns_runtime.proxy.sandbox import Sandbox
from netns_runtime.proxy.tallies import Tallies
from netns_runtime.proxy.tap import Tap
from netns_runtime.proxy.telling import Telling

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Sequence

    from netns_runtime.config import ProxyConfig
    from netns_runtime.proxy.ca import Authority
    from netns_runtime.proxy.flow import Flow
    from netns_runtime.proxy.keylog import Keylog
    from netns_runtime.proxy.sandbox import OwnerSource

# A client of ours speaks first: the kernel accepts when it did, at the latest after this.
DEFER_ACCEPT = 1
# A terminal's signals are for CMD; our end is the control socket's.
_NOT_OURS = (signal.SIGINT, signal.SIGQUIT, signal.SIGTSTP, signal.SIGHUP, signal.SIGTTOU)


def resolver_of(config: ProxyConfig) -> Resolver:
    """What the configuration says to resolve names with."""
    return SystemResolver() if config.use_system_resolver else NameServers(config.nameservers)


def flows_of(sandbox: Sandbox) -> list[dict[str, Any]]:
    """The open flows as netns-debug shows them; `duration_ms` so far."""
    now = trio.current_time()
    return [
        {
            key: value
            for key, value in {
                **flow.fields(),
                "rule": flow.decision.rule,
                "duration_ms": round((now - flow.started) * 1000),
                **dict(flow.progress() if flow.progress is not None else ()),
                **_ends_of(flow),
            }.items()
            if value is not None
        }
        for flow in sandbox.flows.values()
    ]


def tallies_of(sandbox: Sandbox) -> dict[str, Any]:
    """What everything so far adds up to (tallies.Tallies.told)."""
    return sandbox.tallies.told(sandbox.flows.values(), sandbox.connections)


def _ends_of(flow: Flow) -> dict[str, Any]:
    """Each socket as [own address, own port, peer's address, peer's port], for sock_diag(7)."""
    found: dict[str, Any] = {}
    for name, sock in zip(("client_socket", "upstream_socket"), flow.sockets or (), strict=False):
        with suppress(OSError):
            found[name] = [*sock.getsockname()[:2], *sock.getpeername()[:2]]
    return found


async def serve(
    sandbox: Sandbox,
    listeners: Sequence[socket.socket],
    control: Control | None = None,
    *,
    transparent: Sequence[socket.socket] = (),
    dns: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Serve one sandbox. Without a control socket, until cancelled. Listeners are borrowed.

    An accepted socket of `transparent` has the original destination for its own address. `dns`
    serves policy DNS until it is cancelled.
    """
    try:
        async with trio.open_nursery() as nursery:
            sandbox.nursery = nursery
            nursery.start_soon(sandbox.relay.run)
            if dns is not None:
                nursery.start_soon(dns)
            for listener in transparent:
                # A client may wait for its server to speak first: nothing is deferred.
                listener.setblocking(False)
                tune(listener)
                nursery.start_soon(accept_clients, sandbox, listener, nursery, serve_redirected)
            for listener in listeners:
                listener.setblocking(False)
                tune(listener)
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, DEFER_ACCEPT)
                nursery.start_soon(accept_clients, sandbox, listener, nursery)
            if control is None:
                await trio.sleep_forever()
            else:
                control.say({"kind": "ready"})
                await control.serve(
                    partial(flows_of, sandbox),
                    partial(swap_policy, sandbox),
                    partial(tallies_of, sandbox),
                    None if sandbox.tap is None else partial(sandbox.tap.add, sandbox),
                )
            nursery.cancel_scope.cancel()
    finally:
        sandbox.relay.close_all("connection_terminated", "sandbox", "the sandbox ended")
        sandbox.relay.close()
        if control is not None:
            control.tell_events()


def _owners_of(config: ProxyConfig, fds: list[int]) -> OwnerSource | None:
    if not fds:
        return None
    from netns_runtime.probes.owners import OwnerTable

    return OwnerTable(fds[0], config.cookie)


def _dns_of(
    sandbox: Sandbox,
    control: Control,
    names: VirtualNames,
    udp: Sequence[socket.socket],
    tcp: Sequence[socket.socket],
) -> Callable[[], Awaitable[None]]:
    from netns_runtime.proxy.dns import Resolver53, serve_dns

    resolver = Resolver53(
        names,
        lambda: sandbox.config.policy,
        sandbox.audit,
        control.owner_of,
        report_only=sandbox.config.report,
        report=sandbox.report,
        tap=sandbox.tap,
    )
    sandbox.tallies.untold = resolver.refused.untold
    return partial(serve_dns, resolver, udp, tcp)


def _import_the_rest(config: ProxyConfig, authority: Authority | None) -> None:
    """Whatever Python imports at first use, now: afterwards nothing can be."""
    if authority is not None:
        from netns_runtime.proxy.birth import warmed_up

        import_module("netns_runtime.proxy.terminate")
        import_module("netns_runtime.proxy.substitute")
        import_module("netns_runtime.proxy.websocket")
        warmed_up(authority)
    if config.audit_format == "ocsf":
        import_module("netns_runtime.ocsf")
    import_module("encodings.idna")
    idna.encode("bücher.test", uts46=True, std3_rules=True)
    if not config.use_system_resolver:
        import_module("netns_runtime.proxy.dnsclient")
    if "dns_udp" in config.descriptors or "dns_tcp" in config.descriptors:
        import_module("netns_runtime.proxy.dns")


def _tell_supervisor(
    control: Control, tallies: Tallies, telling: Telling | None, event: dict[str, Any]
) -> None:
    """Which name a virtual address stands for, so that a refused connect to it can be named; for
    `-v`, what was refused here; and whatever it is for who asks later."""
    tallies.take(event)
    control.note(event)
    if event["event"] == "dns.answered":
        control.say({"kind": "name", "host": event["host"], "address": event["address"]})
    elif telling is not None and telling.takes(event):
        control.say({"kind": "refused", "event": event})


async def _run(
    config: ProxyConfig,
    fds: dict[str, list[int]],
    owners: OwnerSource | None,
    sock: socket.socket,
    authority: Authority | None,
    upstream_context: ssl.SSLContext | None,
    tap: Tap,
) -> None:
    control = Control(sock)
    tallies = Tallies()
    tell = partial(_tell_supervisor, control, tallies, Telling() if config.verbose else None)
    fd = fds["audit"][0] if "audit" in fds else None
    audit = AuditLog(fd, config.sandbox, tell, config.audit_format)
    relay = Relay(crashed=lambda error: control.report(f"relay: {type(error).__name__}: {error}"))
    sandbox = Sandbox(
        config,
        audit,
        resolver_of(config),
        relay,
        owners=owners,
        names=(names := VirtualNames(config.limits.names)),
        exe_of=control.exe_of,
        report=control.report,
        tallies=tallies,
        authority=authority,
        upstream_context=upstream_context,
        tap=tap,
    )
    with ExitStack() as stack:
        explicit, transparent, udp, tcp = (
            [stack.enter_context(socket.socket(fileno=fd)) for fd in fds.get(kind, [])]
            for kind in ("explicit", "transparent", "dns_udp", "dns_tcp")
        )
        dns = _dns_of(sandbox, control, names, udp, tcp) if udp or tcp else None
        await serve(sandbox, explicit, control, transparent=transparent, dns=dns)


def _upstream_context() -> tuple[ssl.SSLContext, Keylog]:
    """What upstreams are dialled with, and what keys are logged to: nothing can be opened for
    writing later. (The one takes 20 ms, the other 1 ms; at once on two threads they take 22.)"""
    from netns_runtime.proxy.keylog import Keylog
    from netns_runtime.proxy.secure import upstream_context

    return upstream_context(), Keylog()


def main(control_fd: int, authority: Authority | None = None) -> int:
    """The proxy process. Returns its exit status. Without an authority nothing is terminated."""
    for number in _NOT_OURS:
        signal.signal(number, signal.SIG_IGN)
    parent = os.getppid()
    privileges.make_unreadable()
    upstream_context, keylog = _upstream_context() if authority is not None else (None, None)
    with socket.socket(fileno=control_fd) as control:
        received = receive_config(control)
        if received is None:
            return 0
        config, fds = received
        if upstream_context is not None and config.upstream_ca:
            upstream_context.load_verify_locations(cadata=config.upstream_ca.decode("ascii"))
        if keylog is not None:
            keylog.upstream_ca = config.upstream_ca
        _import_the_rest(config, authority)
        owners = _owners_of(config, fds.get("owners", []))
        if os.geteuid() == 0:
            privileges.give_up(layout.PROXY_UID, flows=config.limits.flows, parent=parent)
        # What was imported stays: the collector need not look at it again.
        gc.freeze()
        trio.run(_run, config, fds, owners, control, authority, upstream_context, Tap(keylog))
    return 0
