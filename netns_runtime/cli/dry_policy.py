"""What `--dry-run` says about each endpoint of the policy: who may use it, which requests, and
what becomes of its TLS. Pure.

TLS is `tunnelled`, `terminated` (with why), or the endpoint is `refused because not enforceable`.
Other endpoints for the same host are looked at, as the proxy will; who connects is not known yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from netns_runtime.policy.hosts import host_matches, is_wildcard, specificity

if TYPE_CHECKING:
    from collections.abc import Iterable

    from netns_runtime.policy.rules import Endpoint, Policy, Rule
    from netns_runtime.request import Request
    from netns_runtime.secret import Binding


def policy_lines(request: Request) -> list[str]:
    """One line for each endpoint of each rule, and one for each missing executable."""
    supplied = request.supplied
    bindings = supplied.bindings if supplied is not None else ()
    given = [binding for binding in bindings if binding.expose != "env"]
    lines = []
    for rule in request.policy.rules:
        for endpoint in rule.endpoints:
            facts = [*_requests(endpoint), _tls(request, endpoint, given), *_who(rule)]
            lines.append(f"{_target(endpoint)} by {rule.text}: {', '.join(facts)}")
    if request.spec.report:
        lines.append("--report: what nothing above allows is allowed too, and said")
    return lines


def _target(endpoint: Endpoint) -> str:
    ports = "any port" if endpoint.ports is None else ",".join(map(str, endpoint.ports))
    host = endpoint.host or "any host at " + ", ".join(map(str, endpoint.allowed_ips))
    word = "allow" if endpoint.unenforced is None else "refuse"
    return f"{word} {host} {ports}"


def _requests(endpoint: Endpoint) -> list[str]:
    """Protocol, access or the number of rules, and enforcement."""
    inspection, rules = endpoint.inspection, endpoint.requests
    if inspection is None or (rules is None and inspection.protocol is None):
        return ["every request"]
    facts = [f"protocol {inspection.protocol or 'rest'}"]
    if inspection.rules:
        facts.append(_count(len(inspection.rules), "rule"))
    elif inspection.access is not None:
        facts.append(f"access {inspection.access}")
    if inspection.deny_rules:
        facts.append(_count(len(inspection.deny_rules), "deny rule"))
    if inspection.path is not None:
        facts.append(f"path {inspection.path}")
    if rules is not None:
        facts.append("enforcement audit" if rules.audits else "enforcement enforce")
    return facts


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("s" if number != 1 else "")


def _tls(request: Request, endpoint: Endpoint, bindings: Iterable[Binding]) -> str:
    if endpoint.unenforced is not None:
        return f"refused because not enforceable: {endpoint.unenforced}"
    inspection = endpoint.inspection
    bound = [
        binding.name
        for binding in bindings
        if any(_overlap(host, endpoint.host) for host in binding.hosts)
    ]
    closed = None
    if inspection is not None:
        closed = "`tls: skip`" if inspection.tls == "skip" else None
        closed = "`protocol: tcp`" if inspection.protocol == "tcp" else closed
    judging = _judged_with(request.policy, endpoint, at_least=closed is not None)
    if judging is not None:
        return f"TLS terminated ({judging})"
    if closed is not None:
        said = f"TLS tunnelled ({closed})"
        if not bound:
            return said
        return f"{said}: {' and '.join(bound)} {'is' if len(bound) == 1 else 'are'} not put in"
    if inspection is not None and inspection.tls == "terminate":
        return "TLS terminated (`tls: terminate`)"
    if bound:
        return f"TLS terminated (for {', '.join(bound)})"
    return "TLS tunnelled"


def _judged_with(policy: Policy, endpoint: Endpoint, *, at_least: bool) -> str | None:
    """Whose rules on requests have it terminated; `at_least`: those of a wider host have not."""
    if endpoint.requests is not None:
        return "its requests are judged"
    for rule in policy.rules:
        for other in rule.endpoints:
            if (
                other.requests is not None
                and _covers(other, endpoint)
                and not (at_least and specificity(other.host) < specificity(endpoint.host))
            ):
                return f"{rule.text} judges its requests"
    return None


def _covers(other: Endpoint, endpoint: Endpoint) -> bool:
    if other.ports and endpoint.ports and not set(other.ports) & set(endpoint.ports):
        return False
    return bool(endpoint.host) and _overlap(other.host, endpoint.host)


def _overlap(pattern: str, host: str) -> bool:
    if not pattern or not host or pattern == host:
        return pattern == host
    if is_wildcard(pattern):
        return host_matches(pattern, host.replace("**", "x").replace("*", "x"))
    return host_matches(host, pattern)


def _who(rule: Rule) -> list[str]:
    """The executables that may use it, and which of those there are not."""
    if rule.binaries is None:
        return []
    if not rule.binaries:
        return ["for no executable"]
    facts = ["for " + " ".join(binary.path for binary in rule.binaries)]
    missing = [binary.path for binary in rule.binaries if not binary.identities]
    return [*facts, f"missing {' '.join(missing)}"] if missing else facts
