"""Terminates a flow's TLS, so that its requests can be judged and given their secrets.

Upstream's handshake comes first, with what the client offers by ALPN cut to what we speak; the
client's own is then finished with exactly the protocol that upstream chose, so that both sides
always speak the same. Where upstream's fails, the client's is finished all the same, and its first
request is told why. A client that speaks plain HTTP/1 is served as it is, anything else is refused.
`terminate` owns the connection from then on and ends with it.

    1. first words     nothing, or the client ended: over
                       neither TLS nor HTTP, or for another host: alert or reset
                       HTTP/1: `serve_requests`, without TLS on either side
    2. upstream's TLS  failed: the client's with http/1.1, or else h2, and 502
    3. the client's    failed: the audit says that it does not trust us, and what helps
    4. requests        h2: `serve_http2`; else `serve_requests`
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import trio

from netns_runtime.proxy.admit import alert, ended_by, hand_over, open_flow, reset
from netns_runtime.proxy.flow import Ended
from netns_runtime.proxy.http2 import refuse_http2, serve_http2
from netns_runtime.proxy.identify import fault, fault_of_first
from netns_runtime.proxy.peer import Peer
from netns_runtime.proxy.refuse import Refusal
from netns_runtime.proxy.requests import serve_requests
from netns_runtime.proxy.secure import SPOKEN, certificate_asked, ended_of, secured, shake_hands
from netns_runtime.proxy.tls import TlsPeer, accept_tls
from netns_runtime.proxy.tlserrors import HandshakeFailed
from netns_runtime.proxy.upstream import Upstream, Upstreams, end
from netns_runtime.wire import NEED_DATA, ProtocolError
from netns_runtime.wire.clienthello import HANDSHAKE, ClientHello
from netns_runtime.wire.head import HeadReader
from netns_runtime.wire.sniff import Kind, Sniffer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from netns_runtime.proxy.admit import Client
    from netns_runtime.proxy.dial import Dialled
    from netns_runtime.proxy.flow import Flow
    from netns_runtime.proxy.sandbox import Sandbox

    # How the flow ended, where it has; and what is left to do for the client.
    Next = tuple[Ended | None, Callable[[], Awaitable[None]]]


async def terminate(
    sandbox: Sandbox, client: Client, flow: Flow, upstream: Dialled, *, to_client: bytes = b""
) -> None:
    """Serve a client's connection, whose upstream is dialled, to its end.

    What the client sent already is in `client.reader`; `to_client` is what it is told first.
    """
    counted = Upstream(flow, upstream.sock, Peer(upstream.sock))
    ended: Ended | None = Ended(reason="connection_terminated", said_by="sandbox")
    then: Callable[[], Awaitable[None]] | None = None
    try:
        with trio.CancelScope() as scope:

            def cut(why: Ended) -> None:
                nonlocal ended
                ended = why
                scope.cancel()

            flow.cut = cut
            if to_client:
                await client.peer.send(to_client)
            ended, then = await _begin(sandbox, client, counted)
        if flow.cut is cut:
            flow.cut = None
    finally:
        if ended is not None:
            end(sandbox, counted, ended)
    if then is None:
        reset(client)
        return
    try:
        await then()
    finally:
        if isinstance(client.peer, TlsPeer):
            client.peer.finish()


async def _begin(sandbox: Sandbox, client: Client, counted: Upstream) -> Next:
    """Both handshakes. Nothing that is waited for here lasts longer than its deadline, but the
    client's first byte: a connection may be opened in advance."""
    flow = counted.flow
    try:
        first, held = await _first_words(sandbox, client)
    except ProtocolError as error:
        refusal = fault(flow, "client_tls_error", str(error))
        return ended_by(refusal), partial(_turn_away, client, is_tls=True)
    if first is None:
        return Ended(), _nothing
    if first is Kind.HTTP1:
        client.reader.feed(held)
        upstreams = Upstreams(sandbox)
        upstreams.keep(counted)
        return None, partial(serve_requests, sandbox, client, upstreams)
    refused = fault_of_first(flow, first, is_terminated=True)
    if refused is not None:
        if sandbox.config.report:
            return None, partial(_pass_on, sandbox, client, counted, refused, held)
        is_tls = isinstance(first, ClientHello)
        return ended_by(refused), partial(_turn_away, client, is_tls=is_tls)
    assert isinstance(first, ClientHello)
    offers = tuple(name for name in first.protocols if name in SPOKEN)
    outcome = await shake_hands(sandbox, flow, counted.sock, offers)
    if isinstance(outcome, Refusal):
        return ended_of(outcome), partial(_tell, sandbox, client, flow, outcome, first, held)
    try:
        down = await _accept(sandbox, client, flow, outcome.alpn, held)
    except HandshakeFailed as failed:
        return _ended_by_client(flow, failed), partial(_reset, client)
    counted.peer = outcome
    counted.advice = certificate_asked(flow) if outcome.asks_certificate else None
    flow.advice = _distrust(flow, "ended before its first request")
    if outcome.alpn == "h2":
        flow.protocol = "h2"
        return None, partial(serve_http2, sandbox, flow, down, outcome, counted)
    upstreams = Upstreams(sandbox, partial(_open_again, (outcome.alpn,) if outcome.alpn else ()))
    upstreams.keep(counted)
    return None, partial(serve_requests, sandbox, client, upstreams)


async def _first_words(sandbox: Sandbox, client: Client) -> tuple[ClientHello | Kind | None, bytes]:
    """What the client's first bytes are, and the bytes; None where it ended without any."""
    sniffer = Sniffer()
    held = data = client.reader.rest()
    if not data:
        held = data = await client.peer.receive()
    with trio.move_on_after(sandbox.deadline("head")):
        while data:
            first = sniffer.feed(data)
            if first is not NEED_DATA:
                return first, held
            data = await client.peer.receive()
            held += data
    if held[:1] == bytes((HANDSHAKE,)):
        raise ProtocolError("the ClientHello did not come, or not in time")
    return (Kind.OPAQUE if held else None), held


async def _accept(
    sandbox: Sandbox, client: Client, flow: Flow, alpn: str | None, held: bytes
) -> TlsPeer:
    """Be the flow's host to its client, and let `client` speak through it from now on."""
    context = sandbox.context_to_client(flow.target.host, alpn)
    flow.is_terminated = True
    assert isinstance(client.peer, Peer)
    try:
        with trio.fail_after(sandbox.deadline("tls")):
            down = await accept_tls(client.peer, context, held)
    except trio.TooSlowError:
        late = "did not finish the TLS handshake in time"
        raise HandshakeFailed("connection_timeout", late, is_refusal=True) from None
    if down.alpn != alpn:
        raise HandshakeFailed("tls_protocol_error", f"did not take {alpn}, which it had offered")
    client.peer, client.scheme, client.reader = down, "https", HeadReader()
    return down


async def _open_again(
    offers: Sequence[str], sandbox: Sandbox, client: Client, flow: Flow
) -> Upstream | Refusal:
    """A new connection to upstream for the next request, since the one before ended."""
    outcome = await open_flow(sandbox, client, flow)
    if isinstance(outcome, Refusal):
        return outcome
    secure = await secured(sandbox, flow, outcome, offers)
    if isinstance(secure, Refusal):
        return secure
    advice = certificate_asked(flow) if secure.asks_certificate else None
    return Upstream(flow, outcome.sock, secure, advice=advice)


async def _tell(
    sandbox: Sandbox,
    client: Client,
    flow: Flow,
    refusal: Refusal,
    hello: ClientHello,
    held: bytes,
) -> None:
    """Finish the client's handshake, and answer its first request with what upstream's failed by.

    The flow has ended; a request that policy refuses is still told that instead.
    """
    alpn = next((name for name in reversed(SPOKEN) if name in hello.protocols), None)
    try:
        down = await _accept(sandbox, client, flow, alpn, held)
    except HandshakeFailed:
        reset(client)
        return
    if alpn == "h2":
        await refuse_http2(sandbox, flow, down, refusal)
        return

    async def fail(_sandbox: Sandbox, _client: Client, again: Flow) -> Refusal:
        again.id, again.address = flow.id, flow.address
        return refusal

    await serve_requests(sandbox, client, Upstreams(sandbox, fail))


def _ended_by_client(flow: Flow, failed: HandshakeFailed) -> Ended:
    if not failed.is_refusal:
        detail = f"the client {failed.detail}"
        return Ended(reason="client_tls_error", said_by="sandbox", detail=detail)
    detail, remedy = _distrust(flow, failed.detail)
    return Ended(reason="client_tls_error", said_by="sandbox", detail=detail, remedy=remedy)


def _distrust(flow: Flow, what: str) -> tuple[str, str]:
    """What the audit says of a client that seems not to take our certificate."""
    host = flow.target.host
    detail = (
        f"the client {what}: it may not trust this sandbox's certificates (it has roots of its "
        "own, pins a certificate, or does not read the variables that name the bundle)"
    )
    return detail, f"let it trust $SSL_CERT_FILE, or list {host} in the policy with `tls: skip`"


async def _turn_away(client: Client, *, is_tls: bool) -> None:
    if is_tls:
        await alert(client)
    else:
        reset(client)


async def _reset(client: Client) -> None:
    reset(client)


async def _nothing() -> None:
    return


async def _pass_on(
    sandbox: Sandbox, client: Client, counted: Upstream, refused: Refusal, held: bytes
) -> None:
    """With --report: what would be refused passes as it is, and is never given a secret."""
    flow = counted.flow
    flow.noted = refused
    hand_over(sandbox, client, flow, counted.sock, to_upstream=held)
