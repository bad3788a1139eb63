"""The proxy as its supervisor sees it: a process that is started early and told late.

It is executed afresh (nothing of the supervisor's memory is in it), inside the uplink's namespace
and in a session of its own, and imports what it needs while the namespaces are being built. Then it
gets its configuration and its sockets over one SEQPACKET socket and says when it serves. It ends
when that socket does.
"""

from __future__ import annotations

import array
import json
import os
import pickle
import select
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any, Final, NoReturn

from netns_runtime.errors import StepError, step_error
from netns_runtime.namespace.netns import setns

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from netns_runtime.config import ProxyConfig
    from netns_runtime.policy import Policy

_MESSAGE_LIMIT: Final = 64 * 1024
# include/uapi/asm-generic/socket.h; Python has no name for it
SO_SNDBUFFORCE: Final = 32
_ENVIRONMENT: Final = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
START_PATIENCE: Final = 30.0
LAST_WORDS_PATIENCE: Final = 1.0
MODULE: Final = "netns_runtime.proxy"


class ProxyProcess:
    """`pid`, `pidfd` and the control socket of the proxy. `stop` ends it and reaps it."""

    def __init__(self, pid: int, control: socket.socket, complaints: int) -> None:
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.control = control
        self._complaints = complaints
        self._status: int | None = None
        self._is_closed = False

    def fileno(self) -> int:
        return self.control.fileno()

    def configure(self, config: ProxyConfig, descriptors: Sequence[int]) -> None:
        """Send the configuration; `descriptors` in the order of `config.descriptors`."""
        data = pickle.dumps(config)
        rights = array.array("i", descriptors)
        try:
            # One datagram carries the whole policy; its size is not bounded by net.core.wmem_max.
            self.control.setsockopt(
                socket.SOL_SOCKET, SO_SNDBUFFORCE, 2 * len(data) + _MESSAGE_LIMIT
            )
            self.control.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights.tobytes())])
        except OSError as error:
            raise self._failed(error) from error

    def certificate(self) -> bytes:
        """The certificate, in PEM, of the authority that `start` asked for: the first message.

        Waits for it. Raises StepError where the proxy ends instead, or says nothing.
        """
        if not select.select([self.control], [], [], START_PATIENCE)[0]:
            raise self._failed(TimeoutError("it made no certificate authority in time"))
        message = self.receive() or {}
        pem = message.get("pem")
        if message.get("kind") != "ca" or not isinstance(pem, str):
            raise self._failed(RuntimeError("it ended before it made a certificate authority"))
        return pem.encode("ascii")

    def receive(self) -> dict[str, Any] | None:
        """One message, or None when the proxy has closed its side."""
        try:
            data = self.control.recv(_MESSAGE_LIMIT)
        except ConnectionError:
            return None
        if not data:
            return None
        try:
            message = json.loads(data)
        except ValueError:
            return {}
        return message if isinstance(message, dict) else {}

    def set_policy(self, policy: Policy) -> None:
        """Swap the policy; the proxy answers {"kind": "policy", "closed": N} when it has."""
        fd = os.memfd_create("netns-runtime-policy", os.MFD_CLOEXEC)
        try:
            with os.fdopen(os.dup(fd), "wb") as file:
                pickle.dump(policy, file)
            os.lseek(fd, 0, os.SEEK_SET)
            socket.send_fds(self.control, [json.dumps({"kind": "policy"}).encode("ascii")], [fd])
        finally:
            os.close(fd)

    def send(self, message: dict[str, Any]) -> bool:
        """Send now or not at all. Whether it went."""
        try:
            self.control.send(json.dumps(message).encode("ascii"), socket.MSG_DONTWAIT)
        except OSError:
            return False
        return True

    def lend(self, message: dict[str, Any], fd: int) -> bool:
        """Send now or not at all, with a descriptor that stays the caller's. Whether it went."""
        try:
            data = json.dumps(message).encode("ascii")
            socket.send_fds(self.control, [data], [fd], socket.MSG_DONTWAIT)
        except OSError:
            return False
        return True

    def last_words(self) -> str:
        """The last line of what the proxy wrote to its standard error, which it is ending with."""
        # Its socket closes before its interpreter has written what the matter is.
        if self._status is None:
            select.select([self.pidfd], [], [], LAST_WORDS_PATIENCE)
        size = os.fstat(self._complaints).st_size
        tail = os.pread(self._complaints, 4096, max(0, size - 4096)).decode("utf-8", "replace")
        lines = [line for line in tail.splitlines() if line.strip()]
        return lines[-1].strip() if lines else ""

    def _failed(self, cause: Exception) -> StepError:
        words = self.last_words() or str(cause)
        return StepError(
            f"proxy: {words}", remedy="run again with -v, and report it if it persists"
        )

    def stop(
        self, patience: float = 2.0, heard: Callable[[dict[str, Any]], None] | None = None
    ) -> None:
        """Ask it to finish its audit, then end it; always reaped afterwards. Twice is once.

        `heard` is given what it still says.
        """
        if self._is_closed:
            return
        self._is_closed = True
        self.send({"kind": "stop"})
        if self._status is None and not select.select([self.pidfd], [], [], patience)[0]:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        while heard is not None and select.select([self.control], [], [], 0)[0]:
            message = self.receive()
            if message is None:
                break
            heard(message)
        if self._status is None:
            _, status = os.waitpid(self.pid, 0)
            self._status = os.waitstatus_to_exitcode(status)
        self.control.close()
        os.close(self.pidfd)
        os.close(self._complaints)


def start(uplink_fd: int | None, *, wants_ca: bool = False) -> ProxyProcess:
    """Start the proxy inside the uplink, and its authority if that is wanted. Raises StepError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    complaints = os.memfd_create("netns-runtime-proxy-stderr", os.MFD_CLOEXEC)
    try:
        pid = os.fork()
    except OSError as error:
        raise step_error("proxy: fork", error) from error
    if pid == 0:
        words = ["ca"] if wants_ca else []
        _become_proxy(theirs.fileno(), complaints, uplink_fd, words)
    theirs.close()
    return ProxyProcess(pid, ours, complaints)


def _become_proxy(
    control: int, complaints: int, uplink_fd: int | None, words: Sequence[str]
) -> NoReturn:
    try:
        os.setsid()
        null = os.open("/dev/null", os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.dup2(complaints, 2)
        if uplink_fd is not None:
            setns(uplink_fd)
        os.set_inheritable(control, True)
        if control != 3:
            os.dup2(control, 3, inheritable=True)
        os.closerange(4, 0x7FFFFFFF)
        os.chdir("/")
        # -I: no environment, no working directory, no user site; root runs only what is installed.
        command = [sys.executable, "-I", "-m", MODULE, "3", *words]
        os.execve(sys.executable, command, _ENVIRONMENT)
    except BaseException as error:  # a child must never return into the supervisor's code
        os.write(2, f"cannot start the proxy: {error}\n".encode())
    finally:
        os._exit(125)
