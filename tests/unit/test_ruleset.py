"""The gateway's ruleset as data, and what counts as the same ruleset."""

from __future__ import annotations

import copy
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any

import pytest

from netns_runtime.errors import StepError
from netns_runtime.firewall import nft
from netns_runtime.firewall.nft import canonical
from netns_runtime.firewall.ruleset import COUNTERS, REASONS, gateway_ruleset


def rules_of(chain: str) -> list[list[dict[str, Any]]]:
    return [
        command["add"]["rule"]["expr"]
        for command in gateway_ruleset().commands
        if command["add"].get("rule", {}).get("chain") == chain
    ]


def test_input_and_forward_drop_by_default() -> None:
    policies = {
        command["add"]["chain"]["name"]: command["add"]["chain"]["policy"]
        for command in gateway_ruleset().commands
        if "chain" in command["add"]
    }
    assert policies == {
        "prerouting": "accept",
        "redirect": "accept",
        "input": "drop",
        "forward": "drop",
    }
    assert rules_of("forward") == []


def test_only_the_proxy_and_the_resolver_are_accepted() -> None:
    accepted = [rule for rule in rules_of("input") if {"accept": None} in rule]
    places = [[part["match"]["right"] for part in rule if "match" in part] for rule in accepted]
    assert places == [["10.200.0.1", 3128], ["10.200.0.1", 53], ["10.200.0.1", 53], [1]]
    # The mark is set by the redirect chain alone, which is empty unless asked for.
    assert rules_of("redirect") == []


def test_redirection_is_for_virtual_and_listed_addresses_alone() -> None:
    listed = [(ip_address("192.0.2.9"), (22, 5432)), (ip_address("2001:db8::9"), None)]
    ruleset = gateway_ruleset(redirect=True, listed=listed)
    rules = [
        command["add"]["rule"]["expr"]
        for command in ruleset.commands
        if command["add"].get("rule", {}).get("chain") == "redirect"
    ]
    assert [[part["match"]["right"] for part in rule if "match" in part][1:] for rule in rules] == [
        [{"prefix": {"addr": "198.18.0.0", "len": 15}}, 6],
        [{"prefix": {"addr": "fd00:c8:0:1::", "len": 64}}, 6],
        ["192.0.2.9", 22],
        ["192.0.2.9", 5432],
        ["2001:db8::9", 6],
    ]


def test_every_refusing_rule_counts_by_name() -> None:
    refusing = [rule for rule in rules_of("input") if any("reject" in part for part in rule)]
    named = {part["counter"] for rule in refusing for part in rule if "counter" in part}
    assert named == set(REASONS) - {"spoofed"} | {"stray_tcp"}
    assert all(any("counter" in part for part in rule) for rule in refusing)
    assert set(REASONS) <= set(COUNTERS)


def test_a_spoofed_source_is_dropped_before_anything_else_is_looked_at() -> None:
    spoofed = [rule for rule in rules_of("prerouting") if {"counter": "spoofed"} in rule]
    matched = [rule[1]["match"]["right"] for rule in spoofed]
    assert matched == ["10.200.0.2", "fd00:c8::2"]
    assert all(rule[-1] == {"drop": None} for rule in spoofed)


def listed() -> list[dict[str, Any]]:
    """What a kernel lists: the same objects with handles, counts and other spellings."""
    objects = copy.deepcopy(list(gateway_ruleset().expected))
    for handle, entry in enumerate(objects):
        for value in entry.values():
            value["handle"] = handle
            if "flags" in value:
                value["flags"] = ["timeout", "dynamic"]
    return objects


def test_a_listing_with_handles_and_flags_in_another_order_is_the_same_ruleset() -> None:
    assert canonical(listed()) == canonical(gateway_ruleset().expected)


def test_a_match_that_another_version_lists_as_implied_makes_no_difference() -> None:
    objects = listed()
    for entry in objects:
        rule = entry.get("rule")
        if rule is not None:
            rule["expr"] = [
                part
                for part in rule["expr"]
                if part.get("match", {}).get("left") != {"meta": {"key": "nfproto"}}
            ]
    assert canonical(objects) == canonical(gateway_ruleset().expected)


def test_a_missing_rule_a_changed_policy_and_a_changed_port_are_differences() -> None:
    expected = canonical(gateway_ruleset().expected)
    assert canonical(listed()[:-1]) != expected
    for change in ("policy", "port"):
        objects = listed()
        for entry in objects:
            if change == "policy" and entry.get("chain", {}).get("name") == "input":
                entry["chain"]["policy"] = "accept"
            if change == "port" and "rule" in entry:
                for part in entry["rule"]["expr"]:
                    if part.get("match", {}).get("right") == 3128:
                        part["match"]["right"] = 3129
        assert canonical(objects) != expected, change


def test_rules_that_are_not_there_are_not_blamed_on_the_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = "Error: No such file or directory\nlist counters table inet netns_runtime\n     ^^^^^\n"
    binding = SimpleNamespace(cmd=lambda _: (1, "", said))
    monkeypatch.setattr(nft, "_open", lambda: binding)
    with pytest.raises(StepError) as absent:
        nft.read_counters()
    assert "still starting, or has lost its rules" in str(absent.value)
    assert "^" not in str(absent.value)
    with pytest.raises(StepError, match="the kernel needs nf_tables"):
        nft.read_ruleset()
