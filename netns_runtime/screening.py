"""Which addresses the proxy may dial: a table of ours, because `is_private` differs between Pythons
and knows neither cloud metadata nor embedded IPv4. `screen` is pure and
answers None or a short reason; it never raises and never resolves anything.

What `allowed_ips` of a policy does, as in OpenShell and a little stricter: where it is given, every
address must lie in one of its networks, public ones too; and an entry lifts a refused range only
if the entry itself lies inside that range. So `10.1.0.0/16` opens private addresses, `0.0.0.0/0`
opens nothing that is refused by default, and cloud metadata or one of the uplink's own addresses
opens only to an entry that names exactly it. The sandbox's own network, the virtual pools and the
"this host" addresses are never lifted.

192.0.2.0/24, 198.51.100.0/24, 203.0.113.0/24, 2001:db8::/32 and 3fff::/20 are documentation ranges
that no host on the Internet has: refusing them protects nobody, and labs, ours too, live there.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING, Final

from netns_runtime import layout

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_OPEN: Final = ""
_NEVER: Final = frozenset(
    {
        "this host (0.0.0.0/8)",
        "unspecified",
        "the sandbox's own network",
        "the virtual address pool",
    }
)

# Most specific wins, whatever the order. Sources: IANA's special-purpose registries (RFC 6890 and
# its updates) and each cloud's own documentation for metadata.
_IPV4_TABLE: Final[tuple[tuple[str, str], ...]] = (
    ("0.0.0.0/0", _OPEN),
    ("0.0.0.0/8", "this host (0.0.0.0/8)"),
    ("10.0.0.0/8", "private (10.0.0.0/8)"),
    ("100.64.0.0/10", "carrier-grade NAT (100.64.0.0/10)"),
    ("100.100.100.200/32", "cloud metadata (Alibaba)"),
    ("127.0.0.0/8", "loopback (127.0.0.0/8)"),
    ("168.63.129.16/32", "cloud metadata (Azure)"),
    ("169.254.0.0/16", "link-local (169.254.0.0/16)"),
    ("169.254.0.23/32", "cloud metadata (Tencent)"),
    ("169.254.42.42/32", "cloud metadata (Scaleway)"),
    ("169.254.169.253/32", "cloud resolver (AWS)"),
    ("169.254.169.254/32", "cloud metadata"),
    ("169.254.170.2/32", "cloud metadata (AWS ECS)"),
    ("169.254.170.23/32", "cloud metadata (AWS EKS)"),
    ("172.16.0.0/12", "private (172.16.0.0/12)"),
    ("192.0.0.0/24", "protocol assignments (192.0.0.0/24)"),
    ("192.0.0.192/32", "cloud metadata (Oracle)"),
    ("192.88.99.0/24", "6to4 relay (192.88.99.0/24)"),
    ("192.168.0.0/16", "private (192.168.0.0/16)"),
    ("198.18.0.0/15", "benchmarking (198.18.0.0/15)"),
    ("224.0.0.0/4", "multicast (224.0.0.0/4)"),
    ("240.0.0.0/4", "reserved (240.0.0.0/4)"),
    ("255.255.255.255/32", "broadcast"),
    (f"{layout.GATEWAY_IPV4}/24", "the sandbox's own network"),
    (str(layout.VIRTUAL_IPV4), "the virtual address pool"),
)

# Only 2000::/3 is allocated as global unicast (IANA), so the rest is refused without being listed:
# site-local fec0::/10, discard 100::/64, SIIT ::ffff:0:0:0/96, the space some overlay networks use.
_IPV6_TABLE: Final[tuple[tuple[str, str], ...]] = (
    ("::/0", "not global unicast"),
    ("2000::/3", _OPEN),
    ("::/96", "IPv4-compatible (::/96)"),
    ("::/128", "unspecified"),
    ("::1/128", "loopback (::1)"),
    ("64:ff9b:1::/48", "local-use NAT64 (64:ff9b:1::/48)"),
    # Judged by the IPv4 address inside: Linux dials the one as IPv4, and IPv6-only networks reach
    # the IPv4 Internet through the other.
    ("::ffff:0:0/96", _OPEN),
    ("64:ff9b::/96", _OPEN),
    ("100::/64", "discard (100::/64)"),
    ("2001::/23", "protocol assignments (2001::/23)"),
    ("2001::/32", "Teredo (2001::/32)"),
    # The parts of 2001::/23 that are globally reachable: anycast services.
    ("2001:1::1/128", _OPEN),
    ("2001:1::2/128", _OPEN),
    ("2001:3::/32", _OPEN),
    ("2001:4:112::/48", _OPEN),
    ("2002::/16", "6to4 (2002::/16)"),
    ("fc00::/7", "unique local (fc00::/7)"),
    ("fd00:ec2::254/128", "cloud metadata (AWS)"),
    ("fd00:ec2::253/128", "cloud resolver (AWS)"),
    ("fd00:ec2::23/128", "cloud metadata (AWS EKS)"),
    ("fd00:42::42/128", "cloud metadata (Scaleway)"),
    ("fd20:ce::254/128", "cloud metadata (Google)"),
    ("fe80::/10", "link-local (fe80::/10)"),
    ("fec0::/10", "site-local (fec0::/10)"),
    ("ff00::/8", "multicast (ff00::/8)"),
    (f"{layout.GATEWAY_IPV6}/64", "the sandbox's own network"),
    (str(layout.VIRTUAL_IPV6), "the virtual address pool"),
)


@dataclass(frozen=True, slots=True)
class _Span:
    """A stretch of addresses with one answer; `first` and `last` are the range that named it."""

    reason: str
    first: int
    last: int


def _spans_of(table: tuple[tuple[str, str], ...], kind: type) -> tuple[list[int], list[_Span]]:
    """Flatten nested ranges into sorted starts and their spans, the most specific range winning."""
    networks = [(kind(text, strict=False), reason) for text, reason in table]
    edges = {int(network.network_address) for network, _ in networks}
    edges |= {int(network.broadcast_address) + 1 for network, _ in networks}
    top = max(int(network.broadcast_address) for network, _ in networks)
    starts = sorted(edge for edge in edges if edge <= top)
    # Sorted by length and, for one range listed twice, by position: the later line wins.
    ordered = sorted(enumerate(networks), key=lambda item: (item[1][0].prefixlen, item[0]))
    spans = []
    for start in starts:
        holders = [
            _Span(reason, int(network.network_address), int(network.broadcast_address))
            for _, (network, reason) in ordered
            if int(network.network_address) <= start <= int(network.broadcast_address)
        ]
        spans.append(holders[-1])
    return starts, spans


_STARTS4, _SPANS4 = _spans_of(_IPV4_TABLE, IPv4Network)
_STARTS6, _SPANS6 = _spans_of(_IPV6_TABLE, IPv6Network)

_MAPPED: Final = 0xFFFF  # ::ffff:0:0/96 (RFC 4291)
_NAT64: Final = 0x0064_FF9B << 64  # 64:ff9b::/96 (RFC 6052)
_6TO4: Final = 0x2002  # 2002::/16 (RFC 3056)
_TEREDO: Final = 0x2001_0000  # 2001::/32 (RFC 4380)
_ISATAP: Final = 0x0000_5EFE  # interface identifier (RFC 5214); bit 0x02000000 says "universal"


def embedded_of(ip: IPv6Address) -> tuple[str, tuple[IPv4Address, ...]]:
    """The transition form `ip` has and the IPv4 addresses inside it, or ("", ()).

    Teredo gives its server and its client, which is stored inverted.
    """
    value = int(ip)
    low = IPv4Address(value & 0xFFFF_FFFF)
    if value >> 32 == _MAPPED:
        return "IPv4-mapped", (low,)
    if value >> 32 == _NAT64:
        return "NAT64", (low,)
    if value >> 112 == _6TO4:
        return "6to4", (IPv4Address(value >> 80 & 0xFFFF_FFFF),)
    if value >> 96 == _TEREDO:
        server = IPv4Address(value >> 64 & 0xFFFF_FFFF)
        return "Teredo", (server, IPv4Address(~value & 0xFFFF_FFFF))
    if value >> 32 & 0xFDFF_FFFF == _ISATAP:
        return "ISATAP", (low,)
    return "", ()


def screen(
    ip: Address,
    own: Collection[Address] = frozenset(),
    allowed: Iterable[Network] = (),
) -> str | None:
    """None if the proxy may dial `ip`, else a short reason that names the range.

    `own` are the uplink's own addresses, as a set; `allowed` the `allowed_ips` of the endpoint that
    allowed the flow. An address that embeds IPv4 is judged by every address inside it as well, and
    each of them needs an entry of its own to be lifted.
    """
    entries = tuple(allowed)
    if isinstance(ip, IPv4Address):
        return _refusal_of(ip, own, entries) or _unlisted((ip,), entries)
    if ip.scope_id is not None:
        return "an address with a zone id"
    form, inner = embedded_of(ip)
    for address in inner:
        reason = _refusal_of(address, own, entries)
        if reason is not None:
            return f"{form} form of {address}: {reason}"
    return _refusal_of(ip, own, entries) or _unlisted((ip, *inner), entries)


def _refusal_of(ip: Address, own: Collection[Address], allowed: tuple[Network, ...]) -> str | None:
    value = int(ip)
    if isinstance(ip, IPv4Address):
        span = _SPANS4[bisect_right(_STARTS4, value) - 1]
    else:
        span = _SPANS6[bisect_right(_STARTS6, value) - 1]
    if span.reason in _NEVER:
        return span.reason
    if ip in own and not _is_listed(ip, allowed, value, value):
        return "an address of the uplink itself"
    if span.reason and not _is_listed(ip, allowed, span.first, span.last):
        return span.reason
    return None


def _unlisted(forms: tuple[Address, ...], allowed: tuple[Network, ...]) -> str | None:
    if not allowed or any(_is_listed(form, allowed) for form in forms):
        return None
    return "not in the policy's allowed_ips"


def _is_listed(
    ip: Address, allowed: tuple[Network, ...], first: int = 0, last: int = 1 << 128
) -> bool:
    """Whether an entry that lies within first..last holds `ip`."""
    return any(
        entry.version == ip.version
        and ip in entry
        and first <= int(entry.network_address)
        and int(entry.broadcast_address) <= last
        for entry in allowed
    )
