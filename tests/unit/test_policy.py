"""What the policy decides: the names of these tests are its specification."""

from __future__ import annotations

import pickle
from ipaddress import ip_network

import pytest

from netns_runtime.address import parse_authority
from netns_runtime.errors import UsageError
from netns_runtime.owner import Owner
from netns_runtime.policy import (
    EMPTY,
    Binary,
    Decision,
    Endpoint,
    Identity,
    Policy,
    Rule,
    decide,
    load_policy,
    parse_allow,
)

CURL = Identity(inode=11, device=0x800001, path="/usr/bin/curl")


def allowing(*flags: str) -> Policy:
    return Policy(tuple(map(parse_allow, flags)))


def judged(policy: Policy, target: str, owner: Owner | None = None) -> Decision:
    return decide(policy, parse_authority(target), owner)


ALLOWED = {
    "a host on port 443 by default": ("api.test", "api.test:443"),
    "a host on port 80 by default": ("api.test", "api.test:80"),
    "a host on its own port": ("api.test:8443", "api.test:8443"),
    "a host on any port": ("api.test:*", "api.test:1"),
    "a host in another case": ("API.test", "api.TEST:443"),
    "a host with a trailing dot": ("api.test.", "api.test:443"),
    "a host asked for with a trailing dot": ("api.test", "api.test.:443"),
    "a host in U-labels": ("bücher.test", "xn--bcher-kva.test:443"),
    "one label under a wildcard": ("*.example.test", "a.example.test:443"),
    "two labels under a wildcard": ("*.example.test", "a.b.example.test:443"),
    "labels under a double wildcard": ("**.example.test", "a.b.example.test:443"),
    "a wildcard in U-labels": ("*.bücher.test", "a.xn--bcher-kva.test:443"),
    "a wildcard in the first label": ("*-api.example.test", "eu-api.example.test:443"),
    "a wildcard inside the first label": ("a*b*c.example.test", "axxbyyc.example.test:443"),
    "a whole label in the middle": ("api.*.example.test", "api.eu.example.test:443"),
    "an IPv4 address": ("192.0.2.1", "192.0.2.1:443"),
    "an IPv4 address in mapped form": ("192.0.2.1", "[::ffff:192.0.2.1]:443"),
    "an IPv6 address": ("[2001:db8::1]:8080", "[2001:DB8::0:1]:8080"),
    "an IPv6 address on any port": ("[2001:db8::1]:*", "[2001:db8::1]:9"),
}

REFUSED = {
    "another host": ("api.test", "evil.test:443"),
    "a host that ends alike": ("api.test", "evilapi.test:443"),
    "a host that begins alike": ("api.test", "api.test.evil.test:443"),
    "a name under an exact host": ("api.test", "a.api.test:443"),
    "another port": ("api.test", "api.test:8080"),
    "the default ports where one is given": ("api.test:8443", "api.test:443"),
    "the bare name of a wildcard": ("*.example.test", "example.test:443"),
    "the bare name of a double wildcard": ("**.example.test", "example.test:443"),
    "a host that ends like a wildcard": ("*.example.test", "evilexample.test:443"),
    "a shorter label than the wildcard's": ("ab*ba.example.test", "aba.example.test:443"),
    "two labels where one is wild": ("api.*.example.test", "api.a.b.example.test:443"),
    "no label where one is wild": ("api.*.example.test", "api.example.test:443"),
    "a dot inside a wild first label": ("*-api.example.test", "a.b-api.example.test:443"),
    "another IPv4 address": ("192.0.2.1", "192.0.2.2:443"),
    "an IPv6 form of another address": ("192.0.2.1", "[::ffff:192.0.2.2]:443"),
}


@pytest.mark.parametrize(("flag", "target"), ALLOWED.values(), ids=ALLOWED)
def test_allows(flag: str, target: str) -> None:
    decision = judged(allowing(flag), target)
    assert decision.is_allowed
    assert (decision.action, decision.reason) == ("allow", "allowed")
    assert decision.remedy == ""


@pytest.mark.parametrize(("flag", "target"), REFUSED.values(), ids=REFUSED)
def test_refuses(flag: str, target: str) -> None:
    decision = judged(allowing(flag), target)
    assert (decision.action, decision.reason) == ("refuse", "http_request_denied")
    assert decision.allowed_ips == ()


@pytest.mark.parametrize("target", [target for _, target in REFUSED.values()])
def test_the_remedy_of_a_refusal_allows_exactly_what_was_refused(target: str) -> None:
    remedy = judged(EMPTY, target).remedy
    assert remedy.startswith("--allow ")
    assert judged(allowing(remedy.removeprefix("--allow ")), target).is_allowed


def test_an_empty_policy_refuses_everything() -> None:
    assert judged(EMPTY, "api.test:443").rule is None


def test_names_the_flag_that_allowed() -> None:
    assert judged(allowing("API.test:443"), "api.test:443").rule == "--allow API.test:443"


def test_says_which_ports_a_known_host_has() -> None:
    decision = judged(allowing("api.test"), "api.test:8080")
    assert decision.rule == "--allow api.test"
    assert "port 80 and 443" in decision.detail


def test_says_that_a_wildcard_does_not_cover_its_bare_name() -> None:
    assert (
        "not example.test itself" in judged(allowing("*.example.test"), "example.test:443").detail
    )


BAD_FLAGS = {
    "nothing": "",
    "any host": "*",
    "any host, twice": "**",
    "only wildcards": "*.*",
    "a scheme": "https://api.test",
    "a path": "api.test/v1",
    "a range": "10.0.0.0/8",
    "a user": "me@api.test",
    "port 0": "api.test:0",
    "an impossible port": "api.test:65536",
    "a port that is no number": "api.test:http",
    "an empty port": "api.test:",
    "bare IPv6": "2001:db8::1",
    "an open bracket": "[::1",
    "something behind the bracket": "[::1]80",
    "a short IPv4 form": "127.1",
    "a space": "api test",
    "a newline": "api.test\n",
    "** in the middle": "api.**.test",
    "** inside a label": "a**.example.test",
    "a star inside a later label": "api.a*.example.test",
    "a wildcard over an address": "*.0.0.1",
}


@pytest.mark.parametrize("flag", BAD_FLAGS.values(), ids=BAD_FLAGS)
def test_refuses_the_flag(flag: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_allow(flag)
    message = str(caught.value)
    assert message.startswith("--allow ")
    assert message.isprintable()
    assert caught.value.remedy


def rule_for(host: str, *binaries: Binary, ips: tuple[str, ...] = (), text: str = "r") -> Rule:
    endpoint = Endpoint(host, (443,), tuple(map(ip_network, ips)))
    return Rule(text, (endpoint,), binaries or None)


def test_the_more_specific_of_two_rules_decides() -> None:
    wide = rule_for("**.example.test", ips=("0.0.0.0/0",), text="wide")
    narrow = rule_for("*.example.test", ips=("10.0.0.0/8",), text="narrow")
    exact = rule_for("a.example.test", ips=("10.1.0.0/16",), text="exact")
    for rules in ((wide, narrow, exact), (exact, narrow, wide)):
        assert judged(Policy(rules), "a.example.test:443").rule == "exact"
        assert judged(Policy(rules), "b.example.test:443").rule == "narrow"
        assert judged(Policy(rules), "a.b.example.test:443").rule == "wide"


def test_a_rule_with_allowed_ips_is_narrower_than_the_same_without() -> None:
    pinned = rule_for("api.test", ips=("10.0.0.0/8",))
    for rules in ((parse_allow("api.test"), pinned), (pinned, parse_allow("api.test"))):
        assert judged(Policy(rules), "api.test:443").allowed_ips == (ip_network("10.0.0.0/8"),)


def test_an_endpoint_without_host_takes_any_name_and_only_listed_addresses() -> None:
    policy = Policy((rule_for("", ips=("10.1.0.0/16",)),))
    decision = judged(policy, "whatever.test:443")
    assert decision.is_allowed
    assert decision.allowed_ips == (ip_network("10.1.0.0/16"),)
    assert judged(policy, "10.1.2.3:443").is_allowed
    assert not judged(policy, "10.2.2.3:443").is_allowed
    assert not judged(policy, "whatever.test:80").is_allowed


def test_policies_together_allow_what_any_of_them_allows() -> None:
    merged = Policy.merged(allowing("a.test"), EMPTY, allowing("b.test"))
    assert judged(merged, "a.test:443").is_allowed
    assert judged(merged, "b.test:443").is_allowed
    assert not judged(merged, "c.test:443").is_allowed


def test_a_policy_survives_pickling_and_still_decides() -> None:
    policy = Policy.merged(allowing("a.test", "*.b.test"), Policy((), ("a note",)))
    copy = pickle.loads(pickle.dumps(policy))
    assert copy == policy
    assert judged(copy, "a.test:443").is_allowed
    assert judged(copy, "x.b.test:443").is_allowed


ONLY_CURL = Policy((rule_for("api.test", Binary("/usr/bin/curl", 1, (CURL,)), text="only curl"),))


def test_a_rule_with_binaries_is_for_that_inode() -> None:
    curl = Owner(7, "curl", CURL.inode, CURL.device, CURL.path)
    assert judged(ONLY_CURL, "api.test:443", curl).is_allowed


def test_the_path_counts_for_nothing_where_the_inode_differs() -> None:
    fake = Owner(7, "curl", 12, CURL.device, CURL.path)
    assert not judged(ONLY_CURL, "api.test:443", fake).is_allowed


def test_the_same_inode_number_on_another_device_is_another_file() -> None:
    other = Owner(7, "curl", CURL.inode, 0x900001, "/mnt/usb/curl")
    assert not judged(ONLY_CURL, "api.test:443", other).is_allowed


def test_the_same_inode_and_path_on_another_device_is_the_file() -> None:
    overlay = Owner(7, "curl", CURL.inode, 0x900001, CURL.path)
    assert judged(ONLY_CURL, "api.test:443", overlay).is_allowed


def test_an_unknown_process_matches_no_rule_with_binaries() -> None:
    for owner in (None, Owner(7, "curl"), Owner(7, "curl", 0, 0, CURL.path)):
        decision = judged(ONLY_CURL, "api.test:443", owner)
        assert not decision.is_allowed
        assert decision.rule == "only curl"
    assert "unknown" in judged(ONLY_CURL, "api.test:443", None).detail


def test_a_binary_that_was_never_identified_matches_nobody() -> None:
    policy = Policy((rule_for("api.test", Binary("/usr/bin/curl")),))
    owner = Owner(7, "curl", CURL.inode, CURL.device, CURL.path)
    assert not judged(policy, "api.test:443", owner).is_allowed


def test_empty_binaries_match_nobody() -> None:
    policy = Policy((Rule("r", (Endpoint("api.test", (443,)),), ()),))
    owner = Owner(7, "curl", CURL.inode, CURL.device, CURL.path)
    assert not judged(policy, "api.test:443", owner).is_allowed


def test_a_rule_for_other_executables_takes_nothing_from_a_rule_for_all() -> None:
    policy = Policy((*ONLY_CURL.rules, parse_allow("*.test")))
    assert judged(policy, "api.test:443", Owner(7, "node", 5, 6, "/usr/bin/node")).is_allowed


def test_a_refused_executable_is_told_with_the_line_that_would_allow_it() -> None:
    decision = judged(ONLY_CURL, "api.test:443", Owner(7, "node", 5, 6, "/usr/bin/node"))
    assert "/usr/bin/curl" in decision.detail
    assert "- path: /usr/bin/node" in decision.remedy


def test_what_the_sandbox_chose_never_reaches_a_message_raw() -> None:
    hostile = Owner(7, "no\x1b[2Jde", 5, 6, "/tmp/\r\nX-Evil: 1\x1b[31m")
    decision = judged(ONLY_CURL, "api.test:443", hostile)
    for text in (decision.detail, decision.remedy):
        assert text.isascii()
        assert text.isprintable()


def test_a_file_and_flags_work_together() -> None:
    data = b"network_policies:\n  a:\n    endpoints: [{host: a.test, port: 443}]\n"
    policy = Policy.merged(load_policy(data, "p.yaml"), allowing("b.test"))
    assert judged(policy, "a.test:443").rule == "a (p.yaml:2)"
    assert judged(policy, "b.test:443").rule == "--allow b.test"
