"""ClientHellos to test with: real ones of Python's ssl, and ones put together by hand."""

from __future__ import annotations

import ssl
import struct
from contextlib import suppress


def real_hello(name: str | None, **options: object) -> bytes:
    """What OpenSSL sends first to `name`."""
    context = ssl.create_default_context()
    context.check_hostname = False
    for key, value in options.items():
        setattr(context, key, value)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def vector(size: int, data: bytes) -> bytes:
    """`data` with its length in `size` bytes before it."""
    return len(data).to_bytes(size, "big") + data


def server_name(*names: str, kind: int = 0) -> tuple[int, bytes]:
    """The server_name extension."""
    listed = b"".join(bytes((kind,)) + vector(2, name.encode("latin-1")) for name in names)
    return 0, vector(2, listed)


def alpn(*names: bytes) -> tuple[int, bytes]:
    """The application_layer_protocol_negotiation extension."""
    return 16, vector(2, b"".join(vector(1, name) for name in names))


def hello(*extensions: tuple[int, bytes], suites: bytes = b"\x13\x01") -> bytes:
    """A ClientHello's message, with its four bytes of header."""
    body = b"\x03\x03" + bytes(32) + vector(1, bytes(32)) + vector(2, suites) + vector(1, b"\0")
    encoded = b"".join(struct.pack("!H", kind) + vector(2, data) for kind, data in extensions)
    return b"\x01" + vector(3, body + vector(2, encoded))


def records(message: bytes, size: int = 16_384) -> bytes:
    """The message in TLS records of at most `size` bytes."""
    return b"".join(
        b"\x16\x03\x01" + vector(2, message[at : at + size]) for at in range(0, len(message), size)
    )


GREASE = (0x4A4A, b"\0")
PADDING = (21, bytes(512))
# ML-KEM-768 with X25519: 1184 + 32 bytes.
POST_QUANTUM = (51, vector(2, b"\x11\xec" + vector(2, bytes(1216))))
ECH = (0xFE0D, bytes(200))
SSL2 = b"\x80\x2e\x01\x03\x03" + struct.pack("!HHH", 21, 0, 16) + bytes(37)
