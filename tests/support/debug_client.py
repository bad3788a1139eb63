"""A client that the sandbox runs while netns-debug looks at it: `debug_client.py WHAT HOST PORT`.

`hold` connects and says "held"; `websocket` opens one over TLS, has a message echoed and a ping
answered, and says "held". Either keeps its connection until its standard input says so.
"""

from __future__ import annotations

import os
import socket
import ssl
import sys

MASK = bytes(4)


def frame(opcode: int, payload: bytes) -> bytes:
    """One masked frame of less than 126 bytes; the mask is zero."""
    return bytes((0x80 | opcode, 0x80 | len(payload))) + MASK + payload


def read_exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = sock.recv(size - len(data))
        if not more:
            raise SystemExit(f"ended after {data!r}")
        data += more
    return data


def open_websocket(host: str, port: int) -> socket.socket:
    plain = socket.create_connection((host, port), 10)
    sock = ssl.create_default_context().wrap_socket(plain, server_hostname=host)
    sock.sendall(
        f"GET /ws HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
    )
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += read_exactly(sock, 1)
    if not head.startswith(b"HTTP/1.1 101"):
        raise SystemExit(head.decode())
    return sock


def main() -> None:
    what, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
    if what == "hold":
        sock = socket.create_connection((host, port), 10)
        sock.sendall(b"hello")
        read_exactly(sock, 5)
    else:
        sock = open_websocket(host, port)
        sock.sendall(frame(1, b"hello"))
        read_exactly(sock, 7)
        sock.sendall(frame(9, b"p"))
        read_exactly(sock, 3)
    os.write(1, b"held\n")
    sys.stdin.readline()
    if what == "websocket":
        sock.sendall(frame(8, b"\x03\xe8"))
        read_exactly(sock, 4)
    sock.close()
    os.write(1, b"closed\n")
    sys.stdin.readline()


main()
