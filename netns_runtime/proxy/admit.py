"""The way of every flow: decide, resolve and screen, record, dial; and how a client is told no.

`begin` decides and waits for nothing; `open_flow` does the rest and gives a connected socket or a
`Refusal`; `hand_over` gives both sockets to the relay; `answer` and `malformed` end a connection
with a response. `flow.decided` is written before anything is dialled: no record, no egress.
"""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import trio

from netns_runtime.audit import AuditError
from netns_runtime.policy import decide
from netns_runtime.proxy.dial import Dialled, candidates_of, dial
from netns_runtime.proxy.flow import Ended, Flow, owner_fields
from netns_runtime.proxy.peer import Peer
from netns_runtime.proxy.refuse import Refusal, refusal_of, response_of
from netns_runtime.wire.head import HeadReader

if TYPE_CHECKING:
    from netns_runtime.address import HostPort
    from netns_runtime.owner import Owner
    from netns_runtime.proxy.sandbox import Sandbox
    from netns_runtime.wire import ProtocolError
    from netns_runtime.wire.head import RequestHead

LINGER: Final = 2.0
LINGER_BYTES: Final = 1 << 20


class Client:
    """A connection of the sandbox to the explicit proxy, and who made it."""

    __slots__ = ("address", "handed_over", "owner", "past_limit", "peer", "reader", "sock")

    def __init__(self, sock: socket.socket, address: tuple[str, int], *, past_limit: bool) -> None:
        self.sock = sock
        self.peer = Peer(sock)
        self.address = address
        self.owner: Owner | None = None
        self.reader = HeadReader()
        self.past_limit = past_limit
        self.handed_over = False


async def answer(
    client: Client, refusal: Refusal, head: RequestHead | None, *, unread: bool = False
) -> None:
    """Tell a client that it does not get what it asked for, and end the connection.

    What the client still sends is taken first, within bounds: closing over unread data resets the
    connection, and the answer could be lost.
    """
    with trio.move_on_after(LINGER):
        await client.peer.send(response_of(refusal, head))
        if not unread and not client.reader and (head is None or not head.has_body):
            return
        await linger(client)


async def linger(client: Client) -> None:
    """Say that no more comes, and take what the client still sends, within bounds."""
    with trio.move_on_after(LINGER):
        client.sock.shutdown(socket.SHUT_WR)
        taken = 0
        while taken < LINGER_BYTES:
            data = await client.peer.receive()
            if not data:
                return
            taken += len(data)


def begin(
    sandbox: Sandbox, client: Client, target: HostPort, protocol: str
) -> tuple[Flow, Refusal | None]:
    """Decide, which reads nothing and waits for nothing. In report mode a refusal is only noted."""
    decision = decide(sandbox.config.policy, target, client.owner)
    flow = Flow(next(sandbox.ids), target, protocol, trio.current_time(), client.owner, decision)
    if decision.action != "refuse":
        return flow, None
    if sandbox.config.report:
        flow.reported = True
        return flow, None
    return flow, refusal_of(decision, target.host, target.port)


def record(sandbox: Sandbox, flow: Flow, refusal: Refusal | None) -> Refusal | None:
    """Write `flow.decided`. Where that fails, the flow is refused: no record, no egress."""
    try:
        sandbox.audit.write("flow.decided", **flow.decided(refusal))
    except AuditError as error:
        sandbox.report(f"flow {flow.id} refused: {error}")
        return Refusal(
            "proxy_internal_error",
            f"the audit cannot be written, and nothing leaves without a record: {error}",
            "free space where --audit writes",
            flow.target.host,
            flow.target.port,
            status_override=503,
        )
    return refusal


async def open_flow(sandbox: Sandbox, client: Client, flow: Flow) -> Dialled | Refusal:
    """Resolve, screen, record and dial, in that order.

    After a refusal the flow is over and the audit says why; after `Dialled` it is among
    `sandbox.flows`, and whoever has it ends it with `close_flow`.
    """
    addresses = await candidates_of(sandbox, flow.target, flow.decision)
    if isinstance(addresses, Refusal):
        if addresses.said_by == "policy":
            return record(sandbox, flow, addresses) or addresses
        unrecorded = record(sandbox, flow, None)
        if unrecorded is not None:
            return unrecorded
        sandbox.close_flow(flow, ended_by(addresses))
        return addresses
    flow.address = str(addresses[0])
    unrecorded = record(sandbox, flow, None)
    if unrecorded is not None:
        return unrecorded
    sandbox.flows[flow.id] = flow
    try:
        outcome = await dial(sandbox, flow.target, addresses)
    except BaseException as error:
        if isinstance(error, Exception):
            ended = Ended(reason="proxy_internal_error", said_by="proxy")
        else:
            ended = Ended(reason="connection_terminated", said_by="sandbox")
        sandbox.close_flow(flow, ended)
        raise
    if isinstance(outcome, Refusal):
        flow.address = outcome.address
        sandbox.close_flow(flow, ended_by(outcome))
    else:
        flow.address = outcome.address
    return outcome


def ended_by(refusal: Refusal) -> Ended:
    """The end of a flow that a refusal, or a failure, ended."""
    return Ended(reason=refusal.reason, said_by=refusal.said_by, detail=refusal.detail)


def hand_over(
    sandbox: Sandbox,
    client: Client,
    flow: Flow,
    upstream: socket.socket,
    *,
    to_client: bytes = b"",
    to_upstream: bytes = b"",
    counted: tuple[int, int] = (0, 0),
) -> None:
    """Give both sockets to the relay, with what each side is still owed.

    `counted` are the bytes in and out that passed before.
    """

    def closed(ended: Ended) -> None:
        sandbox.connections -= 1
        total = replace(
            ended,
            bytes_in=ended.bytes_in + counted[0],
            bytes_out=ended.bytes_out + counted[1],
        )
        sandbox.close_flow(flow, total)

    client.handed_over = True
    sandbox.relay.add(
        client.sock,
        upstream,
        closed,
        to_client=to_client,
        to_upstream=to_upstream + client.reader.rest(),
    )


async def malformed(sandbox: Sandbox, client: Client, error: ProtocolError) -> None:
    """Answer what is not a request we can read, with one audit line."""
    refusal = Refusal("http_request_error", str(error), status_override=error.status)
    try:
        sandbox.audit.write(
            "flow.decided",
            **owner_fields(client.owner),
            protocol="http",
            entry="explicit",
            action="refuse",
            reason=refusal.reason,
            said_by="proxy",
            status=error.status,
            detail=refusal.detail,
        )
    except AuditError as failed:
        sandbox.report(str(failed))
    await answer(client, refusal, None, unread=True)
