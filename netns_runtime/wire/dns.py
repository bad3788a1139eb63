"""DNS queries and answers: bytes to a `Query`, an `Answer` to bytes, and messages out of a stream.

dnspython reads and writes the messages; before it sees one, `parse_query` has looked at the header
and walked the question, so that it meets one question without compression and at most one OPT
record, whatever was sent. A malformed query raises `DNSError`, which says whether to answer it at
all, and nothing else is raised. Every module of dnspython that a message of ours needs is imported
here: the proxy cannot import once it gave up its privileges.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rdtypes.ANY.OPT
import dns.rdtypes.ANY.PTR
import dns.rdtypes.ANY.SOA
import dns.rdtypes.IN.A
import dns.rdtypes.IN.AAAA
import dns.rrset

from netns_runtime.wire import NEED_DATA, NeedData, ProtocolError

if TYPE_CHECKING:
    from ipaddress import IPv4Address, IPv6Address

QUERY_LIMIT: Final = 4096
"""Bytes of the longest query that is read. A question is at most 271; options are the rest."""
UDP_MINIMUM: Final = 512  # RFC 1035, 4.2.1
UDP_LIMIT: Final = 1232  # DNS flag day 2020: never fragmented
TCP_LIMIT: Final = 65_535
TTL: Final = 60
"""Seconds. Addresses are stable; what may change is whether policy still allows the name."""

NOERROR: Final = int(dns.rcode.NOERROR)
FORMERR: Final = int(dns.rcode.FORMERR)
SERVFAIL: Final = int(dns.rcode.SERVFAIL)
NXDOMAIN: Final = int(dns.rcode.NXDOMAIN)
NOTIMP: Final = int(dns.rcode.NOTIMP)
REFUSED: Final = int(dns.rcode.REFUSED)
BADVERS: Final = int(dns.rcode.BADVERS)

A: Final = int(dns.rdatatype.A)
AAAA: Final = int(dns.rdatatype.AAAA)
PTR: Final = int(dns.rdatatype.PTR)
AXFR: Final = int(dns.rdatatype.AXFR)
IXFR: Final = int(dns.rdatatype.IXFR)
IN: Final = int(dns.rdataclass.IN)

# RFC 8914
EDE_BLOCKED: Final = 15

_HEADER: Final = struct.Struct("!HHHHHH")
_QR, _OPCODE, _RD = 0x8000, 0x7800, 0x0100
_TC: Final = 0x02  # in the third byte
_OPT_START: Final = b"\x00\x00\x29"  # the root's name and type 41
# Space and below, and DEL: no name of a host has them, and every one of them is a trap to somebody
# who prints, splits or ends a string with it.
_TRAPS: Final = frozenset((*range(0x21), 0x7F))
_EXTRA_TEXT: Final = 160


class DNSError(ProtocolError):
    """A query that is not answered as one. `rcode` is what to say, or None for silence."""

    def __init__(self, what: str, rcode: int | None = None) -> None:
        super().__init__(what)
        self.rcode = rcode


@dataclass(frozen=True, slots=True)
class Query:
    """One question of class and type (numbers as in the message).

    `name` is lower case without its final dot, "" for the root, in master-file escapes where a
    label is not letters, digits, `-` and `_`: two different names never get the same text.
    `udp_limit` is how long an answer over UDP may be, in bytes; `message` is for `encode`.
    """

    name: str
    kind: int
    klass: int
    udp_limit: int
    message: dns.message.QueryMessage = field(repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Answer:
    """What to say: addresses of the question's type, or `pointer` (PTR), or neither.

    An answer without data carries a SOA when `is_cacheable` (RFC 2308: without one it is not kept).
    `extra` is an extended error (RFC 8914) for who sent EDNS: code and printable ASCII.
    """

    rcode: int = NOERROR
    addresses: tuple[IPv4Address | IPv6Address, ...] = ()
    pointer: str | None = None
    is_cacheable: bool = True
    extra: tuple[int, str] | None = None


def parse_query(data: bytes) -> Query:
    """Read one whole message. Raises DNSError."""
    if len(data) < _HEADER.size:
        raise DNSError("shorter than a header")
    _, flags, questions, answers, authorities, additionals = _HEADER.unpack_from(data)
    if flags & _QR:
        raise DNSError("a response")
    if flags & _OPCODE:
        raise DNSError("not opcode QUERY", NOTIMP)
    if len(data) > QUERY_LIMIT:
        raise DNSError(f"longer than {QUERY_LIMIT} bytes", FORMERR)
    if questions != 1 or answers or authorities or additionals > 1:
        raise DNSError("not one question and at most one OPT record", FORMERR)
    end = _end_of_question(data)
    if additionals != (data[end : end + 3] == _OPT_START):
        raise DNSError("not one question and at most one OPT record", FORMERR)
    try:
        message = dns.message.from_wire(data)
    except (dns.exception.DNSException, ValueError, struct.error) as error:
        raise DNSError(f"malformed: {type(error).__name__}", FORMERR) from error
    if not isinstance(message, dns.message.QueryMessage):
        raise DNSError("not opcode QUERY", NOTIMP)
    question = message.question[0]
    limit = max(UDP_MINIMUM, min(message.payload, UDP_LIMIT)) if message.edns >= 0 else UDP_MINIMUM
    name = question.name.to_text(omit_final_dot=True).lower() if len(question.name) > 1 else ""
    return Query(name, int(question.rdtype), int(question.rdclass), limit, message)


def _end_of_question(data: bytes) -> int:
    """Where the only question ends. A name there has no pointer: there is nothing to point at."""
    at = _HEADER.size
    while True:
        if at >= len(data):
            raise DNSError("the question is cut short", FORMERR)
        length = data[at]
        at += 1
        if not length:
            break
        label = data[at : at + length]
        if length > 63 or len(label) < length:
            raise DNSError("a label is too long or a pointer", FORMERR)
        if not _TRAPS.isdisjoint(label):
            raise DNSError("a label has control characters", FORMERR)
        at += length
    if at - _HEADER.size > 255:
        raise DNSError("the name is longer than 255 bytes", FORMERR)
    if at + 4 > len(data):
        raise DNSError("the question is cut short", FORMERR)
    return at + 4


def encode(query: Query, answer: Answer, limit: int) -> bytes:
    """The message, at most `limit` bytes: what does not fit is left out and TC is set (RFC 2181).

    The question is repeated as it was sent, case included.
    """
    reply = dns.message.make_response(
        query.message, recursion_available=True, our_payload=UDP_LIMIT, pad=0
    )
    if query.message.edns > 0:
        answer = Answer(BADVERS, is_cacheable=False)
    reply.flags |= dns.flags.AA
    reply.set_rcode(dns.rcode.Rcode.make(answer.rcode))
    name = query.message.question[0].name
    records = _records_of(answer)
    if records:
        reply.answer.append(dns.rrset.from_rdata_list(name, TTL, records))
    elif answer.is_cacheable:
        reply.authority.append(dns.rrset.from_rdata(name, TTL, _SOA))
    if answer.extra is not None and query.message.edns == 0:
        code, text = answer.extra
        option = dns.edns.EDEOption(dns.edns.EDECode(code), text[:_EXTRA_TEXT])
        reply.use_edns(0, 0, UDP_LIMIT, limit, [option])
    return reply.to_wire(max_size=max(limit, UDP_MINIMUM), prefer_truncation=True)


def _records_of(answer: Answer) -> list[dns.rdata.Rdata]:
    if answer.pointer is not None:
        return [_rdata("PTR", answer.pointer + ".")]
    return [_rdata("AAAA" if ":" in str(a) else "A", str(a)) for a in answer.addresses]


def _rdata(kind: str, text: str) -> dns.rdata.Rdata:
    return dns.rdata.from_text("IN", kind, text)


_SOA: Final = _rdata(
    "SOA", f"gateway.netns-runtime.internal. nobody.invalid. 1 3600 600 86400 {TTL}"
)


def is_truncated(message: bytes) -> bool:
    """Whether TC is set."""
    return bool(message[2] & _TC)


def bare_answer(data: bytes, rcode: int) -> bytes:
    """A header alone, for a message that could not be read further than its own header."""
    number, flags = struct.unpack_from("!HH", data)
    return _HEADER.pack(number, _QR | flags & (_OPCODE | _RD) | rcode, 0, 0, 0, 0)


class MessageReader:
    """Messages of a TCP stream, each behind its length (RFC 1035, 4.2.2).

    Buffers no more than what it was last fed and one message of QUERY_LIMIT.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    def __bool__(self) -> bool:
        """Whether there is a part of a message."""
        return bool(self._buffer)

    def feed(self, data: bytes) -> None:
        """Append what the peer sent; take all that `next` gives before feeding again."""
        self._buffer += data

    def next(self) -> bytes | NeedData:
        """The next whole message. Raises DNSError where it would be longer than QUERY_LIMIT."""
        if len(self._buffer) < 2:
            return NEED_DATA
        end = 2 + (self._buffer[0] << 8 | self._buffer[1])
        if end > 2 + QUERY_LIMIT:
            raise DNSError(f"longer than {QUERY_LIMIT} bytes", FORMERR)
        if len(self._buffer) < end:
            return NEED_DATA
        message = bytes(self._buffer[2:end])
        del self._buffer[:end]
        return message


def framed(message: bytes) -> bytes:
    """A message as it goes into a TCP stream."""
    return struct.pack("!H", len(message)) + message
