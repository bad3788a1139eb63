"""Whether a policy lets a request, or a WebSocket message, pass on a flow that it allowed.

All endpoints for the flow's host, port and owner are judged together, as OpenShell does:
1. a deny rule of any of them refuses, and so does `websocket: refuse`;
2. of those with rules, the most specific host and then the most specific `path` decide, and among
   equals what any allows is allowed;
3. an endpoint without request rules adds nothing where another has some; `--allow` adds everything.
Where servers differ in reading a path (`//`, `;params`, `%2F`) or a query (`;`), each reading is
judged: all must be allowed and none denied, nor what is percent-encoded over and over. Pure; a
refusal is a value that names the rule and the line to write.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from netns_runtime.policy.decision import ALLOWED, DENIED, matching
from netns_runtime.policy.globs import selector_specificity
from netns_runtime.policy.hosts import specificity
from netns_runtime.policy.matchers import MESSAGES, TEXT, Matcher
from netns_runtime.policy.messages import MessageRule, RequestDecision, WebSocketRules
from netns_runtime.policy.remedies import Asked, Member, not_allowed, pattern_of, shown

if TYPE_CHECKING:
    from netns_runtime.address import HostPort
    from netns_runtime.owner import Owner
    from netns_runtime.policy.decision import Decision
    from netns_runtime.policy.matchers import Pairs, RequestRules
    from netns_runtime.policy.rules import Candidate, Policy

__all__ = [
    "Asked",
    "RequestDecision",
    "WebSocketRules",
    "decide_request",
    "inspects",
    "takes_encoded_slash",
    "terminates",
]

MAX_UNITED: Final = 512
"""Targets and owners whose endpoints are kept put together, for each policy."""
_PARAMS: Final = re.compile(r"(?:;|%3B)[^/]*")
MAX_LAYERS: Final = 8
"""How often a path is read over; `wire.path` refuses what is encoded more often than that."""
_ESCAPE: Final = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED: Final = re.compile(r"[A-Za-z0-9._~-]")
_SLASHES: Final = re.compile(r"//+")
_EVERYTHING: Final = Matcher("*", "**")


@dataclass(frozen=True, slots=True)
class _United:
    """What all endpoints of one flow say about requests. `members` are in the order of rank.

    `every` is the `--allow` that adds everything, with the specificity of its host.
    """

    members: tuple[Member, ...]
    every: tuple[str, tuple[int, int, int, int]] | None
    first: str | None


def decide_request(
    policy: Policy, target: HostPort, owner: Owner | None, asked: Asked
) -> RequestDecision:
    """Judge one request of a flow that `decide` allowed."""
    key = (target, owner)
    united: _United | None = policy.united.get(key)
    if united is None:
        if len(policy.united) >= MAX_UNITED:
            policy.united.clear()
        united = policy.united[key] = _unite(matching(policy, target, owner))
    if not united.members:
        return RequestDecision("allow", ALLOWED, united.first, f"{united.first} allows {target}")
    path = asked.path
    readings = _readings(path) if "//" in path or ";" in path or "%3B" in path else (path,)
    method = asked.verb
    noted: RequestDecision | None = None
    # An encoded slash that an endpoint takes is data to what allows, and a slash to what denies.
    denied = [*readings, *_readings(path.replace("%2F", "/"))] if "%2F" in path else readings
    if "%25" in path:
        denied = [*denied, *(once for inner in _layers(path) for once in _readings(inner))]
    for reading in denied:
        refused = _denial(united, reading, method, asked)
        if refused is not None and not refused.noted:
            return refused
        noted = noted or refused
    allowed: RequestDecision | None = None
    for reading in readings:
        judged = _allowance(united, target, reading, method, asked)
        if not judged.is_allowed:
            return judged
        if judged.noted:
            noted = noted or judged
        if allowed is None or judged.websocket is not None:
            allowed = judged
    assert allowed is not None
    if noted is not None:
        return replace(noted, action="allow", noted=True, websocket=allowed.websocket)
    return allowed


def terminates(decision: Decision, has_secrets: bool) -> bool:
    """Whether a flow so decided is terminated; `has_secrets`: some secret is bound to its host.

    `tls: skip` and `protocol: tcp` win over secrets, and over request rules of a wider host; where
    the same host has rules, those win.
    """
    endpoint = decision.endpoint
    inspection = endpoint.inspection if endpoint is not None else None
    if endpoint is None or inspection is None:
        return has_secrets or inspects(decision)
    if inspection.tls == "skip" or inspection.protocol == "tcp":
        rank = specificity(endpoint.host)
        return any(
            other.requests is not None and specificity(other.host) >= rank
            for _, other in decision.matching
        )
    return has_secrets or inspection.tls == "terminate" or inspects(decision)


def inspects(decision: Decision) -> bool:
    """Whether some endpoint of that host, port and owner has request rules at all."""
    return any(endpoint.requests is not None for _, endpoint in decision.matching)


def takes_encoded_slash(decision: Decision) -> bool:
    """Whether %2F and %5C may stand in a path: an endpoint says so, or none judges paths."""
    judging = [endpoint.requests for _, endpoint in decision.matching if endpoint.requests]
    return not judging or any(rules.allow_encoded_slash for rules in judging)


def _unite(candidates: list[Candidate]) -> _United:
    members = [
        Member(
            rule.text,
            endpoint.requests,
            endpoint,
            (specificity(endpoint.host), selector_specificity(endpoint.requests.path)),
        )
        for rule, endpoint in candidates
        if endpoint.requests is not None
    ]
    members.sort(key=lambda member: member.rank, reverse=True)
    every = [
        (specificity(endpoint.host), rule.text)
        for rule, endpoint in candidates
        if endpoint.every_request
    ]
    usable = [rule.text for rule, endpoint in candidates if endpoint.unenforced is None]
    widest = max(every, default=None)
    return _United(
        tuple(members),
        (widest[1], widest[0]) if widest is not None else None,
        usable[0] if usable else None,
    )


def _readings(path: str) -> tuple[str, ...]:
    """The path as sent first, then as servers read it that merge slashes or drop parameters."""
    bare = _PARAMS.sub("", path)
    return tuple(
        dict.fromkeys((path, _SLASHES.sub("/", path), bare or "/", _SLASHES.sub("/", bare) or "/"))
    )


def _layers(path: str) -> tuple[str, ...]:
    """The path as servers read it that decode again, once and over again."""
    found: list[str] = []
    while "%25" in path and len(found) < MAX_LAYERS:
        path = _ESCAPE.sub(_decoded, path.replace("%25", "%"))
        found.append(path)
    return tuple(found)


def _decoded(found: re.Match[str]) -> str:
    character = chr(int(found[1], 16))
    return character if _UNRESERVED.match(character) else found[0].upper()


def _split_again(pairs: Pairs) -> Pairs:
    """The parameters as servers read them for which `;` parts them too; none where none has one."""
    if not any(";" in name or ";" in value for name, value in pairs):
        return ()
    parts = (part for pair in pairs for part in "=".join(pair).split(";"))
    return tuple((name, value) for name, _, value in (part.partition("=") for part in parts))


def _allows(matcher: Matcher, path: str, pairs: Pairs) -> bool:
    again = _split_again(pairs)
    return matcher.allows(path, pairs) and (not again or matcher.allows(path, again))


def _denial(united: _United, path: str, method: str, asked: Asked) -> RequestDecision | None:
    noted: RequestDecision | None = None
    pairs = asked.query + _split_again(asked.query)
    for member in united.members:
        rules = member.rules
        if (not rules.denies and rules.refuses_websocket is None) or not rules.selects(path):
            continue
        refused: RequestDecision | None = None
        if asked.is_websocket and rules.refuses_websocket is not None:
            refused = RequestDecision(
                "refuse",
                DENIED,
                member.rule,
                f"{member.rule} refuses WebSocket upgrades here",
                f"remove `websocket: refuse` at {rules.refuses_websocket}"
                if rules.protocol != "graphql"
                else f"give {shown(path)} an endpoint with `protocol: websocket`",
            )
        for matcher in rules.denies:
            if refused is not None:
                break
            if not matcher.message and matcher.has_method(method) and matcher.denies(path, pairs):
                refused = RequestDecision(
                    "refuse",
                    DENIED,
                    member.rule,
                    f"the deny rule at {matcher.where} of {member.rule} refuses "
                    f"{shown(asked.method)} {shown(path)}",
                    f"remove or narrow the deny rule at {matcher.where}",
                )
        if refused is not None:
            if not rules.audits:
                return refused
            noted = noted or replace(refused, action="allow", noted=True)
    return noted


def _allowance(
    united: _United, target: HostPort, path: str, method: str, asked: Asked
) -> RequestDecision:
    rank = None
    group: list[Member] = []
    for member in united.members:
        if rank is not None and member.rank != rank:
            break
        if member.rules.selects(path):
            rank = member.rank
            group.append(member)
    if united.every is not None and (rank is None or united.every[1] >= rank[0]):
        text = united.every[0]
        messages = _message_rules(united, [], text, path, asked) if asked.is_websocket else None
        return RequestDecision(
            "allow", ALLOWED, text, f"{text} allows every request", websocket=messages
        )
    for member in group:
        for matcher in member.rules.allows:
            if matcher.has_method(method) and _allows(matcher, path, asked.query):
                messages = None
                if asked.is_websocket:
                    messages = _message_rules(united, group, member.rule, path, asked)
                detail = f"{member.rule} allows {shown(asked.method)} {shown(path)}"
                return RequestDecision("allow", ALLOWED, member.rule, detail, websocket=messages)
    refused = not_allowed(united.members, group, target, path, asked)
    judging = group or united.members
    if all(member.rules.audits for member in judging):
        messages = None
        if asked.is_websocket:
            messages = _message_rules(united, group, refused.rule or "", path, asked)
        return replace(refused, action="allow", noted=True, websocket=messages)
    return refused


def _message_rules(
    united: _United, group: list[Member], rule: str, path: str, asked: Asked
) -> WebSocketRules | None:
    """What judges the messages of this upgrade; None where nothing could be refused."""
    judging = [member for member in group if _concerns(member.rules, path)]
    allows = [
        MessageRule(matcher, member.rule)
        for member in judging
        for matcher in member.rules.allows
        if matcher.method in {"*", *MESSAGES} and matcher.allows(path, asked.query)
    ]
    if not judging:
        # REST rules say nothing of messages, but who may only read may not write that way either.
        judging = [member for member in group if member.rules.access == "read-only"]
        if not judging or any(
            matcher.has_method("GET") and matcher.allows(path, asked.query)
            for member in group
            if member not in judging
            for matcher in member.rules.allows
        ):
            judging, allows = [], [MessageRule(_EVERYTHING, rule)]
    denies = [
        MessageRule(matcher, member.rule, member.rules.audits)
        for member in united.members
        if member.rules.selects(path)
        for matcher in member.rules.denies
        if matcher.method in {"*", *MESSAGES} and matcher.denies(path, asked.query)
    ]
    covered = {item.matcher.method for item in allows if not item.matcher.message}
    if not denies and ("*" in covered or TEXT in covered):
        return None
    presets = [member.rules.where for member in judging if member.rules.access is not None]
    return WebSocketRules(
        tuple(allows),
        tuple(denies),
        judging[0].rule if judging else rule,
        pattern_of(path),
        presets[0] if presets else None,
        bool(judging) and all(member.rules.audits for member in judging),
        any(item.matcher.message for item in (*allows, *denies)),
    )


def _concerns(rules: RequestRules, path: str) -> bool:
    return rules.judges_messages and any(
        matcher.allows(path, ()) or bool(matcher.query) for matcher in rules.allows
    )
