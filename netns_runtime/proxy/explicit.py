"""One client of the explicit proxy, from accept to end.

Reads a request head, decides, and either makes a tunnel of the connection (CONNECT; the relay owns
it from then on) or exchanges one request after another (`proxy.exchange`). It ends when the client
does, when its request cannot be understood, or when a deadline for its head passes. A bug of ours
ends this flow alone: `serve_client` is the one seam that catches it, and says so.
"""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Final

import trio

from netns_runtime.address import AddressError, parse_authority
from netns_runtime.proxy.admit import Client, answer, begin, hand_over, malformed, open_flow, record
from netns_runtime.proxy.exchange import exchange
from netns_runtime.proxy.refuse import Refusal
from netns_runtime.proxy.upstream import Upstreams
from netns_runtime.wire import NEED_DATA, ProtocolError

if TYPE_CHECKING:
    import socket

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
    try:
        await _serve(sandbox, client)
    except OSError:
        pass  # the client went away; its flow, if it had one, says so itself
    except Exception as error:
        sandbox.report(f"a flow of {address[0]}:{address[1]} crashed: {_crash_of(error)}")
    finally:
        if not client.handed_over:
            sandbox.connections -= 1
            sock.close()


def _crash_of(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    where = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    line = f" at {where.tb_frame.f_code.co_name}:{where.tb_lineno}" if where else ""
    return f"{type(error).__name__}{line}: {error}"


async def _serve(sandbox: Sandbox, client: Client) -> None:
    ip, port = client.address
    if sandbox.owners is not None:
        client.owner = await sandbox.owner_of(ip, port)
    upstreams = Upstreams(sandbox)
    step = "head"
    try:
        while True:
            try:
                head = await _next_head(sandbox, client, step)
            except ProtocolError as error:
                await malformed(sandbox, client, error)
                return
            if head is None:
                return
            if client.past_limit:
                await answer(client, _past_limit(sandbox), head)
                return
            if head.method == "CONNECT":
                await _connect(sandbox, client, head)
                return
            if not await exchange(sandbox, client, upstreams, head):
                return
            step = "keepalive"
    finally:
        upstreams.close()


async def _next_head(sandbox: Sandbox, client: Client, step: str) -> RequestHead | None:
    """The next request head; None where the client ended or stayed silent before it began."""
    reader = client.reader
    head = reader.next()
    if head is not NEED_DATA:
        return head
    try:
        data = client.sock.recv(4096)
    except BlockingIOError:
        data = b""
    else:
        if not data:
            return None
        reader.feed(data)
        head = reader.next()
        if head is not NEED_DATA:
            return head
    with trio.move_on_after(sandbox.deadline(step if not reader else "head")):
        while True:
            begun = bool(reader)
            data = await client.peer.receive()
            if not data:
                if begun:
                    raise ProtocolError("the request head ends before its empty line")
                return None
            reader.feed(data)
            head = reader.next()
            if head is not NEED_DATA:
                return head
            if step == "keepalive" and not begun:
                return await _next_head(sandbox, client, "head")
    if reader or step == "head":
        raise ProtocolError("no request head came in time", status=408)
    return None


def _past_limit(sandbox: Sandbox) -> Refusal:
    flows = sandbox.config.limits.flows
    return Refusal(
        "connection_limit_reached",
        f"{flows} flows are open, which is this sandbox's limit",
        f"close some, or run with --limit flows={flows * 2}",
    )


async def _connect(sandbox: Sandbox, client: Client, head: RequestHead) -> None:
    try:
        target = parse_authority(head.target, None)
    except AddressError as error:
        await malformed(sandbox, client, ProtocolError(f"CONNECT takes host:port: {error}"))
        return
    flow, refusal = begin(sandbox, client, target, "connect")
    if refusal is not None:
        await answer(client, record(sandbox, flow, refusal) or refusal, head)
        return
    outcome = await open_flow(sandbox, client, flow)
    if isinstance(outcome, Refusal):
        await answer(client, outcome, head)
        return
    hand_over(sandbox, client, flow, outcome.sock, to_client=ESTABLISHED)


_EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
# accept(2), "Error handling": errors of the new connection, told by accept.
_OF_ONE_CLIENT: Final = frozenset(
    {
        *(errno.ECONNABORTED, errno.EPERM, errno.EPROTO, errno.ENETDOWN, errno.ENOPROTOOPT),
        *(errno.EHOSTDOWN, errno.ENONET, errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH),
    }
)
ACCEPTS: Final = 32


async def accept_clients(sandbox: Sandbox, listener: socket.socket, nursery: trio.Nursery) -> None:
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
            start(serve_client, sandbox, sock, address[:2])
