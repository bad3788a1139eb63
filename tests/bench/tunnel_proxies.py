"""The proxies that tests.bench.tunnel compares: commands that listen on the middle address.

`contenders` gives them and says which packages are missing. Ours is started here as the supervisor
starts it (`python -m tests.bench.tunnel_proxies ADDRESS PORT TRANSPARENT_PORT AUDIT`): it gives up
root, filters its calls, and writes its audit to a file; no probe tells it owners. All of them run
at once, each on ports of its own, and those that are not being measured are idle.
"""

from __future__ import annotations

import os
import pickle
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.bench.tunnel_load import SERVER_PORT

CLIENT: Final = "192.0.2.2"
PROXY: Final = "192.0.2.1"
PROXY_OUT: Final = "198.51.100.1"
SERVER: Final = "198.51.100.2"
DIRECT: Final = ("203.0.113.1", "203.0.113.2")
"""The client's and the server's ends of a link of their own."""
TO_US, TO_REDSOCKS, TO_MITMPROXY = (f"203.0.113.{last}" for last in (129, 130, 131))
"""More addresses of the server, whose connections the middle namespace redirects."""
TRANSPARENT_PORT, REDSOCKS_PORT, MITMPROXY_PORT = 3140, 3141, 3142
# include/uapi/linux/in.h; Python has no name for it
IP_TRANSPARENT: Final = 19
_MITMDUMP: Final = Path(".venv/mitmproxy/bin/mitmdump")

# Connection tracking only for those who redirect by NAT: the others do without, here as at home.
RULES: Final = f"""
table ip bench {{
  chain untracked {{
    type filter hook prerouting priority raw;
    ip daddr != {{ {TO_REDSOCKS}, {TO_MITMPROXY} }} notrack
  }}
  chain untracked_out {{
    type filter hook output priority raw;
    tcp sport != {{ {REDSOCKS_PORT}, {MITMPROXY_PORT} }} notrack
  }}
  chain tproxied {{
    type filter hook prerouting priority mangle;
    iifname in0 ip daddr {TO_US} meta l4proto tcp meta mark set 1 \\
      tproxy to :{TRANSPARENT_PORT} accept
  }}
  chain translated {{
    type nat hook prerouting priority dstnat;
    iifname in0 ip daddr {TO_REDSOCKS} meta l4proto tcp redirect to :{REDSOCKS_PORT}
    iifname in0 ip daddr {TO_MITMPROXY} meta l4proto tcp redirect to :{MITMPROXY_PORT}
  }}
}}
"""
_HAPROXY = """
global
    maxconn 8000
    nbthread 2
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
listen relay
    bind {address}:{port}
    server only {server}
"""
_SQUID = """
http_port {address}:{port}
http_access allow all
cache deny all
pinger_enable off
access_log {directory}/access.log
cache_log {directory}/cache.log
pid_filename none
coredump_dir {directory}
cache_effective_user proxy
max_filedescriptors 16384
shutdown_lifetime 0 seconds
"""
_REDSOCKS = """
base {{
    log_debug = off;
    log_info = off;
    log = "file:{log}";
    daemon = off;
    redirector = iptables;
    redsocks_conn_max = 6000;
}}
redsocks {{
    local_ip = {address};
    local_port = {redirected};
    listenq = 4096;
    ip = 127.0.0.1;
    port = {port};
    type = http-connect;
}}
"""


@dataclass(frozen=True, slots=True)
class Contender:
    """`commands`: each process with the address and port it will listen on. `where`: what a client
    dials. `target`: what it then asks for by CONNECT; empty where it knows of no proxy.
    `most_flows`: how many idle ones a process holds with 20,000 descriptors."""

    name: str
    commands: tuple[tuple[tuple[str, ...], str, int], ...]
    where: tuple[str, int]
    target: str = f"{SERVER}:{SERVER_PORT}"
    most_flows: int = 9000


def contenders(directory: Path) -> tuple[list[Contender], list[str]]:
    """A direct connection, ours, and what is installed here; and the names of what is not."""

    def of_ours(port: int, transparent: int) -> tuple[tuple[tuple[str, ...], str, int], ...]:
        log = directory / f"ours-{port}"
        log.touch()
        module = (sys.executable, "-m", "tests.bench.tunnel_proxies")
        return (((*module, PROXY, str(port), str(transparent), str(log)), PROXY, port),)

    def text(name: str, content: str) -> str:
        (directory / name).write_text(content)
        return str(directory / name)

    def of_squid(squid: str, address: str, port: int) -> tuple[tuple[str, ...], str, int]:
        (own := directory / f"squid-{port}").mkdir()
        shutil.chown(own, "proxy")
        values = {"address": address, "port": port, "directory": own}
        config = text(f"squid-{port}.conf", _SQUID.format(**values))
        return (squid, "-N", "-f", config), address, port

    found = [
        Contender("direct", (), (DIRECT[1], SERVER_PORT), ""),
        Contender("explicit", of_ours(3128, 3129), (PROXY, 3128)),
        Contender("redirected", of_ours(3130, TRANSPARENT_PORT), (TO_US, SERVER_PORT), ""),
    ]
    missing = []
    command: tuple[str, ...]
    if haproxy := shutil.which("haproxy"):
        values = {"address": PROXY, "port": 3131, "server": f"{SERVER}:{SERVER_PORT}"}
        config = text("haproxy.cfg", _HAPROXY.format(**values))
        command = (haproxy, "-db", "-f", config)
        found.append(Contender("haproxy", ((command, PROXY, 3131),), (PROXY, 3131), ""))
    else:
        missing.append("haproxy")
    if squid := shutil.which("squid"):
        found.append(Contender("squid", (of_squid(squid, PROXY, 3132),), (PROXY, 3132)))
    else:
        missing.append("squid")
    if squid and (redsocks := shutil.which("redsocks")):
        values = {"address": PROXY, "redirected": REDSOCKS_PORT, "port": 3133}
        config = text("redsocks.conf", _REDSOCKS.format(log=directory / "redsocks.log", **values))
        command = (redsocks, "-c", config)
        both = (of_squid(squid, "127.0.0.1", 3133), (command, PROXY, REDSOCKS_PORT))
        where = (TO_REDSOCKS, SERVER_PORT)
        # It splices, with six descriptors a flow.
        found.append(Contender("redsocks+squid", both, where, "", most_flows=3000))
    else:
        missing.append("redsocks+squid")
    mitmdump = str(_MITMDUMP) if _MITMDUMP.exists() else shutil.which("mitmdump")
    if mitmdump:
        quiet = (mitmdump, "-q", "--ignore-hosts", ".*", "--set", f"confdir={directory}")
        command = (*quiet, "--listen-host", PROXY, "-p", "3134")
        found.append(Contender("mitmproxy", ((command, PROXY, 3134),), (PROXY, 3134)))
        port = str(MITMPROXY_PORT)
        command = (*quiet, "--mode", "transparent", "--listen-host", PROXY, "-p", port)
        listens = ((command, PROXY, MITMPROXY_PORT),)
        found.append(Contender("mitmproxy transp.", listens, (TO_MITMPROXY, SERVER_PORT), ""))
    else:
        missing.append("mitmproxy")
    return found, missing


def _serve_ours(address: str, port: str, transparent_port: str, log: str) -> int:
    from ipaddress import ip_network

    from netns_runtime.config import ProxyConfig
    from netns_runtime.policy import Endpoint, Policy, Rule

    endpoints = tuple(
        Endpoint(name, (SERVER_PORT,), (ip_network(name),)) for name in (SERVER, TO_US)
    )
    audit = os.open(log, os.O_WRONLY | os.O_APPEND)
    config = ProxyConfig(
        "bench",
        Policy((Rule("bench", endpoints),)),
        cookie=0,
        descriptors=("explicit", "transparent", "audit"),
    )
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener = socket.create_server((address, int(port)), backlog=4096)
    transparent = socket.socket()
    transparent.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    transparent.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
    transparent.bind(("0.0.0.0", int(transparent_port)))
    transparent.listen(4096)
    fd = there.fileno()
    profile = os.environ.get("BENCH_PROFILE", "").split()
    command = (sys.executable, "-I", *profile, "-m", "netns_runtime.proxy", str(fd))
    with subprocess.Popen(command, pass_fds=(fd,)) as proxy:
        there.close()
        descriptors = [listener.fileno(), transparent.fileno(), audit]
        socket.send_fds(here, [pickle.dumps(config)], descriptors)
        told = here.recv(4096)
        if b'"ready"' not in told:
            sys.stderr.write(told.decode() + "\n")
        sys.stdin.read()
        here.close()
    return proxy.returncode


if __name__ == "__main__":
    sys.exit(_serve_ours(*sys.argv[1:]))
