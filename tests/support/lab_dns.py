"""The lab's DNS: answers from a table over UDP and TCP, and misbehaves where the table says so.

Names that are not in the table do not exist. A malformed query is dropped.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

TTL = 30


class Names:
    """The table. `saw` is called with name and type of each query."""

    def __init__(
        self, table: Mapping[str, list[str]], saw: Callable[[tuple[str, str]], object]
    ) -> None:
        self._table: dict[str, list[Any]] = {name: list(records) for name, records in table.items()}
        self._saw = saw

    def set(self, name: str, records: list[Any] | None) -> None:
        """Give a name other records; None removes it. A list of lists is answered in turn."""
        if records is None:
            self._table.pop(name, None)
        else:
            self._table[name] = list(records)

    def records_of(self, name: str) -> list[str] | None:
        labels = name.split(".")
        candidates = [name, *("*." + ".".join(labels[i:]) for i in range(1, len(labels)))]
        entry = next((self._table[c] for c in candidates if c in self._table), None)
        if entry and isinstance(entry[0], list):
            turn: list[str] = entry.pop(0)
            entry.append(turn)
            return turn
        return entry

    def answer(self, query: dns.message.Message, *, over_tcp: bool) -> dns.message.Message | None:
        """The reply, or None for no reply."""
        reply = dns.message.make_response(query, recursion_available=True)
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        kind = dns.rdatatype.to_text(question.rdtype)
        self._saw((name, kind))
        for _ in range(8):
            records = self.records_of(name)
            if records is None:
                reply.set_rcode(dns.rcode.NXDOMAIN)
                return reply
            if "TIMEOUT" in records:
                return None
            if "SERVFAIL" in records:
                reply.set_rcode(dns.rcode.SERVFAIL)
                return reply
            if "TRUNCATED" in records and not over_tcp:
                reply.flags |= dns.flags.TC
                return reply
            pairs = [record.split(" ", 1) for record in records if " " in record]
            data = [text for type_, text in pairs if type_ == kind]
            if data:
                reply.answer.append(dns.rrset.from_text(name + ".", TTL, "IN", kind, *data))
                return reply
            target = next((text for type_, text in pairs if type_ == "CNAME"), None)
            if target is None:
                return reply
            reply.answer.append(dns.rrset.from_text(name + ".", TTL, "IN", "CNAME", target))
            name = target.rstrip(".").lower()
        return reply

    def answer_wire(self, data: bytes, *, over_tcp: bool) -> bytes | None:
        try:
            reply = self.answer(dns.message.from_wire(data), over_tcp=over_tcp)
        except (dns.exception.DNSException, IndexError):
            return None
        return None if reply is None else reply.to_wire()


def _family(address: str) -> int:
    return int(trio.socket.AF_INET6 if ":" in address else trio.socket.AF_INET)


async def serve_udp(
    address: str, names: Names, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.socket.socket(_family(address), trio.socket.SOCK_DGRAM) as sock:
        await sock.bind((address, 53))
        task_status.started()
        while True:
            data, peer = await sock.recvfrom(4096)
            reply = names.answer_wire(data, over_tcp=False)
            if reply is not None:
                await sock.sendto(reply, peer)


async def serve_tcp(
    address: str, names: Names, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    async def serve(stream: trio.SocketStream) -> None:
        buffered = b""
        async for data in stream:
            buffered += data
            while len(buffered) >= 2:
                (size,) = struct.unpack_from("!H", buffered)
                if len(buffered) < 2 + size:
                    break
                reply = names.answer_wire(buffered[2 : 2 + size], over_tcp=True)
                buffered = buffered[2 + size :]
                if reply is not None:
                    await stream.send_all(struct.pack("!H", len(reply)) + reply)

    listeners = await trio.open_tcp_listeners(53, host=address)
    task_status.started()
    await trio.serve_listeners(serve, listeners)
