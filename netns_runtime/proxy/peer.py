"""A client or an upstream while its words are read one by one: a non-blocking TCP socket.

Thin on purpose: `receive` and `send` try the system call first and wait in trio only on EAGAIN.
Whoever opened the socket closes it; errors are the socket's own OSError.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

import trio

RECEIVE: Final = 65_536
RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER's value with which close(2) resets the connection."""
# A peer that is always ready must not keep the others waiting.
_UNYIELDING: Final = 8

_KEEPALIVE: Final = (
    (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 120),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 30),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 8),
)


def tune(sock: socket.socket) -> None:
    """No delay, and keepalive so that a peer that vanished ends its flow in six minutes.

    Linux hands these down from a listening socket to what it accepts.
    """
    for level, option, value in _KEEPALIVE:
        sock.setsockopt(level, option, value)


class Peer:
    """One end. `sock` is borrowed."""

    __slots__ = ("_busy", "_fd", "sock")

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._fd = sock.fileno()
        self._busy = 0

    async def receive(self) -> bytes:
        """What the peer sent, at most RECEIVE bytes; empty at its end."""
        while True:
            try:
                data = self.sock.recv(RECEIVE)
            except BlockingIOError:
                self._busy = 0
                await trio.lowlevel.wait_readable(self._fd)
            else:
                await self._breathe()
                return data

    def receive_nowait(self) -> bytes | None:
        """What has come already; None where nothing has, empty at the peer's end."""
        try:
            return self.sock.recv(RECEIVE)
        except BlockingIOError:
            return None

    def is_quiet(self) -> bool:
        """Whether it neither ended nor sent anything that is not yet received."""
        try:
            self.sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    async def end(self) -> None:
        """Say that no more comes; receiving goes on."""
        self.sock.shutdown(socket.SHUT_WR)

    def abort(self) -> None:
        """See to it that the connection ends by a reset when the socket is closed."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    async def send(self, data: bytes) -> None:
        """Send all of it."""
        view = memoryview(data)
        while view:
            try:
                view = view[self.sock.send(view) :]
            except BlockingIOError:
                self._busy = 0
                await trio.lowlevel.wait_writable(self._fd)
        await self._breathe()

    async def _breathe(self) -> None:
        self._busy += 1
        if self._busy >= _UNYIELDING:
            self._busy = 0
            await trio.lowlevel.checkpoint()
