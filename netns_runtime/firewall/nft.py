"""Loads the gateway's ruleset and reads its counters, through libnftables.

The only import of the nftables binding. Every function here runs inside the gateway's namespace, on
a thread of its own (netns.run_in), because libnftables opens its netlink socket where it is called.
A ruleset is loaded in one transaction and read back; a difference is an error, not a warning.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING, Any

from netns_runtime.errors import StepError
from netns_runtime.firewall.ruleset import (
    COUNTERS,
    DESTINATIONS,
    FAMILY,
    TABLE,
    TCP,
    UDP,
    gateway_ruleset,
    redirect_update,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from netns_runtime.firewall.ruleset import Listed, Ruleset

# Without /etc/protocols libnftables lists the number.
_NAMES = {TCP: "tcp", UDP: "udp"}
REMEDY = "the kernel needs nf_tables with nft_reject_inet (modprobe -a nf_tables nft_reject_inet)"
ABSENT_REMEDY = "the sandbox is still starting, or has lost its rules: see netns-debug doctor"
REDIRECT_REMEDY = "the kernel needs nft_tproxy (modprobe nft_tproxy); without it: --redirect off"
_PLACE = re.compile(r"\S+:\d+:\d+-\d+: Error: ")


@dataclass(frozen=True, slots=True)
class Counters:
    """Packets by counter name, and by destination (address, protocol name or number, port)."""

    packets: dict[str, int]
    destinations: dict[tuple[IPv4Address | IPv6Address, str, int], int]


def _open() -> Any:
    try:
        import nftables
    except ImportError as error:
        raise StepError(
            "gateway rules: Python's nftables binding is missing",
            remedy="apt-get install python3-nftables",
        ) from error
    try:
        binding = nftables.Nftables()
    except (OSError, AttributeError) as error:
        # The binding's __del__ would complain of what its __init__ did not get to.
        sys.unraisablehook = lambda _: None
        raise StepError(
            f"gateway rules: libnftables does not work: {error}",
            remedy="apt-get install --reinstall libnftables1 python3-nftables",
        ) from error
    binding.set_json_output(True)
    return binding


def _list(binding: Any, command: str) -> list[dict[str, Any]]:
    status, output, error = binding.cmd(command)
    if status != 0:
        what = f"gateway rules: {command}: {_first_line(error)}"
        raise StepError(what, remedy=ABSENT_REMEDY if TABLE in command else REMEDY)
    objects: list[dict[str, Any]] = json.loads(output)["nftables"] if output else []
    return [entry for entry in objects if "metainfo" not in entry]


def load(ruleset: Ruleset) -> None:
    """Load and verify the ruleset in the calling thread's namespace. Raises StepError."""
    binding = _open()
    status, _, error = binding.json_cmd(ruleset.document)
    if status != 0:
        raise StepError(f"gateway rules: {_first_line(error)}", remedy=_remedy(binding, ruleset))
    listed = canonical(_list(binding, "list ruleset"))
    wanted = canonical(ruleset.expected)
    if listed != wanted:
        difference = next((b for a, b in zip(listed, wanted, strict=False) if a != b), "a rule")
        raise StepError(
            f"gateway rules: the kernel lists other rules than were loaded, first {difference}",
            remedy="report this with the version of nftables",
        )


def _remedy(binding: Any, ruleset: Ruleset) -> str:
    """A ruleset loads whole or not at all: is it redirection that this kernel lacks?"""
    plain = gateway_ruleset()
    if ruleset.commands == plain.commands or binding.json_cmd(plain.document)[0] != 0:
        return REMEDY
    binding.json_cmd({"nftables": [{"delete": {"table": {"family": FAMILY, "name": TABLE}}}]})
    return REDIRECT_REMEDY


def update_redirect(listed: Sequence[Listed]) -> None:
    """Replace the listed addresses of a redirecting gateway. Raises StepError; then nothing is."""
    status, _, error = _open().json_cmd(redirect_update(listed))
    if status != 0:
        raise StepError(f"gateway rules: {_first_line(error)}", remedy=REMEDY)


def _first_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return _PLACE.sub("", lines[0]) if lines else "refused without a message"


def canonical(objects: Iterable[dict[str, Any]]) -> list[Any]:
    """Objects as versions of libnftables agree on them: no handles, counts or implied matches.

    1.0.6 and 1.1 list the same rule with and without `meta l4proto` before a payload match, with
    flags in another order or joined by `|`, the set flag `dynamic` only sometimes, and chains
    before or after counters. Only within a chain does the order of what is listed mean anything.
    """
    plain = [_plain(kind, value) for entry in objects for kind, value in entry.items()]
    return sorted(plain, key=lambda part: (part[0], str(part[1])))


def _plain(kind: str, value: dict[str, Any]) -> Any:
    name = value.get("name", value.get("chain"))
    if kind == "rule":
        expressions = [_plain_value(part) for part in value["expr"] if not _is_implied(part)]
        return (kind, name, expressions)
    kept = ("type", "hook", "prio", "policy", "size") if kind in ("chain", "set") else ()
    return (kind, name, [(key, _plain_value(value.get(key))) for key in kept])


def _is_implied(part: dict[str, Any]) -> bool:
    left = part.get("match", {}).get("left", {})
    return (
        isinstance(left, dict)
        and "meta" in left
        and left["meta"].get("key") in ("l4proto", "nfproto", "protocol")
    )


def _plain_value(value: Any) -> Any:
    if isinstance(value, dict) and value.keys() == {"|"}:
        return _plain_value(_joined(value))
    if isinstance(value, dict):
        return {key: _plain_value(part) for key, part in sorted(value.items())}
    if isinstance(value, list):
        parts = [_plain_value(part) for part in value]
        return sorted(parts) if all(isinstance(part, str) for part in parts) else parts
    return value


def _joined(value: Any) -> list[Any]:
    """The flags of `a | b | c`, however nested."""
    if isinstance(value, dict) and value.keys() == {"|"}:
        return [flag for part in value["|"] for flag in _joined(part)]
    return [value]


def read_ruleset() -> list[dict[str, Any]]:
    """Every object of every table in the calling thread's namespace. Raises StepError."""
    return _list(_open(), "list ruleset")


def read_counters() -> Counters:
    """The gateway's counters and refused destinations, in the calling thread's namespace."""
    binding = _open()
    packets = dict.fromkeys(COUNTERS, 0)
    for entry in _list(binding, f"list counters table {FAMILY} {TABLE}"):
        if "counter" in entry:
            packets[entry["counter"]["name"]] = entry["counter"]["packets"]
    destinations: dict[tuple[IPv4Address | IPv6Address, str, int], int] = {}
    for name in DESTINATIONS.values():
        for entry in _list(binding, f"list set {FAMILY} {TABLE} {name}"):
            for wrapped in entry.get("set", {}).get("elem", []):
                element = wrapped["elem"]
                address, protocol, port = element["val"]["concat"]
                key = (ip_address(address), _NAMES.get(protocol, str(protocol)), int(port))
                destinations[key] = element["counter"]["packets"]
    return Counters(packets, destinations)
