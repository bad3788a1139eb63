"""`netns-debug metrics --listen ADDR:PORT`: what Prometheus scrapes, for all running sandboxes.

A small server of its own: GET /metrics and nothing else, one scrape computed at a time, a bounded
number of callers, each with a deadline. It holds no state between scrapes: the counts are the
kernel's and the proxies'. Ends with SIGINT or SIGTERM, or with one UsageError where it cannot
listen.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final, NoReturn

from netns_runtime import state
from netns_runtime.cli.text import say, say_json
from netns_runtime.debug.exposition import CONTENT_TYPE, exposition_of
from netns_runtime.debug.measures import families_of
from netns_runtime.errors import UsageError

if TYPE_CHECKING:
    from netns_runtime.debug.exposition import Family

USAGE: Final = """\
usage: netns-debug metrics --listen ADDR:PORT
       netns-debug metrics [--json]

Prometheus metrics of all running sandboxes, at http://ADDR:PORT/metrics or, without --listen,
once on standard output. Who can connect can read them: give a loopback address, or one that
only the monitoring network reaches. Port 0 takes a free one and says which.
"""
CALLERS: Final = 16
DEADLINE: Final = 10.0
_REMEDY: Final = "as in --listen 127.0.0.1:9464 or --listen [::1]:9464"


def main(words: list[str], as_json: bool) -> int:
    """Serve, or print once."""
    listen = parsed(words)
    if os.geteuid() != 0:
        raise UsageError("needs root", remedy="run sudo netns-debug …")
    if listen is None:
        families = families_of(state.survey()[0])
        if as_json:
            say_json(json_of(families))
        else:
            say(exposition_of(families).rstrip("\n"))
        return 0
    with _listening(*listen) as server:
        host, port = server.server_address[:2]
        shown = f"[{host!s}]" if ":" in str(host) else str(host)
        sys.stderr.write(f"netns-debug: metrics at http://{shown}:{port}/metrics\n")
        sys.stderr.flush()
        signal.signal(signal.SIGTERM, _end)
        with suppress(KeyboardInterrupt):
            server.serve_forever()
    return 0


def _end(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def parsed(words: list[str]) -> tuple[str, int] | None:
    """Where to listen; None without --listen. Raises UsageError."""
    if not words:
        return None
    if words[0] != "--listen" or len(words) > 2:
        wrong = words[0] if words[0] != "--listen" else words[2]
        raise UsageError(f"metrics takes no {wrong!r}", remedy="see netns-debug metrics --help")
    text = words[1] if len(words) > 1 else ""
    address, _, port = text.rpartition(":")
    if address.startswith("[") and address.endswith("]"):
        address = address[1:-1]
    try:
        ip_address(address)
    except ValueError as error:
        raise UsageError(f"--listen {text}: not ADDR:PORT", remedy=_REMEDY) from error
    if not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise UsageError(f"--listen {text}: {port!r} is no port", remedy=_REMEDY)
    return address, int(port)


def json_of(families: list[Family]) -> list[dict[str, Any]]:
    """The same for programs."""
    return [
        {
            "name": family.name,
            "type": family.kind,
            "help": family.about,
            "samples": [
                {"name": family.name + suffix, "labels": dict(labels), "value": value}
                for suffix, labels, value in family.samples
            ],
        }
        for family in families
        if family.samples
    ]


class _Server(ThreadingHTTPServer):
    """Bounded: beyond CALLERS a connection is closed at once."""

    daemon_threads = True
    request_queue_size = 16

    def __init__(self, address: tuple[str, int]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.room = threading.BoundedSemaphore(CALLERS)
        self.one_at_a_time = threading.Lock()
        super().__init__(address, _Request)

    def server_bind(self) -> None:
        """Without the base's look-up of our own name, which would ask a name server."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self.room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that went away is no error; anything else is one line."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            what = f"{type(error).__name__}: {error}"
            sys.stderr.write(f"netns-debug: metrics: {what}\n")


class _Request(BaseHTTPRequestHandler):
    server: _Server
    server_version = "netns-debug"
    sys_version = ""
    timeout = DEADLINE

    def handle(self) -> None:
        """One caller. `timeout` is between two octets alone, and some send one at a time."""
        deadline = threading.Timer(DEADLINE, _hang_up, (self.connection,))
        deadline.daemon = True
        deadline.start()
        try:
            super().handle()
        finally:
            deadline.cancel()

    def do_GET(self) -> None:
        if self.path.partition("?")[0] != "/metrics":
            self._answer(404, "netns-debug tells /metrics and nothing else\n")
            return
        with self.server.one_at_a_time:
            text = exposition_of(families_of(state.survey()[0]))
        self._answer(200, text)

    def do_HEAD(self) -> None:
        self._answer(200 if self.path.partition("?")[0] == "/metrics" else 404, "")

    def _answer(self, status: int, text: str) -> None:
        body = text.encode("ascii")
        self.send_response(status)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing: a scrape is no news."""


def _hang_up(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _listening(address: str, port: int) -> _Server:
    try:
        return _Server((address, port))
    except OSError as error:
        raise UsageError(
            f"--listen {address}:{port}: {os.strerror(error.errno or 0)}",
            remedy="choose another port, or an address of this machine",
        ) from error
