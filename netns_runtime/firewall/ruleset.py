"""The gateway's ruleset as libnftables JSON: pure data, default drop.

Only packets from the sandbox's own addresses come in, only the proxy and the resolver are
reachable, TCP to virtual and listed addresses is handed to the proxy's transparent socket (TPROXY,
so that the original destination is that socket's own address), and everything else is refused so
that the client hears of it at once: TCP with a reset, anything else with an ICMP port unreachable,
which Linux reports as ECONNREFUSED. Named counters say how much, a bounded set says where to.
`expected` is what the kernel must list after loading.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any, Final

from netns_runtime import layout

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

FAMILY: Final = "inet"
TABLE: Final = layout.NFT_TABLE

# Bits of the TCP header's flags byte (RFC 9293, section 3.1) as libnftables names them.
_NEW: Final = {
    "match": {
        "op": "==",
        "left": {
            "&": [{"payload": {"protocol": "tcp", "field": "flags"}}, ["syn", "ack", "rst", "fin"]]
        },
        "right": "syn",
    }
}
COUNTERS: Final = (
    "accepted_proxy",
    "accepted_dns",
    "redirected",
    "refused_tcp",
    "refused_udp",
    "refused_icmp",
    "refused_other",
    "stray_tcp",
    "spoofed",
)
REASONS: Final = {
    "refused_tcp": "direct_tcp",
    "refused_udp": "direct_udp",
    "refused_icmp": "direct_icmp",
    "refused_other": "direct_other",
    "spoofed": "spoofed_source",
}
"""Which audit reason each refusing counter stands for; the others refuse nothing."""
DESTINATIONS: Final = {4: "refused_ipv4", 6: "refused_ipv6"}
DESTINATION_LIMIT: Final = 4096
# Set and read inside the gateway alone: crossing the veth pair clears a packet's mark.
REDIRECT_MARK: Final = 1
# Numbers: libnftables looks names up in /etc/protocols, which a minimal system (no netbase) lacks.
TCP: Final = 6
UDP: Final = 17
_ICMP: Final = (1, 58)

Listed = tuple[IPv4Address | IPv6Address, tuple[int, ...] | None]
"""A literal address that the policy lists, and its ports; None is any port."""


@dataclass(frozen=True, slots=True)
class Ruleset:
    """`commands`: one nft JSON transaction. `expected`: its objects, as `list ruleset` has them."""

    commands: tuple[dict[str, Any], ...]

    @property
    def document(self) -> dict[str, Any]:
        return {"nftables": list(self.commands)}

    @property
    def expected(self) -> tuple[dict[str, Any], ...]:
        return tuple(command["add"] for command in self.commands)


def _meta(key: str) -> dict[str, Any]:
    return {"meta": {"key": key}}


def _payload(protocol: str, field: str) -> dict[str, Any]:
    return {"payload": {"protocol": protocol, "field": field}}


def _match(left: dict[str, Any], right: Any, op: str = "==") -> dict[str, Any]:
    return {"match": {"op": op, "left": left, "right": right}}


def _counter(name: str) -> dict[str, Any]:
    return {"counter": name}


def _note_destination(version: int, transport: str) -> dict[str, Any]:
    protocol = "ip" if version == 4 else "ip6"
    parts = [_payload(protocol, "daddr"), _meta("l4proto"), _payload(transport, "dport")]
    return {
        "set": {
            "op": "add",
            "elem": {"concat": parts},
            "set": f"@{DESTINATIONS[version]}",
            "stmt": [{"counter": None}],
        }
    }


_RESET: Final = {"reject": {"type": "tcp reset"}}
_UNREACHABLE: Final = {"reject": {"type": "icmpx", "expr": "port-unreachable"}}
_DROP: Final = {"drop": None}
_ACCEPT: Final = {"accept": None}


def _prerouting() -> list[list[dict[str, Any]]]:
    from_gateway = _match(_meta("iifname"), layout.GATEWAY_LINK)
    return [
        [
            _match(_meta("iifname"), layout.GATEWAY_LINK, "!="),
            _match(_meta("iifname"), "lo", "!="),
            _DROP,
        ],
        # Multicast listener reports and solicitations that the sandbox's own kernel sends.
        [
            from_gateway,
            _match(_payload("ip6", "daddr"), {"prefix": {"addr": "ff00::", "len": 8}}),
            _match(_meta("l4proto"), _ICMP[1]),
            _DROP,
        ],
        [
            from_gateway,
            _match(_payload("ip", "saddr"), str(layout.SANDBOX_IPV4), "!="),
            _counter("spoofed"),
            _DROP,
        ],
        [
            from_gateway,
            _match(_payload("ip6", "saddr"), str(layout.SANDBOX_IPV6), "!="),
            _counter("spoofed"),
            _DROP,
        ],
    ]


def _hand_over(version: int, *matches: dict[str, Any]) -> list[dict[str, Any]]:
    family = "ip" if version == 4 else "ip6"
    return [
        _match(_meta("iifname"), layout.GATEWAY_LINK),
        *matches,
        {"mangle": {"key": _meta("mark"), "value": REDIRECT_MARK}},
        {"tproxy": {"family": family, "port": layout.TRANSPARENT_PORT}},
        _ACCEPT,
    ]


def _redirect(listed: Iterable[Listed]) -> list[list[dict[str, Any]]]:
    """Rules of the chain that hands TCP to the transparent socket."""
    tcp = _match(_meta("l4proto"), TCP)
    rules = []
    for network in (layout.VIRTUAL_IPV4, layout.VIRTUAL_IPV6):
        protocol = "ip" if network.version == 4 else "ip6"
        prefix = {"prefix": {"addr": str(network.network_address), "len": network.prefixlen}}
        match = _match(_payload(protocol, "daddr"), prefix)
        rules.append(_hand_over(network.version, match, tcp))
    for address, ports in listed:
        protocol = "ip" if address.version == 4 else "ip6"
        match = _match(_payload(protocol, "daddr"), str(address))
        if ports is None:
            rules.append(_hand_over(address.version, match, tcp))
        for port in ports or ():
            at_port = _match(_payload("tcp", "dport"), port)
            rules.append(_hand_over(address.version, match, at_port))
    return rules


def _input() -> list[list[dict[str, Any]]]:
    to_gateway = _match(_payload("ip", "daddr"), str(layout.GATEWAY_IPV4))
    tcp, udp = _match(_meta("l4proto"), TCP), _match(_meta("l4proto"), UDP)
    ipv4, ipv6 = _match(_meta("nfproto"), "ipv4"), _match(_meta("nfproto"), "ipv6")
    rules: list[list[dict[str, Any]]] = [
        [_match(_meta("iifname"), layout.GATEWAY_LINK, "!="), _DROP],
        [
            to_gateway,
            _match(_payload("tcp", "dport"), layout.PROXY_PORT),
            _counter("accepted_proxy"),
            _ACCEPT,
        ],
        [
            to_gateway,
            _match(_payload("udp", "dport"), layout.DNS_PORT),
            _counter("accepted_dns"),
            _ACCEPT,
        ],
        [
            to_gateway,
            _match(_payload("tcp", "dport"), layout.DNS_PORT),
            _counter("accepted_dns"),
            _ACCEPT,
        ],
    ]
    redirected = _match(_meta("mark"), REDIRECT_MARK)
    rules.append([redirected, _counter("redirected"), _ACCEPT])
    for chosen, version in ((ipv4, 4), (ipv6, 6)):
        rules.append([chosen, tcp, _NEW, _note_destination(version, "tcp")])
        rules.append([chosen, udp, _note_destination(version, "udp")])
    return [
        *rules,
        [tcp, _NEW, _counter("refused_tcp"), _RESET],
        [tcp, _counter("stray_tcp"), _RESET],
        [udp, _counter("refused_udp"), _UNREACHABLE],
        [
            _match(_meta("l4proto"), {"set": list(_ICMP)}),
            _counter("refused_icmp"),
            _UNREACHABLE,
        ],
        [_counter("refused_other"), _UNREACHABLE],
    ]


def gateway_ruleset(*, redirect: bool = False, listed: Sequence[Listed] = ()) -> Ruleset:
    """The whole ruleset of a gateway, as one transaction.

    With `redirect`, TCP to virtual addresses and to `listed` ones goes to the transparent socket.
    """
    place = {"family": FAMILY, "table": TABLE}
    commands: list[dict[str, Any]] = [{"add": {"table": {"family": FAMILY, "name": TABLE}}}]
    commands += [{"add": {"counter": {**place, "name": name}}} for name in COUNTERS]
    for version, name in DESTINATIONS.items():
        commands.append(
            {
                "add": {
                    "set": {
                        **place,
                        "name": name,
                        "type": [f"ipv{version}_addr", "inet_proto", "inet_service"],
                        "flags": ["timeout"],
                        "size": DESTINATION_LIMIT,
                    }
                }
            }
        )
    chains: tuple[tuple[str, str, int, str, list[list[dict[str, Any]]]], ...] = (
        ("prerouting", "prerouting", -300, "accept", _prerouting()),
        ("redirect", "prerouting", -150, "accept", _redirect(listed) if redirect else []),
        ("input", "input", 0, "drop", _input()),
        ("forward", "forward", 0, "drop", []),
    )
    for name, hook, priority, policy, _ in chains:
        chain = {"name": name, "type": "filter", "hook": hook, "prio": priority, "policy": policy}
        commands.append({"add": {"chain": {**place, **chain}}})
    for name, _, _, _, rules in chains:
        commands += [{"add": {"rule": {**place, "chain": name, "expr": expr}}} for expr in rules]
    return Ruleset(tuple(commands))


def redirect_update(listed: Sequence[Listed]) -> dict[str, Any]:
    """One transaction that replaces the rules of the redirect chain; the rest stays as it is."""
    chain = {"family": FAMILY, "table": TABLE}
    commands: list[dict[str, Any]] = [{"flush": {"chain": {**chain, "name": "redirect"}}}]
    commands += [
        {"add": {"rule": {**chain, "chain": "redirect", "expr": expr}}}
        for expr in _redirect(listed)
    ]
    return {"nftables": commands}
