"""Judges what a run did by a policy, with the product's own rules: what is missing, what is unused.

Executables go by the path that the audit has, since an audit has no inodes. Pure.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from netns_runtime.address import HostPort
from netns_runtime.debug.learnpaths import EVERYTHING
from netns_runtime.policy import Policy, decide
from netns_runtime.policy.globs import path_matches
from netns_runtime.policy.matchers import MESSAGES
from netns_runtime.policy.requests import Asked, decide_request, inspects

if TYPE_CHECKING:
    from collections.abc import Iterable

    from netns_runtime.debug.learned import Seen
    from netns_runtime.policy import Endpoint
    from netns_runtime.policy.matchers import Matcher

LOOKUP_PORT: Final = 443
"""The port of an endpoint whose name was only looked up."""


def refusals_of(policy: Policy, seen: Iterable[Seen]) -> list[tuple[Seen, str]]:
    """What of it the policy refuses, each with the policy's remedy. `binaries` go by their path."""
    found = []
    for one in seen:
        remedy = _refusal_of(policy, one)
        if remedy is not None:
            found.append((one, remedy))
    return found


def _refusal_of(policy: Policy, seen: Seen) -> str | None:
    if seen.port is None:
        covering = any(
            _covers_name(policy, seen.host, port)
            for _, endpoint in policy.candidates(seen.host)
            for port in endpoint.ports or (LOOKUP_PORT,)
        )
        return None if covering else f"--allow {seen.host}"
    mine = for_executable(policy, seen.exe)
    target = HostPort(seen.host, seen.port)
    decision = decide(mine, target)
    if not decision.is_allowed:
        return decision.remedy
    if seen.request is None or not inspects(decision):
        return None
    request = seen.request
    asked = Asked(request.method, request.path, (), request.is_websocket)
    if request.path == EVERYTHING:
        return None
    judged = decide_request(mine, target, None, asked)
    if not judged.is_allowed or judged.noted:
        return judged.remedy
    if request.sends and judged.websocket is not None:
        message = judged.websocket.judge("", None)
        return None if message.is_allowed or judged.websocket.needs_json else message.remedy
    return None


def _covers_name(policy: Policy, host: str, port: int) -> bool:
    return decide(policy_of_anybody(policy), HostPort(host, port)).is_allowed


def policy_of_anybody(policy: Policy) -> Policy:
    """The policy as if no rule named executables."""
    return Policy(tuple(replace(rule, binaries=None) for rule in policy.rules))


def for_executable(policy: Policy, exe: str | None) -> Policy:
    """The rules that are for this executable, by the path that the audit has."""
    return Policy(
        tuple(
            replace(rule, binaries=None)
            for rule in policy.rules
            if rule.binaries is None
            or (exe is not None and any(path_matches(b.path, exe) for b in rule.binaries))
        )
    )


def unused_of(policy: Policy, seen: Iterable[Seen]) -> list[str]:
    """Endpoints, and single rules of used ones, that nothing seen needed: one line each."""
    used: set[int] = set()
    matched: set[int] = set()
    for one in seen:
        mine = for_executable(policy, one.exe)
        port = one.port or LOOKUP_PORT
        for _, endpoint in decide(mine, HostPort(one.host, port)).matching:
            used.add(id(endpoint))
            matched |= {id(item) for item in _matchers(endpoint) if _is_for(item, one)}
    found = []
    for rule in policy.rules:
        for endpoint in rule.endpoints:
            ports = ",".join(map(str, endpoint.ports or ("*",)))
            where = f"{rule.text}: {endpoint.host or 'any host'}:{ports}"
            if id(endpoint) not in used:
                found.append(f"{where} (line {endpoint.line})" if endpoint.line else where)
                continue
            found += [
                f"{where}: {item.method} {item.path} (at {item.where})"
                for item in _matchers(endpoint)
                if id(item) not in matched
            ]
    return found


def _matchers(endpoint: Endpoint) -> tuple[Matcher, ...]:
    """The rules as they are written; a preset's are nobody's to remove."""
    rules = endpoint.requests
    if rules is None or rules.access is not None:
        return ()
    return tuple(item for item in rules.allows if item.where)


def _is_for(item: Matcher, seen: Seen) -> bool:
    request = seen.request
    if request is None:
        return seen.moved
    if item.method in MESSAGES:
        return request.sends and path_matches(item.path, request.path)
    return item.has_method(request.method) and path_matches(item.path, request.path)
