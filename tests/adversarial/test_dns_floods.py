"""Hostile DNS on loopback: floods, garbage, held connections and invented names hurt nobody.

Everything happens in one process, beside an echo flow in the same trio loop that stands for the
sandbox's other flows. Packets go to 127.0.0.1 alone.
"""

from __future__ import annotations

import os
import random
import socket
import struct
import threading
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import dns.message
import dns.rcode
import trio

from netns_runtime.audit import AuditLog
from netns_runtime.policy import Policy, parse_allow
from netns_runtime.proxy import dnsaudit
from netns_runtime.proxy.dns import DNSLimits, Resolver53, serve_dns
from netns_runtime.proxy.dnspolicy import CACHE
from netns_runtime.proxy.names import VirtualNames
from netns_runtime.wire.dns import framed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from netns_runtime.owner import Owner

POLICY = Policy((parse_allow("up.test"), parse_allow("*.wild.test"), parse_allow("spelled.test")))
PATIENCE = 0.5
"""Seconds that a neighbour may wait for its echo while a flood runs on the machine's other core."""


class Target:
    """The server under attack. `refusals` counts what it decided to refuse."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.reports: list[str] = []
        self.refusals = 0
        self.names = VirtualNames(300, 200)
        self.resolver = Resolver53(
            self.names,
            lambda: POLICY,
            AuditLog(None, "s", self.events.append),
            self.owner_of,
            DNSLimits(connections=16, owner=0.01),
            report=self.reports.append,
        )
        note = self.resolver.refused.note

        def counted(refused: dnsaudit.Refused) -> bool:
            self.refusals += 1
            return note(refused)

        self.resolver.refused.note = counted  # type: ignore[method-assign]
        self.udp = ("", 0)
        self.tcp = ("", 0)

    async def owner_of(self, protocol: str, port: int) -> Owner | None:
        await trio.sleep_forever()
        return None

    def told(self) -> int:
        lines = [line for line in self.events if line["event"] == "dns.refused"]
        return sum(line.get("count", 1) for line in lines)

    async def is_answering(self, name: str = "up.test") -> bool:
        query = dns.message.make_query(name, "A")
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            await client.connect(self.udp)
            for _ in range(20):
                await client.send(query.to_wire())
                with trio.move_on_after(0.5):
                    reply = dns.message.from_wire(await client.recv(4096))
                    return reply.rcode() == dns.rcode.NOERROR and bool(reply.answer)
        return False


def attack(scenario: Callable[[Target], Awaitable[None]]) -> Target:
    target = Target()

    async def run() -> None:
        with ExitStack() as stack, trio.fail_after(30):
            udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            udp.bind(("127.0.0.1", 0))
            tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=512))
            target.udp, target.tcp = udp.getsockname(), tcp.getsockname()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve_dns, target.resolver, [udp], [tcp])
                await scenario(target)
                nursery.cancel_scope.cancel()

    trio.run(run)
    assert target.reports == []
    return target


def resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def fire(address: tuple[str, int], packets: Iterator[bytes]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(address)
        sock.setblocking(False)
        for packet in packets:
            try:
                sock.send(packet)
                sock.recv(1, socket.MSG_DONTWAIT)
            except OSError:
                continue


async def beside(target: Target, packets: Iterator[bytes]) -> float:
    """Fire from a thread; the longest that a neighbour's echo took meanwhile."""
    worst = 0.0
    done = False

    async def shoot() -> None:
        nonlocal done
        await trio.to_thread.run_sync(fire, target.udp, packets)
        done = True

    async def echo(stream: trio.SocketStream) -> None:
        async for data in stream:
            await stream.send_all(data)

    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, echo, [listener])
        async with await trio.open_tcp_stream(*listener.socket.getsockname()) as neighbour:
            nursery.start_soon(shoot)
            while not done:
                start = trio.current_time()
                await neighbour.send_all(b"x")
                assert await neighbour.receive_some() == b"x"
                worst = max(worst, trio.current_time() - start)
                await trio.sleep(0.005)
        nursery.cancel_scope.cancel()
    return worst


def test_a_flood_of_invented_names_costs_bounded_memory_lines_and_time_and_is_counted() -> None:
    wire = dns.message.make_query("n000000.other.test", "A").to_wire()
    packets = (wire.replace(b"n000000", b"n%06d" % number) for number in range(15_000))
    grown: list[int] = []

    async def scenario(target: Target) -> None:
        assert await target.is_answering()
        before = resident()
        worst = await beside(target, packets)
        assert worst < PATIENCE
        assert await target.is_answering()
        grown.append(resident() - before)
        assert len(target.resolver._cache) <= CACHE

    target = attack(scenario)
    assert target.refusals > dnsaudit.BURST
    assert target.told() == target.refusals
    assert len(target.events) < 2 * dnsaudit.BURST
    assert grown[0] < 64 << 20


def test_a_flood_of_one_refused_name_is_two_lines_and_an_exact_count() -> None:
    wire = dns.message.make_query("other.test", "AAAA").to_wire()

    async def scenario(target: Target) -> None:
        assert await beside(target, iter([wire] * 20_000)) < PATIENCE

    target = attack(scenario)
    assert target.told() == target.refusals > 1
    assert len([line for line in target.events if line["event"] == "dns.refused"]) == 2


def _garbage(random_: random.Random) -> Iterator[bytes]:
    query = dns.message.make_query("up.test", "A", use_edns=0).to_wire()
    loop = struct.pack("!6H", 1, 0x100, 1, 0, 0, 0) + b"\xc0\x0c\0\1\0\1"
    yield from (b"", b"\0", query[:11], loop, query + b"\0" * 60_000, query * 100)
    for _ in range(4000):
        broken = bytearray(query)
        for _ in range(random_.randrange(1, 4)):
            broken[random_.randrange(len(broken))] = random_.randrange(256)
        yield bytes(broken[: random_.randrange(len(broken) + 1)])
        yield random_.randbytes(random_.randrange(100))
        yield query[:12] + random_.randbytes(random_.randrange(300))


def test_garbage_hurts_nobody() -> None:
    async def scenario(target: Target) -> None:
        assert await beside(target, _garbage(random.Random(7))) < PATIENCE
        assert await target.is_answering()

    target = attack(scenario)
    assert target.told() == target.refusals
    for line in target.events:
        assert all(str(value).isascii() and str(value).isprintable() for value in line.values())


def test_connections_that_are_held_with_half_a_message_lock_nobody_out() -> None:
    threads = threading.active_count()

    async def scenario(target: Target) -> None:
        before = len(os.listdir("/proc/self/fd"))
        with ExitStack() as stack:
            for number in range(200):
                held = stack.enter_context(socket.create_connection(target.tcp))
                held.sendall((b"", b"\0", b"\0\x20half", b"\x0f\xff" + b"x" * 3000)[number % 4])
                await trio.lowlevel.checkpoint()
            query = dns.message.make_query("up.test", "A")
            async with await trio.open_tcp_stream(*target.tcp) as stream:
                await stream.send_all(framed(query.to_wire()))
                assert query.is_response(
                    dns.message.from_wire((await stream.receive_some(4096))[2:])
                )
            # The held ends are ours too; of the server's there are no more than its limit.
            assert len(os.listdir("/proc/self/fd")) - before <= 200 + 16 + 2

    attack(scenario)
    assert threading.active_count() == threads


def test_a_client_that_asks_over_tcp_and_never_reads_ends_itself_alone() -> None:
    many = framed(dns.message.make_query("up.test", "A", use_edns=0).to_wire()) * 2000

    async def scenario(target: Target) -> None:
        before = resident()
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as greedy:
            greedy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            greedy.connect(target.tcp)
            greedy.setblocking(False)
            for _ in range(200):
                try:
                    greedy.send(many)
                except BlockingIOError:
                    await trio.sleep(0.001)
            assert await target.is_answering()
            assert resident() - before < 32 << 20

    attack(scenario)


def test_a_used_up_wildcard_hurts_neither_names_that_are_there_nor_spelled_ones() -> None:
    wire = dns.message.make_query("n00000.wild.test", "A").to_wire()
    packets = (wire.replace(b"n00000", b"n%05d" % number) for number in range(3000))

    async def scenario(target: Target) -> None:
        assert await target.is_answering("first.wild.test")
        first = target.names.address_of("first.wild.test", "**.wild.test")
        await beside(target, packets)
        assert await target.is_answering("first.wild.test")
        assert target.names.address_of("first.wild.test", "**.wild.test") == first
        assert await target.is_answering("spelled.test")
        assert not await target.is_answering("another.wild.test")

    target = attack(scenario)
    assert len(target.names) == 201
    reasons = {line.get("reason") for line in target.events if line["event"] == "dns.refused"}
    assert reasons == {"name_limit_reached"}
