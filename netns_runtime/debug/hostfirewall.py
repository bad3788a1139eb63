"""What of the uplink's firewall may stop the proxy's packets, as far as nft shows it. Pure.

The proxy is a local process of the uplink, so what it sends meets the output hook and what it gets
the input hook. A rule is not evaluated here: what may drop is named, and where that cannot be told
it is said to be unknown.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

HOOKS: Final = ("output", "postrouting", "input", "prerouting")
_REFUSING: Final = ("drop", "reject")


@dataclass(slots=True)
class Chain:
    """One chain with what it does: `refusing` counts its rules that drop or reject."""

    family: str
    table: str
    name: str
    hook: str = ""
    policy: str = "accept"
    rules: int = 0
    refusing: int = 0
    takes_replies: bool = False
    jumps: set[str] = field(default_factory=set)

    @property
    def title(self) -> str:
        return f"{self.family} {self.table} {self.name}"


def chains_of(objects: Iterable[dict[str, Any]]) -> dict[tuple[str, str, str], Chain]:
    """Chains by family, table and name, from nft's JSON."""
    chains: dict[tuple[str, str, str], Chain] = {}
    rules = []
    for entry in objects:
        if "chain" in entry:
            chain = entry["chain"]
            key = (chain["family"], chain["table"], chain["name"])
            chains[key] = Chain(
                *key, hook=chain.get("hook", ""), policy=chain.get("policy", "accept")
            )
        elif "rule" in entry:
            rules.append(entry["rule"])
    for rule in rules:
        found = chains.get((rule["family"], rule["table"], rule["chain"]))
        if found is not None:
            _add_rule(found, rule.get("expr", ()))
    return chains


def _add_rule(chain: Chain, expressions: Iterable[dict[str, Any]]) -> None:
    chain.rules += 1
    accepts, replies = False, False
    for part in expressions:
        chain.refusing += any(verdict in part for verdict in _REFUSING)
        accepts = accepts or "accept" in part
        replies = replies or "established" in str(part.get("match", ""))
        for verb in ("jump", "goto"):
            if verb in part:
                chain.jumps.add(part[verb]["target"])
        # iptables-nft keeps what nft has no word for; its target may be REJECT.
        chain.refusing += str(part.get("xt", "")).upper().count("REJECT") > 0
    chain.takes_replies = chain.takes_replies or (accepts and replies)


def concerns_of(objects: Iterable[dict[str, Any]]) -> list[str]:
    """What may stop what the proxy sends or is answered; empty where nothing may."""
    chains = chains_of(objects)
    concerns = []
    for chain in chains.values():
        if chain.hook not in HOOKS:
            continue
        reached = [chain, *_reached_from(chain, chains)]
        refusing = sum(one.refusing for one in reached)
        incoming = chain.hook in ("input", "prerouting")
        if chain.policy == "drop" and not (incoming and any(one.takes_replies for one in reached)):
            passing = sum(one.rules for one in reached)
            concerns.append(
                f"{chain.title} ({chain.hook}) drops what none of its {passing} rules accepts"
            )
        elif refusing and not incoming:
            what = "a rule that drops" if refusing == 1 else f"{refusing} rules that drop"
            concerns.append(f"{chain.title} ({chain.hook}) has {what} or rejects")
    return concerns


def _reached_from(chain: Chain, chains: dict[tuple[str, str, str], Chain]) -> Iterable[Chain]:
    seen: set[str] = set()
    waiting = list(chain.jumps)
    while waiting:
        name = waiting.pop()
        found = chains.get((chain.family, chain.table, name))
        if name in seen or found is None:
            continue
        seen.add(name)
        waiting += found.jumps
        yield found
