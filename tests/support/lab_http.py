"""The lab's web servers: HTTP/1.1 with keep-alive, HTTPS, and WebSocket echo.

`ROUTES` says what there is, `lab_traps` has more, and `h2_server` serves HTTP/2 where it is set.
Each request is written down before it is answered. A malformed or vanished peer ends its own
connection only.
"""

from __future__ import annotations

import json
import ssl
from contextlib import suppress
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

import h11
import trio
import wsproto
import wsproto.events as ws
import wsproto.utilities
from wsproto.extensions import Extension, PerMessageDeflate

from tests.support.lab_tcp import local_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    import trustme

BROKEN_PEER: Final = (
    *(trio.BrokenResourceError, trio.ClosedResourceError, OSError, ValueError),
    *(h11.ProtocolError, wsproto.utilities.ProtocolError),
)
BLOCK: Final = bytes(range(256)) * 256


class SeenRequests(Protocol):
    requests: list[dict[str, Any]]
    connections: list[tuple[str, int]]
    transcripts: list[tuple[str, str]]
    messages: list[tuple[str, str]]


def tls_context(
    certificate: trustme.LeafCert, others: dict[str, ssl.SSLContext] | None = None
) -> ssl.SSLContext:
    """HTTP/1.1 for most names, HTTP/2 too for `h2.lab.test` and real ones; `others` by name."""
    contexts = [ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) for _ in range(2)]
    for context, protocols in zip(contexts, (["http/1.1"], ["h2", "http/1.1"]), strict=True):
        certificate.configure_cert(context)
        context.set_alpn_protocols(protocols)
    plain, both = contexts

    def chosen(sslobj: Any, name: str | None, _: ssl.SSLContext) -> None:
        if name in (others or {}):
            sslobj.context = (others or {})[name or ""]
        elif name and (name == "h2.lab.test" or not name.endswith(".test")):
            sslobj.context = both

    plain.sni_callback = chosen
    return plain


class Web:
    """Serves `www` under /files/ and the routes below."""

    def __init__(self, www: Path, seen: SeenRequests) -> None:
        self.www = www
        self.seen = seen
        self.sites: dict[str, Callable[[Connection, h11.Request, bytes], Awaitable[None]]] = {}
        """A host, and all names below it, that a server of its own answers for."""
        self.routes = dict(ROUTES)
        self.upgrades: dict[str, Callable[[Web, Any, h11.Request, str], Awaitable[None]]] = {}
        self.h2_server: Callable[[trio.abc.Stream, Any], Awaitable[None]] | None = None
        self.look: Callable[[str, str], None] = lambda where, text: None
        """Gets everything that arrives, with where it did."""

    def site_of(
        self, host: str
    ) -> Callable[[Connection, h11.Request, bytes], Awaitable[None]] | None:
        name = host.partition(":")[0].lower()
        labels = name.split(".")
        names = (".".join(labels[start:]) for start in range(len(labels)))
        return next((self.sites[name] for name in names if name in self.sites), None)

    async def plain(self, stream: trio.SocketStream) -> None:
        self.seen.connections.append(local_of(stream))
        await self._serve(stream, {"tls": False, "sni": None}, local_of(stream))

    def secure(self, context: ssl.SSLContext) -> Callable[[trio.SocketStream], Awaitable[None]]:
        async def serve(stream: trio.SocketStream) -> None:
            self.seen.connections.append(local_of(stream))
            tls = trio.SSLStream(stream, context, server_side=True, https_compatible=True)
            facts: dict[str, Any] = {"tls": True}
            with suppress(*BROKEN_PEER):
                await tls.do_handshake()
                if tls.selected_alpn_protocol() == "h2" and self.h2_server:
                    await self._serve_h2(tls, {**facts, "version": "2"}, local_of(stream))
                    return
            await self._serve(tls, facts, local_of(stream))

        return serve

    async def _serve_h2(
        self, stream: trio.abc.Stream, facts: dict[str, Any], local: tuple[str, int]
    ) -> None:
        async def answer(exchange: Connection, request: h11.Request, body: bytes) -> None:
            self._write_down(request, body, facts, local)
            await respond(self, exchange, request, body)

        assert self.h2_server is not None
        async with stream:
            await self.h2_server(stream, answer)

    async def _serve(
        self, stream: trio.abc.Stream, facts: dict[str, Any], local: tuple[str, int]
    ) -> None:
        async with stream:
            try:
                connection = Connection(stream)
                async for request, body in connection.requests():
                    self._write_down(request, body, facts, local)
                    await respond(self, connection, request, body)
            except BROKEN_PEER:
                return

    def _write_down(
        self, request: h11.Request, body: bytes, facts: dict[str, Any], local: tuple[str, int]
    ) -> None:
        headers = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in request.headers]
        where = f"{request.method.decode()} {dict(headers).get('host')}"
        self.look(f"{where} target", request.target.decode("latin-1"))
        self.look(f"{where} body", body.decode("latin-1"))
        for name, value in headers:
            self.look(f"{where} header", f"{name}: {value}")
        self.seen.requests.append(
            {
                "method": request.method.decode(),
                "target": request.target.decode("latin-1"),
                "version": facts.get("version", request.http_version.decode()),
                "host": dict(headers).get("host"),
                "headers": headers,
                "body": body[:65536].decode("latin-1"),
                "body_length": len(body),
                "address": local[0],
                "port": local[1],
                "tls": facts["tls"],
            }
        )


class Connection:
    """One connection's h11 state over a stream."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.http = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)

    async def event(self) -> Any:
        while True:
            event = self.http.next_event()
            if event is not h11.NEED_DATA:
                return event
            if self.http.they_are_waiting_for_100_continue:
                await self.send(h11.InformationalResponse(status_code=100, headers=[]))
            self.http.receive_data(bytes(await self.stream.receive_some(65536)))

    async def send(self, event: Any) -> None:
        data = self.http.send(event)
        if data:
            await self.stream.send_all(data)

    async def requests(self) -> AsyncIterator[tuple[h11.Request, bytes]]:
        while True:
            request = await self.event()
            if not isinstance(request, h11.Request):
                return
            upgrading = any(name == b"upgrade" for name, _ in request.headers)
            yield request, b"" if upgrading else await self.body()
            if self.http.our_state is not h11.DONE or self.http.their_state is not h11.DONE:
                return
            self.http.start_next_cycle()

    async def body(self) -> bytes:
        parts = []
        while isinstance(event := await self.event(), h11.Data):
            parts.append(bytes(event.data))
        return b"".join(parts)

    async def answer(
        self, status: int, body: bytes, content_type: str = "text/plain", **headers: str
    ) -> None:
        fields = [("content-type", content_type), ("content-length", str(len(body)))]
        fields += [(name.replace("_", "-"), value) for name, value in headers.items()]
        reason = HTTPStatus(status).phrase.encode()
        await self.send(h11.Response(status_code=status, headers=fields, reason=reason))
        await self.send(h11.Data(data=body))
        await self.send(h11.EndOfMessage())


def header_of(request: h11.Request, name: bytes) -> str:
    return next((v.decode("latin-1") for k, v in request.headers if k == name), "")


async def respond(web: Web, connection: Connection, request: h11.Request, body: bytes) -> None:
    site = web.site_of(header_of(request, b"host"))
    if site is not None:
        await site(connection, request, body)
        return
    target = urlsplit(request.target.decode("latin-1"))
    route, _, rest = target.path.lstrip("/").partition("/")
    query = {key: values[-1] for key, values in parse_qs(target.query).items()}
    if header_of(request, b"upgrade").lower() == "websocket":
        if route in web.upgrades:
            await web.upgrades[route](web, connection, request, unquote(rest))
        else:
            await echo_websocket(web, connection, request)
        return
    if request.method == b"HEAD":
        await connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
        await connection.send(h11.EndOfMessage())
        return
    answer = web.routes.get(route, hello)
    await answer(web, connection, request, body, unquote(rest), query)


async def hello(
    web: Web, c: Connection, request: h11.Request, body: bytes, rest: str, query: dict[str, str]
) -> None:
    await c.answer(200, f"hello from {header_of(request, b'host')}\n".encode())


async def echo(
    web: Web, c: Connection, request: h11.Request, body: bytes, rest: str, query: dict[str, str]
) -> None:
    headers = [(k.decode("latin-1"), v.decode("latin-1")) for k, v in request.headers]
    said = {"method": request.method.decode(), "path": request.target.decode("latin-1")}
    reply = json.dumps({**said, "headers": headers, "body": body.decode("latin-1")})
    await c.answer(200, reply.encode(), "application/json")


async def some_bytes(
    web: Web, c: Connection, request: h11.Request, body: bytes, rest: str, query: dict[str, str]
) -> None:
    left = int(rest)
    await c.send(h11.Response(status_code=200, headers=[("content-length", str(left))]))
    while left > 0:
        await c.send(h11.Data(data=BLOCK[:left]))
        left -= len(BLOCK)
    await c.send(h11.EndOfMessage())


async def chunked(
    web: Web, c: Connection, request: h11.Request, body: bytes, rest: str, query: dict[str, str]
) -> None:
    await c.send(h11.Response(status_code=200, headers=[("transfer-encoding", "chunked")]))
    for number in range(int(rest)):
        await c.send(h11.Data(data=f"chunk {number}\n".encode()))
        await trio.sleep(float(query.get("pause", "0")))
    await c.send(h11.EndOfMessage())


async def slow(
    web: Web, c: Connection, request: h11.Request, body: bytes, rest: str, query: dict[str, str]
) -> None:
    await trio.sleep(float(rest))
    await c.answer(200, b"late\n")


async def status(
    web: Web, c: Connection, request: h11.Request, body: bytes, rest: str, query: dict[str, str]
) -> None:
    await c.answer(int(rest), b"as asked\n")


async def upload(
    web: Web, c: Connection, request: h11.Request, body: bytes, rest: str, query: dict[str, str]
) -> None:
    await c.answer(200, f"{len(body)}\n".encode())


async def until_close(
    web: Web, c: Connection, request: h11.Request, body: bytes, rest: str, query: dict[str, str]
) -> None:
    """A body without a length: it ends where the connection does (RFC 9112, 6.3)."""
    await c.stream.send_all(b"HTTP/1.0 200 OK\r\n\r\n" + b"x" * int(rest))
    await c.stream.aclose()


async def cut_short(
    web: Web, c: Connection, request: h11.Request, body: bytes, rest: str, query: dict[str, str]
) -> None:
    """Promises more than it sends, as a crashed server does."""
    await c.stream.send_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nonly this")
    await c.stream.aclose()


async def files(
    web: Web, c: Connection, request: h11.Request, body: bytes, rest: str, query: dict[str, str]
) -> None:
    path = web.www / rest
    if ".." in rest.split("/") or not path.is_file():
        await c.answer(404, b"no such file\n")
    else:
        await c.answer(200, path.read_bytes(), "application/octet-stream")


ROUTES: Final[dict[str, Callable[..., Awaitable[None]]]] = {
    "bytes": some_bytes,
    "chunked": chunked,
    "cut": cut_short,
    "echo": echo,
    "files": files,
    "slow": slow,
    "status": status,
    "until-close": until_close,
    "upload": upload,
}


async def echo_websocket(web: Web, connection: Connection, request: h11.Request) -> None:
    """Echoes frames as they come. `?deflate` in the target accepts permessage-deflate."""
    socket = wsproto.WSConnection(wsproto.ConnectionType.SERVER)
    headers = [(bytes(k), bytes(v)) for k, v in request.headers]
    socket.initiate_upgrade_connection(headers, request.target)
    early, _ = connection.http.trailing_data
    data: bytes | None = None
    where = f"socket {header_of(request, b'host')}"
    extensions: list[Extension] = (
        [PerMessageDeflate()] if request.target.endswith(b"deflate") else []
    )
    while True:
        for event in socket.events():
            match event:
                case ws.Request():
                    accepted = ws.AcceptConnection(extensions=extensions)
                    await connection.stream.send_all(socket.send(accepted))
                    data = early or None
                case ws.Message():
                    text = (
                        event.data if isinstance(event.data, str) else event.data.decode("latin-1")
                    )
                    web.seen.messages.append((where, text[:65536]))
                    web.look(where, text)
                    await connection.stream.send_all(
                        socket.send(
                            ws.Message(data=event.data, message_finished=event.message_finished)
                        )
                    )
                case ws.Ping():
                    await connection.stream.send_all(socket.send(event.response()))
                case ws.CloseConnection():
                    await connection.stream.send_all(socket.send(event.response()))
                    return
        if data is None:
            data = bytes(await connection.stream.receive_some(65536))
            if not data:
                return
        socket.receive_data(data)
        data = None
