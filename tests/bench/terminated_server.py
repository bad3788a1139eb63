"""The server of tests.bench.terminated, with a child for each connection.

`python -m tests.bench.terminated_server CA_FILE ADDRESS` makes an authority, writes its
certificate, and serves until killed: HTTP/1.1, HTTP/2 and WebSocket echo, by ALPN and upgrade.
"""

from __future__ import annotations

import base64
import hashlib
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.bench.terminated_wire import (
    BODY,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PLAIN,
    PORT,
    PREFACE,
    SECRET,
    SETTINGS,
    WIDE,
    Frames,
    Messages,
    WrongAnswerError,
    frame,
    literal,
    text_frame,
)

if TYPE_CHECKING:
    import ssl

H1_RESPONSE: Final = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY


def serve(ca_file: str, address: str) -> None:
    """A child for each connection; `ca_file` is complete before anybody listens."""
    from netns_runtime.proxy.ca import Authority

    authority = Authority("bench server")
    contexts = {}
    for host in (PLAIN, SECRET):
        contexts[host] = authority.context_for(host, "http/1.1")
        contexts[f"{host} h2"] = authority.context_for(host, "h2")
    Path(ca_file).write_bytes(authority.pem)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = socket.create_server((address, PORT), backlog=1024)
    while True:
        sock, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            try:
                _serve_one(sock, contexts)
            finally:
                os._exit(0)
        sock.close()


def _serve_one(sock: socket.socket, contexts: dict[str, ssl.SSLContext]) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    hello = sock.recv(1 << 14, socket.MSG_PEEK)
    # As a proxy that offers HTTP/2 alone, or before the other, would want it.
    wants_h2 = b"\x02h2" in hello
    host = SECRET if SECRET.encode() in hello else PLAIN
    tls = contexts[f"{host} h2" if wants_h2 else host].wrap_socket(sock, server_side=True)
    if tls.selected_alpn_protocol() == "h2":
        _serve_h2(tls)
    else:
        _serve_h1(tls)


def _serve_h1(tls: ssl.SSLSocket) -> None:
    data = b""
    while more := tls.recv(1 << 16):
        data += more
        while (end := data.find(b"\r\n\r\n")) >= 0:
            whole, data = data[: end + 4], data[end + 4 :]
            head = whole.lower()
            if b"upgrade: websocket" in head:
                _serve_websocket(tls, whole, data)
                return
            if head.startswith(b"post"):
                length = _take_body(tls, head, data)
                said = b"%d" % length
                tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(said), said))
                data = b""
            else:
                tls.sendall(H1_RESPONSE)


def _take_body(tls: ssl.SSLSocket, head: bytes, data: bytes) -> int:
    """Bytes of content on the wire, its framing included where it is chunked."""
    total, buffer = len(data), bytearray(1 << 18)
    if b"transfer-encoding: chunked" in head:
        tail = data[-5:]
        while tail != b"0\r\n\r\n":
            count = tls.recv_into(buffer)
            if not count:
                raise WrongAnswerError("the upload ended early")
            total += count
            tail = (tail + bytes(buffer[max(count - 5, 0) : count]))[-5:]
        return total
    length = int(head.partition(b"content-length:")[2].split(b"\r")[0])
    while total < length:
        count = tls.recv_into(buffer)
        if not count:
            raise WrongAnswerError("the upload ended early")
        total += count
    return total


def _serve_h2(tls: ssl.SSLSocket) -> None:
    data = b""
    while len(data) < len(PREFACE):
        data += tls.recv(1 << 16)
    tls.sendall(frame(SETTINGS, 0, 0) + WIDE)
    frames = Frames(tls, data[len(PREFACE) :])
    answer = b"\x88" + literal(b"content-length", b"%d" % len(BODY))
    while True:
        kind, flags, stream, _ = frames.next()
        if kind == GOAWAY:
            return
        if kind in (HEADERS, DATA) and flags & END_STREAM:
            tls.sendall(
                frame(HEADERS, END_HEADERS, stream, answer) + frame(DATA, END_STREAM, stream, BODY)
            )


def _accept_key(head: bytes) -> bytes:
    """RFC 6455, 4.2.2."""
    at = head.lower().index(b"sec-websocket-key:") + len(b"sec-websocket-key:")
    key = head[at:].split(b"\r")[0].strip()
    digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    return base64.b64encode(digest)


def _serve_websocket(tls: ssl.SSLSocket, head: bytes, data: bytes) -> None:
    tls.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %s\r\n\r\n" % _accept_key(head)
    )
    messages = Messages(tls, data)
    while True:
        tls.sendall(text_frame(messages.next(), is_masked=False))


if __name__ == "__main__":
    serve(*sys.argv[1:])
