"""The supervisor's loop: CMD's fate, the proxy's, the kernel's events, signals, until CMD ends.

One selector, no threads that stay, no privileges given up (it must tear down what it made). It ends
with CMD's exit status, or with 125 when the proxy ended first: a sandbox without its proxy has no
way out, and the person should hear of it rather than wait.
"""

from __future__ import annotations

import json
import os
import select
import selectors
import sys
import time
from typing import TYPE_CHECKING, Any, Final

from netns_runtime.errors import EXIT_FAILED, StepError
from netns_runtime.namespace.enter_launch import (
    CannotExecute,
    Exited,
    Failed,
    Ready,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from netns_runtime.control import ControlSocket
    from netns_runtime.namespace.enter_launch import Child
    from netns_runtime.namespace.terminal import JobControl
    from netns_runtime.probes.probe import Registration
    from netns_runtime.processes import Process
    from netns_runtime.proxyprocess import ProxyProcess
    from netns_runtime.refusals import Refusals
    from netns_runtime.requests import Requests

# With the probe, nft counts odd protocols only; without it, nft is all there is.
NFT_INTERVAL: Final = {True: 5.0, False: 0.25}
START_PATIENCE: Final = 30.0


def complain(text: str) -> None:
    """Our own words, on stderr, one line."""
    line = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)
    try:
        sys.stderr.write(f"netns-run: {line}\n")
        sys.stderr.flush()
    except OSError:
        return


class StatusWriter:
    """`--status-fd N`: one JSON object a line. Nobody reading is no error."""

    def __init__(self, fd: int | None) -> None:
        # Our own: stdin and stdout are let go of while CMD runs (running).
        self._fd = None if fd is None else os.dup(fd)

    def write(self, event: str, **fields: Any) -> None:
        if self._fd is None:
            return
        try:
            os.write(self._fd, (json.dumps({"event": event, **fields}) + "\n").encode("ascii"))
        except OSError:
            self._fd = None


class Supervisor:
    """Everything of one running sandbox that can happen, as callbacks of one selector."""

    def __init__(
        self,
        *,
        child: Child,
        proxy: ProxyProcess,
        job: JobControl,
        registration: Registration | None,
        refusals: Refusals,
        control: ControlSocket,
        requests: Requests,
        find_owner: Callable[[str, int], Process | None],
        on_ready: Callable[[int], None],
    ) -> None:
        self._child = child
        self._proxy = proxy
        self._job = job
        self._registration = registration
        self._refusals = refusals
        self._control = control
        self._requests = requests
        self._find_owner = find_owner
        self._on_ready = on_ready
        self._command_pid: int | None = None
        self._is_serving = False
        self._is_running = False
        self._status: int | None = None
        self._selector = selectors.DefaultSelector()

    def run(self) -> int:
        """Loop until CMD has ended; the exit status of netns-run."""
        interval = NFT_INTERVAL[self._registration is not None]
        with self._selector as selector:
            selector.register(self._child, selectors.EVENT_READ, self._on_child)
            selector.register(self._proxy, selectors.EVENT_READ, self._on_proxy_ready)
            selector.register(self._control, selectors.EVENT_READ, self._on_request)
            if self._registration is not None:
                selector.register(self._registration, selectors.EVENT_READ, self._on_refusals)
            due = time.monotonic() + interval
            give_up = time.monotonic() + START_PATIENCE
            while self._status is None:
                ready = selector.select(max(0.0, due - time.monotonic()))
                for key, _ in ready:
                    key.data()
                if time.monotonic() >= due:
                    self._refusals.poll_nft()
                    due = time.monotonic() + interval
                if not self._is_running and time.monotonic() >= give_up:
                    late = "the sandbox" if self._is_serving else "the proxy"
                    raise StepError(
                        f"{late} did not start in {START_PATIENCE:.0f} s", remedy="try again"
                    )
        return self._status

    def _go_when_ready(self) -> None:
        """CMD runs when it stands ready inside and the proxy serves, in whichever order."""
        if self._command_pid is None or not self._is_serving or self._is_running:
            return
        self._is_running = True
        self._on_ready(self._command_pid)

    def _on_child(self) -> None:
        event = self._child.handle()
        self._job.on(event)
        if isinstance(event, Ready):
            self._command_pid = event.pid
            self._go_when_ready()
        elif isinstance(event, Exited):
            self._status = event.status
        elif isinstance(event, CannotExecute):
            complain(f"cannot run {event.message}")
            self._status = event.status
        elif isinstance(event, Failed):
            raise StepError(f"sandbox: {event.message}", remedy="see netns-debug doctor")

    def _on_proxy_ready(self) -> None:
        # Refusals that were ready in the same look have caught up with it, and may have read all:
        # to wait here for its next word would be to wait for good.
        if select.select([self._proxy], [], [], 0)[0]:
            self._on_proxy()

    def _on_proxy(self) -> None:
        message = self._proxy.receive()
        if message is None:
            words = self._proxy.last_words()
            if not self._is_running:
                raise StepError(
                    f"proxy: {words or 'it ended at once'}", remedy="see netns-debug doctor"
                )
            self._child.kill()
            complain("the proxy ended, and CMD with it" + (f": {words}" if words else ""))
            self._status = EXIT_FAILED
        elif message.get("kind") == "ready":
            self._is_serving = True
            self._go_when_ready()
        elif message.get("kind") == "exe":
            path = self._refusals.executable(
                int(message.get("pid", 0)),
                int(message.get("inode", 0)),
                int(message.get("device", 0)),
            )
            self._proxy.send({"kind": "exe", "id": message.get("id"), "path": path})
        elif message.get("kind") == "name":
            self._refusals.learn_name(str(message.get("address")), str(message.get("host")))
        elif message.get("kind") == "refused":
            tell_refusal(message.get("event") or {})
        elif message.get("kind") == "owner":
            self._tell_owner(message)
        elif message.get("kind") == "report":
            complain(f"proxy: {message.get('line', '')}")
        else:
            self._requests.on_proxy(message)

    def _on_refusals(self) -> None:
        self._refusals.drain(self._catch_up_with_proxy)

    def _catch_up_with_proxy(self) -> None:
        while self._status is None and select.select([self._proxy], [], [], 0)[0]:
            self._on_proxy()

    def _on_request(self) -> None:
        self._control.serve(self._requests.handle)

    def _tell_owner(self, message: dict[str, Any]) -> None:
        """Which process has the socket with this local port inside the sandbox."""
        found = self._find_owner(str(message.get("protocol")), int(message.get("port", 0)))
        fields: dict[str, Any] = {"pid": None, "comm": None, "exe": None}
        if found is not None:
            fields = {"pid": found.pid, "comm": found.comm, "exe": found.exe}
        self._proxy.send({"kind": "owner", "id": message.get("id"), **fields})


def tell_refusal(event: dict[str, Any]) -> None:
    """`-v`: say on stderr who was refused what, and what would allow it."""
    line = refusal_line(event)
    if line is not None:
        complain(line)


def refusal_line(event: dict[str, Any]) -> str | None:
    """An audit event in one line for a person; None where nothing was refused, nor failed."""
    is_reported = str(event.get("detail", "")).startswith("would be refused")
    is_refused = event.get("action") == "refuse"
    is_end = event.get("event") == "flow.closed" and ("reason" in event or "remedy" in event)
    if not (is_refused or is_reported or is_end):
        return None
    who = event.get("comm", "a process") + (f" (pid {event['pid']})" if "pid" in event else "")
    where = event.get("host") or event.get("address")
    port = f":{event['port']}" if "port" in event else ""
    to = f" to {where}{port}" if where else ""
    if event.get("event") == "secret.withheld":
        given = f"put in on the way{to} for {who}" if to else f"given to {who}"
        return _because(f"{event.get('secret') or 'a secret'} was not {given}", event, "detail")
    times = f" {event['count']} times" if event.get("count", 1) > 1 else ""
    if is_end and not is_refused:
        return _because(f"closed {who}{to}", event, "reason", "detail")
    said = "would refuse" if is_reported else "refused"
    # Other reasons say by their name, and by the remedy, what the detail says.
    keys = ("reason", "detail") if event.get("reason") == "http_request_error" else ("reason",)
    return _because(f"{said} {who}{to}{times}", event, *keys)


def _because(what: str, event: dict[str, Any], *keys: str) -> str:
    why = "; ".join(str(event[key]) for key in (*keys, "remedy") if event.get(key))
    return f"{what}: {why}" if why else what
