"""The proxy's end of its control socket (AF_UNIX, SOCK_SEQPACKET) to the supervisor.

The first message is a pickled `ProxyConfig` with its descriptors: the supervisor is root and made
us. From then on both sides send JSON objects with a `kind`:

    proxy → supervisor   ready · report (line) · exe (id, pid, inode, device) ·
                         owner (id, protocol, port) · flows (id, flows, more) · policy (closed) or
                         policy (error) · tallies (id, tallies) ·
                         events (for, events, lost, next, more)
    supervisor → proxy   stop · exe (id, path) · owner (id, pid, comm, exe) · flows (id) ·
                         tallies (id) ·
                         events (for, since) · policy, and with it the descriptor of a file (memfd)
                         that holds a pickled `Policy` · capture (secrets), and with it the socket
                         of who captures packets

Events go out a batch for each that was asked for: "recent" at once, "follow" when there are any.

`serve` returns at stop or at the supervisor's end.
"""

from __future__ import annotations

import json
import os
import pickle
import socket
from typing import TYPE_CHECKING, Any, Final

import trio

from netns_runtime.config import ProxyConfig
from netns_runtime.errors import StepError
from netns_runtime.owner import Owner
from netns_runtime.policy import Policy
from netns_runtime.recent import Recent, batches_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

MESSAGE: Final = 1 << 20
DESCRIPTORS: Final = 16
POLICY_LIMIT: Final = 64 << 20


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
        self._asked: dict[int, tuple[trio.Event, list[dict[str, Any]]]] = {}
        self._id = 0
        self.recent = Recent()
        self._followed: int | None = None
        self._is_asked = False

    def note(self, event: dict[str, Any]) -> None:
        """Remember an audit event, and tell it where somebody follows."""
        self.recent.take(event)
        if self._is_asked:
            self.tell_events()

    def tell_events(self) -> None:
        """Send what the follower does not have yet; what does not get out now does with the next,
        or at the end."""
        if self._followed is None or self.recent.total == self._followed:
            return
        following = self._say_events("follow", self._followed)
        if following is not None:
            self._is_asked, self._followed = False, following

    def _say_events(self, purpose: str, since: int) -> int | None:
        events, lost, following = self.recent.since(since)
        message = {"kind": "events", "for": purpose, "events": events, "lost": lost}
        more = following < self.recent.total
        return following if self.say(message | {"next": following, "more": more}) else None

    def _on_events(self, message: dict[str, Any]) -> None:
        since = int(message.get("since", 0))
        if message.get("for") == "recent":
            self._say_events("recent", since)
            return
        self._is_asked = True
        self._followed = self.recent.total if since < 0 else since
        self.tell_events()

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
        answer = await self._ask({"kind": "exe", "pid": pid, "inode": inode, "device": device})
        path = answer.get("path")
        return path if isinstance(path, str) else None

    async def owner_of(self, protocol: str, port: int) -> Owner | None:
        """Ask who in the sandbox has the local `port`; `protocol` is "udp" or "tcp"."""
        answer = await self._ask({"kind": "owner", "protocol": protocol, "port": port})
        pid, comm, exe = answer.get("pid"), answer.get("comm"), answer.get("exe")
        if not isinstance(pid, int) or not isinstance(comm, str):
            return None
        return Owner(pid, comm, exe=exe if isinstance(exe, str) else None)

    async def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        """The answer to one question; empty where the supervisor cannot be asked."""
        self._id += 1
        number, event, answer = self._id, trio.Event(), list[dict[str, Any]]()
        if not self.say(message | {"id": number}):
            return {}
        self._asked[number] = (event, answer)
        try:
            await event.wait()
        finally:
            del self._asked[number]
        return answer[0]

    async def serve(
        self,
        flows: Callable[[], Sequence[dict[str, Any]]],
        swap: Callable[[Policy], int] | None = None,
        tallies: Callable[[], dict[str, Any]] | None = None,
        capture: Callable[[int, bool], None] | None = None,
    ) -> None:
        """Read until told to stop or until the supervisor has ended. `swap` takes a new policy and
        gives the number of flows that it ended; `capture` borrows the socket of who captures, and
        is told whether secrets' values are asked for."""
        while True:
            await trio.lowlevel.wait_readable(self._sock)
            try:
                data, fds, _, _ = socket.recv_fds(
                    self._sock, MESSAGE, DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                continue
            except OSError:
                return
            try:
                if not data:
                    return
                message = json.loads(data)
                kind = message.get("kind")
                if kind == "stop":
                    return
                if kind in {"exe", "owner"} and message.get("id") in self._asked:
                    event, answer = self._asked[message["id"]]
                    answer.append(message)
                    event.set()
                elif kind == "flows":
                    await self._tell_flows(message.get("id"), flows())
                elif kind == "tallies" and tallies is not None:
                    self.say({"kind": "tallies", "id": message.get("id"), "tallies": tallies()})
                elif kind == "events":
                    self._on_events(message)
                elif kind == "capture" and capture is not None and len(fds) == 1:
                    capture(fds[0], message.get("secrets") is True)
                elif kind == "policy" and swap is not None:
                    self.say({"kind": "policy"} | _swapped(fds, swap))
            finally:
                for fd in fds:
                    os.close(fd)

    async def _tell_flows(self, number: object, flows: Sequence[dict[str, Any]]) -> None:
        batches = list(batches_of(flows))
        for place, batch in enumerate(batches, 1):
            more = place < len(batches)
            message = {"kind": "flows", "id": number, "flows": batch, "more": more}
            while not self.say(message):
                with trio.move_on_after(1.0) as scope:
                    await trio.lowlevel.wait_writable(self._sock)
                if scope.cancelled_caught:
                    return


def _swapped(fds: Sequence[int], swap: Callable[[Policy], int]) -> dict[str, Any]:
    """Put the policy of a descriptor in force. A damaged one changes nothing."""
    if len(fds) != 1:
        return {"error": f"one descriptor expected, {len(fds)} came"}
    try:
        size = os.fstat(fds[0]).st_size
        if not 0 < size <= POLICY_LIMIT:
            return {"error": f"a policy of {size} bytes"}
        with open(os.dup(fds[0]), "rb") as file:
            file.seek(0)
            policy = pickle.load(file)
    except Exception as error:  # unpickling raises what it likes, and the flows must go on
        return {"error": f"the policy arrived damaged: {type(error).__name__}: {error}"[:1000]}
    if not isinstance(policy, Policy):
        return {"error": "what arrived is no policy"}
    return {"closed": swap(policy)}
