"""From a sandbox that is set up to the end of its CMD: launch, announce, supervise, account.

CMD's processes are started while the proxy still gets ready, and let go when both are. Ends with
the exit status for netns-run, or with a NetnsError when CMD never ran.
"""

from __future__ import annotations

import base64
import os
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from netns_runtime.audit import AuditError
from netns_runtime.errors import EXIT_FAILED, StepError, step_error
from netns_runtime.namespace import netns
from netns_runtime.namespace.enter_launch import launch
from netns_runtime.namespace.terminal import JobControl, Terminal
from netns_runtime.processes import holder_of, members_of, sockets_at
from netns_runtime.refusals import Refusals
from netns_runtime.requests import Requests
from netns_runtime.situation import Situation
from netns_runtime.supervise import StatusWriter, Supervisor, complain

if TYPE_CHECKING:
    from netns_runtime.audit import AuditLog
    from netns_runtime.namespace.cgroup import Cgroups
    from netns_runtime.namespace.enter import EnterPlan
    from netns_runtime.namespace.enter_launch import Child
    from netns_runtime.processes import Process
    from netns_runtime.request import Request
    from netns_runtime.sandbox import Sandbox
    from netns_runtime.secret import Binding


def supervise(request: Request, stack: ExitStack, sandbox: Sandbox) -> int:
    """Let CMD go when everything serves, and follow it to its end."""
    status_writer = StatusWriter(request.spec.status_fd)
    refusals = Refusals(
        sandbox.audit,
        sandbox.guard.registration,
        sandbox.gateway.counters,
        complain,
        redirect=request.spec.redirect,
    )
    child = sandbox.child
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
            control=sandbox.control,
            requests=_requests(request, sandbox, refusals),
            find_owner=partial(_owner_of_port, sandbox),
            on_ready=on_ready,
        ).run()
    except BaseException:
        status_writer.write("exited", sandbox=sandbox.record.name, code=EXIT_FAILED)
        raise
    finally:
        child.close()
    refusals.drain()
    refusals.poll_nft()
    sandbox.proxy.stop(heard=sandbox.feed.on_last_words)
    _write_exit(sandbox.audit, status, refusals.totals(), sandbox.started)
    status_writer.write("exited", sandbox=sandbox.record.name, code=status)
    return status


def _requests(request: Request, sandbox: Sandbox, refusals: Refusals) -> Requests:
    supplied = request.supplied

    def on_policy(name: str, bindings: tuple[Binding, ...]) -> None:
        from netns_runtime.supplied import listed

        sandbox.claim.write(
            replace(
                sandbox.claim.record,
                policies=(os.path.abspath(name),),
                presets=(),
                allow=(),
                secrets=listed(bindings),
            )
        )

    return Requests(
        gateway=sandbox.gateway,
        registration=sandbox.guard.registration,
        proxy=sandbox.proxy,
        identify=request.identify,
        on_policy=on_policy,
        has_authority=sandbox.has_authority,
        feed=sandbox.feed,
        tells={"enter": partial(_entering, sandbox), "uplink": partial(_uplink, request, sandbox)},
        situation=Situation(request.policy, refusals, request.spec.report),
        bindings=supplied.bindings if supplied is not None else (),
    )


def _entering(sandbox: Sandbox) -> dict[str, Any]:
    """What `netns-debug enter` needs to hold a second command as CMD is held."""
    child = sandbox.child
    if child.command is None or child.command_pid is None:
        raise StepError("CMD does not run yet", remedy="try again")
    command = child.command
    return {
        "pid": child.command_pid,
        "env": dict(command.env),
        "cwd": command.cwd,
        "uid": command.identity.uid,
        "gid": command.identity.gid,
        "groups": list(command.identity.groups),
        "filters": [base64.b64encode(program).decode("ascii") for program in child.filters],
        "cgroups": [str(path) for path in sandbox.cgroups.all()],
    }


def _uplink(request: Request, sandbox: Sandbox) -> dict[str, Any]:
    """What `netns-debug doctor` cannot see from outside: where names are resolved, for one."""
    return {
        "nameservers": [list(server) for server in request.nameservers],
        "has_authority": sandbox.has_authority,
        "redirect": sandbox.gateway.redirect,
        "own_roots": sandbox.has_authority or request.upstream_ca is not None,
    }


def _owner_of_port(sandbox: Sandbox, protocol: str, port: int) -> Process | None:
    inodes = netns.run_in(sandbox.sandbox_fd, lambda: sockets_at(protocol, port))
    return holder_of(inodes, members_of(sandbox.cgroups.unified))


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


def launch_child(plan: EnterPlan, sandbox_fd: int, cgroups: Cgroups) -> Child:
    """Start CMD's processes inside the namespace and the cgroups. Raises StepError."""
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
    try:
        audit.write(
            "sandbox.exited",
            code=status,
            duration_ms=round((time.monotonic() - started) * 1000),
            **totals,
        )
    except AuditError as error:
        complain(str(error))
