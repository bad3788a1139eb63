"""The lab's process: makes the uplink and the internet namespace, then serves until told to stop.

Run as `python -m tests.support.lab_process CONTROL_FD DIRECTORY` by `lab.Lab`. It moves itself
into a new network namespace (the uplink), leaves a child there to hold it, and moves on into a
second one (the internet). It ends when its control socket closes or its parent dies, and everything
it made with it. Set-up errors end it with a traceback, which `Lab` shows.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import trio
import trustme

from tests.support import (
    lab_apis,
    lab_discord,
    lab_dns,
    lab_fail,
    lab_h2,
    lab_http,
    lab_services,
    lab_slack,
    lab_tcp,
    lab_traps,
    world,
)
from tests.support.lab_vault import Vault

CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def new_netns() -> None:
    if _libc.unshare(CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWNET)")


def ip_batch(lines: list[str], pid: int | None = None) -> None:
    prefix = ["nsenter", "-t", str(pid), "-n"] if pid else []
    batch = "\n".join(lines) + "\n"
    subprocess.run([*prefix, "ip", "-batch", "-"], input=batch.encode(), check=True)


def hold_namespace() -> int:
    """Leave a child behind in the current namespace; it ends with this process."""
    pid = os.fork()
    if pid == 0:
        die_with_parent()
        for fd in range(3, 64):
            if os.path.exists(f"/proc/self/fd/{fd}"):
                os.close(fd)
        while True:
            signal.pause()
    return pid


def internet_setup(holder: int) -> list[str]:
    link, up = world.INTERNET_LINK, world.UPLINK_LINK
    prefix = {world.ROUTER_IPV4: 24, world.ROUTER_IPV6: 64}
    return [
        "link set lo up",
        f"link add {link} type veth peer name {up} netns {holder}",
        *(f"addr add {a}/{prefix.get(a, 32)} dev {link}" for a in world.SERVER_IPV4),
        *(f"addr add {a}/{prefix.get(a, 128)} dev {link} nodad" for a in world.SERVER_IPV6),
        f"link set {link} up",
    ]


def uplink_setup() -> list[str]:
    up = world.UPLINK_LINK
    return [
        "link set lo up",
        f"addr add {world.UPLINK_IPV4}/24 dev {up}",
        f"addr add {world.UPLINK_IPV6}/64 dev {up} nodad",
        f"link set {up} up",
        f"route add unreachable {world.UNREACHABLE_IPV4}/32",
        f"route add default via {world.ROUTER_IPV4}",
        f"route add default via {world.ROUTER_IPV6}",
    ]


def listener(port: int, address: str = "::") -> trio.SocketListener:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.bind((address, port))
    sock.listen(4096)
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


async def answer_control(
    control: socket.socket, names: lab_dns.Names, seen: Seen, vault: Vault
) -> None:
    stream = trio.SocketStream(trio.socket.from_stdlib_socket(control))
    pending = b""
    while data := await stream.receive_some():
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            request = json.loads(line)
            reply: Any = None
            match request["op"]:
                case "seen":
                    reply = getattr(seen, request["kind"])
                case "forget":
                    seen.forget()
                case "name":
                    names.set(request["name"], request["records"])
                case "accept":
                    vault.accept(request["name"], request["value"])
            await stream.send_all(json.dumps(reply).encode() + b"\n")


class Seen:
    """What reached the internet, in order."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.connections: list[tuple[str, int]] = []
        self.queries: list[tuple[str, str]] = []
        self.transcripts: list[tuple[str, str]] = []
        self.messages: list[tuple[str, str]] = []
        self.placeholders: list[tuple[str, str]] = []


def web_of(www: Path, seen: Seen, vault: Vault) -> lab_http.Web:
    web = lab_http.Web(www, seen)
    web.h2_server = lab_h2.serve
    web.look = vault.look
    web.routes |= lab_traps.ROUTES
    web.upgrades |= lab_traps.UPGRADES | lab_fail.UPGRADES
    web.sites[lab_slack.HOST] = lab_slack.Slack(seen)
    web.sites[lab_slack.REAL_HOST] = lab_slack.Slack(seen, lab_slack.REAL_HOST, vault)
    web.sites[lab_discord.HOST] = lab_discord.Discord(seen)
    real = lab_discord.Discord(seen, lab_discord.REAL, vault)
    web.sites |= dict.fromkeys((lab_discord.REAL.api, "discord.gg"), real)
    web.sites |= {api.host: lab_apis.Service(api, vault) for api in lab_apis.APIS}
    return web


async def serve(
    control: socket.socket, directory: Path, inside_uplink: trio.SocketListener
) -> None:
    authority = trustme.CA(key_type=trustme.KeyType.ECDSA)
    certificate = authority.issue_cert(*world.CERTIFICATE_NAMES, key_type=trustme.KeyType.ECDSA)
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    (directory / "www").mkdir()

    seen = Seen()
    names = lab_dns.Names(world.NAMES, seen.queries.append)
    vault = Vault(seen)
    tls = lab_http.tls_context(certificate, lab_traps.contexts(authority))
    web = web_of(directory / "www", seen, vault)
    async with trio.open_nursery() as nursery:
        for port in world.HTTP_PORTS:
            nursery.start_soon(trio.serve_listeners, web.plain, [listener(port)])
        for port in world.HTTPS_PORTS:
            secure = web.secure(tls)
            nursery.start_soon(trio.serve_listeners, secure, [listener(port)])
        nursery.start_soon(trio.serve_listeners, web.plain, [inside_uplink])
        for port, serve_one in (lab_tcp.SERVERS | lab_services.SERVERS).items():
            watched = lab_tcp.watched(serve_one, seen)
            nursery.start_soon(trio.serve_listeners, watched, [listener(port)])
        for address in (world.DNS_IPV4, world.DNS_IPV6):
            await nursery.start(lab_dns.serve_udp, address, names)
            await nursery.start(lab_dns.serve_tcp, address, names)
        control.sendall(b"ready\n")
        await answer_control(control, names, seen, vault)
        nursery.cancel_scope.cancel()


def main() -> None:
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    control = socket.socket(fileno=int(sys.argv[1]))
    directory = Path(sys.argv[2])
    new_netns()
    ip_batch(["link set lo up"])
    inside_uplink = listener(80)
    holder = hold_namespace()
    new_netns()
    ip_batch(internet_setup(holder))
    ip_batch(uplink_setup(), holder)
    control.sendall(f"{holder}\n".encode())
    trio.run(serve, control, directory, inside_uplink)
    os.kill(holder, signal.SIGKILL)


if __name__ == "__main__":
    main()
