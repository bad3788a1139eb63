"""TLS to an upstream: verified with the system's roots and `--upstream-ca`, or refused in words.

`shake_hands` gives a `TlsPeer` or a `Refusal` that is upstream's and names what is wrong;
`secured` is the same with `open_flow`'s contract, for a connection that is dialled again.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Final

import trio

from netns_runtime.proxy.admit import ended_by
from netns_runtime.proxy.flow import Ended
from netns_runtime.proxy.peer import Peer
from netns_runtime.proxy.refuse import Refusal
from netns_runtime.proxy.tls import TlsPeer, connect_tls, hearing
from netns_runtime.proxy.tlserrors import UNKNOWN_ROOT, HandshakeFailed

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from netns_runtime.proxy.dial import Dialled
    from netns_runtime.proxy.flow import Flow
    from netns_runtime.proxy.sandbox import Sandbox

# The protocols that we speak; what else a client offers is not offered for it.
SPOKEN: Final = ("h2", "http/1.1")


def upstream_context() -> ssl.SSLContext:
    """A client's context with the system's roots: where OpenSSL was built to look for them."""
    context = rootless_context()
    context.set_default_verify_paths()
    return context


def rootless_context() -> ssl.SSLContext:
    """A client's context that trusts nobody yet.

    Revocation is not looked at. A certificate that is itself among the roots is trusted, issuer or
    not, as in curl and Go.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VERIFY_X509_TRUSTED_FIRST
    context.hostname_checks_common_name = False
    context.options |= ssl.OP_NO_RENEGOTIATION
    return hearing(context)


async def shake_hands(
    sandbox: Sandbox, flow: Flow, sock: socket.socket, offers: Sequence[str]
) -> TlsPeer | Refusal:
    """Do the handshake on a connected socket, which stays the caller's in either case."""
    context = sandbox.context_to_upstream()
    try:
        with trio.fail_after(sandbox.deadline("tls")):
            return await connect_tls(Peer(sock), context, flow.target.host, offers)
    except trio.TooSlowError:
        late = HandshakeFailed("connection_timeout", "did not finish the TLS handshake in time")
        return _refusal_of(flow, late)
    except HandshakeFailed as failed:
        return _refusal_of(flow, failed)


async def secured(
    sandbox: Sandbox, flow: Flow, upstream: Dialled, offers: Sequence[str]
) -> TlsPeer | Refusal:
    """`shake_hands` for the socket that `open_flow` gave. After a refusal the flow is over."""
    ended = Ended(reason="connection_terminated", said_by="sandbox")
    outcome: TlsPeer | Refusal | None = None
    try:
        outcome = await shake_hands(sandbox, flow, upstream.sock, offers)
        if isinstance(outcome, Refusal):
            ended = ended_of(outcome)
        elif flow.cut_short is not None:
            ended = flow.cut_short
            outcome = Refusal("http_request_denied", ended.detail or "the policy changed")
    finally:
        if not isinstance(outcome, TlsPeer):
            upstream.sock.close()
            sandbox.close_flow(flow, ended)
    return outcome


def ended_of(refusal: Refusal) -> Ended:
    """The end of a flow whose TLS failed; what would help is said whoever failed."""
    ended = ended_by(refusal)
    return Ended(
        reason=ended.reason,
        said_by=ended.said_by,
        detail=ended.detail,
        action=ended.action,
        remedy=refusal.remedy or None,
    )


def certificate_asked(flow: Flow) -> tuple[str, str]:
    """What the audit says where upstream asks for a client certificate, and what helps."""
    host = flow.target.host
    return (
        f"{host} asked for a client certificate, and a terminated flow has none to give",
        f"list {host} in the policy with `tls: skip`, so that the client itself gives its own",
    )


def _refusal_of(flow: Flow, failed: HandshakeFailed) -> Refusal:
    target = flow.target
    return Refusal(
        failed.reason,
        f"{target}: {failed.detail}",
        _remedy_of(flow, failed),
        target.host,
        target.port,
        address=flow.address,
        params=(("alert-message", failed.alert),) if failed.alert else (),
    )


def _remedy_of(flow: Flow, failed: HandshakeFailed) -> str:
    if failed.wants_certificate and failed.reason != "tls_certificate_error":
        return certificate_asked(flow)[1]
    if failed.code in UNKNOWN_ROOT:
        return "if that authority is to be trusted, give its certificate: --upstream-ca FILE"
    if failed.reason == "tls_certificate_error":
        host = flow.target.host
        return f"have it put right, or list {host} with `tls: skip`, so that the client judges it"
    return ""
