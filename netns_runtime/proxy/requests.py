"""One request after another of a client that speaks HTTP/1 to us.

On the explicit port each request names its target; inside a tunnel and on a redirected connection
all of them must name the connection's own (`Client.target`). `serve_requests` ends when the client
does, when a request cannot be understood, or when a deadline for its head passes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from netns_runtime.proxy.admit import Client, malformed
from netns_runtime.proxy.exchange import exchange
from netns_runtime.wire import NEED_DATA, ProtocolError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from netns_runtime.proxy.sandbox import Sandbox
    from netns_runtime.proxy.upstream import Upstreams
    from netns_runtime.wire.head import RequestHead

    Special = Callable[[Sandbox, Client, RequestHead], Awaitable[bool]]


async def serve_requests(
    sandbox: Sandbox, client: Client, upstreams: Upstreams, special: Special | None = None
) -> None:
    """Serve requests to the end. `special` sees each first and says whether that was the last."""
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
            if special is not None and await special(sandbox, client, head):
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
    data = client.peer.receive_nowait()
    if data is not None:
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
