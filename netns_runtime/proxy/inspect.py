"""One request of an allowed flow: judged by the policy's rules, then given its secrets.

`judge_request` normalises the target, asks the policy, and puts values in place of placeholders
where a secret is bound to the host; it writes nothing. `write_substituted` and `write_body_hits`
write `secret.substituted` and `secret.withheld` before what they tell of goes upstream: no record,
no egress. `admit_request` is judging and writing in one. A refusal is a value; with `--report` and
`enforcement: audit` it is noted and the request goes on. A request that `enforcement: audit` lets
pass is allowed, with and without `--report`, and is given its secrets; one that passes because of
`--report` alone is given none.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from netns_runtime.audit import AuditError
from netns_runtime.policy.requests import Asked, decide_request, inspects, takes_encoded_slash
from netns_runtime.proxy.refuse import TABLE, Refusal
from netns_runtime.wire import ProtocolError
from netns_runtime.wire.path import NormalTarget, normalise_target

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from netns_runtime.policy import Policy
    from netns_runtime.policy.requests import RequestDecision, WebSocketRules
    from netns_runtime.proxy.flow import Flow
    from netns_runtime.proxy.sandbox import Sandbox
    from netns_runtime.secret import Secret
    from netns_runtime.wire.forward import Headers
    from netns_runtime.wire.rewrite import BodyRewriter, Hit


@dataclass(slots=True, eq=False)
class Admitted:
    """A request as it may go upstream: `target` and `headers` with their values in place.

    `body` rewrites the content, where it is to be looked into; `bound` are the host's secrets, and
    `kept` says by name why some of them are not put in.
    `shown` is the path for the audit: no query's values, and no secret's. `substituted` and
    `withheld` are the head's, and unwritten. `asked` is a WebSocket's upgrade as policy sees it.
    """

    target: bytes
    headers: Headers
    body: BodyRewriter | None
    bound: tuple[Secret, ...]
    rule: str | None
    noted: Refusal | None
    websocket: WebSocketRules | None
    normal: NormalTarget
    shown: str
    substituted: tuple[Hit, ...] = ()
    withheld: tuple[str, ...] = ()
    written: set[Hit | str] = field(default_factory=set)
    counted: tuple[int, int] = (0, 0)
    kept: Mapping[str, str] = field(default_factory=dict)
    asked: Asked | None = None


def admit_request(
    sandbox: Sandbox,
    flow: Flow,
    method: str,
    target: str,
    headers: Headers,
    *,
    is_websocket: bool,
    has_content: bool = True,
    is_reported: bool = False,
) -> Admitted | Refusal:
    """Judge a request and write which secrets it is given.

    `target` is in origin form or `*`; `headers` are end-to-end, Host included.
    """
    admitted = judge_request(
        *(sandbox, flow, method, target, headers),
        is_websocket=is_websocket,
        has_content=has_content,
        is_reported=is_reported,
    )
    if isinstance(admitted, Refusal):
        return admitted
    return write_substituted(sandbox, flow, admitted) or admitted


def judge_request(
    sandbox: Sandbox,
    flow: Flow,
    method: str,
    target: str,
    headers: Headers,
    *,
    is_websocket: bool,
    has_content: bool = True,
    is_reported: bool = False,
) -> Admitted | Refusal:
    """Judge a request, substitute in its head, and write nothing yet.

    `is_reported`: it has a fault already that `--report` let pass.
    """
    noted: Refusal | None = None
    rule, rules = flow.decision.rule, None
    if not inspects(flow.decision):
        normal = _as_it_is(target)
    else:
        judged = _judge(flow, method, target, is_websocket)
        if isinstance(judged, Refusal):
            if not sandbox.config.report:
                return judged
            noted, normal, is_reported = judged, _as_it_is(target), True
        else:
            decision, normal = judged
            if not decision.is_allowed or decision.noted:
                noted = _refusal_of(flow, decision)
                if not decision.is_allowed and not sandbox.config.report:
                    return noted
                is_reported = is_reported or not decision.is_allowed
            rule, rules = decision.rule or rule, decision.websocket
    raw = normal.raw
    admitted = Admitted(
        *(raw.encode("ascii"), headers, None, (), rule, noted, rules, normal),
        shown=normal.shown,
    )
    if is_websocket:
        admitted.asked = Asked(method, normal.path, normal.pairs, is_websocket=True)
    if sandbox.config.secrets:
        from netns_runtime.proxy.substitute import give_secrets  # no part of most launches

        give_secrets(
            *(sandbox.config.secrets, flow.target.host, admitted, has_content),
            is_reported=is_reported or flow.noted is not None or not flow.decision.is_allowed,
            is_encrypted=flow.protocol != "http",
        )
    if is_websocket and (rules is not None or admitted.bound):
        from netns_runtime.wire.websocket_deflate import only_deflate

        admitted.headers = only_deflate(admitted.headers)
    return admitted


def judged_alike(policy: Policy, flow: Flow, asked: Asked, rules: WebSocketRules | None) -> bool:
    """Whether `policy` allows an open WebSocket's upgrade, and its messages just as `rules` do."""
    if not inspects(flow.decision):
        return rules is None
    decision = decide_request(policy, flow.target, flow.owner, asked)
    if not decision.is_allowed:
        return False
    new = decision.websocket
    return new is rules or (new is not None and rules is not None and new.is_like(rules))


def _as_it_is(target: str) -> NormalTarget:
    """A target that nobody judges, which passes as it was written."""
    path, mark, query = target.partition("?")
    return NormalTarget(path, query if mark else None, ())


def _judge(
    flow: Flow, method: str, target: str, is_websocket: bool
) -> tuple[RequestDecision, NormalTarget] | Refusal:
    slashes = takes_encoded_slash(flow.decision)
    if target == "*":
        normal = NormalTarget("*", None, ())
    else:
        try:
            normal = normalise_target(target, allow_encoded_slash=slashes)
        except ProtocolError as error:
            return Refusal(
                *("http_request_error", f"the request's target: {error}", error.remedy),
                *(flow.target.host, flow.target.port, flow.decision.rule),
                status_override=error.status,
            )
    asked = Asked(method, normal.path, normal.pairs, is_websocket)
    return decide_request(flow.policy, flow.target, flow.owner, asked), normal


def _refusal_of(flow: Flow, decision: RequestDecision) -> Refusal:
    reason = decision.reason if decision.reason in TABLE else "http_request_denied"
    target = flow.target
    return Refusal(
        *(reason, decision.detail, decision.remedy),
        *(target.host, target.port, decision.rule or flow.decision.rule),
    )


def shown_of(sandbox: Sandbox, target: str) -> str:
    """The path of a request that was not admitted, for the audit."""
    shown, secrets = _as_it_is(target).shown, sandbox.config.secrets
    if not secrets:
        return shown
    from netns_runtime.proxy.substitute import masked

    return masked(shown, secrets)


def write_substituted(sandbox: Sandbox, flow: Flow, admitted: Admitted) -> Refusal | None:
    """Write what the head was given, before it goes upstream; a Refusal where that fails."""
    return _write(sandbox, flow, admitted, (*admitted.substituted, *admitted.withheld))


def write_body_hits(sandbox: Sandbox, flow: Flow, admitted: Admitted) -> Refusal | None:
    """Write what the content was given since the last call; a Refusal where that fails."""
    body = admitted.body
    if body is None:
        return None
    counted = len(body.substituted), len(body.withheld)
    if counted == admitted.counted:
        return None
    (hits, names), admitted.counted = admitted.counted, counted
    return _write(sandbox, flow, admitted, (*body.substituted[hits:], *body.withheld[names:]))


def _write(
    sandbox: Sandbox, flow: Flow, admitted: Admitted, seen: Iterable[Hit | str]
) -> Refusal | None:
    """One line for each slot and each withheld name of a request, however often it was seen."""
    for what in seen:
        if what in admitted.written:
            continue
        admitted.written.add(what)
        if isinstance(what, str):
            from netns_runtime.proxy.substitute import why_withheld

            event, said = "secret.withheld", {"secret": what, "action": "refuse"}
            said["detail"] = why_withheld(what, flow.target.host, admitted.bound, admitted.kept)
        else:
            event, said = "secret.substituted", {"secret": what.secret, "slot": what.slot}
            said["action"] = "allow"
        try:
            sandbox.audit.write(event, **flow.fields(), **said, said_by="policy")
        except AuditError as error:
            sandbox.report(f"flow {flow.id}: {error}")
            return Refusal(
                "proxy_internal_error",
                "the audit cannot be written, and no secret leaves without a record",
                "free space where --audit writes",
                *(flow.target.host, flow.target.port),
                status_override=503,
            )
    return None
