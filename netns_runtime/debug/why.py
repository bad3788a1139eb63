"""`netns-debug why HOST[:PORT]`: where a connection stops, by whose word, and what would allow it.

It asks a running sandbox for its policy, the kernel's counters and its last events, or reads an
audit file (`--from`), or judges by a policy file alone (`--policy`). It changes nothing and sends
nothing. Ends with 0 and an explanation, which may be that something is unknown, or in one
NetnsError.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from netns_runtime.address import HostPort
from netns_runtime.cli.text import say, say_json
from netns_runtime.debug.asking import USAGE, parse
from netns_runtime.debug.attempts import attempts_of
from netns_runtime.debug.evidence import Evidence
from netns_runtime.debug.foresee import Facts, Question
from netns_runtime.debug.text import shown
from netns_runtime.debug.walk import walk
from netns_runtime.debug.whypage import Known, counts_of, json_of, page_of
from netns_runtime.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from netns_runtime.debug.asking import Asking
    from netns_runtime.debug.attempts import Attempt
    from netns_runtime.owner import Owner
    from netns_runtime.policy import Policy
    from netns_runtime.policy.requests import Asked

__all__ = ["USAGE", "main"]


def main(words: list[str], as_json: bool) -> int:
    """Explain one host. `words` as USAGE has them."""
    asking = parse(words)
    known = _known(asking)
    question, attempts, notes = _question(asking, known)
    facts = Facts(known.policy, known.redirect, known.report, attempts, _now(known))
    found = walk(question, facts)
    counts = counts_of(question, known)
    notes = (*known.notes, *known.evidence.notes, *notes, *found.notes)
    if as_json:
        say_json(json_of(question, known, found, attempts, counts, notes))
    else:
        say(page_of(question, known, found, attempts, counts, notes))
    return 0


def _now(known: Known) -> str:
    from netns_runtime.events import timestamp

    return timestamp() if known.in_force is not None else ""


def _known(asking: Asking) -> Known:
    policy = _policy_of(asking.policies) if asking.policies else None
    by = " ".join(f"--policy {shown(path)}" for path in asking.policies)
    if asking.source is not None:
        from netns_runtime.debug.evidence import read_audit

        evidence = read_audit(asking.source)
        if asking.sandbox is not None:
            evidence = evidence.only(asking.sandbox)
        by = by or "what the audit says of its policy; --policy FILE would judge anew"
        return Known(evidence.source, evidence, policy, by, redirect_of(evidence))
    if asking.policies and asking.sandbox is None:
        evidence = Evidence("no sandbox: by the policy alone", ())
        return Known(evidence.source, evidence, policy, by, redirect=True)
    return _live(asking, policy, by)


def _live(asking: Asking, policy: Policy | None, by: str) -> Known:
    if os.geteuid() != 0:
        raise UsageError(
            "a running sandbox needs root to be asked", remedy="sudo netns-debug why …"
        )
    from netns_runtime.debug import live

    record = live.chosen(asking.sandbox)
    found = live.in_force(record.name)
    notes: tuple[str, ...] = ()
    if policy is None and found.policy is None:
        notes = ("the sandbox is of another version and its policy cannot be read here: --policy "
                 "FILE judges by a file",)  # fmt: skip
    return Known(
        f"sandbox {record.name}",
        found.recent,
        policy or found.policy,
        by or "the policy in force",
        found.redirect,
        found.report,
        found,
        notes,
    )


def _policy_of(paths: Sequence[str]) -> Policy:
    from netns_runtime.policy import Policy, identify_binaries, read_policy

    policy = Policy.merged(*[read_policy(path) for path in paths])
    # Nobody in particular: what an unprivileged CMD could write identifies nobody.
    return identify_binaries(policy, (65534, ()))


def _question(asking: Asking, known: Known) -> tuple[Question, list[Attempt], tuple[str, ...]]:
    events = known.evidence.about(asking.host, asking.port)
    attempts = attempts_of(events)
    port, notes = asking.port, []
    if port is None:
        ports = (attempt.get("port") for attempt in attempts)
        tried = [port for port in ports if isinstance(port, int) and 0 < port < 65536]
        port = tried[-1] if tried else port_of(asking.host, known.policy)
        whence = "the last attempt's" if tried else "assumed"
        notes.append(f"port {port} is {whence}; HOST:PORT asks for another")
        attempts = [a for a in attempts if a.get("port") in (None, port)]
    target = HostPort(asking.host, port)
    request = _request_of(asking)
    if request is not None:
        alike = [a for a in attempts if _is_alike(a, request)]
        attempts = alike or [a for a in attempts if a.get("method") is None]
    owner = owner_of(asking.exe, attempts[-1] if attempts else None)
    if asking.exe is not None:
        attempts = [a for a in attempts if a.get("exe") in (None, asking.exe)]
    return Question(target, request, owner), attempts, tuple(notes)


def port_of(host: str, policy: Policy | None) -> int:
    """443, unless the policy names the host with other ports only."""
    found = [
        endpoint.ports
        for _, endpoint in (policy.candidates(host) if policy is not None else ())
        if endpoint.host == host
    ]
    if not found or any(ports is None or 443 in ports for ports in found):
        return 443
    return min(port for ports in found for port in ports or ())


def _request_of(asking: Asking) -> Asked | None:
    if asking.path is None:
        return None
    from netns_runtime.policy.requests import Asked
    from netns_runtime.wire import ProtocolError
    from netns_runtime.wire.path import normalise_target

    try:
        target = normalise_target(asking.path, allow_encoded_slash=True)
    except ProtocolError as error:
        raise UsageError(
            f"--url: {error}: the proxy would refuse it (400)", remedy="correct the URL"
        ) from None
    return Asked(asking.method, target.path, target.pairs, asking.is_websocket)


def _is_alike(attempt: Attempt, request: Asked) -> bool:
    path = str(attempt.get("path") or "").partition("?")[0]
    if request.is_websocket and attempt.get("protocol") != "websocket":
        return False
    return attempt.get("method") == request.method and path == request.path


def owner_of(exe: str | None, attempt: Attempt | None) -> Owner | None:
    """The executable asked about, or the last attempt's, as the kernel identifies it."""
    path = exe or (attempt.get("exe") if attempt is not None else None)
    if not isinstance(path, str):
        return None
    try:
        status = os.stat(path)
    except OSError as error:
        if exe is None:
            return None
        raise UsageError(
            f"--exe {shown(exe)}: {error.strerror}", remedy="name it as the host sees it"
        ) from error
    from netns_runtime.owner import Owner

    # The kernel's dev_t, as policy.binaries has it; importing that takes as long as all the rest.
    device = os.major(status.st_dev) << 20 | os.minor(status.st_dev)
    pid = int(attempt.get("pid") or 0) if attempt is not None else 0
    comm = os.path.basename(path)[:15]
    return Owner(pid, comm, status.st_ino, device, os.path.realpath(path))


def redirect_of(evidence: Evidence) -> bool | None:
    """Whether redirection was on, as far as events show it."""
    return True if any(event.get("entry") == "redirected" for event in evidence.events) else None
