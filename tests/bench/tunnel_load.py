"""The two ends of tests.bench.tunnel: loads, and a server that obeys a connection's first byte.

`python -m tests.bench.tunnel_load server ADDRESS...` serves until killed; a load prints one JSON
line. A load is one client or AT_ONCE of them, and gives up on a peer that is silent for PATIENCE.
A short connection begins with a ClientHello, because that is what proxies carry, and the server
ends it, so that no client runs out of ports: TIME_WAIT is with whoever closes first.
"""

from __future__ import annotations

import json
import os
import select
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Final

from tests.support.hellos import POST_QUANTUM, hello, records

BLOCK: Final = 1 << 20
SERVER_PORT: Final = 8080
AT_ONCE: Final = 16
PATIENCE: Final = 20.0
# Binary, as most protocols are: a letter could be the beginning of a request for long.
ECHO: Final = b"\x01"
PUSH: Final = b"\x02"
HELLO: Final = b"\x16"
# No server name: the loads dial addresses.
REQUEST: Final = records(hello(POST_QUANTUM))
RESPONSE: Final = bytes(1024)

Where = tuple[str, int]


def serve(addresses: list[str]) -> None:
    """First byte ECHO: echo. PUSH: push until the client has gone. HELLO: respond and close."""
    poller = select.epoll()
    listeners = {}
    for address in addresses:
        listener = socket.create_server((address, SERVER_PORT), backlog=4096)
        listener.setblocking(False)
        listeners[listener.fileno()] = listener
        poller.register(listener, select.EPOLLIN)
    clients: dict[int, socket.socket] = {}
    while True:
        for fd, _ in poller.poll():
            if fd in listeners:
                for sock in _accepted(listeners[fd]):
                    clients[sock.fileno()] = sock
                    poller.register(sock, select.EPOLLIN)
            elif not _obeys(clients[fd]):
                # A pushing child shares the socket, and closing alone would leave it in the epoll.
                poller.unregister(fd)
                clients.pop(fd).close()


def _accepted(listener: socket.socket) -> list[socket.socket]:
    found = []
    for _ in range(64):
        try:
            sock, _ = listener.accept()
        except BlockingIOError:
            break
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        found.append(sock)
    return found


def _obeys(sock: socket.socket) -> bool:
    """Do what the client asks for. Whether its connection stays open."""
    try:
        data = sock.recv(4096)
        if data[:1] == PUSH:
            if os.fork() == 0:
                _push(sock)
        elif data[:1] == HELLO:
            sock.send(RESPONSE)
        elif data:
            sock.send(data)
            return True
    except OSError:
        pass
    return False


def _push(sock: socket.socket) -> None:
    sock.setblocking(True)
    block = bytes(BLOCK)
    try:
        while True:
            sock.sendall(block)
    except OSError:
        os._exit(0)


def open_tunnel(proxy: Where, target: str) -> socket.socket:
    """A connection through `proxy`; an empty target takes it as it is."""
    sock = socket.socket()  # create_connection would spend its time in getaddrinfo
    sock.settimeout(PATIENCE)
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


def short_connection(proxy: Where, target: str) -> float:
    """Connect, request, response, end. Seconds until the response began."""
    begun = time.perf_counter()
    with open_tunnel(proxy, target) as sock:
        sock.sendall(REQUEST)
        got = len(sock.recv(4096))
        taken = time.perf_counter() - begun
        while data := sock.recv(4096):
            got += len(data)
    if got != len(RESPONSE):
        raise RuntimeError(f"{got} bytes of response")
    return taken


def _quantiles(times: list[float]) -> dict[str, float]:
    times.sort()
    return {"p50": times[len(times) // 2] * 1e6, "p99": times[len(times) * 99 // 100] * 1e6}


def setup(proxy: Where, target: str, seconds: float) -> dict[str, float]:
    """Microseconds from connect to the response's first byte, one connection after another."""
    times, until = [], time.perf_counter() + seconds
    while time.perf_counter() < until:
        times.append(short_connection(proxy, target))
    return _quantiles(times)


def short(proxy: Where, target: str, seconds: float) -> dict[str, float]:
    """Short connections per second, AT_ONCE processes one after another each; their number too."""
    out_of, into = os.pipe()
    begun = time.perf_counter() + 0.2
    for _ in range(AT_ONCE):
        if os.fork() == 0:
            count = 0
            try:
                time.sleep(max(0.0, begun - time.perf_counter()))
                while time.perf_counter() < begun + seconds:
                    short_connection(proxy, target)
                    count += 1
                os.write(into, count.to_bytes(8, "little"))
            finally:
                os._exit(0)
    os.close(into)
    with open(out_of, "rb") as counts:
        told = counts.read()
    if len(told) != 8 * AT_ONCE:
        raise RuntimeError("some connections failed")
    total = sum(int.from_bytes(told[at : at + 8], "little") for at in range(0, len(told), 8))
    return {"rate": total / seconds, "amount": total}


def echo(proxy: Where, target: str, seconds: float) -> dict[str, float]:
    """Microseconds of one byte there and back, over one connection."""
    times = []
    with open_tunnel(proxy, target) as sock:
        until = time.perf_counter() + seconds
        before = 0.0
        while before < until:
            before = time.perf_counter()
            sock.sendall(ECHO)
            sock.recv(1)
            times.append(time.perf_counter() - before)
    return _quantiles(times)


def bulk(proxy: Where, target: str, seconds: float) -> dict[str, float]:
    """GB per second of one download, and all the GB that came."""
    with open_tunnel(proxy, target) as sock:
        sock.sendall(PUSH)
        buffer = bytearray(BLOCK)
        early, warm = 0, time.perf_counter() + 0.2
        while time.perf_counter() < warm:
            early += sock.recv_into(buffer)
        total, begun = 0, time.perf_counter()
        while (now := time.perf_counter()) < begun + seconds:
            total += sock.recv_into(buffer)
    return {"rate": total / (now - begun) / 1e9, "amount": (early + total) / 1e9}


def idle(proxy: Where, target: str, count: float) -> dict[str, float]:
    """Open `count` connections, each proven by an echo, and hold them until stdin ends."""

    def proven(_: int) -> socket.socket:
        sock = open_tunnel(proxy, target)
        sock.sendall(ECHO)
        if sock.recv(1) != ECHO:
            raise RuntimeError("a connection ended")
        return sock

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in pool.map(proven, range(AT_ONCE)):
            pass
        print(json.dumps({"warm": AT_ONCE}), flush=True)
        sys.stdin.readline()
        held = list(pool.map(proven, range(int(count))))
    print(json.dumps({"held": len(held)}), flush=True)
    sys.stdin.read()
    return {"held": len(held)}


LOADS: Final = {"setup": setup, "short": short, "echo": echo, "bulk": bulk, "idle": idle}


def main(arguments: list[str]) -> None:
    """`server ADDRESS...`, or `LOAD HOST PORT TARGET SECONDS`."""
    if arguments[0] == "server":
        serve(arguments[1:])
    kind, host, port, target, seconds = arguments
    load = partial(LOADS[kind], (host, int(port)), target)
    print(json.dumps(load(float(seconds))))


if __name__ == "__main__":
    main(sys.argv[1:])
