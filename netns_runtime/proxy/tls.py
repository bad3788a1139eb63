"""TLS over a `Peer`: the same methods, ciphertext below, plaintext above.

`connect_tls` is a client of an upstream and verifies it, `accept_tls` a server to a client of the
sandbox; both end with a `TlsPeer` or with `HandshakeFailed`, which says in a sentence what was
wrong and whose words those are. Afterwards what goes wrong is a `TlsError`, an OSError as the
socket's own are. Closing the socket stays with whoever opened it.

Theory of operation. OpenSSL works between two memory buffers. Ciphertext is read from the socket
only when no plaintext is left, RECEIVE bytes at once into a scratch buffer that all share (nothing
waits while it is in use), so that one peer holds RECEIVE and one record at most. Writing turns
CHUNK bytes at a time into records and sends them before it makes more. One task sends at a time;
another waits its turn. What OpenSSL wants to say by itself (an answer to a key update, an alert) is
sent where the socket takes it at once, and else before the next plaintext. A cancelled `send`
leaves its rest in place, so that the records stay whole.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Final

import trio

from netns_runtime.proxy.peer import RECEIVE, RESET
from netns_runtime.proxy.tlserrors import HandshakeFailed, TlsError, failure_of, in_words

if TYPE_CHECKING:
    import socket
    from collections.abc import Sequence

    from netns_runtime.proxy.peer import Peer

CHUNK: Final = 65_536
# RFC 8446, 5.1: a record holds 2^14 octets; Python returns one record at a read.
_RECORD: Final = 16_384
# What a server may send before its handshake is done: certificates of every kind, and no more.
HANDSHAKE_LIMIT: Final = 256 * 1024
_UNYIELDING: Final = 8
_SCRATCH: Final = memoryview(bytearray(RECEIVE))
_PLAIN: Final = memoryview(bytearray(RECEIVE + _RECORD))


# A client's context that calls nobody back. After a handshake nothing else of it counts.
_DEAF: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
_ASKED: Final = "asked_for_certificate"
_CERTIFICATE_REQUEST: Final = 13


def hearing(context: ssl.SSLContext) -> ssl.SSLContext:
    """Let a client's context notice a CertificateRequest.

    In TLS 1.3 it is encrypted and OpenSSL answers it with no certificate, so that many a server
    says only in HTTP what it misses. Python tells of messages by an attribute that is not public;
    where a version has none, nothing is noticed.
    """

    def heard(
        connection: object, direction: str, _version: int, _type: int, message: int, _data: bytes
    ) -> None:
        if message == _CERTIFICATE_REQUEST and direction == "read":
            setattr(connection, _ASKED, True)

    callback = "_msg_callback"
    if hasattr(context, callback):
        setattr(context, callback, heard)
    return context


class TlsPeer:
    """One end, encrypted. `sock` is borrowed; `alpn` is the protocol that was chosen, if any.

    `is_truncated` says that the peer ended without saying so (no close_notify).
    """

    __slots__ = (
        *("_broken", "_busy", "_early", "_fd", "_has_ended", "_incoming", "_is_sending", "_object"),
        *("_outgoing", "_turn", "_unsent", "alpn", "is_truncated", "sock", "version"),
    )

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        *,
        server_side: bool = False,
        host: str | None = None,
        received: bytes = b"",
    ) -> None:
        self.sock = sock
        self.alpn: str | None = None
        self.version: str | None = None
        self.is_truncated = False
        self._fd = sock.fileno()
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._object = context.wrap_bio(
            self._incoming, self._outgoing, server_side=server_side, server_hostname=host
        )
        if received:
            self._incoming.write(received)
        self._early = b""
        self._unsent = memoryview(b"")
        self._broken: TlsError | None = None
        self._has_ended = False
        self._is_sending = False
        self._turn: trio.Event | None = None
        self._busy = 0

    async def shake_hands(self) -> bytes:
        """The handshake. What the peer sent until then, as it came.

        Raises ssl.SSLError, OSError, or EOFError where the peer ended.
        """
        heard = b""
        while True:
            try:
                self._object.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
            except ssl.SSLError:
                self._flush_nowait()  # our alert
                raise
            else:
                await self._flush()
                break
            count = await self._fill()
            if not count:
                raise EOFError
            if len(heard) < HANDSHAKE_LIMIT:
                heard += _SCRATCH[:count]
            else:
                raise ssl.SSLError(0, "the handshake is longer than any certificate makes it")
        self.alpn = self._object.selected_alpn_protocol()
        self.version = self._object.version()
        return heard

    @property
    def asks_certificate(self) -> bool:
        """Whether the peer asked for a certificate of ours, as far as `hearing` notices."""
        return bool(getattr(self._object, _ASKED, False))

    def listen_no_more(self) -> None:
        """What `hearing` set up has been heard: no callback for each record from now on."""
        self._object.context = _DEAF

    async def receive(self) -> bytes:
        """Plaintext, at most RECEIVE bytes and a record; empty at the peer's end."""
        while True:
            data = self._plaintext()
            if data is not None:
                await self._breathe()
                return data
            if not await self._fill():
                self._ended()

    def receive_nowait(self) -> bytes | None:
        """What has come already; None where nothing has, empty at the peer's end."""
        while True:
            data = self._plaintext()
            if data is not None:
                return data
            try:
                count = self.sock.recv_into(_SCRATCH)
            except BlockingIOError:
                return None
            if count:
                self._incoming.write(_SCRATCH[:count])
            else:
                self._ended()

    def is_quiet(self) -> bool:
        """Whether it neither ended nor sent plaintext that is not yet received.

        Session tickets and key updates are no words of the peer's: they are taken in passing.
        """
        try:
            data = self.receive_nowait()
        except OSError:
            return False
        if data:
            self._early = data
        return data is None

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """Encrypt and send all of it."""
        await self._my_turn()
        self._is_sending = True
        try:
            view = memoryview(data)
            while view:
                chunk = view[:CHUNK]
                view = view[CHUNK:]
                while chunk:
                    try:
                        chunk = chunk[self._object.write(chunk) :]
                    except ssl.SSLError as error:
                        raise in_words(error) from error
                await self._drain()
        finally:
            self._next_turn()
        await self._breathe()

    async def end(self) -> None:
        """Say that no more comes (close_notify, then FIN); receiving goes on."""
        await self._my_turn()
        self._is_sending = True
        try:
            self._say_end()
            await self._drain()
        finally:
            self._next_turn()
        import socket

        self.sock.shutdown(socket.SHUT_WR)

    def finish(self) -> None:
        """Say that no more comes, as far as that needs no waiting: the socket is closed next.

        A connection that is to end by a reset is left as it is: it must not look complete.
        """
        import socket

        try:
            if self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, len(RESET)) == RESET:
                return
            self._say_end()
            self._flush_nowait()
        except OSError:
            return

    def abort(self) -> None:
        """See to it that the connection ends by a reset when the socket is closed."""
        import socket

        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    def _say_end(self) -> None:
        """Put a close_notify into the way out.

        What came is decrypted first: looking for the peer's own close_notify, OpenSSL would take
        data that follows ours for an error.
        """
        while not self._has_ended and len(self._early) <= RECEIVE + _RECORD:
            try:
                data = self._decrypted()
            except OSError:
                break
            if data is None:
                break
            self._early += data
        try:
            self._object.unwrap()
        except (ssl.SSLError, ValueError):
            return  # the peer has not said its own yet, as a rule

    def _plaintext(self) -> bytes | None:
        if self._early:
            data, self._early = self._early, b""
            return data
        return self._decrypted()

    def _decrypted(self) -> bytes | None:
        """What the ciphertext at hand holds; None for nothing, empty at the peer's end."""
        if self._broken is not None:
            raise self._broken
        if self._has_ended:
            return b""
        filled = 0
        read = self._object.read
        try:
            while filled < RECEIVE:
                got = read(_RECORD, _PLAIN[filled:])
                if not got:
                    self._has_ended = True
                    break
                filled += int(got)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._has_ended = True
        except ssl.SSLError as error:
            self._flush_nowait()
            self._broken = in_words(error)
            if not filled:
                raise self._broken from error
        if self._outgoing.pending:
            self._flush_nowait()
        if filled:
            return bytes(_PLAIN[:filled])
        return b"" if self._has_ended else None

    async def _fill(self) -> int:
        """Read ciphertext; the number of bytes, which are in _SCRATCH until somebody waits."""
        while True:
            try:
                count = self.sock.recv_into(_SCRATCH)
            except BlockingIOError:
                self._busy = 0
                await trio.lowlevel.wait_readable(self._fd)
            else:
                if count:
                    self._incoming.write(_SCRATCH[:count])
                return count

    def _ended(self) -> None:
        """The socket has ended. A close_notify before that would have been seen already."""
        self._has_ended = self.is_truncated = True

    async def _my_turn(self) -> None:
        while self._is_sending:
            if self._turn is None:
                self._turn = trio.Event()
            await self._turn.wait()

    def _next_turn(self) -> None:
        self._is_sending = False
        turn, self._turn = self._turn, None
        if turn is not None:
            turn.set()

    async def _flush(self) -> None:
        """Send what OpenSSL has to say, while nobody else sends."""
        if not self._outgoing.pending and not self._unsent:
            return
        await self._my_turn()
        self._is_sending = True
        try:
            await self._drain()
        finally:
            self._next_turn()

    async def _drain(self) -> None:
        while True:
            if not self._unsent:
                if not self._outgoing.pending:
                    return
                self._unsent = memoryview(self._outgoing.read())
            try:
                self._unsent = self._unsent[self.sock.send(self._unsent) :]
            except BlockingIOError:
                self._busy = 0
                await trio.lowlevel.wait_writable(self._fd)

    def _flush_nowait(self) -> None:
        """Send what can be sent at once, where nobody is sending."""
        if self._is_sending:
            return
        try:
            while self._unsent or self._outgoing.pending:
                if not self._unsent:
                    self._unsent = memoryview(self._outgoing.read())
                self._unsent = self._unsent[self.sock.send(self._unsent) :]
        except OSError:
            return  # later, with what comes next, or never

    async def _breathe(self) -> None:
        self._busy += 1
        if self._busy >= _UNYIELDING:
            self._busy = 0
            await trio.lowlevel.checkpoint()


async def accept_tls(peer: Peer, context: ssl.SSLContext, received: bytes) -> TlsPeer:
    """Be the server to a client that has sent `received`. Raises HandshakeFailed."""
    tls = TlsPeer(peer.sock, context, server_side=True, received=received)
    try:
        await tls.shake_hands()
    except (EOFError, OSError) as error:
        raise failure_of(error, is_server=True) from error
    return tls


async def connect_tls(
    peer: Peer, context: ssl.SSLContext, host: str, alpn: Sequence[str] = ()
) -> TlsPeer:
    """Be a client of `host` (a name or an address), offering `alpn`. Raises HandshakeFailed.

    The context is borrowed: SSL_new(3) copies the protocols that are set on it here.
    """
    context.set_alpn_protocols(list(alpn))
    tls = TlsPeer(peer.sock, context, host=host)
    try:
        await tls.shake_hands()
    except (EOFError, OSError) as error:
        failed = failure_of(error, is_server=False)
        failed.wants_certificate = failed.wants_certificate or tls.asks_certificate
        raise failed from error
    tls.listen_no_more()
    return tls


__all__ = ["HandshakeFailed", "TlsError", "TlsPeer", "accept_tls", "connect_tls"]
