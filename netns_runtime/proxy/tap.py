"""What the proxy tells those who capture packets: which flow is whose, and the keys of its TLS.

`add` takes the socket of a `netns-debug capture`, which the supervisor lends us. Until that hangs
up, every decision, every dial and every handshake is one JSON message to it, sent now or not at
all: a reader that does not keep up loses messages and is told how many. Without a reader this costs
one look at an empty list.

    began (open, terminates, upstream) · flow (at, …, client, before) ·
    flow (opened, client, upstream) · dialling (ends, host, at) · asked (protocol and port,
    at, pid, comm, exe) · keys (lines) · error; `lost` is in the first after a gap

`at` is nanoseconds since the epoch, by the clock of the packets. `client` and `upstream` are as
`Ends`. Keys of upstream's side are told only to who asked for secrets' values, since upstream's
side is where those are.
"""

from __future__ import annotations

import json
import os
import socket
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import trio

from netns_runtime.proxy.flow import owner_fields
from netns_runtime.proxy.identify import is_raw, is_to_be_terminated

if TYPE_CHECKING:
    import ssl

    from netns_runtime.address import HostPort
    from netns_runtime.owner import Owner
    from netns_runtime.proxy.ca import Authority
    from netns_runtime.proxy.flow import Flow
    from netns_runtime.proxy.keylog import Keylog
    from netns_runtime.proxy.refuse import Refusal
    from netns_runtime.proxy.sandbox import Sandbox

    # Own address and port, the peer's address and port, of a socket of the proxy's.
    Ends = list[Any]

READERS: Final = 4


class _Reader:
    def __init__(self, sock: socket.socket, *, secrets: bool) -> None:
        self.sock = sock
        self.secrets = secrets
        self.lost = 0

    def tell(self, message: dict[str, Any]) -> bool:
        """Send now or not at all. Whether the reader is still there."""
        if self.lost:
            message = {**message, "lost": self.lost}
        try:
            self.sock.send(json.dumps(message).encode("ascii"))
        except BlockingIOError:
            self.lost += 1
        except OSError:
            return False
        else:
            self.lost = 0
        return True


class Tap:
    """The readers of one sandbox. `keylog` is None where nothing can be terminated."""

    def __init__(self, keylog: Keylog | None = None) -> None:
        self._keylog = keylog
        self._readers: list[_Reader] = []
        self._upstream: ssl.SSLContext | None = None
        self._is_upstream = False
        if keylog is not None:
            keylog.took = self._took

    def add(self, sandbox: Sandbox, fd: int, secrets: bool) -> None:
        """Tell the socket behind `fd`, which is borrowed, everything from now on."""
        try:
            sock = socket.socket(fileno=os.dup(fd))
        except OSError:
            return  # no descriptor left: the reader sees its socket end, and the flows go on
        sock.setblocking(False)
        reader = _Reader(sock, secrets=secrets)
        if len(self._readers) >= READERS:
            reader.tell({"error": f"{READERS} others capture this sandbox already"})
            sock.close()
            return
        if secrets and self._keylog is not None and sandbox.upstream_context is not None:
            self._upstream = self._keylog.client_context(sandbox.upstream_context)
        flows = list(sandbox.flows.values())
        reader.tell(
            {
                "began": True,
                "open": sum(flow.is_terminated for flow in flows),
                "terminates": self._keylog is not None,
                "upstream": secrets and self._upstream is not None,
            }
        )
        for flow in flows:
            reader.tell({**_told(sandbox, flow, None), **_opened(flow), "before": True})
        self._readers.append(reader)
        sandbox.start(self._watch, reader)

    async def _watch(self, reader: _Reader) -> None:
        """Until the reader hangs up; it has nothing more to say."""
        try:
            while True:
                await trio.lowlevel.wait_readable(reader.sock)
                with suppress(BlockingIOError):
                    if not reader.sock.recv(1):
                        return
        except (OSError, trio.ClosedResourceError):
            return
        finally:
            self._drop(reader)

    def _drop(self, reader: _Reader) -> None:
        if reader in self._readers:
            self._readers.remove(reader)
            with suppress(OSError):
                reader.sock.shutdown(socket.SHUT_RDWR)
            trio.lowlevel.notify_closing(reader.sock)
            reader.sock.close()
        if not self._readers and self._keylog is not None:
            self._keylog.forget()

    def _tell(self, message: dict[str, Any], *, is_upstream: bool = False) -> None:
        for reader in list(self._readers):
            if is_upstream and not reader.secrets:
                continue
            if not reader.tell(message):
                self._drop(reader)

    def server_context(
        self, authority: Authority, host: str, alpn: str | None
    ) -> ssl.SSLContext | None:
        """The context for a handshake with a client that begins now, whose keys are to be told."""
        if not self._readers or self._keylog is None:
            return None
        return self._keylog.server_context(authority, host, alpn)

    def client_context(self) -> ssl.SSLContext | None:
        """The context for a handshake with an upstream that begins now; None as a rule."""
        if not any(reader.secrets for reader in self._readers):
            return None
        return self._upstream

    @property
    def is_on(self) -> bool:
        """Whether somebody captures."""
        return bool(self._readers)

    def asked(self, protocol: str, port: int, owner: Owner | None) -> None:
        """A name was asked for from that port of the sandbox; by nobody known, it is told too, or
        who had the port before would be taken for it."""
        if self._readers:
            told = {"asked": [protocol, port], "at": time.time_ns(), **owner_fields(owner)}
            self._tell(told)

    def decided(self, sandbox: Sandbox, flow: Flow, refusal: Refusal | None) -> None:
        """A flow was decided, and nothing is dialled yet."""
        if self._readers:
            self._tell(_told(sandbox, flow, refusal))

    def dialling(self, target: HostPort, sock: socket.socket, where: tuple[str, int]) -> None:
        """A connect to upstream has begun; its first packet is on its way."""
        if self._readers:
            with suppress(OSError):
                ends = [*sock.getsockname()[:2], *where]
                message = {"dialling": ends, "host": target.host, "at": time.time_ns()}
                self._tell(message, is_upstream=True)

    def opened(self, flow: Flow) -> None:
        """Upstream has accepted."""
        if self._readers:
            self._tell({"flow": flow.id, **_opened(flow)})

    def _took(self, lines: str, is_upstream: bool) -> None:
        self._tell({"keys": lines}, is_upstream=is_upstream)


def _told(sandbox: Sandbox, flow: Flow, refusal: Refusal | None) -> dict[str, Any]:
    told = {
        **flow.decided(refusal),
        "at": time.time_ns(),
        "terminated": is_to_be_terminated(sandbox, flow),
    }
    if not told["terminated"]:
        told["unread"] = _why_unread(flow)
    if flow.client is not None:
        with suppress(OSError):
            told["client"] = _ends_of(flow.client)
    return {key: value for key, value in told.items() if value is not None}


def _why_unread(flow: Flow) -> str:
    endpoint = flow.decision.endpoint
    inspection = endpoint.inspection if endpoint is not None else None
    if inspection is not None and inspection.tls == "skip":
        return "tls: skip"
    return "protocol: tcp" if is_raw(endpoint) else "no rule looks into its requests"


def _opened(flow: Flow) -> dict[str, Any]:
    told: dict[str, Any] = {"opened": True, "address": flow.address}
    for name, sock in zip(("client", "upstream"), flow.sockets or (), strict=False):
        with suppress(OSError):
            told[name] = _ends_of(sock)
    return told


def _ends_of(sock: socket.socket) -> Ends:
    return [*sock.getsockname()[:2], *sock.getpeername()[:2]]
