"""HTTP/2 for the lab's web servers: a stream answers as an HTTP/1.1 connection does.

`serve` runs one connection to its end. An `Exchange` stands in for `lab_http.Connection`, so that
every route answers over HTTP/2 too. A peer that breaks the protocol or vanishes ends its own
connection only.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
import h11
import trio

from tests.support.lab_http import BROKEN_PEER, Connection

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Serve = Callable[[Connection, h11.Request, bytes], Awaitable[None]]

GONE: Final = (h2.exceptions.StreamClosedError, h2.exceptions.NoSuchStreamError)
WINDOW: Final = 1 << 20


class Streams:
    """All streams of one connection."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        config = h2.config.H2Configuration(client_side=False, header_encoding=None)
        self.h2 = h2.connection.H2Connection(config)
        self.stream = stream
        self.opened = trio.Event()
        self._sending = trio.Lock()

    async def flush(self) -> None:
        async with self._sending:
            if data := self.h2.data_to_send():
                await self.stream.send_all(data)

    async def run(self, serve: Serve) -> None:
        asked: dict[int, tuple[h11.Request, list[bytes]]] = {}
        self.h2.initiate_connection()
        self.h2.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: WINDOW})
        self.h2.increment_flow_control_window(WINDOW)
        await self.flush()
        async with trio.open_nursery() as nursery:
            while data := bytes(await self.stream.receive_some(65536)):
                for event in self.h2.receive_data(data):
                    match event:
                        case h2.events.RequestReceived():
                            asked[_id(event)] = (request_of(event.headers), [])
                        case h2.events.DataReceived():
                            asked[_id(event)][1].append(bytes(event.data or b""))
                            with suppress(*GONE):
                                self.h2.acknowledge_received_data(
                                    event.flow_controlled_length or 0, _id(event)
                                )
                        case h2.events.StreamEnded():
                            request, parts = asked.pop(_id(event))
                            exchange = Exchange(self, _id(event))
                            nursery.start_soon(serve, exchange, request, b"".join(parts))
                        case h2.events.StreamReset():
                            asked.pop(_id(event), None)
                        case h2.events.ConnectionTerminated():
                            break
                self.opened.set()
                self.opened = trio.Event()
                await self.flush()
            nursery.cancel_scope.cancel()


def _id(event: Any) -> int:
    return int(event.stream_id)


def request_of(headers: Any) -> h11.Request:
    """The request as HTTP/1.1 would put it; Host is the authority."""
    pseudo = {bytes(k): bytes(v) for k, v in headers if k.startswith(b":")}
    rest = [(bytes(k), bytes(v)) for k, v in headers if not k.startswith(b":")]
    if not any(name == b"host" for name, _ in rest):
        rest.insert(0, (b"host", pseudo.get(b":authority", b"")))
    rest = [(name, value) for name, value in rest if name not in (b"content-length", b"te")]
    target = pseudo.get(b":path", b"/")
    return h11.Request(method=pseudo[b":method"], target=target, headers=rest)


class Exchange(Connection):
    """One stream, as far as a route uses a connection."""

    def __init__(self, streams: Streams, number: int) -> None:
        self.streams = streams
        self.number = number
        self.stream = streams.stream

    async def send(self, event: Any) -> None:
        h2_ = self.streams.h2
        with suppress(*GONE):
            match event:
                case h11.Response():
                    hop = (b"connection", b"transfer-encoding")
                    fields = [(bytes(k), bytes(v)) for k, v in event.headers if k not in hop]
                    h2_.send_headers(
                        self.number, [(b":status", b"%d" % event.status_code), *fields]
                    )
                case h11.Data():
                    await self._send_data(bytes(event.data))
                case h11.EndOfMessage():
                    h2_.end_stream(self.number)
            await self.streams.flush()

    async def _send_data(self, data: bytes) -> None:
        h2_ = self.streams.h2
        while data:
            window = min(h2_.local_flow_control_window(self.number), h2_.max_outbound_frame_size)
            if window <= 0:
                await self.streams.flush()
                await self.streams.opened.wait()
                continue
            h2_.send_data(self.number, data[:window])
            data = data[window:]
            await self.streams.flush()


async def serve(stream: trio.abc.Stream, answer: Serve) -> None:
    try:
        await Streams(stream).run(answer)
    except* (h2.exceptions.ProtocolError, *BROKEN_PEER):
        pass
