"""The supervisor's loop: what one callback read, another must not wait for."""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING, Any

from netns_runtime.namespace.enter_launch import Exited
from netns_runtime.supervise import Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable


class Proxy:
    """The proxy's socket. Reading it while there is nothing is an error, and would be a wait."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def fileno(self) -> int:
        return self.ours.fileno()

    def receive(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.ours.recv(65536, socket.MSG_DONTWAIT))
        return found


class Pipe:
    """Readable once it was written to; as the ring of refusals, and as the child."""

    def __init__(self) -> None:
        self.end, self.other = os.pipe()

    def fileno(self) -> int:
        return self.end

    def handle(self) -> Exited:
        return Exited(7)


class Everything:
    """What else the loop calls; `taken` are the proxy's messages."""

    def __init__(
        self, drain: Callable[[Callable[[], None]], None], serve: Callable[..., None]
    ) -> None:
        self.drain, self.serve = drain, serve
        self.taken: list[dict[str, Any]] = []
        self.control = Pipe()

    def fileno(self) -> int:
        return self.control.fileno()

    def on_proxy(self, message: dict[str, Any]) -> None:
        self.taken.append(message)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_: None


def test_an_answer_that_was_read_with_refusals_of_the_same_moment_is_not_waited_for() -> None:
    proxy, ring, child = Proxy(), Pipe(), Pipe()

    def serve(_: object) -> None:
        # From here both are ready at the next look, the ring before the proxy.
        os.read(rest.control.end, 1)
        os.write(ring.other, b"x")
        proxy.theirs.send(b'{"kind": "tallies"}')

    def drain(catch_up: Callable[[], None]) -> None:
        os.read(ring.end, 1)
        catch_up()
        os.write(child.other, b"x")

    rest = Everything(drain, serve)
    supervisor = Supervisor(
        child=child,  # type: ignore[arg-type]
        proxy=proxy,  # type: ignore[arg-type]
        job=rest,  # type: ignore[arg-type]
        registration=ring,  # type: ignore[arg-type]
        refusals=rest,  # type: ignore[arg-type]
        control=rest,  # type: ignore[arg-type]
        requests=rest,  # type: ignore[arg-type]
        find_owner=lambda *_: None,
        on_ready=lambda _: None,
    )
    os.write(rest.control.other, b"x")
    assert supervisor.run() == 7
    assert rest.taken == [{"kind": "tallies"}]
