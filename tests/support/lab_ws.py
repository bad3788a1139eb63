"""A WebSocket of the lab's servers, for those that say more than an echo.

`accept` answers the upgrade; then JSON goes both ways. Pings are answered. `receive` gives None
once the peer has closed; a peer that breaks off raises what `lab_http.BROKEN_PEER` lists. `abort`
ends the connection as a crash does, with a reset and without a close frame. `zlib_stream` is
Discord's: one zlib stream over all messages, each a binary frame that ends in a sync flush.
"""

from __future__ import annotations

import json
import socket
import struct
import zlib
from typing import TYPE_CHECKING, Any, Self

import trio
import wsproto
import wsproto.events as ws
from wsproto.extensions import PerMessageDeflate

if TYPE_CHECKING:
    import h11

    from tests.support.lab_http import Connection

RSV1 = 0x40
"""Of a frame's first byte: the message is compressed (RFC 7692, 6)."""


class WebSocket:
    """One accepted socket. `was_deflated` says how the message received last came."""

    def __init__(self, connection: Connection, *, zlib_stream: bool = False) -> None:
        self._packed = zlib.compressobj() if zlib_stream else None
        self._stream = connection.stream
        self._protocol = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
        self._text: list[str] = []
        self.was_deflated = False

    @classmethod
    async def accept(
        cls, connection: Connection, request: h11.Request, *, zlib_stream: bool = False
    ) -> Self:
        self = cls(connection, zlib_stream=zlib_stream)
        headers = [(bytes(k), bytes(v)) for k, v in request.headers]
        self._protocol.initiate_upgrade_connection(headers, request.target)
        answer = ws.AcceptConnection(extensions=[PerMessageDeflate()])
        await self._stream.send_all(self._protocol.send(answer))
        early, _ = connection.http.trailing_data
        if early:
            self._protocol.receive_data(early)
        return self

    async def send(self, message: Any) -> None:
        text = json.dumps(message)
        event: ws.Event = ws.TextMessage(data=text)
        if self._packed:
            packed = self._packed.compress(text.encode())
            event = ws.BytesMessage(data=packed + self._packed.flush(zlib.Z_SYNC_FLUSH))
        await self._stream.send_all(self._protocol.send(event))

    async def receive(self) -> Any:
        """The next message, parsed; None at the end."""
        while True:
            for event in self._protocol.events():
                match event:
                    case ws.TextMessage():
                        self._text.append(event.data)
                        if event.message_finished:
                            text, self._text = "".join(self._text), []
                            return json.loads(text)
                    case ws.Ping():
                        await self._stream.send_all(self._protocol.send(event.response()))
                    case ws.CloseConnection():
                        await self._stream.send_all(self._protocol.send(event.response()))
                        return None
            data = bytes(await self._stream.receive_some(65536))
            if not data:
                return None
            self.was_deflated = bool(data[0] & RSV1)
            self._protocol.receive_data(data)

    async def close(self, code: int, reason: str) -> None:
        await self._stream.send_all(self._protocol.send(ws.CloseConnection(code, reason)))
        await self.until_closed()

    async def until_closed(self) -> None:
        while await self.receive() is not None:
            pass

    def abort(self) -> None:
        stream: Any = self._stream
        while not isinstance(stream, trio.SocketStream):
            stream = stream.transport_stream
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stream.socket.close()
