"""The command line is a contract: what it accepts, and the one line for each mistake."""

from __future__ import annotations

import pytest

from netns_runtime.cli.options import parse_command_line
from netns_runtime.errors import UsageError
from netns_runtime.spec import Spec, parse_limit, parse_resolver


def parsed(*words: str) -> Spec:
    spec = parse_command_line(words)
    assert isinstance(spec, Spec)
    return spec


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (("true",), ("true",)),
        (("--", "true"), ("true",)),
        (("--", "--weird", "-x"), ("--weird", "-x")),
        (("-v", "sh", "-c", "--", "x"), ("sh", "-c", "--", "x")),
        (("--allow", "a.test", "sh", "--allow", "b"), ("sh", "--allow", "b")),
        (("--", "--"), ("--",)),
    ],
)
def test_the_command_begins_at_the_first_word_that_is_no_option(
    words: tuple[str, ...], command: tuple[str, ...]
) -> None:
    assert parsed(*words).command == command


def test_every_option_of_the_contract_reaches_the_spec() -> None:
    spec = parsed(
        *("--policy", "p.yaml", "--policy=q.yaml", "--allow", "a.test", "--allow", "b.test:22"),
        *("--preset", "slack", "--preset=pip", "--secret", "A", "--secret=B=file:/x=y"),
        *("--redirect", "off", "--uplink", "lab", "--resolver", "192.0.2.53:5353"),
        *("--upstream-ca", "ca.pem", "--audit", "fd:3", "--status-fd", "4", "--user", "nobody"),
        *("--read-only", "--writable", "/srv", "--expose-socket", "/run/x", "--keep-fd", "7"),
        *("--limit", "flows=5", "--limit", "memory=64m", "--name", "x-1", "--probe", "nft"),
        *("--report", "--dry-run", "--verbose", "--", "cmd"),
    )
    assert spec.policies == ("p.yaml", "q.yaml")
    assert spec.allow == ("a.test", "b.test:22")
    assert spec.presets == ("slack", "pip")
    assert [(s.name, str(s)) for s in spec.secrets] == [("A", "env:A"), ("B", "file:/x=y")]
    assert spec.redirect is False
    assert spec.resolver == ("192.0.2.53", 5353)
    assert (spec.uplink, spec.upstream_ca, spec.audit) == ("lab", "ca.pem", "fd:3")
    assert (spec.status_fd, spec.user, spec.keep_fds) == (4, "nobody", (7,))
    assert (spec.read_only, spec.writable, spec.expose_sockets) == (True, ("/srv",), ("/run/x",))
    assert (spec.limits.flows, spec.limits.memory, spec.limits.names) == (5, 64 << 20, 1000)
    assert (spec.name, spec.probe) == ("x-1", "nft")
    assert spec.report
    assert spec.dry_run
    assert spec.verbose


@pytest.mark.parametrize("word", ["--help", "-h", "--version"])
def test_information_is_asked_for_without_a_command(word: str) -> None:
    assert parse_command_line((word,)) == word


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "no command to run"),
        (("--",), "no command to run"),
        (("-v",), "no command to run"),
        (("--polcy", "x", "true"), "unknown option --polcy: did you mean --policy?"),
        (("-z", "true"), "unknown option -z"),
        (("--allow",), "--allow needs a value"),
        (("--allow=", "true"), "--allow needs a value"),
        (("--allow", "--", "true"), "--allow needs a value: -- is an option of its own"),
        (("--audit", "--report", "true"), "--audit needs a value"),
        (("--allow", "--audit=x", "true"), "--allow needs a value"),
        (("--report=yes", "true"), "--report takes no value"),
        (("--redirect", "maybe", "true"), "--redirect maybe: unknown value: use on or off"),
        (("--probe", "ebpf", "true"), "--probe ebpf: unknown value"),
        (("--resolver", "dns.test", "true"), "'dns.test' is no IP address"),
        (("--resolver", "192.0.2.1:0", "true"), "'0' is no port"),
        (("--resolver", "192.0.2.1:65536", "true"), "'65536' is no port"),
        (("--status-fd", "x", "true"), "--status-fd x: not a descriptor number"),
        (("--keep-fd", "-1", "true"), "--keep-fd -1: not a descriptor number"),
        (("--limit", "flows=", "true"), "'' is no positive number"),
        (("--limit", "flows=0", "true"), "'0' is no positive number"),
        (("--limit", "flows=1k", "true"), "'1k' is no positive number"),
        (("--limit", "rate=1", "true"), "'rate' is no limit"),
        (("--name", "../x", "true"), "not a name"),
        (("--name", "a" * 64, "true"), "not a name"),
        (("--publish", "80", "true"), "--publish: this version has no published ports"),
        (("--secret", "MY-TOKEN", "true"), "--secret: the name is no variable's"),
        (("--secret", "1BAD", "true"), "and begins with no digit"),
        (("--secret", "T=", "true"), "--secret T=: the source is missing: give one of env:VAR"),
        (("--secret", "T=env:", "true"), "--secret T=env:: the variable's name is missing"),
        (("--secret", "T=file:", "true"), "--secret T=file:: the path is missing"),
        (("--secret", "T=fd:", "true"), "--secret T=fd:: the number is missing"),
        (("--secret", "T=env:a=b", "true"), "--secret T: the source is none of env:VAR"),
        (("--bogus", "true"), "unknown option --bogus: see netns-run --help"),
    ],
)
def test_a_mistake_is_told_in_one_line_that_names_it(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_command_line(words)
    message = str(caught.value)
    assert said in message
    assert "\n" not in message
    assert caught.value.status == 125


@pytest.mark.parametrize(
    ("text", "resolver"),
    [
        ("192.0.2.1", ("192.0.2.1", 53)),
        ("192.0.2.1:54", ("192.0.2.1", 54)),
        ("2001:db8::1", ("2001:db8::1", 53)),
        ("[2001:DB8::1]:54", ("2001:db8::1", 54)),
        ("[2001:db8::1]", ("2001:db8::1", 53)),
    ],
)
def test_a_resolver_may_have_a_port(text: str, resolver: tuple[str, int]) -> None:
    assert parse_resolver(text) == resolver


def test_limits_keep_what_they_do_not_name() -> None:
    first = parse_limit("flows=7", Spec(command=("x",)).limits)
    assert parse_limit("memory=1g", first).flows == 7


@pytest.mark.parametrize(
    "given",
    [
        "TOKEN=xoxb-sesame",
        "xoxb-sesame",
        "T=fd:sesame",
        "T=FILE:sesame",
        "T=env:a=sesame",
        "=sesame",
    ],
)
def test_what_is_no_source_may_be_a_value_and_is_not_shown(given: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_command_line(("--secret", given, "true"))
    assert "sesame" not in str(caught.value)
