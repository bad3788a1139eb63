"""One flow: a target that a client asked for, from the decision to its end.

A `Flow` gathers what the audit says about it. Nothing here does input or output; `decided` and
`closed` return the fields of the two audit lines.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

    from netns_runtime.address import HostPort
    from netns_runtime.owner import Owner
    from netns_runtime.policy import Decision, Policy
    from netns_runtime.policy.requests import Asked, WebSocketRules
    from netns_runtime.proxy.refuse import Refusal


@dataclass(frozen=True, slots=True)
class Ended:
    """How a flow ended: bytes each way, and why, where it was not the usual end of both sides.

    `action` is "refuse" where policy ended what it had allowed before it saw the client's bytes.
    """

    bytes_out: int = 0
    bytes_in: int = 0
    reason: str | None = None
    said_by: str | None = None
    detail: str | None = None
    action: str | None = None
    remedy: str | None = None


def owner_fields(owner: Owner | None) -> dict[str, Any]:
    """What an audit line says about the process."""
    if owner is None:
        return {}
    return {"pid": owner.pid, "comm": owner.comm, "exe": owner.exe}


@dataclass(slots=True, eq=False)
class Flow:
    """`started` is trio's time in seconds. `address` is the one dialled, once there is one.

    `policy` is the one that `decision` was made by. `noted` is what report mode let pass. `cut`,
    where there is one, ends the flow at once; `cut_short` says that it is to end before it has one.
    `sockets` are the client's and upstream's, borrowed, for listings; they may be closed already.
    `advice` (detail, remedy) is what `flow.closed` says where nothing else is said. `upgrade` is
    what an open WebSocket was allowed as, with the rules for its messages. `client` is the client's
    socket, borrowed too; `is_terminated` says that TLS with the client is, or will be, ours.
    """

    id: int
    target: HostPort
    protocol: str
    started: float
    owner: Owner | None
    decision: Decision
    policy: Policy
    entry: str = "explicit"
    noted: Refusal | None = None
    address: str | None = None
    cut: Callable[[Ended], None] | None = None
    progress: Callable[[], tuple[tuple[str, Any], ...]] | None = None
    sockets: tuple[socket.socket, socket.socket] | None = None
    cut_short: Ended | None = None
    advice: tuple[str, str] | None = None
    upgrade: tuple[Asked, WebSocketRules | None] | None = None
    client: socket.socket | None = None
    is_terminated: bool = False

    def fields(self) -> dict[str, Any]:
        """What all lines of this flow have in common."""
        return {
            "flow": self.id,
            "host": self.target.host,
            "port": self.target.port,
            "address": self.address,
            "protocol": self.protocol,
            "entry": self.entry,
            **owner_fields(self.owner),
        }

    def decided(self, refusal: Refusal | None = None) -> dict[str, Any]:
        """The fields of `flow.decided`; with `refusal`, of a flow that will not be dialled."""
        fields = self.fields()
        if refusal is not None:
            fields["address"] = refusal.address or self.address
            return {
                **fields,
                "action": "refuse",
                "reason": refusal.reason,
                "rule": refusal.rule,
                "said_by": refusal.said_by,
                "detail": refusal.detail,
                "remedy": refusal.remedy or None,
            }
        decision = self.decision
        fields["action"] = "allow"
        fields["rule"] = decision.rule
        fields["said_by"] = "policy"
        if self.noted is not None:
            fields["reason"] = self.noted.reason
            fields["detail"] = f"would be refused: {self.noted.detail}"
            fields["remedy"] = self.noted.remedy or None
        return fields

    def closed(self, now: float, ended: Ended) -> dict[str, Any]:
        """The fields of `flow.closed`."""
        if self.advice is not None and ended.detail is None:
            ended = replace(ended, detail=self.advice[0], remedy=self.advice[1])
        return {
            **self.fields(),
            "bytes_in": ended.bytes_in,
            "bytes_out": ended.bytes_out,
            "duration_ms": round((now - self.started) * 1000, 3),
            "reason": ended.reason,
            "said_by": ended.said_by,
            "detail": ended.detail,
            "action": ended.action,
            "rule": self.decision.rule if ended.action else None,
            "remedy": ended.remedy,
        }
