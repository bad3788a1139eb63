"""Both ends of a terminated HTTP/2 flow, to play: a client and an upstream in memory, with real h2.

`play_http2` serves one flow between `Wire`s (peers without sockets) inside trio; a scenario speaks
for the client and for upstream, frame by frame, through `End`s. Nothing sleeps.
"""

from __future__ import annotations

import socket
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import trio
import trio.testing
from h2.config import H2Configuration
from h2.connection import H2Connection

from netns_runtime.address import HostPort
from netns_runtime.policy import Endpoint, Policy, Rule, load_policy
from netns_runtime.proxy.admit import Client, begin
from netns_runtime.proxy.http2 import serve_http2
from netns_runtime.proxy.upstream import Upstream
from tests.support.proxy_stage import LOOPBACK, Stage

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from h2.events import Event

    from netns_runtime.proxy.peer import Peer

RULE = Rule("test rule", (Endpoint("up.test", None, LOOPBACK),))
RULES = b"""
version: 1
network_policies:
  inspected:
    endpoints:
      - host: up.test
        port: 443
        allowed_ips: [127.0.0.0/8]
        protocol: rest
        enforcement: ENFORCEMENT
        rules:
          - allow: {method: GET, path: "/open/**"}
          - allow: {method: POST, path: "/open/**"}
"""


def rules(enforcement: bytes = b"enforce") -> Policy:
    return load_policy(RULES.replace(b"ENFORCEMENT", enforcement), "test.yaml")


def head_of(event: Any) -> dict[str, str]:
    return {name.decode(): value.decode() for name, value in event.headers}


class Wire:
    """A peer's methods over memory. `limit` bytes may be unread before `send` waits."""

    def __init__(self, limit: int = 1 << 30) -> None:
        self.arrived = bytearray()
        self.left = bytearray()
        self.limit = limit
        self.has_ended = self.is_over = self.is_aborted = False
        self.failure: OSError | None = None
        self._lot = trio.lowlevel.ParkingLot()

    def changed(self) -> None:
        self._lot.unpark_all()

    async def wait(self) -> None:
        await self._lot.park()

    async def receive(self) -> bytes:
        while not self.arrived and not self.has_ended and self.failure is None:
            await self.wait()
        await trio.lowlevel.checkpoint_if_cancelled()
        if self.failure is not None:
            raise self.failure
        data = bytes(self.arrived[:65536])
        del self.arrived[:65536]
        self.changed()
        return data

    async def send(self, data: bytes) -> None:
        if self.failure is not None:
            raise self.failure
        while len(self.left) >= self.limit:
            await self.wait()
        self.left += data
        self.changed()
        await trio.lowlevel.checkpoint()

    async def end(self) -> None:
        self.is_over = True
        self.changed()

    def finish(self) -> None:
        self.is_over = True

    def abort(self) -> None:
        self.is_aborted = True


class End:
    """Who speaks to the proxy at one wire: a client, or upstream. `events` are what it was told."""

    def __init__(self, wire: Wire, *, is_client: bool) -> None:
        self.wire = wire
        self.h2 = H2Connection(H2Configuration(client_side=is_client, header_encoding=None))
        self.events: list[Event] = []
        self.acknowledges = True
        self.h2.initiate_connection()
        self.flush()

    def flush(self) -> None:
        self.raw(self.h2.data_to_send())

    def raw(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.wire.arrived += data
        self.wire.changed()

    def hang_up(self) -> None:
        self.wire.has_ended = True
        self.wire.changed()

    def hear(self) -> None:
        """Take what the proxy sent."""
        data = bytes(self.wire.left)
        self.wire.left.clear()
        self.wire.changed()
        if data:
            for event in self.h2.receive_data(data):
                self.events.append(event)
                size = getattr(event, "flow_controlled_length", 0)
                if self.acknowledges and size:
                    self.h2.acknowledge_received_data(size, cast("Any", event).stream_id)
            self.flush()

    async def until(self, kind: type, number: int | None = None, count: int = 1) -> Any:
        """The event of this kind (of this stream), when it has come; the `count`th of them."""
        with trio.fail_after(5):
            while True:
                self.hear()
                found = self.of(kind, number)
                if len(found) >= count:
                    return found[count - 1]
                if self.wire.is_over:
                    raise AssertionError(f"ended before {kind.__name__}: {self.events}")
                await self.wire.wait()

    def of(self, kind: type, number: int | None = None) -> list[Any]:
        return [
            event
            for event in self.events
            if isinstance(event, kind)
            and (number is None or getattr(event, "stream_id", None) == number)
        ]

    def content(self, number: int) -> bytes:
        """What came on a stream, so far."""
        return b"".join(
            getattr(event, "data", b"")
            for event in self.events
            if getattr(event, "stream_id", None) == number
        )

    async def quiet(self) -> None:
        """Until nobody has anything to say."""
        while True:
            await trio.testing.wait_all_tasks_blocked()
            if not self.wire.left:
                return
            self.hear()

    def ask(
        self,
        number: int,
        method: str = "GET",
        path: str = "/a",
        *more: tuple[str, str],
        authority: str = "up.test",
        end: bool = True,
    ) -> None:
        """Send a request's head."""
        head = [(":method", method), (":scheme", "https"), (":authority", authority)]
        self.h2.send_headers(number, [*head, (":path", path), *more], end_stream=end)
        self.flush()

    def say(self, number: int, data: bytes, *, end: bool = False) -> None:
        self.h2.send_data(number, data, end_stream=end)
        self.flush()

    def answer(
        self, number: int, status: int = 200, *more: tuple[str, str], content: bytes | None = b"ok"
    ) -> None:
        """Send a response's head, and its content unless that is None."""
        head = [(":status", str(status)), *more]
        self.h2.send_headers(number, head, end_stream=content == b"")
        if content:
            self.h2.send_data(number, content, end_stream=True)
        self.flush()


class Both:
    """The scenario's two ends, and the stage behind them."""

    def __init__(self, stage: Stage, client: End, upstream: End) -> None:
        self.stage, self.client, self.upstream = stage, client, upstream
        self.is_served = trio.Event()

    async def exchange(self, number: int, path: str = "/a") -> bytes:
        """One request and its whole response."""
        from h2.events import RequestReceived, StreamEnded

        await self.upstream.quiet()
        self.client.ask(number, path=path)
        count = len(self.upstream.of(RequestReceived)) + 1
        asked = await self.upstream.until(RequestReceived, count=count)
        self.upstream.answer(asked.stream_id)
        await self.client.until(StreamEnded, number)
        return self.client.content(number)


def play_http2(
    scenario: Callable[[Both], Awaitable[None]],
    *,
    clock: trio.abc.Clock | None = None,
    limits: tuple[int, int] = (1 << 30, 1 << 30),
    policy: Policy | None = None,
    **config: Any,
) -> Stage:
    """Run one scenario to the flow's end, and return its stage."""
    stage = Stage(**config)
    stage.sandbox.config = replace(stage.sandbox.config, policy=policy or Policy((RULE,)))

    async def run() -> None:
        sandbox = stage.sandbox
        ours, theirs = socket.socketpair()
        with ours, theirs:
            client = Client(ours, ("127.0.0.1", 1))
            client.target = HostPort("up.test", 443)
            flow, refusal = begin(sandbox, client, client.target, "h2")
            assert refusal is None
            flow.address = "127.0.0.1"
            sandbox.flows[flow.id] = flow
            wires = Wire(limits[0]), Wire(limits[1])
            peers = [cast("Peer", wire) for wire in wires]
            counted = Upstream(flow, theirs, peers[1])
            both = Both(stage, End(wires[0], is_client=True), End(wires[1], is_client=False))

            async def serve() -> None:
                await serve_http2(sandbox, flow, peers[0], peers[1], counted)
                both.is_served.set()
                for wire in wires:
                    wire.changed()

            with trio.move_on_after(10 if clock is None else float("inf")) as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(serve)
                    await scenario(both)
                    both.client.hang_up()
                    await both.is_served.wait()
            assert not scope.cancelled_caught, "the scenario hung"
            assert not sandbox.flows

    trio.run(run, clock=clock)
    assert not stage.reports, stage.reports
    assert len(stage.of("flow.closed")) == 1
    return stage
