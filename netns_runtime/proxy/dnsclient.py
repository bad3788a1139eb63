"""One DNS question to one server: UDP, then TCP where the answer was cut short.

dnspython makes and reads the messages; every record type is loaded when this module is imported,
because nothing can be imported once the proxy has given up its privileges. Source port and id are
random (RFC 5452), the socket is connected, and an answer to another question is passed over.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdata
import dns.rdatatype
import trio

from netns_runtime.proxy.peer import Peer
from netns_runtime.proxy.resolve import ResolveError

if TYPE_CHECKING:
    from collections.abc import Sequence

dns.rdata.load_all_types()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Answer:
    """Addresses of one type, none where the name has none; `ttl` in seconds."""

    addresses: Sequence[IPv4Address | IPv6Address]
    ttl: float
    rcode: str


async def exchange(server: tuple[str, int], host: str, kind: str) -> Answer:
    """Ask `server` for `kind` ("A" or "AAAA"). Raises ResolveError or OSError; has no deadline."""
    try:
        query = dns.message.make_query(host + ".", kind, use_edns=False)
    except dns.exception.DNSException as error:
        raise ResolveError("dns_error", f"not a DNS name: {error}") from error
    reply = await _udp(server, query)
    if reply is None or reply.flags & dns.flags.TC:
        reply = await _tcp(server, query)
    return _answer_of(reply, kind)


def _open(server: tuple[str, int], kind: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
    return socket.socket(family, kind | socket.SOCK_NONBLOCK)


async def _udp(
    server: tuple[str, int], query: dns.message.QueryMessage
) -> dns.message.Message | None:
    with _open(server, socket.SOCK_DGRAM) as sock:
        sock.connect(server)
        sock.send(query.to_wire())
        peer = Peer(sock)
        while True:
            data = await peer.receive()
            try:
                reply = dns.message.from_wire(data, ignore_trailing=True)
            except dns.message.Truncated:
                return None
            except (dns.exception.DNSException, ValueError, struct.error):
                continue
            if query.is_response(reply):
                return reply


async def _tcp(server: tuple[str, int], query: dns.message.QueryMessage) -> dns.message.Message:
    with _open(server, socket.SOCK_STREAM) as sock:
        if sock.connect_ex(server):
            await trio.lowlevel.wait_writable(sock.fileno())
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, "the DNS server refused TCP")
        peer = Peer(sock)
        wire = query.to_wire()
        await peer.send(struct.pack("!H", len(wire)) + wire)
        data = b""
        while len(data) < 2 or len(data) < 2 + struct.unpack_from("!H", data)[0]:
            more = await peer.receive()
            if not more:
                raise ResolveError("dns_error", "the DNS server cut its answer short")
            data += more
        try:
            reply = dns.message.from_wire(data[2:], ignore_trailing=True)
        except (dns.exception.DNSException, ValueError, struct.error) as error:
            raise ResolveError("dns_error", "the DNS server's answer is malformed") from error
        if not query.is_response(reply):
            raise ResolveError("dns_error", "the DNS server answered another question")
        return reply


def _answer_of(reply: dns.message.Message, kind: str) -> Answer:
    rcode = dns.rcode.to_text(reply.rcode())
    if rcode not in {"NOERROR", "NXDOMAIN"}:
        raise ResolveError("dns_error", f"the DNS server says {rcode}", rcode)
    try:
        assert isinstance(reply, dns.message.QueryMessage)
        chain = reply.resolve_chaining()
    except (dns.exception.DNSException, AssertionError) as error:
        raise ResolveError("dns_error", "the DNS server's answer is malformed") from error
    if chain.answer is None or rcode == "NXDOMAIN":
        return Answer((), 0.0, rcode)
    wanted = dns.rdatatype.from_text(kind)
    addresses = tuple(
        ip_address(record.address) for record in chain.answer if record.rdtype == wanted
    )
    return Answer(addresses, float(chain.minimum_ttl), rcode)
