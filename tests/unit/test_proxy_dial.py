"""Resolving, screening and dialling: what is asked, what is dialled, what is refused."""

from __future__ import annotations

import errno
import socket
from ipaddress import ip_address
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
import trio
import trio.testing

from netns_runtime.address import HostPort
from netns_runtime.policy import Decision
from netns_runtime.proxy import dial as dial_module
from netns_runtime.proxy.dial import Dialled, candidates_of, dial, interleaved
from netns_runtime.proxy.refuse import Refusal
from netns_runtime.proxy.resolve import NameServers, ResolveError
from tests.support.proxy_stage import LOOPBACK, Stage

ALLOW = Decision("allow", "allowed", "a rule", "d")


def screened(host: str, *addresses: str, decision: Decision = ALLOW, **config: Any) -> Any:
    stage = Stage(**config)
    stage.names.table[host] = addresses

    async def main() -> Any:
        return await candidates_of(stage.sandbox, HostPort(host, 443), decision)

    return trio.run(main)


PROHIBITED = [
    *("127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1"),
    *("0.0.0.0", "224.0.0.1", "255.255.255.255", "168.63.129.16", "198.18.0.1", "10.200.0.1"),
    *("::1", "::", "fe80::1", "fc00::1", "fec0::1", "ff02::1", "::ffff:10.0.0.1", "::10.0.0.1"),
    *("64:ff9b::a00:1", "2002:a00:1::1", "2001:0:a00:1::1", "fd00:c8::1"),
]


@pytest.mark.parametrize("address", PROHIBITED)
def test_an_answer_with_a_prohibited_address_is_refused_by_name(address: str) -> None:
    refusal = screened("rebind.test", address)
    assert isinstance(refusal, Refusal)
    assert (refusal.reason, refusal.status) == ("destination_ip_prohibited", 403)
    assert str(ip_address(address)) in refusal.detail


def test_a_prohibited_address_among_others_is_left_out_and_never_dialled() -> None:
    found = screened("mixed.test", "10.0.0.1", "203.0.113.7", "::1")
    assert found == (ip_address("203.0.113.7"),)


def test_the_uplinks_own_address_is_refused() -> None:
    refusal = screened(
        "self.test", "203.0.113.9", own_addresses=frozenset({ip_address("203.0.113.9")})
    )
    assert refusal.reason == "destination_ip_prohibited"


def test_allowed_ips_of_the_rule_lift_screening_for_what_they_list() -> None:
    decision = Decision("allow", "allowed", "a rule", "d", "", LOOPBACK)
    assert screened("local.test", "127.0.0.5", decision=decision) == (ip_address("127.0.0.5"),)
    assert isinstance(screened("local.test", "10.0.0.1", decision=decision), Refusal)


def test_a_literal_address_is_screened_and_never_resolved() -> None:
    assert screened("127.0.0.1").reason == "destination_ip_prohibited"
    assert screened("203.0.113.7") == (ip_address("203.0.113.7"),)


def test_an_address_that_nothing_lifts_is_not_given_a_remedy() -> None:
    assert screened("x.test", "10.200.0.1").remedy == "none: this address is never dialled"
    assert "allowed_ips: [10.0.0.1]" in screened("x.test", "10.0.0.1").remedy


def test_families_are_interleaved_beginning_with_the_first() -> None:
    found = interleaved([ip_address(a) for a in ("2001:db8::1", "2001:db8::2", "192.0.2.1")])
    assert [str(a) for a in found] == ["2001:db8::1", "192.0.2.1", "2001:db8::2"]


def race(outcomes: dict[str, tuple[float, int]]) -> tuple[Any, list[tuple[float, str]]]:
    """Dial addresses that answer after so many seconds with an errno (0: connected)."""
    started: list[tuple[float, str]] = []
    sockets: list[socket.socket] = []

    async def attempt(address: Any, port: int, seconds: float, *_: Any) -> Any:
        started.append((trio.current_time(), str(address)))
        delay, code = outcomes[str(address)]
        await trio.sleep(delay)
        if code:
            return address, OSError(code, "")
        sockets.append(socket.socket())
        return Dialled(sockets[-1], str(address))

    async def main() -> Any:
        addresses = [ip_address(text) for text in outcomes]
        begun = trio.current_time()
        outcome = await dial(Stage().sandbox, HostPort("h.test", 1), addresses)
        return outcome, [(at - begun, text) for at, text in started]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dial_module, "_attempt", attempt)
        result: tuple[Any, list[tuple[float, str]]] = trio.run(
            main, clock=trio.testing.MockClock(autojump_threshold=0)
        )
    for sock in sockets:
        sock.close()
    return result


def test_a_silent_address_is_overtaken_after_250_ms() -> None:
    outcome, started = race({"2001:db8::1": (99, 0), "192.0.2.1": (0.1, 0)})
    assert outcome.address == "192.0.2.1"
    assert [round(at, 3) for at, _ in started] == [0, 0.25]


def test_a_failed_address_is_followed_at_once() -> None:
    outcome, started = race({"2001:db8::1": (0, errno.ENETUNREACH), "192.0.2.1": (0, 0)})
    assert outcome.address == "192.0.2.1"
    assert [round(at, 3) for at, _ in started] == [0, 0]


def test_when_every_address_fails_the_first_failure_is_told() -> None:
    outcome, _ = race({"192.0.2.1": (0, errno.ECONNREFUSED), "192.0.2.2": (9, errno.EHOSTUNREACH)})
    assert (outcome.reason, outcome.status) == ("connection_refused", 502)


def test_when_nobody_answers_the_deadline_ends_it_with_504() -> None:
    outcome, _ = race({"192.0.2.1": (999, 0), "192.0.2.2": (999, 0)})
    assert (outcome.reason, outcome.status) == ("connection_timeout", 504)


def records(query: dns.message.Message, *lines: str) -> dns.message.Message:
    reply = dns.message.make_response(query)
    for line in lines:
        name, ttl, kind, value = line.split()
        reply.answer.append(dns.rrset.from_text(name, int(ttl), "IN", kind, value))
    return reply


def resolved(answer: Any, host: str = "h.test", times: int = 1) -> tuple[Any, list[str]]:
    """Resolve against a DNS server on loopback that speaks UDP and TCP on one port."""
    asked: list[str] = []

    async def main() -> Any:
        [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
        udp = trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        port = listener.socket.getsockname()[1]
        await udp.bind(("127.0.0.1", port))

        async def serve_udp() -> None:
            while True:
                data, where = await udp.recvfrom(4096)
                for reply in answer(dns.message.from_wire(data), "udp"):
                    asked.append("udp")
                    await udp.sendto(reply if isinstance(reply, bytes) else reply.to_wire(), where)

        async def serve_tcp(stream: trio.SocketStream) -> None:
            data = await stream.receive_some()
            for reply in answer(dns.message.from_wire(data[2:]), "tcp"):
                asked.append("tcp")
                wire = reply.to_wire()
                # In two pieces: a length and a message need not come together.
                await stream.send_all(len(wire).to_bytes(2, "big"))
                await stream.send_all(wire)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_udp)
            nursery.start_soon(trio.serve_listeners, serve_tcp, [listener])
            servers = NameServers([("127.0.0.1", port)])
            try:
                for _ in range(times):
                    found = await servers.resolve(host)
            finally:
                nursery.cancel_scope.cancel()
        udp.close()
        return [str(address) for address in found]

    return trio.run(main), asked


def kind_of(query: dns.message.Message) -> str:
    return "A" if query.question[0].rdtype == 1 else "AAAA"


def test_a_and_aaaa_are_both_asked_and_cached_for_their_ttl() -> None:
    def answer(query: dns.message.Message, _: str) -> list[dns.message.Message]:
        value = "192.0.2.1" if kind_of(query) == "A" else "2001:db8::1"
        return [records(query, f"h.test. 60 {kind_of(query)} {value}")]

    found, asked = resolved(answer, times=3)
    assert found == ["2001:db8::1", "192.0.2.1"]
    assert len(asked) == 2


def test_a_zero_ttl_is_asked_anew_each_time() -> None:
    def answer(query: dns.message.Message, _: str) -> list[dns.message.Message]:
        return (
            [records(query, "h.test. 0 A 192.0.2.1")] if kind_of(query) == "A" else [records(query)]
        )

    assert len(resolved(answer, times=2)[1]) == 4


def test_cnames_are_followed_inside_the_answer() -> None:
    def answer(query: dns.message.Message, _: str) -> list[dns.message.Message]:
        if kind_of(query) == "AAAA":
            return [records(query)]
        lines = ("h.test. 60 CNAME a.test.", "a.test. 5 CNAME b.test.", "b.test. 60 A 192.0.2.3")
        return [records(query, *lines)]

    assert resolved(answer)[0] == ["192.0.2.3"]


def test_records_of_another_name_are_not_taken() -> None:
    def answer(query: dns.message.Message, _: str) -> list[dns.message.Message]:
        return [
            records(
                query,
                f"other.test. 60 {'A 192.0.2.9' if kind_of(query) == 'A' else 'AAAA ::9'}",
            )
        ]

    with pytest.raises(BaseExceptionGroup) as error:
        resolved(answer)
    assert error.group_contains(ResolveError, match="no address", depth=None)


def test_a_truncated_answer_is_asked_again_over_tcp() -> None:
    def answer(query: dns.message.Message, over: str) -> list[dns.message.Message]:
        if over == "udp":
            reply = records(query)
            reply.flags |= dns.flags.TC
            return [reply]
        value = "192.0.2.1" if kind_of(query) == "A" else "2001:db8::1"
        return [records(query, f"h.test. 60 {kind_of(query)} {value}")]

    found, asked = resolved(answer)
    assert found == ["2001:db8::1", "192.0.2.1"]
    assert sorted(asked) == ["tcp", "tcp", "udp", "udp"]


def test_answers_with_another_id_and_garbage_are_passed_over() -> None:
    def answer(query: dns.message.Message, _: str) -> list[Any]:
        forged = records(
            query, f"h.test. 60 {kind_of(query)} {'10.0.0.1' if kind_of(query) == 'A' else '::1'}"
        )
        forged.id ^= 1
        if kind_of(query) == "AAAA":
            return [b"\x00\x01", forged, b"", records(query)]
        return [forged, b"garbage", records(query, "h.test. 60 A 192.0.2.1")]

    assert resolved(answer)[0] == ["192.0.2.1"]


@pytest.mark.parametrize(
    ("rcode", "word"), [("NXDOMAIN", "no such name"), ("SERVFAIL", "SERVFAIL")]
)
def test_a_failing_server_is_told_by_its_rcode(rcode: str, word: str) -> None:
    def answer(query: dns.message.Message, _: str) -> list[dns.message.Message]:
        reply = records(query)
        reply.set_rcode(dns.rcode.from_text(rcode))
        return [reply]

    with pytest.raises(BaseExceptionGroup) as error:
        resolved(answer)
    assert error.group_contains(ResolveError, match=word, depth=None)
