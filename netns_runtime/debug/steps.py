"""The way a connection takes, step by step, and which step each audit reason belongs to.

Tables and two pure functions. `blame_of` says whose doing an end was, in a sentence that a person
can act on; a reason of a newer version is said to be unknown, never guessed.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

TITLES: Final = {
    "dns": "policy DNS",
    "hook": "kernel hook",
    "gateway": "gateway rule",
    "decision": "proxy decision",
    "resolve": "upstream name",
    "screening": "screening",
    "dial": "dial",
    "tls": "TLS",
    "traffic": "HTTP/WebSocket",
}
ORDER: Final = tuple(TITLES)

_STEPS: Final = {
    "http_request_denied": "decision",
    "policy_changed": "decision",
    "sni_mismatch": "decision",
    "sni_missing": "decision",
    "ech_unverifiable": "decision",
    "connection_limit_reached": "decision",
    "proxy_internal_error": "decision",
    "dns_error": "resolve",
    "dns_timeout": "resolve",
    "destination_not_found": "resolve",
    "destination_ip_prohibited": "screening",
    "destination_unavailable": "dial",
    "destination_ip_unroutable": "dial",
    "connection_refused": "dial",
    "connection_timeout": "dial",
    "connection_terminated": "traffic",
    "client_tls_error": "tls",
    "tls_certificate_error": "tls",
    "tls_protocol_error": "tls",
    "tls_alert_received": "tls",
}
# dial.py's sentence, which names the address and the port that was dialled.
_DIALLED: Final = re.compile(r" \([0-9a-f.:]+\) port \d+ ")
_TLS: Final = re.compile(r"TLS handshake|client certificate")


def step_of(event: Mapping[str, Any]) -> str:
    """Where an event of a refusal or a failure stands on the way."""
    kind, reason = event["event"], str(event.get("reason", ""))
    detail = str(event.get("detail", ""))
    if kind.startswith("dns."):
        return "dns"
    if kind == "connect.refused":
        return "gateway" if event.get("counted_by") == "nft" else "hook"
    if kind.startswith("ws."):
        return "traffic"
    if reason in ("connection_terminated", "connection_timeout"):
        if event.get("said_by") == "sandbox" and not _has_moved(event) and not detail:
            return "dial"
        if _TLS.search(detail):
            return "tls"
        return "dial" if _DIALLED.search(detail) else "traffic"
    if kind == "flow.closed" and not reason:
        return "tls"
    if kind == "http.request" and reason == "http_request_denied":
        return "traffic" if is_of_request(event) else "decision"
    if kind == "http.request" and reason in ("", "proxy_internal_error"):
        return "traffic"
    return _STEPS.get(reason, "traffic")


def is_of_request(event: Mapping[str, Any]) -> bool:
    """Whether an `http.request` was refused for what it asks and not for where it goes: the
    policy's sentence then names its path (policy/remedies.py)."""
    if event.get("reason") != "http_request_denied":
        return False
    detail = str(event.get("detail", ""))
    path = str(event.get("path", "")).partition("?")[0]
    # Not by the method alone, which may be any word of the sentence; long paths are cut there.
    words = (f" {path} ", f" {path}: ", f" {path[:117]}...", "WebSocket upgrades")
    return any(word in f"{detail} " for word in words)


def _has_moved(event: Mapping[str, Any]) -> bool:
    return bool(event.get("bytes_in") or event.get("bytes_out"))


_WHOSE: Final = {
    "policy": "the policy refuses it",
    "sandbox": "the sandbox itself refuses it",
    "proxy": "the proxy could not serve it",
    "upstream": "this is upstream's answer, and no policy will help",
}
_UPSTREAM: Final = {
    "dns_error": "check the name and the resolver: `dig` in the uplink asks as the proxy does",
    "dns_timeout": "the resolver does not answer: check --resolver and the uplink",
    "destination_not_found": "the name does not exist: check how it is spelled",
    "connection_refused": "nothing listens there: check the port, and that the server runs",
    "connection_timeout": "the server is down, or a firewall on the way drops packets",
    "destination_ip_unroutable": "the uplink has no way there: check its routes and firewall",
    "destination_unavailable": "the uplink could not dial: check its free ports",
    "connection_terminated": "the server, or something before it, ended it: see its log",
    "tls_certificate_error": "renew or correct the server's certificate; for a private authority: "
    "--upstream-ca FILE",
    "tls_alert_received": "the server does not take this client's TLS: see its log",
    "tls_protocol_error": "the server speaks no TLS that is acceptable there: check the port",
    "http_protocol_error": "the server's answer breaks HTTP: see its log",
    "http_response_incomplete": "the server stopped in the middle of its answer: see its log",
    "http_upgrade_failed": "the server did not agree to the WebSocket: see its log",
}
_STATUS: Final = {
    401: "upstream does not know who asks: check the token or --secret",
    403: "upstream knows who asks and says no: check what the account may do there",
    404: "upstream has nothing at this path: check the URL",
    407: "another proxy before upstream wants credentials",
    429: "upstream limits the rate: wait as its Retry-After says",
    500: "upstream failed: see its log, or try again",
    502: "a gateway of upstream's has no server: try again later",
    503: "upstream is overloaded or down: try again later",
    504: "a gateway of upstream's waits in vain: try again later",
}


def blame_of(event: Mapping[str, Any]) -> tuple[str, str, str]:
    """Who said it (`policy`, `sandbox`, `proxy`, `client`, `upstream` or `unknown`), the sentence
    about it, and what helps ("" where the event itself says so)."""
    said_by, reason = str(event.get("said_by", "")), str(event.get("reason", ""))
    status = event.get("status")
    if event.get("action") == "refuse" and said_by in ("policy", "sandbox", "proxy"):
        return said_by, _WHOSE[said_by], ""
    if event["event"] == "ws.closed" and said_by in ("sandbox", "upstream"):
        return _of_close(event, said_by)
    if reason in ("client_tls_error", "http_request_error"):
        return "client", "it is the client in the sandbox that broke it off or made the error", ""
    if said_by == "sandbox" or (event["event"] == "flow.closed" and not reason):
        advice = "" if _has_moved(event) else "let it wait longer: the proxy itself waits 30 s"
        return "client", "the client in the sandbox ended it", advice
    if said_by == "upstream":
        advice = _UPSTREAM.get(reason, "")
        if isinstance(status, int) and not reason:
            advice = _STATUS.get(status, "see what upstream's answer says")
        return "upstream", _WHOSE["upstream"], advice
    if said_by in _WHOSE:
        return said_by, _WHOSE[said_by], ""
    return "unknown", "nobody is on record as having said so", "netns-debug trace shows it live"


def _of_close(event: Mapping[str, Any], said_by: str) -> tuple[str, str, str]:
    from netns_runtime.debug.wstables import cause_of

    code = event.get("code")
    cause = cause_of(code if isinstance(code, int) else 0, str(event.get("host") or ""))
    advice = f"{cause.name}: {cause.usually}; {cause.do}"
    if said_by == "sandbox":
        return "client", "the client in the sandbox closed it", advice
    return "upstream", _WHOSE["upstream"], advice
