"""Small looks at a namespace, a process or a file, as `vitals` needs them.

Those that use sockets run in the calling thread's network namespace. What is read from inside a
sandbox is opened without following a link and without waiting, since what lies there may be a trap.
A question that fails answers with why, "" for success; everything else raises OSError.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import ssl
import stat
import struct
from contextlib import suppress
from pathlib import Path
from typing import Final

SIOCGIFFLAGS: Final = 0x8913
SIOCGIFMTU: Final = 0x8921
IFF_UP: Final = 0x1
FILE_LIMIT: Final = 16 << 20
_STATES: Final = {"T": "is stopped", "t": "is traced", "Z": "has ended", "X": "has ended"}


def state_of(pid: int | None) -> str:
    """How a process is, as the end of a sentence."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "has ended"
    return _STATES.get(text.rpartition(")")[2].split()[0], "runs")


def link_of(name: str) -> tuple[int, bool]:
    """MTU of a link, and whether it is up."""
    request = name.encode().ljust(16, b"\0") + bytes(24)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        (mtu,) = struct.unpack_from("=i", fcntl.ioctl(sock, SIOCGIFMTU, request), 16)
        (flags,) = struct.unpack_from("=h", fcntl.ioctl(sock, SIOCGIFFLAGS, request), 16)
    return mtu, bool(flags & IFF_UP)


def default_routes() -> dict[str, int]:
    """MTU by link of every default route there is."""
    found: dict[str, int] = {}
    text = Path("/proc/thread-self/net/route").read_text(encoding="ascii")
    for line in text.splitlines()[1:]:
        words = line.split()
        if len(words) > 7 and words[1] == "00000000" and words[7] == "00000000":
            found[words[0]] = 0
    with suppress(FileNotFoundError):
        text = Path("/proc/thread-self/net/ipv6_route").read_text(encoding="ascii")
        for line in text.splitlines():
            words = line.split()
            if words[0] == "0" * 32 and words[1] == "00" and words[9] != "lo":
                found[words[9]] = 0
    return {link: link_of(link)[0] for link in found}


def legacy_tables() -> str:
    """Tables of iptables-legacy that exist here; reading the list loads none."""
    names = []
    for family in ("ip", "ip6"):
        with suppress(OSError):
            path = Path(f"/proc/thread-self/net/{family}_tables_names")
            names += path.read_text(encoding="ascii").split()
    return " ".join(dict.fromkeys(names))


def nameservers_of(text: str) -> list[tuple[str, int]]:
    """The servers that resolv.conf(5) names, three at most."""
    lines = (line.split() for line in text.splitlines())
    named = [words[1] for words in lines if len(words) > 1 and words[0] == "nameserver"]
    return [(address.partition("%")[0], 53) for address in named[:3]]


def query_of(name: str, kind: int) -> bytes:
    """A DNS query of class IN; "" is the root."""
    labels = b"".join(bytes((len(label),)) + label.encode() for label in name.split(".") if label)
    head = struct.pack("!HHHHHH", 0x6E64, 0x0100, 1, 0, 0, 0)
    return head + labels + b"\0" + struct.pack("!HH", kind, 1)


def dns_over_udp(where: tuple[str, int], query: bytes, deadline: float) -> str:
    """Ask, and again once; why there was no answer."""
    family = socket.AF_INET6 if ":" in where[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        try:
            sock.connect(where)
            for _ in range(2):
                sock.send(query)
                if select.select([sock], [], [], deadline / 2)[0]:
                    answer = sock.recv(65536)
                    return "" if answer[:2] == query[:2] else "what answers is no name server"
        except PermissionError:
            return "a firewall here drops what is sent to it (EPERM)"
        except ConnectionRefusedError:
            return "nobody listens there (port unreachable)"
        except OSError as error:
            return error.strerror or str(error)
    return f"no answer in {deadline:g} s"


def dns_over_tcp(where: tuple[str, int], query: bytes, deadline: float) -> str:
    """The same by a connection."""
    try:
        with socket.create_connection(where, deadline) as sock:
            sock.sendall(struct.pack("!H", len(query)) + query)
            answer = sock.recv(4)
    except TimeoutError:
        return f"no answer in {deadline:g} s"
    except OSError as error:
        return error.strerror or str(error)
    return "" if answer[2:4] == query[:2] or len(answer) == 2 else "it hung up without an answer"


def read_inside(pid: int, path: str) -> bytes:
    """A file as process `pid` sees it. No link is followed on the way, so none can lead outside."""
    at = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        parts = [part for part in path.split("/") if part]
        for part in parts[:-1]:
            flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            below = os.open(part, flags, dir_fd=at)
            os.close(at)
            at = below
        held = os.open(parts[-1], os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
    finally:
        os.close(at)
    try:
        # Looked at before it is opened: the writer of a FIFO would notice.
        if not stat.S_ISREG(os.fstat(held).st_mode):
            raise OSError(f"{path} is no regular file")
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        fd = os.open(f"/proc/self/fd/{held}", flags)
    finally:
        os.close(held)
    with open(fd, "rb") as file:
        return file.read(FILE_LIMIT)


def certificates_of(pem: bytes) -> list[bytes]:
    """The certificates of a bundle, each as DER; those that cannot be read are left out."""
    found = []
    for block in pem.split(b"-----BEGIN CERTIFICATE-----")[1:]:
        text = f"-----BEGIN CERTIFICATE-----{block.decode('ascii', 'replace')}"
        with suppress(ValueError):
            end = text.index("-----END CERTIFICATE-----") + len("-----END CERTIFICATE-----")
            found.append(ssl.PEM_cert_to_DER_cert(text[:end]))
    return found


def out_of_date(certificate: bytes, now: float) -> str:
    """Why a certificate is not valid at `now`, "" where it is."""
    from cryptography import x509

    try:
        found = x509.load_der_x509_certificate(certificate)
    except ValueError:
        return "cannot be read"
    if now < found.not_valid_before_utc.timestamp():
        return f"is not valid before {found.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
    if now > found.not_valid_after_utc.timestamp():
        return f"expired at {found.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
    return ""
