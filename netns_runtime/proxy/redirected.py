"""One redirected connection: a client that ignores the proxy, whose SYN the gateway handed to us.

The accepted socket's own address is the original destination, and that names the host: no word of
the client is needed to decide. Its first words are waited for a little, so that most flows are
judged before anything is dialled; a client that stays silent (SSH, SMTP, MySQL) is dialled for, and
judged by the tunnel's guard when it speaks. From the decision on it is the explicit flow's way.
Refused, a client is answered in its own language: an alert, a 403, or a reset.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

import trio

from netns_runtime.audit import AuditError
from netns_runtime.proxy.admit import (
    Client,
    alert,
    answer,
    begin,
    hand_over,
    looked_after,
    open_flow,
    record,
    reset,
)
from netns_runtime.proxy.explicit import past_limit
from netns_runtime.proxy.flow import owner_fields
from netns_runtime.proxy.guard import Guard
from netns_runtime.proxy.identify import is_to_be_terminated, target_of
from netns_runtime.proxy.refuse import Refusal
from netns_runtime.proxy.requests import serve_requests
from netns_runtime.proxy.tunnel import Verdict
from netns_runtime.proxy.upstream import Upstreams
from netns_runtime.wire import NEED_DATA, ProtocolError
from netns_runtime.wire.sniff import Kind

if TYPE_CHECKING:
    import socket

    from netns_runtime.proxy.flow import Flow
    from netns_runtime.proxy.sandbox import Sandbox

# Refused clients whose first bytes are waited for at once; beyond these they are reset.
REFUSED_AT_ONCE: Final = 64


async def serve_redirected(sandbox: Sandbox, sock: socket.socket, address: tuple[str, int]) -> None:
    """Serve one accepted, non-blocking socket to its end. Owns it; never raises an Exception."""
    client = Client(sock, address, entry="redirected")
    client.past_limit = sandbox.connections >= sandbox.config.limits.flows
    sandbox.connections += 1
    await looked_after(sandbox, client, _serve)


async def _serve(sandbox: Sandbox, client: Client) -> None:
    destination = client.sock.getsockname()
    if sandbox.owners is not None:
        original = ip_address(destination[0]), destination[1]
        client.owner = await sandbox.owner_of(*client.address, *original)
    target = target_of(destination, sandbox.names)
    if isinstance(target, Refusal):
        _write_refused(sandbox, client, target)
        reset(client)
        return
    client.target = target
    flow, refusal = begin(sandbox, client, target, "tcp")
    if client.past_limit:
        refusal = past_limit(sandbox)
    if refusal is not None:
        record(sandbox, flow, refusal)
        if client.past_limit or (target.address is not None and flow.decision.endpoint is None):
            reset(client)
        else:
            await _refuse_in_kind(sandbox, client, flow, refusal)
        return
    await _carry(sandbox, client, flow)


async def _carry(sandbox: Sandbox, client: Client, flow: Flow) -> None:
    is_terminated = is_to_be_terminated(sandbox, flow)
    guard = Guard(sandbox, client, flow, is_terminated=is_terminated)
    # Who speaks TLS or HTTP speaks first: where nothing else may pass, upstream can wait for it.
    patience = sandbox.deadline("head" if is_terminated else "identify")
    verdict = await _first_words(client, guard, patience)
    if verdict is Verdict.TAKE:
        if guard.refusal is None:
            client.reader.feed(guard.held())
            await serve_requests(sandbox, client, Upstreams(sandbox))
            return
        record(sandbox, flow, guard.refusal)
        await _turn_away(client, guard, guard.refusal)
        return
    outcome = await open_flow(sandbox, client, flow)
    if isinstance(outcome, Refusal):
        await _turn_away(client, guard, outcome)
        return
    if is_terminated:
        from netns_runtime.proxy.terminate import terminate  # TLS is no part of most launches

        client.reader.feed(guard.held())
        await terminate(sandbox, client, flow, outcome)
    elif verdict is Verdict.PASS:
        hand_over(sandbox, client, flow, outcome.sock, to_upstream=guard.held())
    else:
        hand_over(sandbox, client, flow, outcome.sock, guard=guard)


async def _first_words(client: Client, guard: Guard, patience: float) -> Verdict:
    """What the guard says of what came within `patience` seconds; HOLD where nothing did."""
    verdict = Verdict.HOLD
    try:
        data = client.sock.recv(16_384)
    except BlockingIOError:
        pass
    else:
        verdict = guard.feed(data) if data else guard.end()
    if verdict is Verdict.HOLD:
        with trio.move_on_after(patience):
            while verdict is Verdict.HOLD:
                data = await client.peer.receive()
                verdict = guard.feed(data) if data else guard.end()
    return verdict


async def _turn_away(client: Client, guard: Guard, refusal: Refusal) -> None:
    if guard.is_tls and refusal.said_by == "policy":
        await alert(client)
    else:
        reset(client)


async def _refuse_in_kind(sandbox: Sandbox, client: Client, flow: Flow, refusal: Refusal) -> None:
    """Wait a little for the language of a client that is refused already, and say it in that."""
    if sandbox.refusing >= REFUSED_AT_ONCE:
        reset(client)
        return
    guard = Guard(sandbox, client, flow)
    head = None
    sandbox.refusing += 1
    try:
        with trio.move_on_after(sandbox.deadline("refuse")):
            verdict = Verdict.HOLD
            while verdict is Verdict.HOLD:
                data = await client.peer.receive()
                verdict = guard.feed(data) if data else guard.end()
            if guard.first is Kind.HTTP1:
                client.reader.feed(guard.held())
                while (head := client.reader.next()) is NEED_DATA:
                    client.reader.feed(await _more(client))
    except ProtocolError:
        pass
    finally:
        sandbox.refusing -= 1
    if guard.is_tls:
        await alert(client)
    elif head is not None and head is not NEED_DATA:
        await answer(client, refusal, head)
    else:
        reset(client)


async def _more(client: Client) -> bytes:
    data = await client.peer.receive()
    if not data:
        raise ProtocolError("the request head ends before its empty line")
    return data


def _write_refused(sandbox: Sandbox, client: Client, refusal: Refusal) -> None:
    """The line of a connection that is for nobody: there is no target to decide about."""
    try:
        sandbox.audit.write(
            "flow.decided",
            **owner_fields(client.owner),
            address=refusal.address,
            port=refusal.port,
            protocol="tcp",
            entry=client.entry,
            action="refuse",
            reason=refusal.reason,
            said_by=refusal.said_by,
            detail=refusal.detail,
            remedy=refusal.remedy or None,
        )
    except AuditError as failed:
        sandbox.report(str(failed))
