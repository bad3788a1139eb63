"""What stock kernels and distributions taught: each case was seen in a guest of scripts/test-vm."""

from __future__ import annotations

import copy
import os
from typing import TYPE_CHECKING, Any

from netns_runtime.firewall.nft import canonical
from netns_runtime.firewall.ruleset import gateway_ruleset
from netns_runtime.probes.load import verifier_lines
from netns_runtime.probes.own_headers import own_tree, texts

if TYPE_CHECKING:
    from pathlib import Path

LINUX_7_3 = """\
13: (15) if r0 == 0x0 goto pc+40      ; R0=map_value(id=3,map=dialling,ks=8,vs=80)
14: (79) r1 = *(u64 *)(r0 +152)
invalid access to map value, value_size=80 off=152 size=8
R0 min value is outside of the allowed memory range

Verification failed: Memory Safety: Access outside bounds

Reason:
  The verifier cannot prove offset + access_size <= object_size.
Suggestion:
  Add or adjust a bounds check.

processed 14 insns (limit 1000000) max_states_per_insn 0 total_states 1 peak_states 1 mark_read 0
"""


def test_a_verifier_that_explains_itself_at_length_is_told_in_two_lines() -> None:
    assert verifier_lines(LINUX_7_3) == (
        "R0 min value is outside of the allowed memory range",
        "14: (79) r1 = *(u64 *)(r0 +152)",
    )


def joined(value: Any) -> Any:
    """Flags as nftables 1.1.3 lists them: `a | b | c`."""
    if isinstance(value, dict):
        return {key: joined(part) for key, part in value.items()}
    if isinstance(value, list) and value and all(isinstance(part, str) for part in value):
        return {"|": [{"|": value[:2]}, *value[2:]]}
    return [joined(part) for part in value] if isinstance(value, list) else value


def as_listed_by_1_1_3() -> list[dict[str, Any]]:
    """Chains before counters and sets, which come before rules."""
    objects = copy.deepcopy(list(gateway_ruleset().expected))
    order = ("table", "chain", "counter", "set", "rule")
    objects.sort(key=lambda entry: order.index(next(iter(entry))))
    for entry in objects:
        if "rule" in entry:
            entry["rule"]["expr"] = joined(entry["rule"]["expr"])
    return objects


def test_a_ruleset_listed_in_another_order_with_joined_flags_is_the_same() -> None:
    assert canonical(as_listed_by_1_1_3()) == canonical(gateway_ruleset().expected)


def test_rules_of_a_chain_in_another_order_are_not_the_same() -> None:
    objects = as_listed_by_1_1_3()
    objects[-1], objects[-2] = objects[-2], objects[-1]
    assert canonical(objects) != canonical(gateway_ruleset().expected)


def test_no_rule_names_a_protocol_that_etc_protocols_would_have_to_know() -> None:
    matches = [
        part["match"]
        for command in gateway_ruleset(redirect=True).commands
        for part in command["add"].get("rule", {}).get("expr", [])
        if "match" in part and part["match"]["left"] == {"meta": {"key": "l4proto"}}
    ]
    numbers = [match["right"] for match in matches]
    assert all(
        isinstance(n, int)
        for right in numbers
        for n in (right["set"] if isinstance(right, dict) else [right])
    )
    assert len(numbers) > 5


def test_headers_of_our_own_are_written_once_and_name_the_page_size(tmp_path: Path) -> None:
    tree = own_tree(tmp_path)
    assert (tree / "include/asm/page.h").read_text().split()[-1] == str(os.sysconf("SC_PAGE_SIZE"))
    assert all((tree / name).is_file() for name in texts(4096))
    marked = tree / "include/linux/version.h"
    before = marked.stat().st_mtime_ns
    assert own_tree(tmp_path) == tree
    assert marked.stat().st_mtime_ns == before


def test_another_page_size_is_another_tree() -> None:
    assert texts(4096) != texts(65536)
