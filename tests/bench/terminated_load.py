"""The loads of tests.bench.terminated, over TLS and through a proxy.

A load prints one JSON line, or ends with 1 and its reason where an answer is not what it should be.
`HOST PORT` is the proxy, or the server itself where DIRECT is not empty.
"""

from __future__ import annotations

import json
import os
import ssl
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from tests.bench.terminated_wire import (
    BODY,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PLACEHOLDER,
    PORT,
    PREFACE,
    RESET,
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
from tests.bench.tunnel_load import open_tunnel

if TYPE_CHECKING:
    from collections.abc import Callable

    Where = tuple[str, int]

AT_ONCE: Final = 8
STREAMS: Final = 16
IN_FLIGHT: Final = 16
BLOCK: Final = b"y" * (1 << 18)


def connect(proxy: Where, is_direct: str, host: str, alpn: str) -> ssl.SSLSocket:
    """TLS to `host` through `proxy`, which is the server itself where `is_direct` says so."""
    sock = open_tunnel(proxy, "" if is_direct else f"{host}:{PORT}")
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols([alpn])
    tls = context.wrap_socket(sock, server_hostname=host)
    if tls.selected_alpn_protocol() not in (alpn, None if alpn == "http/1.1" else alpn):
        raise WrongAnswerError(f"no {alpn}")
    return tls


def _quantiles(times: list[float]) -> dict[str, float]:
    times.sort()
    return {"p50": times[len(times) // 2] * 1e6, "p99": times[len(times) * 99 // 100] * 1e6}


def _h1_requests(host: str) -> bytes:
    token = PLACEHOLDER if host == SECRET else "some-token-of-about-the-same-length"
    return (
        f"GET /some/path?a=1 HTTP/1.1\r\nHost: {host}\r\nUser-Agent: bench\r\nAccept: */*\r\n"
        f"Authorization: Bearer {token}\r\n\r\n"
    ).encode()


def _h1_cycle(tls: ssl.SSLSocket, request: bytes) -> None:
    tls.sendall(request)
    got = tls.recv(1 << 14)
    if not got.startswith(b"HTTP/1.1 200"):
        raise WrongAnswerError(got[:200].decode("latin-1"))
    while (end := got.find(b"\r\n\r\n")) < 0:
        got += tls.recv(1 << 14) or _ended()
    is_chunked = b"chunked" in got[:end].lower()
    while not (got.endswith(b"\r\n0\r\n\r\n") if is_chunked else len(got) >= end + 4 + len(BODY)):
        got += tls.recv(1 << 14) or _ended()


def _ended() -> bytes:
    raise WrongAnswerError("the connection ended")


def h1(proxy: Where, direct: str, host: str, seconds: float) -> dict[str, float]:
    """Microseconds of a request, one after another on one connection."""
    times, request = [], _h1_requests(host)
    with connect(proxy, direct, host, "http/1.1") as tls:
        _h1_cycle(tls, request)
        until = time.perf_counter() + seconds
        while (before := time.perf_counter()) < until:
            _h1_cycle(tls, request)
            times.append(time.perf_counter() - before)
    return _quantiles(times)


def _forked(count: int, seconds: float, one: Callable[[float], int]) -> dict[str, float]:
    """`one(until)` in so many processes, each giving its number of cycles; their sum a second."""
    out_of, into = os.pipe()
    begun = time.perf_counter() + 0.4
    for _ in range(count):
        if os.fork() == 0:
            try:
                os.write(into, one(begun + seconds).to_bytes(8, "little"))
            except Exception as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            finally:
                os._exit(0)
    os.close(into)
    with open(out_of, "rb") as counts:
        told = counts.read()
    if len(told) != 8 * count:
        raise WrongAnswerError("some connections failed")
    total = sum(int.from_bytes(told[at : at + 8], "little") for at in range(0, len(told), 8))
    return {"rate": total / seconds}


def h1_rate(proxy: Where, direct: str, host: str, seconds: float) -> dict[str, float]:
    """Requests per second over AT_ONCE kept connections."""
    request = _h1_requests(host)

    def one(until: float) -> int:
        count = 0
        with connect(proxy, direct, host, "http/1.1") as tls:
            _h1_cycle(tls, request)
            time.sleep(max(0.0, until - seconds - time.perf_counter()))
            while time.perf_counter() < until:
                _h1_cycle(tls, request)
                count += 1
        return count

    return _forked(AT_ONCE, seconds, one)


class H2Client:
    """Requests on one HTTP/2 connection, several at once."""

    def __init__(self, tls: ssl.SSLSocket, host: str) -> None:
        self._tls = tls
        self._next = 1
        self._fields = b"".join(
            (
                literal(b":method", b"GET"),
                literal(b":scheme", b"https"),
                literal(b":authority", host.encode()),
                literal(b":path", b"/some/path?a=1"),
                literal(b"user-agent", b"bench"),
                literal(b"authorization", f"Bearer {PLACEHOLDER}".encode()),
            )
        )
        tls.sendall(PREFACE + frame(SETTINGS, 0, 0) + WIDE)
        self._frames = Frames(tls)

    def ask(self, count: int = 1) -> None:
        requests = b""
        for _ in range(count):
            requests += frame(HEADERS, END_HEADERS | END_STREAM, self._next, self._fields)
            self._next += 2
        self._tls.sendall(requests)

    def ended(self) -> int:
        """Wait until a stream has ended well."""
        while True:
            kind, flags, stream, payload = self._frames.next()
            if kind == HEADERS and not payload.startswith(b"\x88"):
                raise WrongAnswerError(f"a status other than 200: {payload[:60]!r}")
            if kind in (RESET, GOAWAY):
                raise WrongAnswerError(f"frame {kind}: {payload!r}")
            if kind in (HEADERS, DATA) and flags & END_STREAM:
                return stream


def h2(proxy: Where, direct: str, host: str, seconds: float) -> dict[str, float]:
    """Microseconds of a request, one after another on one connection."""
    times = []
    with connect(proxy, direct, host, "h2") as tls:
        client = H2Client(tls, host)
        client.ask()
        client.ended()
        until = time.perf_counter() + seconds
        while (before := time.perf_counter()) < until:
            client.ask()
            client.ended()
            times.append(time.perf_counter() - before)
    return _quantiles(times)


def h2_rate(proxy: Where, direct: str, host: str, seconds: float) -> dict[str, float]:
    """Requests per second on one connection, STREAMS at once."""
    count = 0
    with connect(proxy, direct, host, "h2") as tls:
        client = H2Client(tls, host)
        client.ask(STREAMS)
        for _ in range(STREAMS):
            client.ended()
            client.ask()
        begun = time.perf_counter()
        while (now := time.perf_counter()) < begun + seconds:
            client.ended()
            client.ask()
            count += 1
    return {"rate": count / (now - begun)}


def websocket(proxy: Where, direct: str, host: str, seconds: float) -> dict[str, float]:
    """Messages there and back per second on one connection, IN_FLIGHT at once."""
    token = PLACEHOLDER if host == SECRET else "some-token-of-about-the-same-length"
    message = json.dumps({"op": 2, "d": {"token": token, "text": "z" * 60}}).encode()
    out = text_frame(message, is_masked=True)
    with connect(proxy, direct, host, "http/1.1") as tls:
        tls.sendall(
            f"GET /socket HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\n"
            "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )
        head = b""
        while b"\r\n\r\n" not in head:
            head += tls.recv(1 << 14) or _ended()
        if not head.startswith(b"HTTP/1.1 101"):
            raise WrongAnswerError(head[:200].decode("latin-1"))
        messages = Messages(tls, head.partition(b"\r\n\r\n")[2])
        tls.sendall(out * IN_FLIGHT)
        if messages.next() != message:
            raise WrongAnswerError("not the message that was sent")
        tls.sendall(out)
        count, begun = 0, time.perf_counter()
        while (now := time.perf_counter()) < begun + seconds:
            messages.next()
            tls.sendall(out)
            count += 1
    return {"rate": count / (now - begun)}


def upload(proxy: Where, direct: str, host: str, mebibytes: float) -> dict[str, float]:
    """MB per second of one upload: a JSON document with the token first and then a long text."""
    begin = json.dumps({"token": PLACEHOLDER if host == SECRET else "x" * 40}).encode()[:-1]
    begin += b', "text": "'
    length = len(begin) + int(mebibytes) * (1 << 20) + 2
    with connect(proxy, direct, host, "http/1.1") as tls:
        tls.settimeout(120)
        tls.sendall(
            f"POST /upload HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {length}\r\n\r\n".encode()
        )
        before = time.perf_counter()
        tls.sendall(begin)
        for _ in range(int(mebibytes) * (1 << 20) // len(BLOCK)):
            tls.sendall(BLOCK)
        tls.sendall(b'"}')
        got = tls.recv(1 << 14)
        taken = time.perf_counter() - before
        if not got.startswith(b"HTTP/1.1 200"):
            raise WrongAnswerError(got[:200].decode("latin-1"))
    return {"rate": length / taken / 1e6}


LOADS: Final[dict[str, Callable[..., Any]]] = {
    "h1": h1,
    "h1-rate": h1_rate,
    "h2": h2,
    "h2-rate": h2_rate,
    "websocket": websocket,
    "upload": upload,
}


def main(arguments: list[str]) -> int:
    """`LOAD HOST PORT DIRECT NAME AMOUNT`."""
    kind, host, port, direct, name, amount = arguments
    load = partial(LOADS[kind], (host, int(port)), direct, name)
    try:
        print(json.dumps(load(float(amount))))
    except (WrongAnswerError, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
