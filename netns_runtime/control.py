"""How netns-debug talks to a running supervisor: one request, one answer, over a unix socket.

The socket lies in /run/netns-runtime, which only root can enter and no sandbox sees; the caller's
uid is checked all the same. A request that is not understood gets an answer that says so. A caller
that goes away, or sends nothing, costs the supervisor nothing but a closed descriptor.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
from typing import TYPE_CHECKING, Any, Final

from netns_runtime import layout
from netns_runtime.errors import StepError, step_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

SUFFIX: Final = ".sock"
MESSAGE: Final = 8 << 20
PATIENCE: Final = 1.0
_CREDENTIALS: Final = struct.Struct("iII")

Answer = dict[str, Any]


def path_of(name: str, directory: Path = layout.RUN_DIR) -> Path:
    """Where the supervisor of this sandbox listens."""
    return directory / (name + SUFFIX)


class Caller:
    """Who asked. Called with an answer it sends that and hangs up; `send` sends one of several."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def __call__(self, value: Answer) -> None:
        with contextlib.suppress(OSError):
            _allow(self._sock, len(data := json.dumps(value).encode("ascii")))
            self._sock.send(data)
        self._sock.close()

    def fileno(self) -> int:
        """The socket, for whom it is lent to."""
        return self._sock.fileno()

    def make_room(self, octets: int) -> None:
        """Let so much wait for the caller to read, and never wait for it ourselves from now on."""
        with contextlib.suppress(OSError):
            _allow(self._sock, octets // 2)
            self._sock.setblocking(False)

    def send(self, data: bytes) -> bool | None:
        """Whether there was room for one message; None where the caller has gone."""
        try:
            self._sock.send(data)
        except BlockingIOError:
            return False
        except OSError:
            return None
        return True

    def is_gone(self) -> bool:
        """Whether the caller has hung up. A caller says nothing after its request."""
        poll = select.poll()
        poll.register(self._sock, select.POLLRDHUP)
        return bool(poll.poll(0))

    def close(self) -> None:
        """Hang up. Twice is once."""
        self._sock.close()


class ControlSocket:
    """The supervisor's side. `serve` is told `handle(request, answer)` and may answer later."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            with contextlib.suppress(FileNotFoundError):
                path.unlink()
            self._listener.bind(str(path))
            path.chmod(0o600)
            self._listener.listen(8)
            self._listener.setblocking(False)
        except OSError as error:
            self._listener.close()
            raise step_error(f"control socket {path}", error) from error

    def fileno(self) -> int:
        return self._listener.fileno()

    def serve(self, handle: Callable[[dict[str, Any], Caller], None]) -> None:
        """Take one caller, read its request, and hand it on with the way to answer."""
        try:
            caller, _ = self._listener.accept()
        except OSError:
            return
        caller.settimeout(PATIENCE)
        try:
            credentials = caller.getsockopt(
                socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
            )
            if _CREDENTIALS.unpack(credentials)[1] != 0:
                caller.close()
                return
            request = json.loads(caller.recv(MESSAGE))
            if not isinstance(request, dict):
                raise TypeError
        except (OSError, ValueError, TypeError):
            caller.close()
            return

        handle(request, Caller(caller))

    def close(self) -> None:
        self._listener.close()
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()


@contextlib.contextmanager
def listening(name: str) -> Iterator[ControlSocket]:
    """The control socket of a sandbox whose name is claimed."""
    control = ControlSocket(path_of(name))
    try:
        yield control
    finally:
        control.close()


def ask(name: str, request: dict[str, Any], patience: float = 30.0) -> Answer:
    """Ask the supervisor of a sandbox. Raises StepError when it does not answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as sock:
        sock.settimeout(patience)
        data = json.dumps(request).encode("ascii")
        try:
            sock.connect(str(path_of(name)))
            _allow(sock, len(data))
            sock.send(data)
            answer = json.loads(sock.recv(MESSAGE))
        except (OSError, ValueError) as error:
            why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else "gone"
            raise StepError(
                f"sandbox {name} does not answer: {why}", remedy="see netns-debug list"
            ) from error
    if not isinstance(answer, dict):
        raise StepError(f"sandbox {name} gave no answer")
    return answer


def _allow(sock: socket.socket, size: int) -> None:
    """Let one datagram of this size through; root is not held to net.core.wmem_max."""
    sock.setsockopt(socket.SOL_SOCKET, 32, 2 * size + 65536)  # SO_SNDBUFFORCE
