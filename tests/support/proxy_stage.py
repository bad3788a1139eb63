"""A stage for tests of the proxy: one sandbox on loopback, its audit in a list, upstreams to play.

`play` runs a scenario with a `Stage` inside trio. Names resolve from a table; loopback is allowed
by the policy's `allowed_ips`, since everything here happens on it.
"""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING, Any

import trio
import trio.testing

from netns_runtime.audit import AuditError, AuditLog
from netns_runtime.config import Limits, ProxyConfig
from netns_runtime.policy import Endpoint, Policy, Rule
from netns_runtime.proxy.relay import Relay
from netns_runtime.proxy.resolve import ResolveError
from netns_runtime.proxy.sandbox import Sandbox
from netns_runtime.proxy.server import serve

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))


class Names:
    """A resolver that answers from `table` and keeps what it was asked."""

    def __init__(self) -> None:
        self.table: dict[str, tuple[str, ...]] = {"up.test": ("127.0.0.1",)}
        self.asked: list[str] = []

    async def resolve(self, host: str) -> Sequence[Any]:
        self.asked.append(host)
        await trio.lowlevel.checkpoint()
        if host not in self.table:
            raise ResolveError("dns_error", "no such name", "NXDOMAIN")
        return [ip_address(text) for text in self.table[host]]


class Virtual:
    """Which name stands behind which virtual address."""

    def __init__(self) -> None:
        self.table: dict[str, str] = {"198.18.0.1": "up.test", "fd00:c8:0:1::1": "up.test"}
        self.invented: set[str] = set()

    def name_of(self, address: Any, /) -> str | None:
        return self.table.get(str(address))

    def address_of(self, name: str, _rule_key: str, /) -> object | None:
        """Room for two invented names."""
        if name not in self.invented and len(self.invented) == 2:
            return None
        self.invented.add(name)
        return name


class _Accepted(socket.socket):
    """Like a socket that TPROXY handed over: its own address is the original destination."""

    original: tuple[str, int] = ("", 0)

    def getsockname(self) -> Any:
        return self.original


class _Transparent(socket.socket):
    """A listening socket on loopback whose connections were all meant for `destination`."""

    destination: tuple[str, int] = ("198.18.0.1", 443)

    def accept(self) -> Any:
        sock, address = super().accept()
        accepted = _Accepted(fileno=sock.detach())
        accepted.original = self.destination
        return accepted, address


class BrokenAudit(AuditLog):
    """An audit whose every line fails."""

    def write(self, event: str, **fields: Any) -> None:
        raise AuditError("cannot write the audit: No space left on device")


class Stage:
    """`audit` holds every event written; `reports` every line about a bug."""

    def __init__(self, **config: Any) -> None:
        self.events: list[dict[str, Any]] = []
        self.reports: list[str] = []
        self.names = Names()
        rule = Rule(
            "test rule",
            tuple(
                Endpoint(host, None, LOOPBACK)
                for host in (
                    "up.test",
                    "missing.test",
                    "127.0.0.1",
                    "private.test",
                    "xn--bcher-kva.test",
                    "::1",
                )
            ),
        )
        rules = (rule, Rule("open rule", (Endpoint("open.test", None),)))
        settings: dict[str, Any] = {"sandbox": "s", "policy": Policy(rules), "cookie": 1}
        self.config = ProxyConfig(**(settings | config))
        self.sandbox = Sandbox(
            self.config,
            AuditLog(None, "s", self.events.append),
            self.names,
            Relay(crashed=lambda error: self.reports.append(repr(error))),
            report=self.reports.append,
            names=Virtual(),
        )
        self.address = ("", 0)
        self.transparent = _Transparent()

    def limit_flows(self, flows: int) -> None:
        self.sandbox.config = replace(self.sandbox.config, limits=Limits(flows=flows))

    def of(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.events if line["event"] == event]

    @asynccontextmanager
    async def client(self) -> AsyncIterator[trio.SocketStream]:
        async with await trio.open_tcp_stream(*self.address) as stream:
            yield stream

    @asynccontextmanager
    async def redirected(
        self, port: int, address: str = "198.18.0.1"
    ) -> AsyncIterator[trio.SocketStream]:
        """A client that ignores the proxy and connects to `address`, a virtual one of up.test."""
        self.transparent.destination = (address, port)
        where = socket.socket.getsockname(self.transparent)
        async with await trio.open_tcp_stream(*where) as stream:
            await trio.testing.wait_all_tasks_blocked()
            yield stream

    @asynccontextmanager
    async def tunnel(
        self, port: int, host: str = "up.test", early: bytes = b""
    ) -> AsyncIterator[trio.SocketStream]:
        """A tunnel through the explicit proxy; `early` goes with its CONNECT."""
        async with self.client() as stream:
            await stream.send_all(f"CONNECT {host}:{port} HTTP/1.1\r\n\r\n".encode() + early)
            answer = b""
            while not answer.endswith(b"\r\n\r\n"):
                answer += await stream.receive_some(1)
            assert answer.startswith(b"HTTP/1.1 200 "), answer
            yield stream

    async def ask(self, request: bytes, *, end: bool = False) -> bytes:
        """All that the proxy answers to one connection that sends `request`."""
        async with self.client() as stream:
            await stream.send_all(request)
            if end:
                await stream.send_eof()
            return await read_all(stream)

    async def upstream(
        self, nursery: trio.Nursery, handler: Callable[[trio.SocketStream], Awaitable[None]]
    ) -> int:
        """Serve `handler` on a loopback port, which is returned."""
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, handler, [listener])
        port: int = listener.socket.getsockname()[1]
        return port

    async def settled(self) -> None:
        """Until no flow is open and every client is gone."""
        with trio.fail_after(5):
            while self.sandbox.connections or self.sandbox.flows:
                await trio.testing.wait_all_tasks_blocked(0.001)


async def read_all(stream: trio.SocketStream) -> bytes:
    data = b""
    async for part in stream:
        data += part
    return data


async def outcome_of(stream: trio.SocketStream) -> bytes:
    """All that comes until the end, and b"RESET" after it where that is a reset."""
    data = b""
    try:
        async for part in stream:
            data += part
    except trio.BrokenResourceError:
        return data + b"RESET"
    return data


async def read_until(stream: trio.SocketStream, mark: bytes) -> bytes:
    data = b""
    while mark not in data:
        part = await stream.receive_some()
        if not part:
            raise AssertionError(f"ended before {mark!r}: {data!r}")
        data += part
    return data


async def echo(stream: trio.SocketStream) -> None:
    """Send back what comes, then end."""
    async with stream:
        async for data in stream:
            await stream.send_all(data)
        await stream.send_eof()


def play(
    scenario: Callable[[Stage, trio.Nursery], Awaitable[None]],
    *,
    clock: trio.abc.Clock | None = None,
    stage: Stage | None = None,
    **config: Any,
) -> Stage:
    """Run one scenario against a serving sandbox, within ten seconds, and return its stage."""
    stage = stage or Stage(**config)

    async def run() -> None:
        with trio.move_on_after(10 if clock is None else float("inf")) as scope:
            with (
                socket.create_server(("127.0.0.1", 0), backlog=2048) as listener,
                stage.transparent as transparent,
            ):
                stage.address = listener.getsockname()
                transparent.bind(("127.0.0.1", 0))
                transparent.listen(2048)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(
                        partial(serve, stage.sandbox, [listener], transparent=[transparent])
                    )
                    await scenario(stage, nursery)
                    nursery.cancel_scope.cancel()
        assert not scope.cancelled_caught, "the scenario hung"

    trio.run(run, clock=clock)
    return stage
