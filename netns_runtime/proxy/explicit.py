"""One client of the explicit proxy, from accept to end.

Reads a request head, decides, and either makes a tunnel of the connection (CONNECT; the relay owns
it from then on, with a guard before the client's first bytes) or exchanges one request after
another (`proxy.requests`). `accept_clients` accepts for the redirected flows too.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

import trio

from netns_runtime.address import AddressError, parse_authority
from netns_runtime.proxy.admit import (
    Client,
    answer,
    begin,
    hand_over,
    looked_after,
    malformed,
    open_flow,
    record,
)
from netns_runtime.proxy.endpoint import asks_for_secret, serve_secret
from netns_runtime.proxy.guard import Guard
from netns_runtime.proxy.identify import is_to_be_terminated
from netns_runtime.proxy.refuse import Refusal
from netns_runtime.proxy.requests import serve_requests
from netns_runtime.proxy.upstream import Upstreams
from netns_runtime.wire import ProtocolError

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from netns_runtime.proxy.sandbox import Sandbox
    from netns_runtime.wire.head import RequestHead

ESTABLISHED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"
# Clients past the limit of flows that are still told so; beyond these they are reset.
TOLD_PAST_LIMIT: Final = 64


async def serve_client(sandbox: Sandbox, sock: socket.socket, address: tuple[str, int]) -> None:
    """Serve one accepted, non-blocking socket to its end. Owns it; never raises an Exception."""
    limit = sandbox.config.limits.flows
    if sandbox.connections >= limit + TOLD_PAST_LIMIT:
        sock.close()
        return
    client = Client(sock, address, past_limit=sandbox.connections >= limit)
    sandbox.connections += 1
    await looked_after(sandbox, client, _serve)


async def _serve(sandbox: Sandbox, client: Client) -> None:
    if sandbox.owners is not None:
        client.owner = await sandbox.owner_of(*client.address)
    await serve_requests(sandbox, client, Upstreams(sandbox), _connect)


def past_limit(sandbox: Sandbox) -> Refusal:
    """What a client is told past the limit of flows."""
    flows = sandbox.config.limits.flows
    return Refusal(
        "connection_limit_reached",
        f"{flows} flows are open, which is this sandbox's limit",
        f"close some, or run with --limit flows={flows * 2}",
    )


async def _connect(sandbox: Sandbox, client: Client, head: RequestHead) -> bool:
    """Make a tunnel, where that is what the request asks for. Whether there is nothing more."""
    if client.past_limit:
        await answer(client, past_limit(sandbox), head)
        return True
    if asks_for_secret(head):
        await serve_secret(sandbox, client, head)
        return True
    if head.method != "CONNECT":
        return False
    try:
        target = parse_authority(head.target, None)
    except AddressError as error:
        await malformed(sandbox, client, ProtocolError(f"CONNECT takes host:port: {error}"))
        return True
    flow, refusal = begin(sandbox, client, target, "connect")
    if refusal is not None:
        await answer(client, record(sandbox, flow, refusal) or refusal, head)
        return True
    outcome = await open_flow(sandbox, client, flow)
    if isinstance(outcome, Refusal):
        await answer(client, outcome, head)
        return True
    client.target = target
    if is_to_be_terminated(sandbox, flow):
        from netns_runtime.proxy.terminate import terminate  # TLS is no part of most launches

        await terminate(sandbox, client, flow, outcome, to_client=ESTABLISHED)
        return True
    guard = Guard(sandbox, client, flow)
    hand_over(sandbox, client, flow, outcome.sock, to_client=ESTABLISHED, guard=guard)
    return True


_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
# accept(2), "Error handling": errors of the new connection, told by accept.
_OF_ONE_CLIENT: Final = frozenset(
    {
        *(errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.ENETDOWN, errno.ENOPROTOOPT),
        *(errno.EHOSTDOWN, errno.ENONET, errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH),
    }
)
ACCEPTS: Final = 32


async def accept_clients(
    sandbox: Sandbox,
    listener: socket.socket,
    nursery: trio.Nursery,
    serve: Callable[[Sandbox, socket.socket, tuple[str, int]], Awaitable[None]] = serve_client,
) -> None:
    """Accept until cancelled. Out of descriptors or memory, wait a little, as trio's own does."""
    fd = listener.fileno()
    accept, start = listener.accept, nursery.start_soon
    while True:
        await trio.lowlevel.wait_readable(fd)
        for _ in range(ACCEPTS):
            try:
                sock, address = accept()
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    sandbox.report(f"accept: {error.strerror}")
                    await trio.sleep(0.1)
                elif error.errno not in _OF_ONE_CLIENT:
                    raise
                break
            sock.setblocking(False)
            start(serve, sandbox, sock, address[:2])
