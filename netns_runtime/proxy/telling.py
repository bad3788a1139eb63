"""Which audit lines the supervisor says on stderr under `-v`: each refusal once. Pure.

A refused message of a WebSocket is in three lines of the audit (the message, the close, the flow's
end); the first is told. A flow that ended with a remedy, or by TLS, is told although nobody
refused it. `Telling.takes` judges one line after another and remembers what it must, which a
flow's last line lets go of.
"""

from __future__ import annotations

from typing import Any, Final

_TLS: Final = frozenset(
    {"client_tls_error", "tls_certificate_error", "tls_protocol_error", "tls_alert_received"}
)


def is_refused(event: dict[str, Any]) -> bool:
    """Refused, or let pass by --report alone."""
    would_be = str(event.get("detail", "")).startswith("would be refused")
    return event.get("action") == "refuse" or would_be


class Telling:
    """The lines of one sandbox, in their order."""

    __slots__ = ("_told",)

    def __init__(self) -> None:
        self._told: dict[int, str] = {}

    def takes(self, event: dict[str, Any]) -> bool:
        """Whether this line is to be told."""
        name, flow = event["event"], event.get("flow", 0)
        before = self._told.pop(flow, None) if name == "flow.closed" else self._told.get(flow)
        if name == "http.request":
            return False
        if name == "flow.closed" and (event.get("reason") in _TLS or event.get("remedy")):
            return before is None or before != event.get("detail")
        if not is_refused(event):
            return False
        if name in ("ws.closed", "flow.closed") and before == event.get("detail"):
            return False
        if name in ("ws.message", "ws.closed"):
            self._told[flow] = str(event.get("detail"))
        return True
