"""One request's way up: its head, and its content whole or as it comes.

`prepare` takes the content that can be had before upstream is asked for anything: all of it where a
rewriting may change its length and GATHER holds it, else only what has come already. `send_head`
sends the head with what is there; `stream` the rest. Where a length that was announced may change,
small content gets its exact new one and larger content is sent in chunks; otherwise the client's
framing stays. Upstream that takes no more is no failure here: it may have answered.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from netns_runtime.proxy.inspect import write_body_hits
from netns_runtime.wire import NEED_DATA
from netns_runtime.wire.forward import UPGRADE
from netns_runtime.wire.message import (
    ContentReader,
    EndOfContent,
    without,
    write_chunk,
    write_head,
    write_last_chunk,
)

if TYPE_CHECKING:
    from netns_runtime.proxy.admit import Client
    from netns_runtime.proxy.flow import Flow
    from netns_runtime.proxy.inspect import Admitted
    from netns_runtime.proxy.refuse import Refusal
    from netns_runtime.proxy.sandbox import Sandbox
    from netns_runtime.proxy.upstream import Upstream
    from netns_runtime.wire.forward import Headers
    from netns_runtime.wire.head import RequestHead

GATHER: Final = 1 << 20
AT_ONCE: Final = 65_536
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class Unwritten(Exception):
    """A secret could not be recorded: the request must not go on."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.detail)
        self.refusal = refusal


class Sending:
    """The request side of one exchange.

    `is_read` says that the client's content was read to its end, and what follows it was given back
    to the client's reader; `is_sent` that upstream was sent all of it.
    """

    __slots__ = (
        *("_content", "_is_chunked", "_reserved", "_whole", "client", "head", "is_read"),
        *("is_sent", "sandbox"),
    )

    def __init__(self, sandbox: Sandbox, client: Client, head: RequestHead) -> None:
        self.sandbox = sandbox
        self.client = client
        self.head = head
        self.is_read = not head.has_body
        self.is_sent = False
        self._content = None if self.is_read else ContentReader(head)
        self._whole: bytes | None = b"" if self.is_read else None
        self._is_chunked = False
        self._reserved = 0

    def release(self) -> None:
        """Give back the room that held content took."""
        self.sandbox.gathered -= self._reserved
        self._reserved = 0

    async def prepare(self, admitted: Admitted) -> None:
        """Take what content can be had now. Raises ProtocolError and the client's OSError."""
        content = self._content
        if content is None or content.length is None or self._whole is not None:
            return
        body = admitted.body
        may_change = body is not None and body.may_change
        if content.length <= (GATHER if may_change else AT_ONCE):
            await self._gather(content, content.length, wait=may_change)

    async def take_what_came(self) -> None:
        """Read small content that has come already, of a request that is refused."""
        content = self._content
        if content is not None and not self.is_read and (content.length or GATHER) <= AT_ONCE:
            await self._gather(content, content.length or 0, wait=False)

    async def _gather(self, content: ContentReader, length: int, *, wait: bool) -> None:
        """Read content of a known length. Without `wait`, only where it is all there.

        Where too much is held already, nothing is read: it will be streamed.
        """
        if not self._reserved and not self.sandbox.reserve(length):
            return
        self._reserved = length
        peer, reader = self.client.peer, self.client.reader
        data = bytearray(reader.rest())
        expected = b"100-continue" in self.head.words(b"expect")
        while len(data) < length:
            more = peer.receive_nowait()
            if more is None:
                if not wait:
                    break
                if expected and not data:
                    await peer.send(CONTINUE)
                    expected = False
                more = await peer.receive()
            if not more and wait:
                content.feed(more)
                content.next()
            if not more:
                break
            data += more
        if len(data) < length:
            reader.feed(bytes(data))
            return
        self._whole = bytes(data[:length])
        self.is_read = True
        reader.feed(bytes(data[length:]))

    async def send_head(self, flow: Flow, admitted: Admitted, upstream: Upstream) -> None:
        """Send the head and the content that is there. Raises Unwritten, ProtocolError, OSError."""
        data, self._whole = self._whole or b"", None if self._whole is None else b""
        headers = admitted.headers
        if self._content is None:
            self.is_sent = True
        elif self._whole is not None:
            data = await self._rewritten(flow, admitted, data)
            headers = _with_length(without(headers, b"expect"), len(data))
            self.is_sent = True
        elif self._content.length is None or (admitted.body and admitted.body.may_change):
            self._is_chunked = True
            headers = without(headers, b"content-length")
            headers.append((b"Transfer-Encoding", b"chunked"))
        else:
            headers = _with_length(headers, self._content.length)
        first = b"%b %b HTTP/1.1" % (self.head.method.encode("ascii"), admitted.target)
        await self._put(upstream, write_head(first, headers) + data)

    def add_upgrade(self, admitted: Admitted) -> None:
        """Ask for a WebSocket."""
        admitted.headers = [*admitted.headers, *UPGRADE]

    async def _rewritten(self, flow: Flow, admitted: Admitted, data: bytes) -> bytes:
        body = admitted.body
        if body is None:
            return data
        parts: list[bytes] = []
        for at in range(0, len(data), AT_ONCE):
            # A little that was compressed may be much: the others have their turn.
            await trio.lowlevel.checkpoint()
            parts += body.pieces(data[at : at + AT_ONCE])
        parts.append(body.finish())
        _write_hits(self.sandbox, flow, admitted)
        return b"".join(parts)

    async def stream(self, flow: Flow, admitted: Admitted, upstream: Upstream) -> None:
        """Send the content as it comes. Raises as `send_head`, and the client's OSError."""
        content, body, peer = self._content, admitted.body, self.client.peer
        assert content is not None
        content.feed(self.client.reader.rest() or await peer.receive())
        while True:
            part = content.next()
            if part is NEED_DATA:
                content.feed(await peer.receive())
            elif isinstance(part, EndOfContent):
                self.is_read = True
                self.client.reader.feed(content.rest())
                last = body.finish() if body is not None else b""
                _write_hits(self.sandbox, flow, admitted)
                if self._is_chunked:
                    last = write_chunk(last) + write_last_chunk(part.trailers)
                self.is_sent = await self._put(upstream, last)
                return
            elif body is None:
                if not await self._put_content(upstream, part):
                    return
            else:
                for piece in body.pieces(part):
                    _write_hits(self.sandbox, flow, admitted)
                    if not await self._put_content(upstream, piece):
                        return

    async def _put_content(self, upstream: Upstream, data: bytes) -> bool:
        return await self._put(upstream, write_chunk(data) if self._is_chunked else data)

    async def _put(self, upstream: Upstream, data: bytes) -> bool:
        try:
            if data:
                await upstream.peer.send(data)
        except OSError:
            # It may have answered already (413); the response's side will tell.
            self.is_sent = False
            return False
        upstream.bytes_out += len(data)
        return True


def _write_hits(sandbox: Sandbox, flow: Flow, admitted: Admitted) -> None:
    refusal = write_body_hits(sandbox, flow, admitted)
    if refusal is not None:
        raise Unwritten(refusal)


def _with_length(headers: Headers, length: int) -> Headers:
    """The headers with this Content-Length, where it stood."""
    text = b"%d" % length
    return [
        (name, text) if name.lower() == b"content-length" else (name, value)
        for name, value in headers
    ]
