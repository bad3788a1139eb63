"""What a client is told when it does not get what it asked for.

One value, `Refusal`, stands for a policy's refusal, an upstream's failure and the client's own
mistake alike; `said_by` keeps them apart and TABLE gives each its status. `response_of` turns it
into bytes: the status, `Proxy-Status` (RFC 9209), and a body that names host, rule, reason and
remedy.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from netns_runtime.policy import Decision
    from netns_runtime.wire.head import RequestHead

PROXY_NAME: Final = "netns-runtime"

# RFC 9209's error names, with the status we answer and who said no. Its registry suggests 502 for
# destination_ip_prohibited; ours is 403, because policy refuses it.
TABLE: Final[dict[str, tuple[int, str]]] = {
    "http_request_denied": (403, "policy"),
    "destination_ip_prohibited": (403, "policy"),
    "sni_mismatch": (403, "policy"),
    "sni_missing": (403, "policy"),
    "host_mismatch": (403, "policy"),
    "ech_unverifiable": (403, "policy"),
    "http_unverifiable": (403, "policy"),
    "client_tls_error": (403, "policy"),
    "http_request_error": (400, "proxy"),
    "connection_limit_reached": (503, "proxy"),
    "proxy_internal_error": (500, "proxy"),
    "dns_error": (502, "upstream"),
    "dns_timeout": (504, "upstream"),
    "destination_not_found": (502, "upstream"),
    "destination_unavailable": (502, "upstream"),
    "destination_ip_unroutable": (502, "upstream"),
    "connection_refused": (502, "upstream"),
    "connection_terminated": (502, "upstream"),
    "connection_timeout": (504, "upstream"),
    "http_protocol_error": (502, "upstream"),
    "http_response_incomplete": (502, "upstream"),
    "http_upgrade_failed": (502, "upstream"),
    "tls_certificate_error": (502, "upstream"),
    "tls_protocol_error": (502, "upstream"),
    "tls_alert_received": (502, "upstream"),
}
# Our own names, which Proxy-Status tells as RFC 9209's for what policy refuses.
_OURS: Final = frozenset(
    reason for reason in TABLE if reason.endswith(("_mismatch", "_missing", "_unverifiable"))
) | {"client_tls_error"}


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not served. `reason` is a key of TABLE; `detail` and `remedy` sentences.

    `params` are further parameters of Proxy-Status, such as dns_error's rcode.
    """

    reason: str
    detail: str
    remedy: str = ""
    host: str | None = None
    port: int | None = None
    rule: str | None = None
    address: str | None = None
    status_override: int | None = None
    params: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        if self.reason not in TABLE:
            raise ValueError(f"no refusal has the reason {self.reason!r}")

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.status_override or TABLE[self.reason][0]

    @property
    def said_by(self) -> str:
        """Who said no: policy, proxy or upstream."""
        return TABLE[self.reason][1]


def refusal_of(decision: Decision, host: str, port: int) -> Refusal:
    """Tell a policy's decision to refuse."""
    reason = decision.reason if decision.reason in TABLE else "http_request_denied"
    return Refusal(reason, decision.detail, decision.remedy, host, port, decision.rule)


def printable(text: str) -> str:
    """Text without control characters and beyond-ASCII: those become backslash escapes."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c if c.isascii() and c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )


def quoted(text: str) -> str:
    """An RFC 8941 string: printable ASCII with backslash and quote escaped."""
    return '"' + printable(text).replace("\\", "\\\\").replace('"', '\\"') + '"'


def proxy_status_of(refusal: Refusal) -> str:
    """The value of Proxy-Status."""
    reason = "http_request_denied" if refusal.reason in _OURS else refusal.reason
    parts = [PROXY_NAME, f"error={reason}"]
    parts += (f"{key}={quoted(value)}" for key, value in refusal.params)
    if refusal.detail:
        parts.append(f"details={quoted(refusal.detail[:512])}")
    return "; ".join(parts)


_HEADLINE: Final = {
    "policy": "netns-runtime refused this request by policy",
    "proxy": "netns-runtime could not serve this request",
    "upstream": "netns-runtime could not reach upstream (policy did not refuse this)",
}


def _facts(refusal: Refusal) -> dict[str, Any]:
    facts = {
        "said_by": refusal.said_by,
        "host": refusal.host,
        "port": refusal.port,
        "address": refusal.address,
        "rule": refusal.rule,
        "reason": refusal.reason,
        "detail": refusal.detail,
        "remedy": refusal.remedy,
    }
    if refusal.said_by == "policy" and refusal.rule is None:
        facts["rule"] = "none matched"
    return {key: value for key, value in facts.items() if value not in (None, "")}


def prefers_json(head: RequestHead | None) -> bool:
    """Whether Accept names JSON and not plain text or HTML before it."""
    if head is None:
        return False
    accept = b",".join(head.values(b"accept")).lower()
    found = [accept.find(kind) for kind in (b"application/json", b"text/plain", b"text/html")]
    return found[0] >= 0 and all(other < 0 or found[0] < other for other in found[1:])


def response_of(
    refusal: Refusal, head: RequestHead | None = None, *, keep_alive: bool = False
) -> bytes:
    """The whole response; without a body where `head` is HEAD's."""
    if prefers_json(head):
        kind = "application/json"
        body = json.dumps(_facts(refusal), ensure_ascii=True).encode() + b"\n"
    else:
        kind = "text/plain; charset=us-ascii"
        lines = [_HEADLINE[refusal.said_by]]
        lines += (f"  {key}: {printable(str(value))}" for key, value in _facts(refusal).items())
        body = ("\n".join(lines) + "\n").encode("ascii")
    phrase = HTTPStatus(refusal.status).phrase
    text = (
        f"HTTP/1.1 {refusal.status} {phrase}\r\n"
        f"Proxy-Status: {proxy_status_of(refusal)}\r\n"
        f"Content-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Cache-Control: no-store\r\n"
        f"Connection: {'keep-alive' if keep_alive else 'close'}\r\n\r\n"
    )
    return text.encode("ascii") + (b"" if head is not None and head.method == "HEAD" else body)
