"""The two ends of tests.bench.terminated: loads over TLS, and a server with a child a connection.

`python -m tests.bench.terminated_load server CA_FILE ADDRESS` makes an authority, writes its
certificate, and serves until killed: HTTP/1.1, HTTP/2 and WebSocket echo by ALPN and upgrade. A
load prints one JSON line, or ends with 1 and its reason where an answer is not what it should be.
Both speak as little of each protocol as costs next to nothing: what is measured is between them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import socket
import ssl
import struct
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.bench.tunnel_load import open_tunnel

if TYPE_CHECKING:
    from collections.abc import Callable

    Where = tuple[str, int]

PORT: Final = 443
PLAIN: Final = "plain.bench.test"
SECRET: Final = "secret.bench.test"
"""Here the secret is bound, and the loads put its placeholder in a slot."""
NAME: Final = "BENCH_TOKEN"
PLACEHOLDER: Final = f"openshell:resolve:env:{NAME}"
VALUE: Final = "bench-" + "0123456789abcdef" * 3
AT_ONCE: Final = 8
STREAMS: Final = 16
IN_FLIGHT: Final = 16
BODY: Final = b"x" * 1024
BLOCK: Final = b"y" * (1 << 18)
H1_RESPONSE: Final = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY
PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 4, 6, 7, 8
ACK: Final = 1
END_STREAM: Final = 1
END_HEADERS: Final = 4


class WrongAnswerError(Exception):
    """What came is not what was asked for."""


# --- HTTP/2, as far as both ends need it (RFC 9113) ---


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack("!I", len(payload))[1:] + struct.pack("!BBI", kind, flags, stream) + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header field, neither indexed nor compressed (RFC 7541, 6.2.2)."""

    def text(data: bytes) -> bytes:
        if len(data) < 127:
            return bytes((len(data),)) + data
        rest = len(data) - 127
        return bytes((127, rest & 127 | 128, rest >> 7) if rest > 127 else (127, rest)) + data

    return b"\0" + text(name) + text(value)


WIDE: Final = frame(WINDOW_UPDATE, 0, 0, struct.pack("!I", (1 << 31) - 65536))
"""A connection's window that no run uses up."""


class Frames:
    """Frames from a TLS socket; settings and pings are answered."""

    def __init__(self, tls: ssl.SSLSocket, begun: bytes = b"") -> None:
        self._tls = tls
        self._data = bytearray(begun)

    def next(self) -> tuple[int, int, int, bytes]:
        while True:
            while len(self._data) < 9 or len(self._data) < 9 + self._size():
                more = self._tls.recv(1 << 16)
                if not more:
                    raise WrongAnswerError("the connection ended")
                self._data += more
            size = self._size()
            kind, flags, stream = struct.unpack_from("!BBI", self._data, 3)
            payload = bytes(self._data[9 : 9 + size])
            del self._data[: 9 + size]
            if kind == SETTINGS and not flags & ACK:
                self._tls.sendall(frame(SETTINGS, ACK, 0))
            elif kind == PING and not flags & ACK:
                self._tls.sendall(frame(PING, ACK, 0, payload))
            else:
                return kind, flags, stream, payload

    def _size(self) -> int:
        return int.from_bytes(self._data[:3], "big")


# --- the server ---


def serve(ca_file: str, addresses: list[str]) -> None:
    """A child for each connection; `ca_file` is complete before anybody listens."""
    from netns_runtime.proxy.ca import Authority

    authority = Authority("bench server")
    contexts = {}
    for host in (PLAIN, SECRET):
        contexts[host] = authority.context_for(host, "http/1.1")
        contexts[f"{host} h2"] = authority.context_for(host, "h2")
    Path(ca_file).write_bytes(authority.pem)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    (address,) = addresses
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


class Messages:
    """Text frames of a WebSocket; a message is one frame, as both ends make them."""

    def __init__(self, tls: ssl.SSLSocket, begun: bytes = b"") -> None:
        self._tls = tls
        self._data = bytearray(begun)

    def _need(self, count: int) -> None:
        while len(self._data) < count:
            more = self._tls.recv(1 << 16)
            if not more:
                raise WrongAnswerError("the socket ended")
            self._data += more

    def next(self) -> bytes:
        while True:
            self._need(2)
            first, size = self._data[0], self._data[1] & 127
            is_masked = bool(self._data[1] & 128)
            at = 2
            if size == 126:
                self._need(4)
                size, at = int.from_bytes(self._data[2:4], "big"), 4
            self._need(at + 4 * is_masked + size)
            key = bytes(self._data[at : at + 4]) if is_masked else bytes(4)
            at += 4 * is_masked
            payload = bytes(self._data[at : at + size])
            del self._data[: at + size]
            if key != bytes(4):
                mask = int.from_bytes((key * (size // 4 + 1))[:size], "big")
                payload = (int.from_bytes(payload, "big") ^ mask).to_bytes(size, "big")
            if first & 15 == 1:
                return payload


def text_frame(payload: bytes, *, is_masked: bool) -> bytes:
    """With a mask of zeros, which is as valid as any."""
    bit = 128 if is_masked else 0
    size = bytes((bit | len(payload),))
    if len(payload) > 125:
        size = bytes((bit | 126,)) + struct.pack("!H", len(payload))
    return b"\x81" + size + bytes(4 * is_masked) + payload


def _serve_websocket(tls: ssl.SSLSocket, head: bytes, data: bytes) -> None:
    tls.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %s\r\n\r\n" % _accept_key(head)
    )
    messages = Messages(tls, data)
    while True:
        tls.sendall(text_frame(messages.next(), is_masked=False))


# --- the loads ---


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
            if kind in (3, GOAWAY):
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
    """`server CA_FILE ADDRESS`, or `LOAD HOST PORT DIRECT NAME AMOUNT` (DIRECT: empty or not)."""
    if arguments[0] == "server":
        serve(arguments[1], arguments[2:])
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
