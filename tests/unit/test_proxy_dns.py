"""Policy DNS on loopback: what a name gets, what the audit says, and how connections end."""

from __future__ import annotations

import socket
import struct
from contextlib import ExitStack, suppress
from ipaddress import IPv4Address, ip_network
from typing import TYPE_CHECKING, Any

import dns.edns
import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.reversename
import pytest
import trio
import trio.testing

from netns_runtime.audit import AuditError, AuditLog
from netns_runtime.owner import Owner
from netns_runtime.policy import Endpoint, Policy, Rule, parse_allow
from netns_runtime.proxy import dnsaudit, dnspolicy
from netns_runtime.proxy.dns import DNSLimits, Resolver53, serve_dns
from netns_runtime.proxy.names import VirtualNames
from netns_runtime.wire import dns as wire
from netns_runtime.wire.dns import QUERY_LIMIT, framed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

POLICY = Policy(
    (
        parse_allow("up.test"),
        parse_allow("db:5432"),
        parse_allow("*.wild.test"),
        Rule("addresses", (Endpoint("", None, (ip_network("192.0.2.0/24"),)),)),
    )
)
OWNER = Owner(42, "agent", 1, 1, "/usr/bin/agent")


class Desk:
    """A resolver with its sockets and what it wrote."""

    def __init__(self, **options: Any) -> None:
        self.events: list[dict[str, Any]] = []
        self.reports: list[str] = []
        self.asked: list[tuple[str, int]] = []
        self.policy = POLICY
        self.names = VirtualNames(options.pop("names", 100), 2)
        settings: dict[str, Any] = {"owner_of": self.owner_of, "report": self.reports.append}
        audit = options.pop("audit", None) or AuditLog(None, "s", self.events.append)
        settings |= options
        self.resolver = Resolver53(self.names, lambda: self.policy, audit, **settings)
        self.udp = ("", 0)
        self.tcp = ("", 0)

    async def owner_of(self, protocol: str, port: int) -> Owner | None:
        await trio.lowlevel.checkpoint()
        self.asked.append((protocol, port))
        return OWNER

    def of(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.events if line["event"] == event]

    async def send(self, data: bytes) -> bytes:
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            await client.connect(self.udp)
            await client.send(data)
            return await client.recv(65535)

    async def ask(self, name: str, kind: str = "A", **options: Any) -> dns.message.Message:
        query = dns.message.make_query(name, kind, **options)
        reply = dns.message.from_wire(await self.send(query.to_wire()))
        assert query.is_response(reply)
        return reply

    async def addresses(self, name: str, kind: str = "A") -> list[str]:
        reply = await self.ask(name, kind)
        assert reply.rcode() == dns.rcode.NOERROR
        return [record.to_text() for rrset in reply.answer for record in rrset]


def play(
    scenario: Callable[[Desk], Awaitable[None]],
    *,
    clock: trio.abc.Clock | None = None,
    **options: Any,
) -> Desk:
    desk: list[Desk] = []

    async def run() -> None:
        desk.append(Desk(**options))
        with ExitStack() as stack, trio.fail_after(600 if clock else 5):
            udp = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            udp.bind(("127.0.0.1", 0))
            tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            desk[0].udp, desk[0].tcp = udp.getsockname(), tcp.getsockname()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(serve_dns, desk[0].resolver, [udp], [tcp])
                await scenario(desk[0])
                nursery.cancel_scope.cancel()

    trio.run(run, clock=clock)
    return desk[0]


def test_a_name_of_the_policy_has_one_address_of_each_kind_and_a_way_back() -> None:
    async def scenario(desk: Desk) -> None:
        for _ in range(2):
            [ipv4] = await desk.addresses("up.test")
            [ipv6] = await desk.addresses("UP.test.", "AAAA")
        assert (desk.names.name_of(ipv4), desk.names.name_of(ipv6)) == ("up.test", "up.test")
        for address in (ipv4, ipv6):
            reverse = dns.reversename.from_address(address).to_text()
            assert await desk.addresses(reverse, "PTR") == ["up.test."]
        assert await desk.addresses("db")
        assert await desk.addresses("a.b.wild.test")

    desk = play(scenario)
    assert [line["host"] for line in desk.of("dns.answered")] == ["up.test", "db", "a.b.wild.test"]
    [first, *_] = desk.of("dns.answered")
    assert (first["rule"], first["action"]) == ("--allow up.test", "allow")
    assert desk.names.name_of(first["address"]) == "up.test"
    assert desk.of("dns.refused") == []


@pytest.mark.parametrize(
    "kind", ["HTTPS", "SVCB", "MX", "TXT", "SRV", "NS", "SOA", "CAA", "ANY", "CNAME", "TYPE65280"]
)
def test_another_type_of_such_a_name_is_no_data_with_a_soa(kind: str) -> None:
    async def scenario(desk: Desk) -> None:
        reply = await desk.ask("up.test", kind)
        assert (reply.rcode(), reply.answer) == (dns.rcode.NOERROR, [])
        assert [rrset.rdtype for rrset in reply.authority] == [dns.rdatatype.SOA]

    assert play(scenario).events == []


def test_service_labels_before_such_a_name_are_no_data_and_no_refusal() -> None:
    async def scenario(desk: Desk) -> None:
        for name in ("_8443._https.up.test", "_mongodb._tcp.up.test", "_a.b.wild.test"):
            reply = await desk.ask(name, "HTTPS")
            assert (reply.rcode(), reply.answer) == (dns.rcode.NOERROR, [])
        assert (await desk.ask("_x._tcp.other.test", "SRV")).rcode() == dns.rcode.NXDOMAIN

    assert len(play(scenario).of("dns.refused")) == 1


def test_a_refused_name_does_not_exist_and_the_audit_says_who_asked_before_the_answer() -> None:
    async def scenario(desk: Desk) -> None:
        reply = await desk.ask("Other.TEST", use_edns=0)
        assert reply.rcode() == dns.rcode.NXDOMAIN
        assert reply.authority == []
        assert reply.question[0].name.to_text() == "Other.TEST."
        [option] = reply.options
        assert isinstance(option, dns.edns.EDEOption)
        assert (option.code, option.text) == (
            15,
            "netns-run: no rule covers other.test; --allow other.test",
        )
        assert len(desk.of("dns.refused")) == 1

    desk = play(scenario)
    [line] = desk.of("dns.refused")
    assert {key: value for key, value in line.items() if key not in {"time", "event"}} == {
        "sandbox": "s",
        "host": "other.test",
        "action": "refuse",
        "reason": "name_not_allowed",
        "said_by": "policy",
        "detail": "no rule covers other.test",
        "remedy": "--allow other.test",
        "protocol": "udp",
        "pid": 42,
        "comm": "agent",
        "exe": "/usr/bin/agent",
    }
    assert len(desk.names) == 0


@pytest.mark.parametrize(
    "name",
    [
        *("wild.test", "xup.test", "up.test.corp.example", "test", "xn--p-fka.test", "up-test"),
        *("192.0.2.7", "use-application-dns.net", "7.2.0.192.in-addr.arpa", "u\\.p.test", "."),
        *("\\195\\188.test", "_dns.resolver.arpa", "0.ip6.arpa", "localhost.up.test"),
    ],
)
def test_every_other_name_is_refused_once_whatever_it_looks_like(name: str) -> None:
    async def scenario(desk: Desk) -> None:
        assert (await desk.ask(name)).rcode() == dns.rcode.NXDOMAIN
        assert (await desk.ask(name, "AAAA")).rcode() == dns.rcode.NXDOMAIN

    desk = play(scenario)
    [line] = desk.events
    assert (line["event"], line["action"]) == ("dns.refused", "refuse")
    assert line["host"].isascii()


def test_localhost_and_our_own_addresses_are_known_without_a_rule() -> None:
    async def scenario(desk: Desk) -> None:
        assert await desk.addresses("localhost") == ["127.0.0.1"]
        assert await desk.addresses("a.b.LOCALHOST", "AAAA") == ["::1"]
        for address, name in (
            ("10.200.0.1", "gateway.netns-runtime.internal."),
            ("fd00:c8::2", "sandbox.netns-runtime.internal."),
            ("127.0.0.1", "localhost."),
        ):
            reverse = dns.reversename.from_address(address).to_text()
            assert await desk.addresses(reverse, "PTR") == [name]
        assert await desk.addresses("sandbox.netns-runtime.internal") == ["10.200.0.2"]

    assert play(scenario).events == []


@pytest.mark.parametrize(
    ("question", "rcode"),
    [
        (("version.bind", "TXT", "CH"), dns.rcode.REFUSED),
        (("up.test", "A", "HS"), dns.rcode.REFUSED),
        (("up.test", "AXFR", "IN"), dns.rcode.REFUSED),
    ],
)
def test_another_class_and_a_zone_transfer_are_refused_and_no_name_is_made(
    question: tuple[str, str, str], rcode: dns.rcode.Rcode
) -> None:
    name, kind, klass = question

    async def scenario(desk: Desk) -> None:
        assert (await desk.ask(name, kind, rdclass=klass)).rcode() == rcode

    assert play(scenario).events == []


def test_a_wildcard_that_is_used_up_is_refused_with_the_flag_that_makes_room() -> None:
    async def scenario(desk: Desk) -> None:
        for name in ("a.wild.test", "b.wild.test"):
            assert await desk.addresses(name)
        assert (await desk.ask("c.wild.test")).rcode() == dns.rcode.NXDOMAIN
        assert await desk.addresses("a.wild.test")
        assert await desk.addresses("up.test")

    [line] = play(scenario).of("dns.refused")
    assert (line["reason"], line["rule"], line["said_by"]) == (
        "name_limit_reached",
        "--allow *.wild.test",
        "proxy",
    )
    assert line["remedy"].startswith("--allow c.wild.test ")


def test_a_new_policy_counts_from_the_next_query_and_addresses_outlive_it() -> None:
    async def scenario(desk: Desk) -> None:
        [before] = await desk.addresses("up.test")
        desk.policy = Policy((parse_allow("new.test"),))
        assert (await desk.ask("up.test")).rcode() == dns.rcode.NXDOMAIN
        assert await desk.addresses("new.test")
        desk.policy = POLICY
        assert await desk.addresses("up.test") == [before]
        assert (await desk.ask("new.test")).rcode() == dns.rcode.NXDOMAIN

    play(scenario)


def test_in_report_mode_a_refused_name_is_answered_and_told() -> None:
    async def scenario(desk: Desk) -> None:
        assert await desk.addresses("other.test")

    desk = play(scenario, report_only=True)
    [line] = desk.events
    assert (line["event"], line["action"], line["reason"]) == (
        "dns.answered",
        "allow",
        "name_not_allowed",
    )
    assert line["detail"] == "would be refused: no rule covers other.test"


@pytest.mark.parametrize("seconds", [None, 60.0])
def test_an_owner_that_is_unknown_or_late_costs_neither_answer_nor_line(
    seconds: float | None,
) -> None:
    async def owner_of(protocol: str, port: int) -> Owner | None:
        if seconds is None:
            raise ValueError("a bug")
        await trio.sleep(seconds)
        return OWNER

    took: list[float] = []

    async def scenario(desk: Desk) -> None:
        start = trio.current_time()
        await desk.ask("other.test")
        took.append(trio.current_time() - start)

    clock = trio.testing.MockClock(autojump_threshold=0.01)
    desk = play(scenario, clock=clock, owner_of=owner_of)
    [line] = desk.of("dns.refused")
    assert "pid" not in line
    assert took[0] <= 0.25
    assert len(desk.reports) == (seconds is None)


def test_a_tight_loop_is_told_at_once_and_then_as_an_exact_count() -> None:
    async def scenario(desk: Desk) -> None:
        for _ in range(50):
            await desk.ask("other.test")
            await desk.ask("other.test", "AAAA")
        assert len(desk.events) == 1
        await trio.sleep(dnsaudit.FIRST_REPEAT + 1)
        assert [line.get("count") for line in desk.events] == [None, 49]
        for _ in range(7):
            await desk.ask("other.test")

    desk = play(scenario, clock=trio.testing.MockClock(autojump_threshold=0.01))
    assert [line.get("count", 1) for line in desk.of("dns.refused")] == [1, 49, 7]
    assert {line["host"] for line in desk.events} == {"other.test"}
    assert len(desk.asked) == 1


def test_more_names_than_are_told_one_by_one_are_counted_without_them() -> None:
    async def scenario(desk: Desk) -> None:
        for number in range(dnsaudit.BURST + 30):
            await desk.ask(f"n{number}.other.test")

    desk = play(scenario, clock=trio.testing.MockClock())
    lines = desk.of("dns.refused")
    assert len(lines) == dnsaudit.BURST + 1
    assert sum(line.get("count", 1) for line in lines) == dnsaudit.BURST + 30
    assert "host" not in lines[-1]


def test_a_name_forgotten_for_a_newer_one_is_told_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dnsaudit, "NAMES", 2)

    async def scenario(desk: Desk) -> None:
        for name in ("a", "a", "a", "b", "c", "d"):
            await desk.ask(f"{name}.other.test")

    lines = play(scenario).of("dns.refused")
    told = [(line["host"][0], line.get("count", 1)) for line in lines]
    assert sorted(told) == [("a", 1), ("a", 2), ("b", 1), ("c", 1), ("d", 1)]


def test_an_audit_that_fails_is_reported_and_the_answer_comes_all_the_same() -> None:
    class Broken(AuditLog):
        def write(self, event: str, **fields: Any) -> None:
            raise AuditError("no space")

    async def scenario(desk: Desk) -> None:
        assert await desk.addresses("up.test")
        assert (await desk.ask("other.test")).rcode() == dns.rcode.NXDOMAIN

    desk = play(scenario, audit=Broken(None, "s"))
    assert desk.reports == ["dns: no space"] * 2


def test_the_answer_kept_as_bytes_is_the_one_worked_out_but_for_the_id(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = 0
    parse = wire.parse_query

    def counted(data: bytes) -> Any:
        nonlocal slow
        slow += 1
        return parse(data)

    monkeypatch.setattr(wire, "parse_query", counted)

    async def scenario(desk: Desk) -> None:
        asked = dns.message.make_query("uP.test", "A", id=1).to_wire()
        first = await desk.send(asked)
        again = await desk.send(b"\xff\xfe" + asked[2:])
        assert again == b"\xff\xfe" + first[2:]
        assert slow == 1
        other = await desk.send(asked.replace(b"uP", b"Up"))
        assert b"\x02Up" in other
        assert slow == 2

    play(scenario)


def test_a_bug_of_ours_is_servfail_for_that_query_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dnspolicy, "addresses_of_own", {"bug.test": 1}.__getitem__)

    async def scenario(desk: Desk) -> None:
        query = dns.message.make_query("up.test", "A").to_wire()
        assert dns.message.from_wire(await desk.send(query)).rcode() == dns.rcode.SERVFAIL

    assert play(scenario).reports == ["dns: KeyError: 'up.test'"]


async def stream_of(desk: Desk) -> trio.SocketStream:
    return await trio.open_tcp_stream(*desk.tcp)


async def message_from(stream: trio.SocketStream) -> dns.message.Message:
    (length,) = struct.unpack("!H", await exactly(stream, 2))
    return dns.message.from_wire(await exactly(stream, length))


async def exactly(stream: trio.SocketStream, length: int) -> bytes:
    data = b""
    while len(data) < length:
        part = await stream.receive_some(length - len(data))
        assert part, "the connection ended"
        data += part
    return data


def test_tcp_takes_many_queries_at_once_and_answers_them_in_order() -> None:
    queries = [
        dns.message.make_query(name, "A") for name in ("up.test", "other.test", "db", "up.test")
    ]

    async def scenario(desk: Desk) -> None:
        async with await stream_of(desk) as stream:
            await stream.send_all(b"".join(framed(query.to_wire()) for query in queries))
            for query in queries:
                reply = await message_from(stream)
                assert query.is_response(reply)
            await stream.send_eof()
            assert await stream.receive_some() == b""

    desk = play(scenario)
    [line] = desk.of("dns.refused")
    assert (line["host"], line["protocol"], line["pid"]) == ("other.test", "tcp", 42)
    assert desk.asked[0][0] == "tcp"


def test_a_query_that_trickles_in_is_answered() -> None:
    async def scenario(desk: Desk) -> None:
        async with await stream_of(desk) as stream:
            for byte in framed(dns.message.make_query("up.test", "A").to_wire()):
                await stream.send_all(bytes([byte]))
            assert (await message_from(stream)).answer

    play(scenario)


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("!H", 65535) + b"x" * 60_000,
        struct.pack("!H", QUERY_LIMIT + 1),
        b"\0\0" * 30_000,
        framed(b"short"),
        framed(struct.pack("!6H", 1, 0x8180, 1, 0, 0, 0)),
    ],
)
def test_tcp_that_is_no_query_ends_its_connection(data: bytes) -> None:
    async def scenario(desk: Desk) -> None:
        async with await stream_of(desk) as stream:
            with suppress(trio.BrokenResourceError):
                await stream.send_all(data)
                assert await stream.receive_some() == b""
        assert await desk.addresses("up.test")

    assert play(scenario).reports == []


@pytest.mark.parametrize("begun", [b"", b"\0", b"\0\x20half a message"])
def test_a_silent_or_unfinished_connection_ends_when_its_time_is_up(begun: bytes) -> None:
    async def scenario(desk: Desk) -> None:
        async with await stream_of(desk) as stream:
            await stream.send_all(begun)
            start = trio.current_time()
            assert await stream.receive_some() == b""
            assert trio.current_time() - start == pytest.approx(10, abs=1)

    play(scenario, clock=trio.testing.MockClock(autojump_threshold=0.01))


def test_past_the_limit_of_connections_the_one_silent_longest_makes_room() -> None:
    async def scenario(desk: Desk) -> None:
        async with await stream_of(desk) as oldest, await stream_of(desk) as other:
            query = framed(dns.message.make_query("up.test", "A").to_wire())
            await other.send_all(query)
            await message_from(other)
            await oldest.send_all(query)
            await message_from(oldest)
            async with await stream_of(desk) as newest:
                await newest.send_all(query)
                assert (await message_from(newest)).answer
                assert await other.receive_some() == b""
                await oldest.send_all(query)
                assert (await message_from(oldest)).answer

    play(scenario, limits=DNSLimits(connections=2))


def test_an_answer_larger_than_udp_allows_is_cut_there_and_whole_over_tcp(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    large = wire.Answer(addresses=tuple(IPv4Address("198.18.0.1") + number for number in range(60)))
    monkeypatch.setattr(Resolver53, "answer_of", lambda self, query: (large, None))

    async def scenario(desk: Desk) -> None:
        cut = await desk.ask("up.test")
        assert cut.flags & dns.flags.TC
        roomy = await desk.ask("up.test", use_edns=0, payload=1232)
        assert (len(roomy.answer[0]), roomy.flags & dns.flags.TC) == (60, 0)
        async with await stream_of(desk) as stream:
            await stream.send_all(framed(dns.message.make_query("up.test", "A").to_wire()))
            assert len((await message_from(stream)).answer[0]) == 60

    play(scenario)
