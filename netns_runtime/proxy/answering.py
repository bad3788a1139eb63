"""One response's way down: from upstream's bytes to the client's framing.

`bring` passes on what upstream says as it comes and returns when the response is whole, or when
upstream switched to another protocol. Of a host with bound secrets every head and all content goes
through the masker: content that had a length and fits GATHER (and, with what else the sandbox
holds, GATHERED_LIMIT) is held until its new length is known, any other is sent on at once, in
chunks or, to an HTTP/1.0 client, until the connection's end.
It ends early by `UpstreamFailed`, or by the client's OSError.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import h11

from netns_runtime.proxy.sending import AT_ONCE, GATHER
from netns_runtime.wire import NEED_DATA, ProtocolError
from netns_runtime.wire.forward import UPGRADE, end_to_end
from netns_runtime.wire.message import (
    EndOfContent,
    ResponseReader,
    header_value,
    without,
    write_chunk,
    write_head,
    write_last_chunk,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from netns_runtime.proxy.admit import Client
    from netns_runtime.proxy.sending import Sending
    from netns_runtime.proxy.upstream import Upstream
    from netns_runtime.secret import Secret
    from netns_runtime.wire.forward import Headers
    from netns_runtime.wire.response import ResponseMasker

_NO_CONTENT: Final = frozenset({204, 304})


class UpstreamFailed(Exception):
    """Upstream ended or broke HTTP. `reason` is RFC 9209's."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Answering:
    """The response side of one exchange.

    `log` is told the status before the client is; `heard` and `phrase` are then what came with it,
    without upstream's hop-by-hop headers. `has_begun` says that the client may have part of
    the response, `closes` that its connection carries no other request.
    """

    __slots__ = (
        *("_bound", "_client", "_gathered", "_head", "_held", "_is_chunked", "_log", "_masker"),
        *("_out", "_pending", "_reader", "_sending", "_upstream", "closes", "has_begun"),
        *("_gathered_size", "_reserved", "_status", "heard", "phrase", "switched_headers"),
    )

    def __init__(
        self,
        client: Client,
        sending: Sending,
        upstream: Upstream,
        bound: tuple[Secret, ...],
        log: Callable[[int], None],
        *,
        is_upgrade: bool,
    ) -> None:
        head = sending.head
        self._client = client
        self._head = head
        self._sending = sending
        self._upstream = upstream
        self._bound = bound
        self._log = log
        self._reader = ResponseReader(head.method, is_upgrade=is_upgrade)
        self._masker: ResponseMasker | None = None
        self._out: list[bytes] = []
        self._held = 0
        self._gathered: list[bytes] | None = None
        self._gathered_size = 0
        self._reserved = 0
        self._status = 0
        self._pending: tuple[bytes, Headers] | None = None
        self._is_chunked = False
        self.has_begun = False
        self.closes = head.version != (1, 1) or b"close" in head.words(b"connection")
        self.switched_headers: Headers = []
        self.heard: Headers = []
        self.phrase = b""

    @property
    def is_reusable(self) -> bool:
        """Whether upstream's connection may carry another request."""
        return self._reader.is_reusable

    def rest(self) -> bytes:
        """What upstream sent after switching."""
        return self._reader.rest()

    async def bring(self) -> bool:
        """Pass the response on. True once upstream switched to another protocol."""
        reader = self._reader
        await self._receive()
        while True:
            try:
                event = reader.next()
            except ProtocolError as error:
                reason = "http_response_incomplete" if self._status else "http_protocol_error"
                # What upstream wrote may hold a value; the text quotes it.
                detail = "its response is not HTTP" if self._bound else str(error)
                raise UpstreamFailed(reason, detail) from error
            if event is NEED_DATA:
                await self._flush()
                await self._receive()
            elif isinstance(event, bytes):
                await self._content(event)
            elif isinstance(event, EndOfContent):
                self._end(event.trailers)
                await self._flush()
                return False
            elif isinstance(event, h11.Response):
                self._begin(event)
            elif event.status_code == 101:
                self._switch(event)
                await self._flush()
                return True
            elif self._head.version == (1, 1):
                headers = self._masked(end_to_end(event.headers.raw_items()))
                self._put(write_head(self._status_line(event), headers))

    async def _receive(self) -> None:
        upstream = self._upstream
        target = upstream.flow.target
        try:
            data = await upstream.peer.receive()
        except OSError as error:
            why = error.strerror or type(error).__name__
            raise UpstreamFailed("connection_terminated", why) from error
        begun = upstream.bytes_in > upstream.fresh
        if not begun and not b"HTTP/".startswith(data[:5]):
            raise UpstreamFailed("http_protocol_error", f"{target} does not speak HTTP")
        if not data and not self._status:
            reason = "http_protocol_error" if begun else "connection_terminated"
            raise UpstreamFailed(reason, f"{target} closed without a response")
        upstream.bytes_in += len(data)
        self._reader.feed(data)

    def _begin(self, event: h11.Response) -> None:
        self._status = status = event.status_code
        raw = event.headers.raw_items()
        headers = end_to_end(raw)
        has_content = self._head.method != "HEAD" and status not in _NO_CONTENT
        length = header_value(headers, b"content-length")
        if self._bound and has_content:
            from netns_runtime.wire.response import response_masker

            try:
                masker = response_masker(headers, self._bound)
            except ProtocolError as error:
                raise UpstreamFailed("http_protocol_error", str(error)) from error
            headers = masker.headers
            self._masker = masker if masker.may_change else None
        else:
            headers = self._masked(headers)
        first = self._status_line(event)
        if not self._sending.is_read:
            self.closes = True
        if not has_content:
            coding = header_value(raw, b"transfer-encoding")
            if coding is not None and length is None and self._head.method == "HEAD":
                headers.append((b"Transfer-Encoding", b"chunked"))
        elif self._masker is not None and length is not None and self._may_hold(int(length)):
            self._gathered = []
            self._pending = first, without(headers, b"content-length")
            return
        elif self._masker is not None or length is None:
            self._put_head_of_stream(first, headers)
            return
        self._put_head(first, headers)

    def _may_hold(self, length: int) -> bool:
        more = length - self._reserved
        if length > GATHER or (more > 0 and not self._sending.sandbox.reserve(more)):
            return False
        self._reserved += max(more, 0)
        return True

    def release(self) -> None:
        """Give back the room that held content took."""
        self._sending.sandbox.gathered -= self._reserved
        self._reserved = 0

    def _put_head_of_stream(self, first: bytes, headers: Headers) -> None:
        headers = without(headers, b"content-length")
        self._is_chunked = self._head.version == (1, 1)
        if self._is_chunked:
            headers.append((b"Transfer-Encoding", b"chunked"))
        else:
            self.closes = True
        self._put_head(first, headers)

    def _put_head(self, first: bytes, headers: Headers) -> None:
        if self.closes:
            headers.append((b"Connection", b"close"))
        self.has_begun = True
        self.heard, self.phrase = headers, first[len("HTTP/1.1 200 ") :]
        self._log(self._status)
        self._put(write_head(first, headers))

    async def _content(self, data: bytes) -> None:
        if self._masker is None:
            self._put_content(data)
            if self._held >= AT_ONCE:
                await self._flush()
            return
        try:
            for piece in self._masker.pieces(data):
                self._put_content(piece)
                if self._held >= AT_ONCE:
                    await self._flush()
        except ProtocolError as error:
            self._broken(error)

    def _put_content(self, data: bytes) -> None:
        if self._gathered is not None and self._pending is not None:
            self._gathered.append(data)
            self._gathered_size += len(data)
            if self._may_hold(self._gathered_size):
                return
            # It was compressed, or the placeholder is longer than the value.
            data, self._gathered = b"".join(self._gathered), None
            self._put_head_of_stream(*self._pending)
        if data:
            self._put(write_chunk(data) if self._is_chunked else data)

    def _end(self, trailers: Headers) -> None:
        if self._masker is not None:
            try:
                self._put_content(self._masker.finish())
            except ProtocolError as error:
                self._broken(error)
        if self._gathered is not None and self._pending is not None:
            data = b"".join(self._gathered)
            first, headers = self._pending
            self._put_head(first, [*headers, (b"Content-Length", b"%d" % len(data))])
            self._put(data)
        elif self._is_chunked:
            self._put(write_last_chunk(self._masked(trailers)))

    def _broken(self, error: ProtocolError) -> None:
        reason = "http_response_incomplete" if self._status else "http_protocol_error"
        raise UpstreamFailed(reason, str(error)) from error

    def _switch(self, event: h11.InformationalResponse) -> None:
        self.switched_headers = self._masked(end_to_end(event.headers.raw_items()))
        self.heard = self.switched_headers
        self._log(101)
        self.has_begun = True
        self._put(write_head(self._status_line(event), [*self.switched_headers, *UPGRADE]))

    def _masked(self, headers: Headers) -> Headers:
        if not self._bound:
            return headers
        from netns_runtime.wire.mask import mask_headers  # no part of most launches

        return mask_headers(headers, self._bound)

    def _status_line(self, event: h11.Response | h11.InformationalResponse) -> bytes:
        reason = bytes(event.reason)
        if self._bound and reason:
            [(_, reason)] = self._masked([(b"reason", reason)])
        return b"HTTP/1.1 %d %b" % (event.status_code, reason)

    def _put(self, data: bytes) -> None:
        self._out.append(data)
        self._held += len(data)

    async def _flush(self) -> None:
        if self._out:
            data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
            self._out, self._held = [], 0
            await self._client.peer.send(data)
