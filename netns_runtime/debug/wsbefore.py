"""Explains what failed before it could be seen to be a WebSocket: name, connect, policy, TLS.

Whether such a connection was to become a WebSocket is unknown, and every explanation says so. Pure.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from netns_runtime.debug.wstables import CODES
from netns_runtime.debug.wswords import Explanation, client_of, cut_of, line_of, party_of

if TYPE_CHECKING:
    from netns_runtime.debug.wslives import Life

SEEN: Final = "list the host with `protocol: websocket`: frames and close codes are then seen"
"""What would show how an unseen WebSocket ended."""

BEFORE: Final[dict[str, tuple[str, str, str, str]]] = {
    # stage and reason → key, who, usually, do (used where the event brings no remedy)
    "name": (
        "name-refused",
        "netns-runtime's resolver, by policy",
        "no rule allows this name, so it was answered as one that does not exist",
        "allow the host",
    ),
    "connect": (
        "connect-refused",
        "netns-runtime's kernel hook, by policy",
        "the client connects past the proxy, to an address that no rule lists; it sees "
        "ECONNREFUSED",
        "allow the address, or let the client resolve the name and connect to that",
    ),
    "policy": (
        "refused-by-policy",
        "netns-runtime, by policy",
        "no rule allows this host and port, or what the client sent first is not for it",
        "allow the host and port",
    ),
    "http_request_error": (
        "unreadable-request",
        "netns-runtime's proxy",
        "what the client sent is no HTTP request: a space in the URL, a line that is too long",
        "correct what the detail names; no rule will help",
    ),
    "unknown": (
        "failed",
        "unknown",
        "a failure that this version has no explanation for",
        "the detail says what is known; the version that wrote the audit may know more",
    ),
    "connection_limit_reached": (
        "flow-limit",
        "netns-runtime's proxy",
        "as many flows are open as --limit allows, often by reconnecting without closing",
        "close what is not used, or run with a higher --limit flows=N",
    ),
    "connection_refused": (
        "upstream-refused",
        "upstream's kernel or a firewall before it, by a reset",
        "nothing listens at that port",
        "check host and port; policy allowed it, so no rule will help",
    ),
    "connection_timeout": (
        "upstream-timeout",
        "nobody: upstream did not answer",
        "packets are lost on the way, or a firewall drops them",
        "check that the uplink reaches that address; no rule will help",
    ),
    "dns_error": (
        "upstream-name",
        "the uplink's resolver",
        "the name exists for policy and not in the uplink's DNS",
        "check the name, and --resolver",
    ),
    "tls_certificate_error": (
        "tls-certificate",
        "netns-runtime's proxy, which does not trust upstream's certificate",
        "an expired or misissued certificate, or a private authority",
        "renew it; for a private authority give --upstream-ca FILE",
    ),
    "tls_protocol_error": (
        "tls-failed",
        "netns-runtime's proxy and upstream, who share no TLS",
        "something else than TLS 1.2 or later speaks at that port",
        "check the port; use ws:// for a server without TLS",
    ),
    "tls_alert_received": (
        "tls-failed",
        "upstream, by a TLS alert",
        "upstream does not take this handshake: it wants a client certificate or another name",
        "read the alert; list the host with `tls: skip` where the client itself has a certificate",
    ),
    "client_tls_error": (
        "client-tls",
        "the client, who ended the TLS handshake",
        "it does not trust this sandbox's certificates",
        "let it trust $SSL_CERT_FILE, or list the host with `tls: skip`",
    ),
}
_ALIASES: Final = {
    "dns_timeout": "dns_error",
    "destination_not_found": "dns_error",
    "destination_unavailable": "connection_timeout",
    "destination_ip_unroutable": "connection_timeout",
}


def explain_before(life: Life) -> Explanation:
    last = life.last
    reason = str(last.get("reason"))
    evidence = [line_of(last, "host", "address", "port", "reason", "detail", "rule", "counted_by")]
    if life.count > 1:
        evidence.append(f"{life.count} times alike")
    evidence.append("no upgrade was seen: whether this was to be a WebSocket is unknown")
    if life.stage == "tunnel":
        return Explanation(
            "tunnel-cut",
            party_of(life),
            (*evidence, cut_of(last)),
            CODES[1006].usually,
            SEEN,
        )
    table = life.stage if life.stage in ("name", "connect") else _ALIASES.get(reason, reason)
    if table not in BEFORE:
        table = "policy" if last.get("action") == "refuse" else "unknown"
    key, who, usually, do = BEFORE[table]
    if table == "client_tls_error":
        who = f"{client_of(life)}, which ended the TLS handshake"
    return Explanation(key, who, tuple(evidence), usually, str(last.get("remedy") or do))
