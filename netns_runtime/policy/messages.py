"""Whether a WebSocket message may go upstream on a connection whose upgrade was allowed.

Deny wins over allow, and what no rule allows is refused. A rule without `message` covers every
text, and with it binary messages, as in OpenShell; where rules look into messages, a binary one or
one that looks like JSON and has two readings (a name twice, broken syntax) cannot be vouched for
and is refused, unless a WEBSOCKET_BINARY rule allows the binary. Pure.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from netns_runtime.policy.decision import ALLOWED, DENIED
from netns_runtime.policy.matchers import BINARY, TEXT
from netns_runtime.policy.pointers import certain_value

if TYPE_CHECKING:
    from netns_runtime.policy.matchers import Matcher

_SHOWN: Final = 40
# Lenient readers of JSON take comments for space.
_LEAD: Final = re.compile(r"(?:[\s\ufeff\x00]+|/\*.*?\*/|(?://|#)[^\r\n]*)*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class RequestDecision:
    """What the policy says of one request or message; fields as in `Decision`.

    `noted` is True where it is allowed only because of `enforcement: audit`; `reason`, `detail` and
    `remedy` then say what enforcing would refuse. `websocket` judges the messages of an allowed
    upgrade; None: they are not judged.
    """

    action: Literal["allow", "refuse"]
    reason: str
    rule: str | None
    detail: str
    remedy: str = ""
    noted: bool = False
    websocket: WebSocketRules | None = None

    @property
    def is_allowed(self) -> bool:
        """True when the request or message may go on."""
        return self.action == "allow"


@dataclass(frozen=True, slots=True)
class MessageRule:
    """A matcher with the text of the rule it stands in; `audits`: it refuses nothing."""

    matcher: Matcher
    rule: str
    audits: bool = False


@dataclass(frozen=True, slots=True)
class WebSocketRules:
    """Judges the messages of one connection, client to upstream.

    `allows` and `denies` are those for the upgrade's `path`. `rule` is the text of the rule that
    says what may be sent, `preset_at` where its `access` stands, if that is what says so. `audits`:
    what is not allowed is only noted. `needs_json` is True where some rule looks into messages:
    then `judge` wants them parsed.
    """

    allows: tuple[MessageRule, ...]
    denies: tuple[MessageRule, ...]
    rule: str
    path: str = "/**"
    preset_at: str | None = None
    audits: bool = False
    needs_json: bool = False

    def is_like(self, other: WebSocketRules) -> bool:
        """Whether both judge every message alike, whatever their lines are called."""
        return self._essence() == other._essence()

    def _essence(self) -> tuple[object, ...]:
        kept = ([(f.matcher, f.audits) for f in rules] for rules in (self.allows, self.denies))
        return (*kept, self.audits, self.needs_json)

    def judge(self, text: str, document: object | None) -> RequestDecision:
        """Judge one whole text message. `document` is what json.loads makes of it, None where that
        fails; it is looked at only where `needs_json`.
        """
        noted: RequestDecision | None = None
        unclear = _ambiguity(text, document) if self.needs_json else None
        for found in self.denies:
            matcher = found.matcher
            if matcher.method not in {"*", TEXT}:
                continue
            if unclear is None and not _may_hold(matcher, document):
                continue
            refused = _denied(found, "a message", unclear if matcher.message else None)
            if not found.audits:
                return refused
            noted = noted or _as_noted(refused)
        for found in self.allows:
            matcher = found.matcher
            if matcher.method not in {"*", TEXT}:
                continue
            if matcher.message and (unclear is not None or document is None):
                continue
            if all(c.surely_holds(document) for c in matcher.message):
                return noted or _allowed(found.rule)
        return self._refused(unclear, document)

    def judge_binary(self) -> RequestDecision:
        """Judge a binary message, whose content no rule can look into."""
        noted: RequestDecision | None = None
        explicit = next((f for f in self.allows if f.matcher.method == BINARY), None)
        for found in self.denies:
            if found.matcher.message and explicit is not None:
                continue
            why = "rules look into messages and cannot look into this" * bool(found.matcher.message)
            refused = _denied(found, "a binary message", why or None)
            if not found.audits:
                return refused
            noted = noted or _as_noted(refused)
        for found in self.allows:
            if not found.matcher.message:
                return noted or _allowed(found.rule)
        remedy = f"add `- allow: {{method: {BINARY}, path: {self.path}}}` to `rules` of {self.rule}"
        return self._not_allowed(f"{self.rule} allows no binary message here", remedy)

    def _refused(self, unclear: str | None, document: object | None) -> RequestDecision:
        conditions = next((f.matcher.message for f in self.allows if f.matcher.message), ())
        detail = f"{self.rule} does not allow this message"
        line = f"{{method: {TEXT}, path: {self.path}}}"
        if unclear is not None:
            detail += f": {unclear}"
        elif document is None and conditions:
            detail += ": it is no JSON"
        elif conditions:
            pointer = conditions[0].pointer
            value = certain_value(document, pointer)
            if not value:
                detail += f": it has nothing, or nothing certain, at {pointer}"
            else:
                text = _scalar_text(value[0])
                detail += f": {pointer} is {text or 'a longer value'}"
                if text:
                    line = (
                        f"{{method: {TEXT}, path: {self.path}, "
                        f"message: {{pointer: {pointer}, in: [{text}]}}}}"
                    )
        elif not self.allows:
            detail = f"{self.rule} allows the upgrade and no message from the client"
        return self._not_allowed(detail, f"add `- allow: {line}` to `rules` of {self.rule}")

    def _not_allowed(self, detail: str, remedy: str) -> RequestDecision:
        if self.preset_at is not None:
            remedy = f"write `access: read-write` at {self.preset_at}"
        refused = RequestDecision("refuse", DENIED, self.rule, detail, remedy)
        return _as_noted(refused) if self.audits else refused


def _may_hold(matcher: Matcher, document: object | None) -> bool:
    if not matcher.message:
        return True
    return document is not None and all(one.may_hold(document) for one in matcher.message)


def _allowed(rule: str) -> RequestDecision:
    return RequestDecision("allow", ALLOWED, rule, f"{rule} allows the message")


def _as_noted(refused: RequestDecision) -> RequestDecision:
    return replace(refused, action="allow", noted=True)


def _denied(found: MessageRule, what: str, why: str | None) -> RequestDecision:
    where = found.matcher.where
    detail = f"the deny rule at {where} of {found.rule} refuses {what}"
    if why:
        detail += f": {why}"
    remedy = f"remove or narrow the deny rule at {where}"
    return RequestDecision("refuse", DENIED, found.rule, detail, remedy)


def _ambiguity(text: str, document: object | None) -> str | None:
    """Why a text has no one reading as JSON, or None; a text that is plainly no JSON has none."""
    if document is None:
        lead = _LEAD.match(text)
        if text[lead.end() if lead else 0 :][:1] in {"{", "["}:
            return "it looks like JSON and is not"
        return None
    if not isinstance(document, (dict, list)):
        return None
    try:
        json.loads(text, object_pairs_hook=_unique)
    except _TwiceError:
        return "a name stands twice in one of its objects"
    except (ValueError, RecursionError):
        return "it looks like JSON and is not"
    return None


class _TwiceError(Exception):
    """An object names a member twice."""


def _unique(pairs: list[tuple[str, object]]) -> None:
    if len({name for name, _ in pairs}) != len(pairs):
        raise _TwiceError


def _scalar_text(value: object) -> str:
    """A short scalar as YAML and JSON write it, or ""."""
    if value is not None and not isinstance(value, (str, int, float)):
        return ""
    text = json.dumps(value)
    return text if len(text) <= _SHOWN else ""
