"""What the policy and the sandbox's configuration say of a connection, before anybody tries it.

`predicted` gives a Step for each step of the way, `still_stops` whether what refused an attempt
would refuse it under this policy as well, and `changes_of` the smallest changes that would allow
it. Pure; a policy or a setting that is not known makes a step unknown, never a guess.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from netns_runtime import layout
from netns_runtime.debug.steps import ORDER
from netns_runtime.policy import Policy, decide
from netns_runtime.policy.hosts import host_matches, specificity
from netns_runtime.policy.rules import network_of
from netns_runtime.screening import screen

if TYPE_CHECKING:
    from collections.abc import Sequence

    from netns_runtime.address import HostPort
    from netns_runtime.debug.attempts import Attempt
    from netns_runtime.owner import Owner
    from netns_runtime.policy import Decision
    from netns_runtime.policy.requests import Asked

PROXY: Final = f"{layout.GATEWAY_IPV4}:{layout.PROXY_PORT}"


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked about. `request` is given with --url; `owner` with --exe, or the last
    attempt's."""

    target: HostPort
    request: Asked | None = None
    owner: Owner | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """`attempts` are those about the question, oldest first. None is unknown. `now` is the time
    as events have it, "" where nobody can be asked any more."""

    policy: Policy | None
    redirect: bool | None
    report: bool
    attempts: Sequence[Attempt] = ()
    now: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """One step: `state`, a sentence, and the rule (name and file:line) if one speaks."""

    step: str
    state: str
    detail: str
    rule: str | None = None


def predicted(question: Question, facts: Facts) -> list[Step]:
    """What policy and configuration say of each step, without any attempt."""
    target, policy = question.target, facts.policy
    literal = target.address
    nowhere = "--policy FILE, or a running sandbox, would show"
    if policy is None:
        unknown = [Step(name, "unknown", f"no policy to judge by: {nowhere}") for name in ORDER[:4]]
        return [*unknown, *_upstream_unknown()]
    decision = decide(policy, target, question.owner)
    steps = [_dns(policy, target), *_kernel(policy, target, facts)]
    steps.append(_decision(policy, question, decision))
    steps += _upstream_unknown()
    if literal is not None:
        why = screen(literal, frozenset(), decision.allowed_ips)
        steps[4] = Step("resolve", "ok", "an address needs no name")
        if why is None:
            steps[5] = Step("screening", "ok", f"{literal} may be dialled, unless it is the host's")
        else:
            steps[5] = Step("screening", "stop", f"{literal} is not dialled: {why}", decision.rule)
    if question.request is not None and decision.is_allowed:
        steps[8] = _request(policy, question, question.request)
    return steps


def _upstream_unknown() -> list[Step]:
    untried = "no attempt got as far: trying it would show"
    return [Step(name, "unknown", untried) for name in ORDER[4:]]


def covering(policy: Policy, name: str) -> str | None:
    """The rule by which policy DNS answers a name: the narrowest that covers it, on any port."""
    found = [
        (rule, endpoint)
        for rule, endpoint in policy.candidates(name)
        if endpoint.host and host_matches(endpoint.host, name)
    ]
    return max(found, key=lambda pair: specificity(pair[1].host))[0].text if found else None


def _dns(policy: Policy, target: HostPort) -> Step:
    if target.address is not None:
        return Step("dns", "ok", "an address needs no name")
    rule = covering(policy, target.host)
    if rule is None:
        return Step("dns", "stop", f"no rule covers {target.host}: answered NXDOMAIN")
    return Step("dns", "ok", f"{target.host} is answered with a virtual address", rule)


def _kernel(policy: Policy, target: HostPort, facts: Facts) -> list[Step]:
    served = f"{PROXY} is served"
    if facts.redirect is None:
        told = f"{served}; whether --redirect was on is not on record"
        return [Step("hook", "ok", told), Step("gateway", "ok", served)]
    if not facts.redirect:
        told = f"{served}; past the proxy everything is refused (--redirect off)"
        return [Step("hook", "ok", told), Step("gateway", "ok", served)]
    if target.address is None:
        return [
            Step("hook", "ok", f"virtual addresses and {PROXY} are served"),
            Step("gateway", "ok", "TCP to virtual addresses is handed to the proxy"),
        ]
    listed = any(
        address == target.address and (ports is None or target.port in ports)
        for address, ports in policy.listed
    )
    if listed:
        return [
            Step("hook", "ok", "the policy lists this address"),
            Step("gateway", "ok", "TCP to it is handed to the proxy"),
        ]
    refused = f"a direct connect to {target} is refused: no rule lists it"
    return [Step("hook", "stop", refused), Step("gateway", "unreached", "not reached")]


def _decision(policy: Policy, question: Question, decision: Decision) -> Step:
    where = decision.rule
    if decision.rule is not None and decision.endpoint is not None and decision.endpoint.line:
        where = f"{decision.rule}, endpoint at line {decision.endpoint.line}"
    if decision.is_allowed:
        return Step("decision", "ok", decision.detail, where)
    if question.owner is None:
        anyone = Policy(tuple(replace(rule, binaries=None) for rule in policy.rules))
        if decide(anyone, question.target).is_allowed:
            told = f"{decision.detail}: --exe PATH asks for one executable"
            return Step("decision", "unknown", told, where)
    return Step("decision", "stop", decision.detail, where)


def _request(policy: Policy, question: Question, asked: Asked) -> Step:
    from netns_runtime.policy.requests import decide_request

    judged = decide_request(policy, question.target, question.owner, asked)
    state = "ok" if judged.is_allowed else "stop"
    return Step("traffic", state, judged.detail, judged.rule)


def still_stops(attempt: Attempt, question: Question, facts: Facts) -> bool:
    """Whether what stopped the attempt would stop it under this policy as well."""
    policy, target = facts.policy, question.target
    if policy is None or attempt.outcome != "refused" or attempt.step is None:
        return True
    reason = attempt.get("reason")
    if attempt.step == "dns":
        return reason != "name_not_allowed" or covering(policy, target.host) is None
    if attempt.step in ("hook", "gateway"):
        if attempt.get("protocol") != "tcp" or not facts.redirect:
            return True
        return target.address is not None and _kernel(policy, target, facts)[0].state == "stop"
    decision = decide(policy, target, question.owner)
    if attempt.step == "decision":
        return reason != "http_request_denied" or not decision.is_allowed
    if attempt.step == "screening":
        address = attempt.get("address")
        if not address or "uplink itself" in str(attempt.get("detail")):
            return True
        return screen(ip_address(address), frozenset(), decision.allowed_ips) is not None
    # What a message of a WebSocket said is not on record, and cannot be judged again.
    is_request = attempt.event["event"] != "ws.closed" and attempt.get("method")
    if attempt.step == "traffic" and is_request and reason == "http_request_denied":
        from netns_runtime.policy.requests import Asked, decide_request

        path, is_websocket = str(attempt.get("path") or "/"), attempt.get("protocol") == "websocket"
        asked = question.request or Asked(
            str(attempt.get("method")), path.partition("?")[0], (), is_websocket
        )
        return not decide_request(policy, target, question.owner, asked).is_allowed
    return True


def changes_of(question: Question, facts: Facts, stop: str, remedy: str) -> tuple[str, ...]:
    """Policy changes or flags, the smallest first, each of which allows it as far as `stop` goes.

    `remedy` is what the refusal itself advised, "" without an attempt.
    """
    target, policy = question.target, facts.policy
    if stop == "screening":
        return _listing(target, facts) if not remedy or remedy.startswith("if that") else (remedy,)
    if stop == "traffic" and policy is not None and question.request is not None:
        from netns_runtime.policy.requests import decide_request

        judged = decide_request(policy, target, question.owner, question.request)
        remedy = judged.remedy if not judged.is_allowed else remedy
    if stop == "dns" and remedy.startswith("--allow"):
        # Policy DNS is not told a port; we are.
        remedy = f"--allow {target}"
    if stop in ("hook", "gateway"):
        return _for_direct(target, facts, remedy)
    found = [remedy] if remedy and not remedy.startswith("none:") else []
    if stop in ("dns", "decision") and policy is not None:
        decision = decide(policy, target, question.owner)
        if not decision.is_allowed and decision.remedy:
            found = [decision.remedy, *_in_file(target, decision)]
    return tuple(dict.fromkeys(found))


def _in_file(target: HostPort, decision: Decision) -> list[str]:
    endpoint, rule = decision.endpoint, decision.rule
    if rule is None or endpoint is None:
        return [f"in a policy file: endpoints: [{{host: {_host(target)}, port: {target.port}}}]"]
    if endpoint.ports is not None and target.port not in endpoint.ports and endpoint.line:
        return [f"add {target.port} to the ports of the endpoint at line {endpoint.line} of {rule}"]
    return []


def _listing(target: HostPort, facts: Facts) -> tuple[str, ...]:
    """Lift the screening of the very address that was refused, where anything lifts it."""
    address = target.address
    for attempt in reversed(facts.attempts):
        if attempt.step == "screening" and attempt.get("address"):
            address = ip_address(attempt.get("address"))
            break
    if address is None or screen(address, frozenset(), (network_of(address),)) is not None:
        return ()
    written = f'"{address}"' if address.version == 6 else address
    fields = f"host: {_host(target)}, port: {target.port}, allowed_ips: [{written}]"
    return (f"in a policy file: endpoints: [{{{fields}}}]",)


def _for_direct(target: HostPort, facts: Facts, remedy: str) -> tuple[str, ...]:
    """For a connect past the proxy. Where an address is the question, listing it carries it."""
    tried = facts.attempts[-1].get("protocol") if facts.attempts else None
    if tried not in (None, "tcp"):
        return ()
    if target.address is None or facts.redirect is False:
        return (remedy,) if remedy else ("--redirect on",)
    if screen(target.address) is not None:
        return _listing(target, facts)
    return (f"--allow {target}",)


def _host(target: HostPort) -> str:
    return f'"{target.host}"' if ":" in target.host else target.host
