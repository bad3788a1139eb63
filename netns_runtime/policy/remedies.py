"""How a refused request is told: the rule that came nearest and the smallest line to write.

The recommended line grants what was asked and no more. Methods and paths in it are the sandbox's to
choose, so they are quoted as YAML and shown as printable ASCII. Pure.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from netns_runtime.policy.decision import DENIED
from netns_runtime.policy.matchers import MESSAGES, preset
from netns_runtime.policy.messages import RequestDecision

if TYPE_CHECKING:
    from netns_runtime.address import HostPort
    from netns_runtime.policy.matchers import RequestRules
    from netns_runtime.policy.rules import Endpoint

_PLAIN: Final = re.compile(r"[A-Za-z0-9/._~][A-Za-z0-9/._~%$+@=-]*")
# A client may call its method so; the line that grants it would grant all, or messages.
_MEANS_MORE: Final = frozenset({"*", *MESSAGES})


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as rules see it.

    `path` is normalised (wire.path), still percent-encoded and without the query; `query` has the
    decoded pairs in order. `is_websocket` is True for an upgrade or an RFC 8441 CONNECT.
    """

    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    is_websocket: bool = False

    @property
    def verb(self) -> str:
        """The method that rules compare: an RFC 8441 CONNECT is the GET of an upgrade, and any
        other method counts as what it is, whatever upgrade it asks for beside it.
        """
        is_extended = self.is_websocket and self.method == "CONNECT"
        return "GET" if is_extended else self.method.upper()


@dataclass(frozen=True, slots=True)
class Member:
    """An endpoint with request rules, and the rule it stands in."""

    rule: str
    rules: RequestRules
    endpoint: Endpoint
    rank: tuple[tuple[int, int, int, int], tuple[int, int]]


def not_allowed(
    members: tuple[Member, ...], group: list[Member], target: HostPort, path: str, asked: Asked
) -> RequestDecision:
    """The refusal of a request that none of `group` allows: which rule, and the line to write.

    `group` are those of `members` that were to decide; empty where no `path` covers the request.
    """
    what = f"{shown(asked.method)} {shown(path)}"
    if asked.verb in _MEANS_MORE:
        rule = (group or members)[0].rule
        why = f"none: `method: {asked.verb}` in a rule means other methods than this one"
        return RequestDecision("refuse", DENIED, rule, f"{rule} does not allow {what}", why)
    if not group:
        member = members[0]
        detail = f"no endpoint of {member.rule} at {target} is for {shown(path)}"
        line = _endpoint_line(member, target, asked, path, None)
        remedy = f"add `{line}` to `endpoints` of {member.rule}"
        return RequestDecision("refuse", DENIED, member.rule, detail, remedy)
    for member in group:
        if member.endpoint.unenforced is not None:
            detail = (
                f"{member.rule} allows {shown(path)} with {member.endpoint.unenforced}, "
                "which this version cannot apply"
            )
            return RequestDecision(
                "refuse", DENIED, member.rule, detail, f"--allow {target} allows every request"
            )
    member = next((member for member in group if not member.rules.audits), group[0])
    rules = member.rules
    method = asked.verb
    of_method = [matcher for matcher in rules.allows if matcher.has_method(method)]
    detail = f"{member.rule} does not allow {what}"
    if rules.access is not None:
        detail += f" (`access: {rules.access}` at {rules.where})"
        line = _endpoint_line(member, target, asked, path, rules.path)
        wider = next(
            access
            for access in ("read-write", "full")
            if any(matcher.has_method(method) for matcher in preset(access, rules.protocol))
        )
        remedy = (
            f"write `access: {wider}` at {rules.where}, "
            f"or add `{line}` to `endpoints` of {member.rule}"
        )
        return RequestDecision("refuse", DENIED, member.rule, detail, remedy)
    if any(matcher.allows(path, ()) or matcher.query for matcher in of_method):
        detail += " with this query"
    elif of_method:
        detail += f": {method} goes to other paths"
    remedy = f"add `- {_allow_line(asked, path)}` to `rules` at {rules.where} of {member.rule}"
    return RequestDecision("refuse", DENIED, member.rule, detail, remedy)


def _allow_line(asked: Asked, path: str) -> str:
    method = asked.verb
    return f"allow: {{method: {_yaml(method)}, path: {pattern_of(path)}}}"


def _endpoint_line(
    member: Member, target: HostPort, asked: Asked, path: str, selector: str | None
) -> str:
    host = member.endpoint.host or target.host
    fields = [f"host: {_yaml(host)}", f"port: {target.port}", f"protocol: {member.rules.protocol}"]
    if selector is not None:
        fields.append(f"path: {_yaml(selector)}")
    fields.append(f"rules: [{{{_allow_line(asked, path)}}}]")
    return f"- {{{', '.join(fields)}}}"


def pattern_of(path: str) -> str:
    """A glob that covers this path alone, as YAML."""
    return _yaml(path.replace("*", "%2A"))


def _yaml(text: str) -> str:
    return text if _PLAIN.fullmatch(text) else json.dumps(text)


def shown(text: str) -> str:
    """Short printable ASCII: methods and paths are the sandbox's to choose."""
    text = text if len(text) <= 120 else text[:117] + "..."
    return text if text.isascii() and text.isprintable() else ascii(text)
