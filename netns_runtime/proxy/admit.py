"""The way of every flow: decide, resolve and screen, record, dial; and how a client is told no.

`begin` decides and waits for nothing; `open_flow` does the rest and gives a connected socket or a
`Refusal`; `hand_over` gives both sockets to the relay; `answer`, `alert`, `reset` and `malformed`
end a connection with what its client understands. `looked_after` is the seam that catches a bug of
ours, which ends its flow alone. `flow.decided` is written before anything is dialled: no record, no
egress.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio

from netns_runtime.audit import AuditError
from netns_runtime.policy import decide
from netns_runtime.policy.hosts import is_wildcard
from netns_runtime.policy.secrets import bound_to
from netns_runtime.proxy.dial import Dialled, candidates_of, dial
from netns_runtime.proxy.flow import Ended, Flow, owner_fields
from netns_runtime.proxy.peer import Peer
from netns_runtime.proxy.refuse import Refusal, refusal_of, response_of
from netns_runtime.wire.head import HeadReader

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from netns_runtime.address import HostPort
    from netns_runtime.owner import Owner
    from netns_runtime.proxy.sandbox import Sandbox
    from netns_runtime.proxy.tls import TlsPeer
    from netns_runtime.proxy.tunnel import Guard
    from netns_runtime.wire import ProtocolError
    from netns_runtime.wire.head import RequestHead

_HTTP: Final = 80
LINGER: Final = 2.0
LINGER_BYTES: Final = 1 << 20
# RFC 8446, 6: a fatal access_denied (49) in a record of the version every client takes.
ACCESS_DENIED: Final = bytes.fromhex("15 03 03 00 02 02 31")


class Client:
    """A connection of the sandbox, and who made it.

    `target` is where all of it goes, for a redirected connection and inside a tunnel; None where
    each request names its own. Of a terminated flow `peer` is the TLS inside and `scheme` "https".
    """

    __slots__ = (
        *("address", "entry", "handed_over", "owner", "past_limit", "peer", "reader", "scheme"),
        *("sock", "target"),
    )

    def __init__(
        self,
        sock: socket.socket,
        address: tuple[str, int],
        *,
        past_limit: bool = False,
        entry: str = "explicit",
    ) -> None:
        self.sock = sock
        self.entry = entry
        self.target: HostPort | None = None
        self.peer: Peer | TlsPeer = Peer(sock)
        self.scheme = "http"
        self.address = address
        self.owner: Owner | None = None
        self.reader = HeadReader()
        self.past_limit = past_limit
        self.handed_over = False

    def again(self) -> Client:
        """The same connection, taken back from the relay."""
        client = Client(self.sock, self.address, entry=self.entry)
        client.target, client.owner = self.target, self.owner
        return client


async def looked_after(
    sandbox: Sandbox, client: Client, serve: Callable[[Sandbox, Client], Awaitable[None]]
) -> None:
    """Serve a client that is counted in `connections` to its end. Never raises an Exception."""
    try:
        await serve(sandbox, client)
    except OSError:
        pass  # the client went away; its flow, if it had one, says so itself
    except Exception as error:
        where = f"{client.address[0]}:{client.address[1]}"
        sandbox.report(f"a flow of {where} crashed: {_crash_of(error)}")
    finally:
        if not client.handed_over:
            sandbox.connections -= 1
            client.sock.close()


def _crash_of(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    where = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    line = f" at {where.tb_frame.f_code.co_name}:{where.tb_lineno}" if where else ""
    return f"{type(error).__name__}{line}: {error}"


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
            await client.peer.end()
            return
        await linger(client)


async def linger(client: Client) -> None:
    """Say that no more comes, and take what the client still sends, within bounds."""
    with trio.move_on_after(LINGER):
        await client.peer.end()
        taken = 0
        while taken < LINGER_BYTES:
            data = await client.peer.receive()
            if not data:
                return
            taken += len(data)


async def alert(client: Client) -> None:
    """Tell a TLS client that it is refused, and end the connection."""
    with trio.move_on_after(LINGER):
        await client.peer.send(ACCESS_DENIED)
        await linger(client)


def reset(client: Client) -> None:
    """See to it that the client's connection ends by a reset when it is closed."""
    client.peer.abort()


def begin(
    sandbox: Sandbox, client: Client, target: HostPort, protocol: str
) -> tuple[Flow, Refusal | None]:
    """Decide, which reads nothing and waits for nothing. In report mode a refusal is only noted."""
    policy, now = sandbox.config.policy, trio.current_time()
    decision = decide(policy, target, client.owner)
    number = next(sandbox.ids)
    flow = Flow(number, target, protocol, now, client.owner, decision, policy, client.entry)
    flow.client, flow.is_terminated = client.sock, client.scheme == "https"
    return flow, refused_by_decision(sandbox, flow)


def refused_by_decision(sandbox: Sandbox, flow: Flow) -> Refusal | None:
    """What the flow's decision says, if it says no. In report mode it is only noted."""
    if flow.decision.action != "refuse":
        return _past_names(sandbox, flow)
    host, port = _parts_of(flow)
    refusal = refusal_of(flow.decision, host, port)
    if port == _HTTP and sandbox.config.secrets and bound_to(sandbox.config.secrets, host):
        # To allow port 80 would be the way to a value in plain text.
        refusal = replace(refusal, remedy=f"use https://{host}/")
    if sandbox.config.report:
        flow.noted = refusal
        return None
    return refusal


def _past_names(sandbox: Sandbox, flow: Flow) -> Refusal | None:
    """Names are a channel: the resolver's bound on a wildcard's names holds here too."""
    endpoint, target = flow.decision.endpoint, flow.target
    if endpoint is None or sandbox.names is None or not is_wildcard(endpoint.host):
        return None
    if sandbox.names.address_of(target.host, endpoint.host) is not None:
        return None
    return Refusal(
        "http_request_denied",
        f"{flow.decision.rule} has covered as many different names as one wildcard may",
        f"--allow {target} names it, or --limit names=N",
        target.host,
        target.port,
        flow.decision.rule,
    )


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
    if sandbox.tap is not None:
        sandbox.tap.decided(sandbox, flow, refusal)
    return refusal


async def open_flow(sandbox: Sandbox, client: Client, flow: Flow) -> Dialled | Refusal:
    """Resolve, screen, record and dial, in that order.

    After a refusal the flow is over and the audit says why; after `Dialled` it is among
    `sandbox.flows`, and whoever has it ends it with `close_flow`.
    """
    while True:
        addresses = await candidates_of(sandbox, flow.target, flow.decision)
        if flow.policy is sandbox.config.policy:
            break
        # The policy was swapped while the name was being resolved.
        flow.policy = sandbox.config.policy
        flow.decision = decide(flow.policy, flow.target, flow.owner)
        refusal = refused_by_decision(sandbox, flow)
        if refusal is not None:
            return record(sandbox, flow, refusal) or refusal
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
    began = trio.current_time()
    try:
        outcome = await dial(sandbox, flow.target, addresses)
    except BaseException as error:
        if isinstance(error, Exception):
            ended = Ended(reason="proxy_internal_error", said_by="proxy")
        else:
            ended = Ended(reason="connection_terminated", said_by="sandbox")
        sandbox.close_flow(flow, ended)
        raise
    if flow.cut_short is not None:
        if isinstance(outcome, Dialled):
            outcome.sock.close()
        sandbox.close_flow(flow, flow.cut_short)
        return refusal_of(decide(flow.policy, flow.target, flow.owner), *_parts_of(flow))
    if isinstance(outcome, Refusal):
        flow.address = outcome.address
        sandbox.close_flow(flow, ended_by(outcome))
    else:
        flow.address = outcome.address
        flow.sockets = client.sock, outcome.sock
        if sandbox.tap is not None:
            sandbox.tap.opened(flow)
        sandbox.tallies.took("connect", trio.current_time() - began)
    return outcome


def ended_by(refusal: Refusal) -> Ended:
    """The end of a flow that a refusal, or a failure, ended."""
    ended = Ended(reason=refusal.reason, said_by=refusal.said_by, detail=refusal.detail)
    if refusal.said_by != "policy":
        return ended
    return replace(ended, action="refuse", remedy=refusal.remedy or None)


def _parts_of(flow: Flow) -> tuple[str, int]:
    return flow.target.host, flow.target.port


def hand_over(
    sandbox: Sandbox,
    client: Client,
    flow: Flow,
    upstream: socket.socket,
    *,
    to_client: bytes = b"",
    to_upstream: bytes = b"",
    counted: tuple[int, int] = (0, 0),
    guard: Guard | None = None,
) -> None:
    """Give both sockets to the relay, with what each side is still owed.

    `counted` are the bytes in and out that passed before. `guard` judges the client's first bytes,
    `to_upstream` included.
    """

    def closed(ended: Ended) -> None:
        sandbox.connections -= 1
        if any(counted):
            ended = replace(
                ended,
                bytes_in=ended.bytes_in + counted[0],
                bytes_out=ended.bytes_out + counted[1],
            )
        sandbox.close_flow(flow, ended)

    client.handed_over = True
    relay = sandbox.relay
    rest = to_upstream + client.reader.rest()
    tunnel = relay.add(
        client.sock, upstream, closed, to_client=to_client, to_upstream=rest, guard=guard
    )
    if tunnel.closed is not None:
        flow.cut = partial(relay.cut, tunnel)

        def progress() -> tuple[tuple[str, Any], ...]:
            moved_in, moved_out = tunnel.bytes_in, tunnel.bytes_out
            return ("bytes_in", moved_in + counted[0]), ("bytes_out", moved_out + counted[1])

        flow.progress = progress


async def malformed(sandbox: Sandbox, client: Client, error: ProtocolError) -> None:
    """Answer what is not a request we can read, with one audit line."""
    refusal = Refusal("http_request_error", str(error), status_override=error.status)
    try:
        sandbox.audit.write(
            "flow.decided",
            **owner_fields(client.owner),
            host=client.target.host if client.target else None,
            port=client.target.port if client.target else None,
            protocol="http",
            entry=client.entry,
            action="refuse",
            reason=refusal.reason,
            said_by="proxy",
            status=error.status,
            detail=refusal.detail,
        )
    except AuditError as failed:
        sandbox.report(str(failed))
    await answer(client, refusal, None, unread=True)
