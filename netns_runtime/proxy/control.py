"""The proxy's end of its control socket (AF_UNIX, SOCK_SEQPACKET) to the supervisor.

The first message is a pickled `ProxyConfig` with its descriptors: the supervisor is root and made
us. From then on both sides send JSON objects with a `kind`:

    proxy → supervisor   ready · report (line) · exe (id, pid, inode, device) ·
                         flows (id, flows, more)
    supervisor → proxy   stop · exe (id, path) · flows (id)

`serve` returns at stop or at the supervisor's end.
"""

from __future__ import annotations

import json
import pickle
import socket
from typing import TYPE_CHECKING, Any, Final

import trio

from netns_runtime.config import ProxyConfig
from netns_runtime.errors import StepError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MESSAGE: Final = 1 << 20
DESCRIPTORS: Final = 16
FLOWS_PER_MESSAGE: Final = 100


def receive_config(control: socket.socket) -> tuple[ProxyConfig, dict[str, list[int]]] | None:
    """Wait for the configuration and its descriptors by name. None if the supervisor ended."""
    data, fds, flags, _ = socket.recv_fds(control, MESSAGE, DESCRIPTORS, socket.MSG_CMSG_CLOEXEC)
    if not data:
        return None
    config = pickle.loads(data)
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC) or not isinstance(config, ProxyConfig):
        raise StepError("proxy: the configuration arrived damaged")
    if len(fds) != len(config.descriptors):
        raise StepError(f"proxy: {len(config.descriptors)} descriptors expected, {len(fds)} came")
    named: dict[str, list[int]] = {}
    for name, fd in zip(config.descriptors, fds, strict=True):
        named.setdefault(name, []).append(fd)
    return config, named


class Control:
    """The conversation. `sock` is borrowed and made non-blocking."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._asked: dict[int, tuple[trio.Event, list[str | None]]] = {}
        self._id = 0

    def report(self, line: str) -> None:
        """Send one line about a fault of ours; dropped where the supervisor does not keep up."""
        self.say({"kind": "report", "line": line[:1000]})

    def say(self, message: dict[str, Any]) -> bool:
        """Send now or not at all. Whether it went."""
        try:
            self._sock.send(json.dumps(message).encode("ascii"))
        except OSError:
            return False
        return True

    async def exe_of(self, pid: int, inode: int, device: int) -> str | None:
        """Ask for an executable's path; waits as long as its caller lets it."""
        self._id += 1
        number, event, answer = self._id, trio.Event(), list[str | None]()
        message = {"kind": "exe", "id": number, "pid": pid, "inode": inode, "device": device}
        if not self.say(message):
            return None
        self._asked[number] = (event, answer)
        try:
            await event.wait()
        finally:
            del self._asked[number]
        return answer[0]

    async def serve(self, flows: Callable[[], Sequence[dict[str, Any]]]) -> None:
        """Read until told to stop or until the supervisor has ended."""
        while True:
            await trio.lowlevel.wait_readable(self._sock)
            try:
                data = self._sock.recv(MESSAGE)
            except BlockingIOError:
                continue
            except OSError:
                return
            if not data:
                return
            message = json.loads(data)
            kind = message.get("kind")
            if kind == "stop":
                return
            if kind == "exe" and message.get("id") in self._asked:
                event, answer = self._asked[message["id"]]
                answer.append(message.get("path"))
                event.set()
            elif kind == "flows":
                await self._tell_flows(message.get("id"), flows())

    async def _tell_flows(self, number: object, flows: Sequence[dict[str, Any]]) -> None:
        for first in range(0, max(len(flows), 1), FLOWS_PER_MESSAGE):
            message = {
                "kind": "flows",
                "id": number,
                "flows": flows[first : first + FLOWS_PER_MESSAGE],
                "more": first + FLOWS_PER_MESSAGE < len(flows),
            }
            while not self.say(message):
                with trio.move_on_after(1.0) as scope:
                    await trio.lowlevel.wait_writable(self._sock)
                if scope.cancelled_caught:
                    return
