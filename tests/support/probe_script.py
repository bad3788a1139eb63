"""Runs inside a sandbox: tries what its argument says and prints the outcomes as JSON.

Only the standard library. Usage: probe_script.py '[["tcp", "192.0.2.10", 80], …]'. Each outcome is
{"errno": name or null, "seconds": float}.
"""

from __future__ import annotations

import errno
import json
import socket
import sys
import time
from typing import Any


def tcp(address: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(3)
        sock.connect((address, port))


def tcp_nonblocking(address: str, port: int) -> None:
    import select

    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setblocking(False)
        number = sock.connect_ex((address, port))
        if number == errno.EINPROGRESS:
            select.select([], [sock], [], 3)
            number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise OSError(number, "connect")


def udp_sendto(address: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(1)
        sock.sendto(b"x", (address, port))
        sock.sendto(b"x", (address, port))


def udp_connect(address: str, port: int) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(1)
        sock.connect((address, port))
        sock.send(b"x")
        sock.recv(10)


WAYS = {
    "tcp": tcp,
    "tcp_nonblocking": tcp_nonblocking,
    "udp_sendto": udp_sendto,
    "udp_connect": udp_connect,
}


def outcome(way: str, address: str, port: int) -> dict[str, Any]:
    start = time.monotonic()
    name = None
    try:
        WAYS[way](address, port)
    except TimeoutError:
        name = "ETIMEDOUT"
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, str(error))
    return {"errno": name, "seconds": time.monotonic() - start}


if __name__ == "__main__":
    print(json.dumps([outcome(*attempt) for attempt in json.loads(sys.argv[1])]))  # noqa: T201
