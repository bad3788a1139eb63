"""An HTTP/1.1 upstream that keeps each request as it read it, and answers from a table."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import h11

from netns_runtime.policy import Policy, load_policy

if TYPE_CHECKING:
    import trio

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@dataclass(frozen=True)
class Request:
    """One request; header names in lower case."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def __getitem__(self, name: str) -> str:
        [value] = [value for key, value in self.headers if key == name]
        return value

    def __contains__(self, name: str) -> bool:
        return any(key == name for key, _ in self.headers)


class Recorder:
    """Answers with `answers` by target, else with `answer`; `raw` is all that came."""

    def __init__(self, answer: bytes = OK, **answers: bytes) -> None:
        self.answer = answer
        self.answers = answers
        self.requests: list[Request] = []
        self.raw = b""
        self.connections = 0
        self.closes = False

    async def __call__(self, stream: trio.SocketStream | trio.SSLStream[trio.SocketStream]) -> None:
        self.connections += 1
        async with stream:
            connection = h11.Connection(h11.SERVER)
            while True:
                request = await self._next(stream, connection)
                if request is None:
                    return
                self.requests.append(request)
                name = request.target.partition("?")[0].strip("/")
                await stream.send_all(self.answers.get(name, self.answer))
                if self.closes:
                    return
                connection.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
                connection.send(h11.EndOfMessage())
                connection.start_next_cycle()

    async def _next(
        self,
        stream: trio.SocketStream | trio.SSLStream[trio.SocketStream],
        connection: h11.Connection,
    ) -> Request | None:
        head, body = None, b""
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                data = await stream.receive_some()
                if not data:
                    return None
                self.raw += data
                connection.receive_data(bytes(data))
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif head is not None:
                headers = tuple((key.decode(), value.decode()) for key, value in head.headers)
                return Request(head.method.decode(), head.target.decode(), headers, body)
            else:
                return None


def policy_of(*fields: str, host: str = "up.test") -> Policy:
    """A policy for `host` on loopback, on every port; each of `fields` is one endpoint's rest."""
    lines = "".join(
        f"      - {{host: {host}, port: 1, allowed_ips: [127.0.0.0/8], {item}}}\n"
        for item in fields
    )
    text = "network_policies:\n  r:\n    endpoints:\n" + lines
    loaded = load_policy(text.encode(), "p.yaml")
    return Policy(
        tuple(
            replace(
                rule, endpoints=tuple(replace(endpoint, ports=None) for endpoint in rule.endpoints)
            )
            for rule in loaded.rules
        )
    )
