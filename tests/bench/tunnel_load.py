"""The two ends of tests.bench.tunnel: loads, and a server that obeys a tunnel's first byte.

`python -m tests.bench.tunnel_load server` serves until killed; the loads print one JSON line.
Each is one process and is pinned by nobody: two cores are shared with whatever is measured.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import time
from typing import Final

BLOCK: Final = 1 << 20
SERVER_PORT: Final = 8080
AT_ONCE: Final = 16
# Binary, as most protocols are: a letter could be the beginning of a request for long.
ECHO: Final = b"\x01"
PUSH: Final = b"\x02"


def serve() -> None:
    """First byte ECHO: echo. PUSH: push until the client has gone. None: wait for its end."""
    listener = socket.create_server(("0.0.0.0", SERVER_PORT), backlog=1024)
    listener.setblocking(False)
    poller = select.epoll()
    poller.register(listener, select.EPOLLIN)
    clients: dict[int, socket.socket] = {}
    while True:
        for fd, _ in poller.poll():
            if fd == listener.fileno():
                for _ in range(64):
                    try:
                        sock, _ = listener.accept()
                    except BlockingIOError:
                        break
                    clients[sock.fileno()] = sock
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    poller.register(sock, select.EPOLLIN)
                continue
            sock = clients[fd]
            try:
                data = sock.recv(4096)
            except OSError:
                data = b""
            if data[:1] == PUSH:
                poller.unregister(sock)
                if os.fork() == 0:
                    _push(sock)
                data = b""
            if data:
                sock.send(data)
            else:
                del clients[fd]
                sock.close()


def _push(sock: socket.socket) -> None:
    sock.setblocking(True)
    block = bytes(BLOCK)
    try:
        while True:
            sock.sendall(block)
    except OSError:
        os._exit(0)


def open_tunnel(proxy: tuple[str, int], target: str) -> socket.socket:
    """A connection through `proxy`; an empty target takes it as it is."""
    sock = socket.socket()  # create_connection would spend its time in getaddrinfo
    sock.connect(proxy)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if target:
        sock.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            more = sock.recv(4096)
            if not more:
                raise RuntimeError("the proxy closed")
            answer += more
        if b" 200 " not in answer[:20]:
            raise RuntimeError(answer.decode())
    return sock


def bulk(proxy: tuple[str, int], target: str, seconds: float) -> float:
    """Bytes per second of one download."""
    with open_tunnel(proxy, target) as sock:
        sock.sendall(PUSH)
        buffer = bytearray(BLOCK)
        warm = time.perf_counter() + 0.2
        while time.perf_counter() < warm:
            sock.recv_into(buffer)
        total, begun = 0, time.perf_counter()
        while (now := time.perf_counter()) < begun + seconds:
            total += sock.recv_into(buffer)
        return total / (now - begun)


def connects(proxy: tuple[str, int], target: str, seconds: float) -> float:
    """New tunnels per second, AT_ONCE processes one after another each.

    Where no CONNECT is answered, one echoed byte shows that the server was reached.
    """
    out_of, into = os.pipe()
    begun = time.perf_counter() + 0.3
    for _ in range(AT_ONCE):
        if os.fork() == 0:
            time.sleep(max(0.0, begun - time.perf_counter()))
            count = 0
            while time.perf_counter() < begun + seconds:
                with open_tunnel(proxy, target) as sock:
                    if not target:
                        sock.sendall(ECHO)
                        sock.recv(1)
                count += 1
            os.write(into, count.to_bytes(8, "little"))
            os._exit(0)
    os.close(into)
    total = 0
    with open(out_of, "rb") as counts:
        while part := counts.read(8):
            total += int.from_bytes(part, "little")
    return total / seconds


def round_trips(proxy: tuple[str, int], target: str, seconds: float) -> tuple[float, float]:
    """Median and 99th percentile, in seconds, of one byte there and back."""
    times = []
    with open_tunnel(proxy, target) as sock:
        until = time.perf_counter() + seconds
        before = 0.0
        while before < until:
            before = time.perf_counter()
            sock.sendall(ECHO)
            sock.recv(1)
            times.append(time.perf_counter() - before)
    times.sort()
    return times[len(times) // 2], times[len(times) * 99 // 100]


def main(arguments: list[str]) -> None:
    """`server`, or `bulk|connects|round_trips HOST PORT TARGET SECONDS`."""
    if arguments == ["server"]:
        serve()
    kind, host, port, target, seconds = arguments
    load = {"bulk": bulk, "connects": connects, "round_trips": round_trips}[kind]
    result = load((host, int(port)), target, float(seconds))
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
