"""Virtual addresses: which name stands behind which, and which names the policy answers for.

A name keeps its two addresses for the sandbox's life, and an address never means a second name.
Both follow from a hash of the name, so that an address kept from an earlier run, or from another
sandbox, means the same name here or nobody, but for collisions, which move on to the next free
one. Names invented under a wildcard are a channel and limited, in all and for each
pattern; a name that the policy spells out is limited by the policy alone.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from hashlib import blake2b
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Final

from netns_runtime import layout
from netns_runtime.address import AddressError, parse_host
from netns_runtime.policy.hosts import host_matches, is_wildcard, specificity

if TYPE_CHECKING:
    from netns_runtime.policy import Policy

PER_WILDCARD: Final = 256
"""Names one pattern may bring into being."""

# .0 and .255 are valid hosts inside a /15, and some clients and firewalls take them for networks.
_PER_BLOCK: Final = 254
_BLOCKS: Final = layout.VIRTUAL_IPV4.num_addresses // 256
POOL: Final = _BLOCKS * _PER_BLOCK
_IPV4_BASE: Final = int(layout.VIRTUAL_IPV4.network_address)
_IPV6_BASE: Final = int(layout.VIRTUAL_IPV6.network_address)
_NIBBLES: Final = frozenset("0123456789abcdef")

GATEWAY_NAME: Final = "gateway.netns-runtime.internal"
SANDBOX_NAME: Final = "sandbox.netns-runtime.internal"
OWN_NAMES: Final[dict[str, tuple[IPv4Address, IPv6Address]]] = {
    "localhost": (IPv4Address("127.0.0.1"), IPv6Address("::1")),
    GATEWAY_NAME: (layout.GATEWAY_IPV4, layout.GATEWAY_IPV6),
    SANDBOX_NAME: (layout.SANDBOX_IPV4, layout.SANDBOX_IPV6),
}
"""Names that are answered whatever the policy says; names below localhost are localhost."""
_OWN_ADDRESSES: Final = {
    address: name for name, addresses in OWN_NAMES.items() for address in addresses
}


@dataclass(frozen=True, slots=True)
class Virtual:
    """A name and the addresses that stand for it inside one sandbox."""

    name: str
    ipv4: IPv4Address
    ipv6: IPv6Address


@dataclass(frozen=True, slots=True)
class NameRule:
    """Why a name is answered: the rule's text and the host or pattern that covers it."""

    text: str
    pattern: str


def names_rule(policy: Policy, name: str) -> NameRule | None:
    """The narrowest host or pattern of the policy that covers the canonical name, on any port and
    for any owner, or None. Endpoints that list addresses only cover no name."""
    covering = [
        (rule, endpoint)
        for rule, endpoint in policy.candidates(name)
        if endpoint.host and host_matches(endpoint.host, name)
    ]
    if not covering:
        return None
    rule, endpoint = max(covering, key=lambda found: specificity(found[1].host))
    return NameRule(rule.text, endpoint.host)


def canonical_name(text: str) -> str | None:
    """The canonical form of a name as `wire.dns` gives it; None for what is no host's name."""
    try:
        name = parse_host(text)
    except AddressError:
        return None
    return None if _is_address(name) else name


def _is_address(host: str) -> bool:
    # A canonical host whose last label is a number is an IPv4 address (address.py).
    return ":" in host or host.rpartition(".")[2].isdigit()


def addresses_of_own(name: str) -> tuple[IPv4Address, IPv6Address] | None:
    """The addresses of a name that is the sandbox's own."""
    if name.endswith(".localhost"):
        name = "localhost"
    return OWN_NAMES.get(name)


def reversed_address(name: str) -> IPv4Address | IPv6Address | None:
    """The address of a name under in-addr.arpa or ip6.arpa, None where it is not a whole one."""
    labels = name.split(".")[::-1]
    try:
        if labels[:2] == ["arpa", "in-addr"]:
            return IPv4Address(".".join(labels[2:]))
        if labels[:2] == ["arpa", "ip6"] and len(labels) == 34 and _NIBBLES.issuperset(labels[2:]):
            return IPv6Address(int("".join(labels[2:]), 16))
    except ValueError:
        return None
    return None


class VirtualNames:
    """The names of one sandbox. `limit` bounds those that wildcards brought into being."""

    def __init__(self, limit: int, per_wildcard: int = PER_WILDCARD) -> None:
        # Half of the pool stays free for the names that the policy spells out.
        self._left = min(limit, POOL // 2)
        self._per_wildcard = per_wildcard
        self._by_name: dict[str, Virtual] = {}
        self._by_index: dict[int, str] = {}
        self._invented: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._by_name)

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def address_of(self, name: str, rule_key: str) -> Virtual | None:
        """The addresses of a canonical name, made at the first call; None at a limit.

        `rule_key` is the host or pattern that covers the name (`NameRule.pattern`).
        """
        known = self._by_name.get(name)
        if known is not None:
            return known
        if len(self._by_name) >= POOL:
            return None
        if is_wildcard(rule_key):
            if self._left <= 0 or self._invented[rule_key] >= self._per_wildcard:
                return None
            self._left -= 1
            self._invented[rule_key] += 1
        index = _hash_of(name) % POOL
        while index in self._by_index:
            index = (index + 1) % POOL
        virtual = _virtual(name, index)
        self._by_index[index] = name
        self._by_name[name] = virtual
        return virtual

    def name_of(self, address: str | IPv4Address | IPv6Address) -> str | None:
        """The name behind an address, in any spelling of it; None for everything else."""
        index = _index_of(address)
        return None if index is None else self._by_index.get(index)

    def pointer_of(self, address: IPv4Address | IPv6Address) -> str | None:
        """What a reverse lookup says: the name behind a virtual address or one of our own."""
        if isinstance(address, IPv4Address) and address.is_loopback:
            return "localhost"
        return _OWN_ADDRESSES.get(address) or self.name_of(address)


def _hash_of(name: str) -> int:
    return int.from_bytes(blake2b(name.encode("ascii"), digest_size=8).digest(), "big")


def _virtual(name: str, index: int) -> Virtual:
    block, host = divmod(index, _PER_BLOCK)
    ipv4 = _IPV4_BASE + (block << 8) + host + 1
    return Virtual(name, IPv4Address(ipv4), IPv6Address(_IPV6_BASE | ipv4))


def _index_of(address: str | IPv4Address | IPv6Address) -> int | None:
    if isinstance(address, str):
        try:
            address = ip_address(address.partition("%")[0])
        except ValueError:
            return None
    if isinstance(address, IPv6Address):
        mapped = address.ipv4_mapped
        number = int(address)
        if mapped is not None:
            address = mapped
        elif number >> 32 == _IPV6_BASE >> 32:
            address = IPv4Address(number & 0xFFFFFFFF)
        else:
            return None
    if address not in layout.VIRTUAL_IPV4:
        return None
    block, host = divmod(int(address) - _IPV4_BASE, 256)
    return None if host in {0, 255} else block * _PER_BLOCK + host - 1
