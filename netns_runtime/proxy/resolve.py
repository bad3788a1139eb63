"""Names to addresses, in the uplink: the host's own resolver, or DNS servers that we ask ourselves.

`SystemResolver` is getaddrinfo in a bounded set of threads; `NameServers` speaks DNS (dnspython's
messages over trio's sockets), so that with `--uplink` no daemon of the host is asked
and /etc/hosts is not read. Both answer with addresses, never empty, or raise
`ResolveError`, which carries RFC 9209's name for the failure.
"""

from __future__ import annotations

import socket
from collections import OrderedDict
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final, Protocol

import trio

if TYPE_CHECKING:
    from collections.abc import Sequence
    from ipaddress import IPv4Address, IPv6Address

    from netns_runtime.proxy.dnsclient import Answer

    IPAddress = IPv4Address | IPv6Address

THREADS: Final = 32
CACHE_NAMES: Final = 1024
MAX_TTL: Final = 300.0
SYSTEM_TTL: Final = 2.0


class ResolveError(Exception):
    """The name has no address now. `reason` is dns_error or dns_timeout; `rcode` DNS's own word."""

    def __init__(self, reason: str, what: str, rcode: str = "") -> None:
        super().__init__(what)
        self.reason = reason
        self.rcode = rcode


class Resolver(Protocol):
    """What `dial` needs."""

    async def resolve(self, host: str) -> Sequence[IPAddress]:
        """Addresses of a canonical name, best first. Raises ResolveError."""


class _Cache:
    """Bounded, by the clock of trio; what is least recently used goes first."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, tuple[float, Sequence[IPAddress]]] = OrderedDict()

    def get(self, host: str) -> Sequence[IPAddress] | None:
        entry = self._entries.get(host)
        if entry is None:
            return None
        if entry[0] <= trio.current_time():
            del self._entries[host]
            return None
        self._entries.move_to_end(host)
        return entry[1]

    def put(self, host: str, addresses: Sequence[IPAddress], ttl: float) -> None:
        if ttl <= 0:
            return
        self._entries[host] = (trio.current_time() + min(ttl, MAX_TTL), addresses)
        while len(self._entries) > CACHE_NAMES:
            self._entries.popitem(last=False)


_EAI: Final = {
    socket.EAI_NONAME: ("dns_error", "no such name", "NXDOMAIN"),
    socket.EAI_NODATA: ("dns_error", "the name has no address", ""),
    socket.EAI_AGAIN: ("dns_timeout", "the host's resolver does not answer", ""),
    socket.EAI_FAIL: ("dns_error", "the host's resolver failed", "SERVFAIL"),
}


class SystemResolver:
    """getaddrinfo, as the host resolves. An abandoned lookup keeps its thread until it ends."""

    def __init__(self) -> None:
        self._limiter = trio.CapacityLimiter(THREADS)
        self._cache = _Cache()

    async def resolve(self, host: str) -> Sequence[IPAddress]:
        """Addresses in getaddrinfo's order (RFC 6724)."""
        known = self._cache.get(host)
        if known is not None:
            return known
        try:
            found = await trio.to_thread.run_sync(
                _getaddrinfo, host, abandon_on_cancel=True, limiter=self._limiter
            )
        except socket.gaierror as error:
            reason, what, rcode = _EAI.get(error.errno or 0, ("dns_error", str(error), ""))
            raise ResolveError(reason, what, rcode) from error
        except (OSError, UnicodeError) as error:
            raise ResolveError("dns_error", str(error)) from error
        # The zone of a link-local address (`%eth0`) goes: screening refuses those anyway.
        addresses = tuple(
            dict.fromkeys(ip_address(str(info[4][0]).partition("%")[0]) for info in found)
        )
        if not addresses:
            raise ResolveError("dns_error", "the name has no address")
        self._cache.put(host, addresses, SYSTEM_TTL)
        return addresses


def _getaddrinfo(host: str) -> list[tuple[object, object, object, object, tuple[object, ...]]]:
    # Bytes skip Python's own IDNA codec; the name is canonical already.
    return socket.getaddrinfo(host.encode("ascii"), None, type=socket.SOCK_STREAM)  # type: ignore[return-value]


class NameServers:
    """DNS servers asked in turn: A and AAAA at once, one cache for both."""

    # A busy server's late answer is worth more than one more question to it.
    ATTEMPTS: Final = (1.5, 3.0, 5.0)

    def __init__(self, servers: Sequence[tuple[str, int]]) -> None:
        if not servers:
            raise ValueError("no DNS server is given")
        self._servers = tuple(servers)
        self._cache = _Cache()
        self._limiter = trio.CapacityLimiter(256)

    async def resolve(self, host: str) -> Sequence[IPAddress]:
        """IPv6 first, as RFC 6724 would have it; the answers' least TTL, at most MAX_TTL."""
        known = self._cache.get(host)
        if known is not None:
            return known
        answers: dict[str, Answer] = {}
        failures: list[ResolveError] = []

        async def ask(kind: str) -> None:
            try:
                answers[kind] = await self._ask(host, kind)
            except ResolveError as error:
                failures.append(error)

        async with self._limiter, trio.open_nursery() as nursery:
            nursery.start_soon(ask, "A")
            nursery.start_soon(ask, "AAAA")
        found = [answers[kind] for kind in ("AAAA", "A") if kind in answers]
        addresses = tuple(address for answer in found for address in answer.addresses)
        if not addresses:
            if failures:
                raise failures[0]
            missing = any(answer.rcode == "NXDOMAIN" for answer in found)
            what = "no such name" if missing else "the name has no address"
            raise ResolveError("dns_error", what, "NXDOMAIN" if missing else "")
        if not failures:
            self._cache.put(host, addresses, min(a.ttl for a in found if a.addresses))
        return addresses

    async def _ask(self, host: str, kind: str) -> Answer:
        from netns_runtime.proxy.dnsclient import exchange

        failed = ResolveError("dns_timeout", "no DNS server answered")
        for seconds in self.ATTEMPTS:
            for server in self._servers:
                with trio.move_on_after(seconds):
                    try:
                        return await exchange(server, host, kind)
                    except ResolveError as error:
                        failed = error
                    except OSError as error:
                        failed = ResolveError("dns_error", f"{server[0]}: {error.strerror}")
            if failed.reason == "dns_error":
                break
        raise failed
