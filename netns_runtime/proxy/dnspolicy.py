"""What a question gets: virtual addresses for a name that the policy covers, else a refusal.

Nothing asked here ever leaves: an answer needs the policy and `VirtualNames` alone. A refused name
is NXDOMAIN with an extended error, and not REFUSED, for the reason told below. `Resolver53` turns
bytes into bytes and waits for nothing but to learn who asked; whatever it is sent, it does not
raise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from netns_runtime.audit import AuditError
from netns_runtime.proxy.dnsaudit import Refused, RefusedNames
from netns_runtime.proxy.names import (
    NameRule,
    addresses_of_own,
    canonical_name,
    names_rule,
    reversed_address,
)
from netns_runtime.wire import dns

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from ipaddress import IPv4Address, IPv6Address

    from netns_runtime.audit import AuditLog
    from netns_runtime.owner import Owner
    from netns_runtime.policy import Policy
    from netns_runtime.proxy.names import VirtualNames
    from netns_runtime.proxy.tap import Tap

    OwnerOf = Callable[[str, int], Awaitable[Owner | None]]

# What a name that policy refuses is answered with. Measured with one server in resolv.conf, time
# until getaddrinfo failed, and how:
#              glibc 2.36           musl 1.2.3      Node 20 lookup, c-ares     Java 17     queries
#   REFUSED    4 ms, EAI_AGAIN      5012 ms         EAI_AGAIN, EREFUSED        temporary   twice
#   SERVFAIL   4 ms, EAI_AGAIN      5011 ms         EAI_AGAIN, ESERVFAIL       temporary   thrice
#   NXDOMAIN   4 ms, EAI_NONAME     4 ms            ENOTFOUND, ENOTFOUND       unknown     once
# musl passes over every rcode but 0, 2 and 3 and waits for a better answer; the others take REFUSED
# for something that passes, and retry it. Without a SOA the answer is not kept (RFC 2308, 5), so
# that a name which a new policy allows resolves at once.
RCODE_OF_REFUSED: Final = dns.NXDOMAIN

CACHE: Final = 2048
CACHEABLE: Final = dns.UDP_MINIMUM
"""Queries and answers kept as bytes: so many, up to a size that any transport takes."""
_REPORTED: Final = "**"


@dataclass(frozen=True, slots=True)
class DNSLimits:
    """Bounds of one sandbox's DNS; times in seconds.

    `batch` packets are answered before others get a turn. A TCP message, its answer included, has
    `idle`; past `connections`, the one that was silent longest makes room. `owner` is how long an
    answer waits to learn who asked, and `owners` how many do so at once.
    """

    batch: int = 16
    connections: int = 64
    idle: float = 10.0
    owner: float = 0.25
    owners: int = 16


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer without its first two bytes, which are the query's, and whether it is a refusal."""

    tail: bytes
    refused: Refused | None = None


class Resolver53:
    """What one sandbox's questions are answered with.

    `policy` is called for every query, so that it may be swapped. `owner_of` says who has a port
    ("udp" or "tcp", port). With `report`, refused names are answered as well, and told. `tap` hears
    who asks while packets are captured.
    """

    def __init__(
        self,
        names: VirtualNames,
        policy: Callable[[], Policy],
        audit: AuditLog,
        owner_of: OwnerOf | None = None,
        limits: DNSLimits | None = None,
        *,
        report_only: bool = False,
        report: Callable[[str], None] = lambda line: None,
        tap: Tap | None = None,
    ) -> None:
        self.names = names
        self.tap = tap
        self.limits = limits or DNSLimits()
        self.refused = RefusedNames(audit, trio.current_time, report)
        self.report = report
        self._audit = audit
        self._policy = policy
        self._owner_of = owner_of
        self._report_only = report_only
        self._asking = 0
        self._answered: set[str] = set()
        self._cache: dict[bytes, Reply] = {}
        self._cached_for = policy()

    def reply_to(self, data: bytes, *, over_tcp: bool = False) -> Reply | None:
        """The reply to one message, None for silence. Nothing is counted here yet."""
        policy = self._policy()
        if policy is not self._cached_for:
            self._cache.clear()
            self._cached_for = policy
        key = data[2:]
        reply = self._cache.get(key)
        return reply if reply is not None else self._work_out(data, key, over_tcp=over_tcp)

    def _work_out(self, data: bytes, key: bytes, *, over_tcp: bool) -> Reply | None:
        try:
            query = dns.parse_query(data)
            answer, refused = self.answer_of(query)
            wire = dns.encode(query, answer, dns.TCP_LIMIT if over_tcp else query.udp_limit)
        except dns.DNSError as error:
            return None if error.rcode is None else Reply(dns.bare_answer(data, error.rcode)[2:])
        except Exception as error:  # a bug of ours ends this answer alone
            self.report(f"dns: {type(error).__name__}: {error}")
            return Reply(dns.bare_answer(data, dns.SERVFAIL)[2:])
        reply = Reply(wire[2:], refused)
        if len(data) <= CACHEABLE and len(wire) <= CACHEABLE and not dns.is_truncated(wire):
            if len(self._cache) >= CACHE:
                self._cache.clear()
            self._cache[key] = reply
        return reply

    def answer_of(self, query: dns.Query) -> tuple[dns.Answer, Refused | None]:
        """Decide one question, in this order.

        1. another class, or a zone transfer: REFUSED; 2. the sandbox's own names; 3. reverse;
        4. a name the policy covers: addresses, or no data of another type; 5. service labels
        (`_443._https.`) before such a name: no data; 6. anything else is refused.
        """
        if query.klass != dns.IN or query.kind in {dns.AXFR, dns.IXFR}:
            return dns.Answer(dns.REFUSED, is_cacheable=False), None
        own = addresses_of_own(query.name)
        if own is not None:
            return _addresses(query.kind, *own), None
        if query.name.endswith((".in-addr.arpa", ".ip6.arpa")):
            return self._reverse(query)
        name = canonical_name(query.name)
        if name is None:
            detail = f"{query.name or '.'} is no host's name"
            return _refuse(Refused(query.name, query.kind, "not_a_host_name", detail))
        rule = names_rule(self._policy(), name)
        if rule is not None:
            return self._covered(query, name, rule)
        served = _without_service(name)
        if served != name and names_rule(self._policy(), served) is not None:
            return dns.Answer(), None
        detail, remedy = f"no rule covers {name}", f"--allow {name}"
        refused = Refused(name, query.kind, "name_not_allowed", detail, remedy)
        if self._report_only:
            return self._covered(query, name, NameRule("", _REPORTED), refused)
        return _refuse(refused)

    def _covered(
        self, query: dns.Query, name: str, rule: NameRule, reported: Refused | None = None
    ) -> tuple[dns.Answer, Refused | None]:
        if query.kind not in {dns.A, dns.AAAA}:
            return dns.Answer(), None
        virtual = self.names.address_of(name, rule.pattern)
        if virtual is None:
            return _refuse(
                Refused(
                    name,
                    query.kind,
                    "name_limit_reached",
                    f"this sandbox has used up its names under {rule.pattern}",
                    f"--allow {name} (a name that is spelled out has room of its own)",
                    rule.text or None,
                    "proxy",
                )
            )
        if name not in self._answered:
            self._answered.add(name)
            self._write_answered(name, virtual.ipv4, rule, reported)
        return _addresses(query.kind, virtual.ipv4, virtual.ipv6), None

    def _write_answered(
        self, name: str, address: IPv4Address, rule: NameRule, reported: Refused | None
    ) -> None:
        would_be = {}
        if reported is not None:
            detail = f"would be refused: {reported.detail}"
            would_be = {"reason": reported.reason, "detail": detail, "remedy": reported.remedy}
        try:
            self._audit.write(
                "dns.answered",
                host=name,
                address=str(address),
                action="allow",
                rule=rule.text or None,
                said_by="policy",
                **would_be,
            )
        except AuditError as error:
            self.report(f"dns: {error}")

    def _reverse(self, query: dns.Query) -> tuple[dns.Answer, Refused | None]:
        address = reversed_address(query.name)
        pointer = self.names.pointer_of(address) if address is not None else None
        if pointer is None:
            detail = "reverse lookups are answered for the sandbox's own addresses only"
            return _refuse(Refused(query.name, query.kind, "name_not_allowed", detail))
        return dns.Answer(pointer=pointer if query.kind == dns.PTR else None), None

    async def tell(self, refused: Refused, protocol: str, port: int) -> None:
        """Write the line of a first refusal, cancelled or not, with its owner where that is known
        in time."""
        owner = None
        try:
            owner = await self.asker(protocol, port)
        finally:
            self.refused.tell(refused, owner, protocol)

    async def asker(self, protocol: str, port: int) -> Owner | None:
        """Who asks from that port, where it is known in time. Who captures packets is told too."""
        owner = None
        self._asking += 1
        try:
            if self._owner_of is not None and self._asking <= self.limits.owners:
                with trio.move_on_after(self.limits.owner):
                    owner = await self._owner_of(protocol, port)
        except Exception as error:  # it is answered without
            self.report(f"dns: owner: {type(error).__name__}: {error}")
        finally:
            self._asking -= 1
        if self.tap is not None:
            self.tap.asked(protocol, port, owner)
        return owner

    @property
    def is_watched(self) -> bool:
        """Whether somebody captures the packets that are asked with."""
        return self.tap is not None and self.tap.is_on


def _without_service(name: str) -> str:
    while name.startswith("_") and "." in name:
        name = name.partition(".")[2]
    return name


def _addresses(kind: int, ipv4: IPv4Address, ipv6: IPv6Address) -> dns.Answer:
    if kind == dns.A:
        return dns.Answer(addresses=(ipv4,))
    return dns.Answer(addresses=(ipv6,) if kind == dns.AAAA else ())


def _refuse(refused: Refused) -> tuple[dns.Answer, Refused]:
    advice = f"netns-run: {refused.detail}" + (f"; {refused.remedy}" if refused.remedy else "")
    extra = (dns.EDE_BLOCKED, advice)
    return dns.Answer(RCODE_OF_REFUSED, is_cacheable=False, extra=extra), refused
