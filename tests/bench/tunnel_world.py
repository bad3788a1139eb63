"""Where tests.bench.tunnel happens: namespaces in a row, and the processes inside of them.

`alone` runs a module in PID and mount namespaces of its own, which end with it however it ends:
processes, named network namespaces and files (/run is a private tmpfs) go when its first process
does, and that goes when whoever started it does. `running` starts a contender in the foreground
and ends it by pid; `cpu_of`, `rss_of` and `pin` look at its processes from outside.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tests.bench.tunnel_proxies import (
    CLIENT,
    DIRECT,
    PROXY,
    PROXY_OUT,
    RULES,
    SERVER,
    TO_MITMPROXY,
    TO_REDSOCKS,
    TO_US,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PLACES: Final = ("client", "proxy", "server")
FILES: Final = Path("/run/bench")
# prctl(2)
_PR_SET_PDEATHSIG: Final = 1
# Ports for many clients, and none that a contender listens on.
_SYSCTLS: Final = ("net.ipv4.ip_local_port_range=10000 65535", "net.ipv4.tcp_tw_reuse=1")


def alone(module: str, *arguments: str) -> int:
    """Run a module of ours as the first process of namespaces of its own. Its exit status."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    ends_with_us = ("setpriv", "--pdeathsig", "KILL")
    unshare = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
    mounted = 'mount -t tmpfs -o mode=755 bench /run && mkdir /run/bench /run/netns && exec "$@"'
    inside = ("sh", "-c", mounted, "sh", sys.executable, "-m", module, *arguments)
    return subprocess.run((*ends_with_us, *unshare, *inside)).returncode


def _ip(*words: str) -> None:
    subprocess.run(("ip", *words), check=True)


def make_places() -> None:
    """The namespaces, their links and the redirecting rules; they end with `alone`."""
    for name in PLACES:
        _ip("netns", "add", name)
        _ip("-n", name, "link", "set", "lo", "up")
        subprocess.run(inside(name, "sysctl", "-qw", *_SYSCTLS), check=True)
    for left, near, left_ip, right, far, right_ip in (
        ("client", "out0", CLIENT, "proxy", "in0", PROXY),
        ("proxy", "out0", PROXY_OUT, "server", "in0", SERVER),
        ("client", "direct0", DIRECT[0], "server", "direct0", DIRECT[1]),
    ):
        peer = ("peer", "name", far, "netns", right)
        _ip("-n", left, "link", "add", near, "type", "veth", *peer)
        for name, link, address in ((left, near, left_ip), (right, far, right_ip)):
            _ip("-n", name, "address", "add", f"{address}/25", "dev", link)
            _ip("-n", name, "link", "set", link, "up")
    for address in (TO_US, TO_REDSOCKS, TO_MITMPROXY):
        _ip("-n", "server", "address", "add", f"{address}/32", "dev", "in0")
        _ip("-n", "proxy", "route", "add", f"{address}/32", "dev", "out0")
        _ip("-n", "client", "route", "add", f"{address}/32", "via", PROXY)
    _ip("-n", "proxy", "rule", "add", "fwmark", "1", "lookup", "100")
    _ip("-n", "proxy", "route", "add", "local", "default", "dev", "lo", "table", "100")
    subprocess.run(inside("proxy", "nft", "-f", "-"), input=RULES.encode(), check=True)


def inside(place: str, *command: str) -> tuple[str, ...]:
    """The command, in one of the namespaces; `ip` becomes it, so its pid is the command's."""
    return ("ip", "netns", "exec", place, *command)


def _wait_for(place: str, address: str, port: int, process: subprocess.Popen[bytes]) -> None:
    listening = inside(place, "ss", "-Hltn", f"src {address}:{port}")
    for _ in range(200):
        if subprocess.run(listening, capture_output=True).stdout:
            return
        if process.poll() is not None:
            break
        time.sleep(0.1)
    words = _words().read_text(errors="replace").strip().rpartition("\n")[2]
    raise OSError(f"nothing listens on {address}:{port}: {words}")


def _words() -> Path:
    """What all of them say on stderr."""
    return FILES / "stderr"


@contextmanager
def running(
    place: str, commands: Iterable[tuple[tuple[str, ...], str, int]]
) -> Iterator[list[int]]:
    """The pids of commands that listen. Raises OSError where one does not."""
    with ExitStack() as stack:
        pids = []
        for command, address, port in commands:
            process = subprocess.Popen(
                inside(place, *command),
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=stack.enter_context(_words().open("ab")),
            )
            stack.callback(_end, process)
            _wait_for(place, address, port, process)
            pids.append(process.pid)
        yield pids


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(0.3)
        return
    process.terminate()
    try:
        process.wait(3)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _tree_of(pids: Iterable[int]) -> Iterator[int]:
    for pid in pids:
        yield pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        yield from _tree_of(int(child) for child in children)


def cpu_of(pids: Iterable[int]) -> float:
    """Seconds of user and system time of processes and their children that live."""
    ticks = 0
    for pid in _tree_of(pids):
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(stat[11]) + int(stat[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def rss_of(pids: Iterable[int]) -> int:
    """Bytes resident in processes and their children; the kernel's socket memory is not in it."""
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in _tree_of(pids))
    return pages * os.sysconf("SC_PAGE_SIZE")


def pin(pids: Iterable[int], cpus: Iterable[int]) -> None:
    """Let processes, their children and all their threads run on these CPUs only."""
    cpus = set(cpus)
    for pid in _tree_of(pids):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread), cpus)
