"""What becomes of a WebSocket's messages: the sandbox's by rules and slots, upstream's by masking.

`Outgoing` judges each message of the client by the policy's rules, which see placeholders and never
values, then puts values into the slots of what may pass. `Incoming` turns values that upstream says
into placeholders again. A refusal is a value: the close frame that the client gets, with `end`
telling the audit. Bounds: a message longer than TEXT_LIMIT is refused where rules would have to
judge it, and else passes as it is: no slot is looked for in it. Upstream's are masked however long.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from netns_runtime.audit import AuditError
from netns_runtime.proxy.substitute import REPORTED, why_withheld
from netns_runtime.secret import PREFIX
from netns_runtime.wire.mask import Masker, mask
from netns_runtime.wire.rewrite import websocket_text, withheld_in
from netns_runtime.wire.websocket import (
    BINARY,
    CLOSE,
    CONTROL_LIMIT,
    TEXT,
    Close,
    FrameError,
    payload_of,
    read_close,
)
from netns_runtime.wire.websocket_inspect import UNALTERED

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from netns_runtime.policy.requests import RequestDecision, WebSocketRules
    from netns_runtime.proxy.flow import Flow
    from netns_runtime.proxy.sandbox import Sandbox
    from netns_runtime.secret import Secret
    from netns_runtime.wire.rewrite import Hit
    from netns_runtime.wire.websocket_inspect import Stream

TEXT_LIMIT: Final = 1 << 20
"""Bytes of a message of the sandbox's that rules and slots look at. Discord takes 4 KiB."""
MASK_LIMIT: Final = 1 << 18
"""Bytes of a message of upstream's that are held, to let one without a value go on as it came."""
NOTES: Final = 32
"""Lines that one connection may write about messages that enforcing would refuse."""

_SIGNS: Final = (PREFIX.encode("ascii"), b"\\u00")
"""Without one of these a text has no placeholder, plain or spelt in JSON's escapes."""


@dataclass(frozen=True, slots=True)
class End:
    """How a WebSocket ended: the fields of `ws.closed`. `upstream_code` is what upstream is told
    where we said the close."""

    code: int
    said_by: str
    detail: str | None = None
    reason: str | None = None
    rule: str | None = None
    action: str | None = None
    remedy: str | None = None
    upstream_code: int = 1001


class Outgoing:
    """Messages of the sandbox. `end` is set where one of them was refused.

    `substituted` counts values put in; `suppressed` the notes that were not written any more.
    """

    limit = TEXT_LIMIT

    def __init__(
        self,
        sandbox: Sandbox,
        flow: Flow,
        rules: WebSocketRules | None,
        bound: Sequence[Secret],
        kept: Mapping[str, str],
    ) -> None:
        self.sandbox = sandbox
        self.flow = flow
        self.rules = rules
        self.bound = tuple(bound)
        self.kept = kept
        self.slotted = tuple(
            secret for secret in bound if has_slot(secret) and secret.name not in kept
        )
        self.all = tuple(dict.fromkeys((*bound, *sandbox.config.secrets)))
        self.end: End | None = None
        self.substituted = 0
        self.suppressed = 0
        self._written: set[object] = set()
        self._noted: set[tuple[str | None, str]] = set()
        self._binary = rules.judge_binary() if rules is not None else None
        clean = self._binary is None or (self._binary.is_allowed and not self._binary.noted)
        self.opcodes = frozenset({TEXT} if clean else {TEXT, BINARY})

    def whole(self, opcode: int, data: bytes) -> bytes | Close:
        has_sign = _SIGNS[0] in data or _SIGNS[1] in data
        if self.rules is None and not has_sign:
            return data
        if opcode == BINARY:
            return (self._judged(self._binary) if self._binary else None) or data
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise FrameError(1007, "a text message is not UTF-8") from error
        if self.rules is not None:
            document = _json_of(text) if self.rules.needs_json else None
            decision = self.rules.judge(text, document)
            refused = self._judged(decision)
            if refused is not None:
                return refused
            if not has_sign:
                return data
            if not decision.is_allowed:
                # It passes because of --report alone; `enforcement: audit` allows.
                self._write_withheld(text, dict.fromkeys(self._names(), REPORTED))
                return data
        return self._with_values(text, data)

    def control(self, _opcode: int, payload: bytes) -> bytes:
        return payload

    def stream(self, opcode: int) -> Stream | Close:
        if opcode == BINARY:
            return (self._judged(self._binary) if self._binary else None) or UNALTERED
        if self.rules is None:
            return UNALTERED
        detail = f"the message is longer than the {TEXT_LIMIT >> 20} MiB that rules look at"
        return self._refuse(End(1009, "proxy", detail, "http_request_error", self.rules.rule))

    def _judged(self, decision: RequestDecision) -> Close | None:
        """None where the message may pass; report mode and `enforcement: audit` note it."""
        if decision.is_allowed and not decision.noted:
            return None
        if decision.is_allowed or self.sandbox.config.report:
            self._note(decision)
            return None
        said = {"action": "refuse", "reason": decision.reason, "detail": decision.detail}
        self._write("ws.message", **said, rule=decision.rule, remedy=decision.remedy or None)
        return self._refuse(
            End(
                *(1008, "policy", decision.detail, decision.reason),
                *(decision.rule, "refuse", decision.remedy or None),
            )
        )

    def _note(self, decision: RequestDecision) -> None:
        key = (decision.rule, decision.detail)
        if key in self._noted or len(self._noted) >= NOTES:
            self.suppressed += 1
            return
        self._noted.add(key)
        detail = f"would be refused: {decision.detail}"
        said = {"action": "allow", "reason": decision.reason, "detail": detail}
        self._write("ws.message", **said, rule=decision.rule, remedy=decision.remedy or None)

    def _with_values(self, text: str, data: bytes) -> bytes | Close:
        changed, hits = websocket_text(text, self.slotted) if self.slotted else (text, ())
        self._write_withheld(changed, self.kept)
        if not hits:
            return data
        for hit in hits:
            if not self._write_hit(hit):
                return self._refuse(_UNWRITABLE)
        self.substituted += len(hits)
        return changed.encode("utf-8")

    def _names(self) -> Iterator[str]:
        return (secret.name for secret in self.bound)

    def _write_withheld(self, text: str, kept: Mapping[str, str]) -> None:
        """Tell which placeholders leave as they are."""
        host = self.flow.target.host
        for name in withheld_in(text, self.all):
            detail = why_withheld(name, host, self.bound, kept)
            said = {"secret": name, "action": "refuse", "detail": detail}
            self._write_once("secret.withheld", (name, detail), **said)

    def _write_hit(self, hit: Hit) -> bool:
        said = {"secret": hit.secret, "slot": hit.slot, "action": "allow"}
        return self._write_once("secret.substituted", hit, **said)

    def _write_once(self, event: str, key: object, **said: str) -> bool:
        """One line for each slot and each withheld name of a connection; whether it is written."""
        if key in self._written:
            return True
        if self._write(event, **said):
            self._written.add(key)
            return True
        return False

    def _write(self, event: str, **said: str | None) -> bool:
        try:
            self.sandbox.audit.write(event, **self.flow.fields(), **said, said_by="policy")
        except AuditError as error:
            self.sandbox.report(f"flow {self.flow.id}: {error}")
            return False
        return True

    def _refuse(self, end: End) -> Close:
        self.end = end
        return Close(end.code, reason_of(end))


class Incoming:
    """Messages of upstream, to a sandbox that must not see the values of `bound`."""

    opcodes = frozenset({TEXT, BINARY})
    limit = MASK_LIMIT

    def __init__(self, bound: Sequence[Secret]) -> None:
        self.bound = tuple(bound)

    def whole(self, _opcode: int, data: bytes) -> bytes | Close:
        masked = mask(data, self.bound)
        return data if masked == data else masked

    def control(self, opcode: int, payload: bytes) -> bytes:
        """A close frame's reason, and what a ping or pong carries, cut to what fits."""
        if opcode == CLOSE:
            close = read_close(payload)
            reason = mask(payload[2:], self.bound)
            return payload if reason == payload[2:] else payload_of(close.code, reason)
        masked = mask(payload, self.bound)
        return payload if masked == payload else masked[:CONTROL_LIMIT]

    def stream(self, _opcode: int) -> Stream | Close:
        return Masker(self.bound)


_UNWRITABLE: Final = End(
    *(1011, "proxy", "the audit cannot be written, and no secret leaves without a record"),
    *("proxy_internal_error", None, None, "free space where --audit writes"),
)


def has_slot(secret: Secret) -> bool:
    """Whether the secret may stand in WebSocket messages."""
    return any(slot.kind == "websocket" for slot in secret.binding.slots)


def reason_of(end: End) -> str:
    """What the close frame says."""
    if end.said_by == "policy":
        return f"refused by policy: {end.rule or 'no rule allows it'}"
    return f"netns-runtime: {end.detail}"


def _json_of(text: str) -> object | None:
    try:
        document: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return document
