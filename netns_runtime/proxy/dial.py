"""Resolves a target in the uplink, screens every address, and dials the ones that passed.

The outcome is a value: a connected socket with its address, or a `Refusal` that says whether
policy (a prohibited address) or upstream failed. Only an address that was screened here is ever
dialled, and by address. Several are tried as RFC 8305 has it: families interleaved, a new attempt
each 250 ms or as soon as one fails.
"""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from functools import lru_cache, partial
from ipaddress import ip_address, ip_network
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Final

import trio

from netns_runtime.address import screen
from netns_runtime.proxy.peer import tune
from netns_runtime.proxy.refuse import Refusal
from netns_runtime.proxy.resolve import ResolveError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from ipaddress import IPv4Address, IPv6Address

    from netns_runtime.address import HostPort
    from netns_runtime.policy import Decision
    from netns_runtime.proxy.sandbox import Sandbox

    IPAddress = IPv4Address | IPv6Address
    # Told of a socket whose connect has begun, and to where.
    Began = Callable[[socket.socket, tuple[str, int]], None]

ATTEMPT_DELAY: Final = 0.25
MAX_ADDRESSES: Final = 16

# errno to RFC 9209's name and the sentence's verb.
_FAILURES: Final = {
    errno.ECONNREFUSED: ("connection_refused", "refused the connection"),
    errno.ETIMEDOUT: ("connection_timeout", "did not answer"),
    errno.ECONNRESET: ("connection_terminated", "reset the connection"),
    errno.EHOSTUNREACH: ("destination_ip_unroutable", "cannot be reached"),
    errno.ENETUNREACH: ("destination_ip_unroutable", "has no route"),
    errno.EACCES: ("destination_ip_unroutable", "is blocked by the host's firewall"),
    errno.EPERM: ("destination_ip_unroutable", "is blocked by the host's firewall"),
    errno.EINVAL: ("destination_ip_unroutable", "cannot be dialled"),
    errno.EADDRNOTAVAIL: ("destination_unavailable", "has no free local port left"),
    errno.EMFILE: ("connection_limit_reached", "was not dialled: no descriptor is free"),
    errno.ENFILE: ("connection_limit_reached", "was not dialled: no descriptor is free"),
}


@dataclass(frozen=True, slots=True)
class Dialled:
    """A connected, non-blocking socket that the caller owns, and the address it is connected to."""

    sock: socket.socket
    address: str


async def candidates_of(
    sandbox: Sandbox, target: HostPort, decision: Decision
) -> tuple[IPAddress, ...] | Refusal:
    """The screened addresses of a target in the order to dial them, or why there are none."""
    literal = _literal_of(target.host)
    if literal is not None:
        found: Sequence[IPAddress] = (literal,)
    else:
        try:
            with trio.fail_after(sandbox.deadline("dns")):
                found = await sandbox.resolver.resolve(target.host)
        except trio.TooSlowError:
            return _unresolved(target, ResolveError("dns_timeout", "no answer in time"))
        except ResolveError as error:
            return _unresolved(target, error)
    own, allowed = sandbox.config.own_addresses, decision.allowed_ips
    passed, prohibited = [], []
    for address in found[:MAX_ADDRESSES]:
        reason = screen(address, own, allowed)
        if reason is None:
            passed.append(address)
        else:
            prohibited.append((address, reason))
    if passed:
        return interleaved(passed)
    if not prohibited:
        return _unresolved(target, ResolveError("dns_error", "the name has no address"))
    address, reason = prohibited[0]
    return Refusal(
        "destination_ip_prohibited",
        f"{target.host} is at {address}, which is not dialled: {reason}"
        if literal is None
        else f"{address} is not dialled: {reason}",
        _remedy_of(address, target, sandbox),
        target.host,
        target.port,
        decision.rule,
        str(address),
    )


def _remedy_of(address: IPAddress, target: HostPort, sandbox: Sandbox) -> str:
    if screen(address, sandbox.config.own_addresses, (ip_network(address),)) is not None:
        return "none: this address is never dialled"
    return f"if that is meant, list it in the policy: allowed_ips: [{address}] for {target.host}"


@lru_cache(maxsize=1024)
def _literal_of(host: str) -> IPAddress | None:
    if ":" in host or host[-1].isdigit():
        try:
            return ip_address(host)
        except ValueError:
            return None
    return None


def _unresolved(target: HostPort, error: ResolveError) -> Refusal:
    params = (("rcode", error.rcode),) if error.rcode else ()
    return Refusal(
        error.reason,
        f"{target.host} could not be resolved: {error}",
        host=target.host,
        port=target.port,
        params=params,
    )


def interleaved(addresses: Sequence[IPAddress]) -> tuple[IPAddress, ...]:
    """Alternate the families, beginning with the first address's (RFC 8305, section 4)."""
    if len(addresses) == 1:
        return tuple(addresses)
    first = addresses[0].version
    one = [a for a in addresses if a.version == first]
    other = [a for a in addresses if a.version != first]
    return tuple(a for a in chain.from_iterable(zip_longest(one, other)) if a is not None)


async def dial(
    sandbox: Sandbox, target: HostPort, addresses: Sequence[IPAddress]
) -> Dialled | Refusal:
    """Connect to one of `addresses`, all of them screened."""
    began = partial(sandbox.tap.dialling, target) if sandbox.tap is not None else None
    if len(addresses) == 1:
        # The common case by far: no nursery, and no deadline where connect ends at once.
        outcome = await _attempt(addresses[0], target.port, sandbox.deadline("connect"), began)
    else:
        outcome = await _race(addresses, target.port, sandbox.deadline("connect"), began)
    if isinstance(outcome, Dialled):
        return outcome
    address, failed = outcome
    code = failed.errno or 0
    reason, verb = _FAILURES.get(code, ("destination_unavailable", os.strerror(code)))
    return Refusal(
        reason,
        f"{target.host} ({address}) port {target.port} {verb}",
        host=target.host,
        port=target.port,
        address=str(address),
    )


async def _attempt(
    address: IPAddress, port: int, seconds: float, began: Began | None = None
) -> Dialled | tuple[IPAddress, OSError]:
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    except OSError as error:
        return address, error
    where = (str(address), port)
    try:
        tune(sock)
        code = sock.connect_ex(where)
        if began is not None:
            began(sock, where)
        if code == errno.EINPROGRESS:
            # Close by, the handshake is over before connect returns, and asking again says so.
            code = sock.connect_ex(where)
        if code == errno.EALREADY:
            with trio.fail_after(seconds):
                await trio.lowlevel.wait_writable(sock.fileno())
            code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code not in {0, errno.EISCONN}:
            raise OSError(code, os.strerror(code))
    except trio.TooSlowError:
        sock.close()
        return address, OSError(errno.ETIMEDOUT, "no answer in time")
    except OSError as error:
        sock.close()
        return address, error
    except BaseException:
        sock.close()
        raise
    return Dialled(sock, where[0])


async def _race(
    addresses: Sequence[IPAddress], port: int, seconds: float, began: Began | None
) -> Dialled | tuple[IPAddress, OSError]:
    won: list[Dialled] = []
    failures: list[tuple[IPAddress, OSError]] = []

    async def one(address: IPAddress, failed: trio.Event) -> None:
        outcome = await _attempt(address, port, seconds, began)
        if not isinstance(outcome, Dialled):
            failures.append(outcome)
            failed.set()
        elif won:
            outcome.sock.close()
        else:
            won.append(outcome)
            nursery.cancel_scope.cancel()

    with trio.move_on_after(seconds):
        async with trio.open_nursery() as nursery:
            for address in addresses:
                failed = trio.Event()
                nursery.start_soon(one, address, failed)
                with trio.move_on_after(ATTEMPT_DELAY):
                    await failed.wait()
    if won:
        return won[0]
    return failures[0] if failures else (addresses[0], OSError(errno.ETIMEDOUT, "no answer"))
