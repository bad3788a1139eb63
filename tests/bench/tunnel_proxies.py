"""The proxies that tests.bench.tunnel compares: each a command that listens on the middle address.

`contenders` gives command lines and what they listen on, and says which packages are missing. Ours
is started here as the supervisor starts it (`python -m tests.bench.tunnel_proxies ADDRESS SERVER`),
with a second, transparent listening socket for what the middle namespace redirects (`REDIRECTED`).
"""

from __future__ import annotations

import os
import pickle
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

PORT: Final = 3128
TRANSPARENT_PORT: Final = 3129
REDIRECTED: Final = "203.0.113.9"
"""Another address of the server, whose connections the middle namespace redirects."""
# include/uapi/linux/in.h; Python has no name for it
IP_TRANSPARENT: Final = 19

_HAPROXY = """
global
    maxconn 4000
    nbthread 2
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
listen relay
    bind {address}:3128
    server only {server}
"""
_SQUID = """
http_port {address}:3128
acl CONNECT method CONNECT
http_access allow all
cache deny all
access_log {directory}/access.log
cache_log {directory}/cache.log
pid_filename none
coredump_dir {directory}
cache_effective_user {user}
max_filedescriptors 8192
shutdown_lifetime 0 seconds
"""


@dataclass(frozen=True, slots=True)
class Contender:
    """A proxy to be measured. `speaks_connect` is False for a fixed relay and where the client does
    not know of a proxy; `where` is what the client then dials."""

    name: str
    command: tuple[str, ...]
    speaks_connect: bool = True
    where: tuple[str, int] | None = None


def contenders(address: str, server: str, directory: Path) -> tuple[list[Contender], list[str]]:
    """What is installed here, and the names of what is not."""
    ours = (sys.executable, "-m", "tests.bench.tunnel_proxies", address, server)
    port = int(server.rpartition(":")[2])
    found = [
        Contender("ours", ours),
        Contender("redirected", ours, speaks_connect=False, where=(REDIRECTED, port)),
    ]
    missing = []
    if squid := shutil.which("squid"):
        config = directory / "squid.conf"
        config.write_text(_SQUID.format(address=address, directory=directory, user="proxy"))
        shutil.chown(directory, "proxy")
        found.append(Contender("squid", (squid, "-N", "-f", str(config))))
    else:
        missing.append("squid")
    if haproxy := shutil.which("haproxy"):
        config = directory / "haproxy.cfg"
        config.write_text(_HAPROXY.format(address=address, server=server))
        found.append(Contender("haproxy", (haproxy, "-db", "-f", str(config)), False))
    else:
        missing.append("haproxy")
    if mitmdump := shutil.which("mitmdump"):
        options = ("--listen-host", address, "-p", str(PORT), "--ignore-hosts", ".*", "-q")
        home = ("--set", f"confdir={directory}")
        found.append(Contender("mitmproxy", (mitmdump, *options, *home)))
    else:
        missing.append("mitmproxy")
    return found, missing


def _serve_ours(address: str, server: str) -> int:
    from ipaddress import ip_network

    from netns_runtime.config import ProxyConfig
    from netns_runtime.policy import Endpoint, Policy, Rule

    host, _, port = server.partition(":")
    endpoints = tuple(
        Endpoint(name, (int(port),), (ip_network(name),)) for name in (host, REDIRECTED)
    )
    audit = os.open(os.environ.get("BENCH_AUDIT", "/dev/null"), os.O_WRONLY | os.O_APPEND)
    config = ProxyConfig(
        "bench",
        Policy((Rule("bench", endpoints),)),
        cookie=0,
        descriptors=("explicit", "transparent", "audit"),
    )
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener = socket.create_server((address, PORT), backlog=4096)
    transparent = socket.socket()
    transparent.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    transparent.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
    transparent.bind(("0.0.0.0", TRANSPARENT_PORT))
    transparent.listen(4096)
    fd = there.fileno()
    profile = os.environ.get("BENCH_PROFILE", "").split()
    command = (sys.executable, "-I", *profile, "-m", "netns_runtime.proxy", str(fd))
    with subprocess.Popen(command, pass_fds=(fd,)) as proxy:
        there.close()
        socket.send_fds(
            here, [pickle.dumps(config)], [listener.fileno(), transparent.fileno(), audit]
        )
        sys.stderr.write(here.recv(4096).decode() + "\n")
        sys.stdin.read()
        here.close()
    return proxy.returncode


if __name__ == "__main__":
    sys.exit(_serve_ours(*sys.argv[1:]))
