"""The proxies that tests.bench.terminated compares: ours and mitmproxy, both terminating.

Ours is started as the supervisor starts it (`python -m tests.bench.terminated_proxies ADDRESS PORT
CA_FILE AUDIT`), with a policy that inspects every request and a secret bound to one of the hosts;
mitmproxy runs an addon that replaces the same placeholder. Both verify the server.
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

from tests.bench.terminated_wire import NAME, PLACEHOLDER, PLAIN, PORT, SECRET, VALUE
from tests.bench.tunnel_proxies import DIRECT, PROXY, SERVER

CA_FILE: Final = "server-ca.pem"
_MITMDUMP: Final = Path(".venv/mitmproxy/bin/mitmdump")
POLICY: Final = f"""
version: 1
network_policies:
  bench:
    endpoints:
      - {{host: {PLAIN}, port: {PORT}, protocol: rest, access: full, allowed_ips: [{SERVER}]}}
      - {{host: {SECRET}, port: {PORT}, protocol: rest, access: full, allowed_ips: [{SERVER}]}}
secrets:
  {NAME}:
    hosts: [{SECRET}]
    slots:
      - header: authorization
      - json: /token
      - websocket: /d/token
        when: {{pointer: /op, in: [2, 6]}}
    expose: placeholder
"""
ADDON: Final = f"""
SECRET, PLACEHOLDER, VALUE = {SECRET!r}, {PLACEHOLDER!r}, {VALUE!r}

def requestheaders(flow):
    if flow.request.pretty_host == SECRET:
        for name, value in flow.request.headers.items():
            if PLACEHOLDER in value:
                flow.request.headers[name] = value.replace(PLACEHOLDER, VALUE)
        flow.request.stream = lambda data: data.replace(PLACEHOLDER.encode(), VALUE.encode())
    else:
        flow.request.stream = True

def websocket_message(flow):
    message = flow.websocket.messages[-1]
    if flow.request.pretty_host == SECRET:
        if message.from_client:
            message.content = message.content.replace(PLACEHOLDER.encode(), VALUE.encode())
        else:
            message.content = message.content.replace(VALUE.encode(), PLACEHOLDER.encode())
    del flow.websocket.messages[:-1]
"""


@dataclass(frozen=True, slots=True)
class Contender:
    """`commands`: each process with the address and port it will listen on. `where`: what a client
    dials. `is_direct`: it is the server itself."""

    name: str
    commands: tuple[tuple[tuple[str, ...], str, int], ...]
    where: tuple[str, int]
    is_direct: bool = False


def contenders(directory: Path) -> tuple[list[Contender], list[str]]:
    """A direct connection, ours, mitmproxy if it is installed; and the names of what is not."""
    log = directory / "ours-audit"
    log.touch()
    ca_file = str(directory / CA_FILE)
    module = (sys.executable, "-m", "tests.bench.terminated_proxies")
    ours = (*module, PROXY, "3128", ca_file, str(log))
    found = [
        Contender("direct", (), (DIRECT[1], PORT), is_direct=True),
        Contender("ours", ((ours, PROXY, 3128),), (PROXY, 3128)),
    ]
    mitmdump = str(_MITMDUMP) if _MITMDUMP.exists() else shutil.which("mitmdump")
    if not mitmdump:
        return found, ["mitmproxy"]
    (directory / "addon.py").write_text(ADDON)
    command = (
        *(mitmdump, "-q", "--set", f"confdir={directory}", "-s", str(directory / "addon.py")),
        *("--set", f"ssl_verify_upstream_trusted_ca={ca_file}"),
        *("--set", "connection_strategy=lazy", "--listen-host", PROXY, "-p", "3134"),
    )
    found.append(Contender("mitmproxy", ((command, PROXY, 3134),), (PROXY, 3134)))
    return found, []


def _serve_ours(address: str, port: str, ca_file: str, log: str) -> int:
    from netns_runtime.config import ProxyConfig
    from netns_runtime.policy.load import load_policy
    from netns_runtime.secret import Secret

    policy = load_policy(POLICY.encode(), "bench.yaml")
    audit = os.open(log, os.O_WRONLY | os.O_APPEND)
    config = ProxyConfig(
        "bench",
        policy,
        cookie=0,
        descriptors=("explicit", "audit"),
        secrets=tuple(Secret(binding, VALUE) for binding in policy.secrets),
        upstream_ca=Path(ca_file).read_bytes(),
    )
    here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener = socket.create_server((address, int(port)), backlog=4096)
    fd = there.fileno()
    profile = os.environ.get("BENCH_PROFILE", "").split()
    command = (sys.executable, "-I", *profile, "-m", "netns_runtime.proxy", str(fd), "ca")
    with subprocess.Popen(command, pass_fds=(fd,)) as proxy:
        there.close()
        socket.send_fds(here, [pickle.dumps(config)], [listener.fileno(), audit])
        told = b""
        while b'"ready"' not in told and (told := here.recv(1 << 16)):
            if b'"ready"' not in told and b'"ca"' not in told:
                sys.stderr.write(told.decode() + "\n")
        sys.stdin.read()
        here.close()
    return proxy.returncode


if __name__ == "__main__":
    sys.exit(_serve_ours(*sys.argv[1:]))
