"""From --preset and --secret to bindings and values, and what is refused on the way."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from netns_runtime import request, supplied
from netns_runtime.cli import dry_run
from netns_runtime.errors import UsageError
from netns_runtime.policy import load_policy
from netns_runtime.presets.account import Account
from netns_runtime.secret import placeholder_of
from netns_runtime.spec import Spec, parse_secret
from netns_runtime.supply import merged, notes_on, preset_policy, supply

if TYPE_CHECKING:
    from pathlib import Path

    from netns_runtime.policy import Policy
    from netns_runtime.supplied import Supplied

VALUE = "open-sesame-1234"
ACCOUNT = Account(0, 0, (0,), "/root", {})
POLICY = """\
version: 1
network_policies:
  api:
    endpoints:
      - {host: api.test, port: 443, protocol: rest, access: full}
      - {host: raw.test, port: 443, tls: skip}
secrets:
  TOKEN:
    hosts: [api.test]
    slots: [{header: authorization}]
"""
ENDPOINT = """\
version: 1
secrets:
  TOKEN:
    hosts: [api.test]
    slots: [{header: authorization}]
    expose: endpoint
    binaries: [{path: /bin/sh}]
"""


@pytest.fixture(autouse=True)
def _unguarded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netns_runtime.supply.guard_memory", lambda: None)


def policy(text: str = POLICY, name: str = "p.yaml") -> Policy:
    return load_policy(text.encode(), name)


def spec(*secrets: str, **fields: Any) -> Spec:
    fields = {"command": ("true",), "secrets": tuple(map(parse_secret, secrets))} | fields
    return Spec(**fields)


def supplies(
    given: Spec, which: Policy, environment: dict[str, str]
) -> tuple[Supplied, tuple[str, ...]]:
    found, notes = supply(
        given, which, environment, real_path=lambda _option, path: path, identify=lambda p: p
    )
    assert found is not None
    return found, notes


def test_a_secret_that_a_policy_binds_gets_its_value() -> None:
    found, _ = supplies(spec("TOKEN"), policy(), {"TOKEN": VALUE})
    [secret] = found.for_proxy
    assert (secret.name, secret.value, secret.binding.hosts) == ("TOKEN", VALUE, ("api.test",))


def test_a_secret_that_a_preset_knows_is_bound_as_shipped_without_its_rules() -> None:
    open_ = policy(POLICY.replace("raw.test", "slack.com").replace(", tls: skip", ""))
    found, notes = supplies(spec("SLACK_APP_TOKEN"), open_, {"SLACK_APP_TOKEN": VALUE})
    assert found.bindings[0].hosts == ("slack.com",)
    assert found.bindings[0].preset == "slack"
    assert notes == ()


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("OPENAI_API_KEY", "add --preset openai or --allow api.openai.com:443"),
        ("TOKEN", "add --allow api.test:443"),
    ],
)
def test_a_secret_asked_for_that_may_go_nowhere_is_refused(name: str, remedy: str) -> None:
    closed = policy(POLICY.replace("host: api.test", "host: else.test"))
    with pytest.raises(UsageError, match=f"--secret {name}: no rule allows any") as caught:
        supplies(spec(name), closed, {name: VALUE})
    assert caught.value.remedy == remedy


def test_a_secret_that_is_there_unasked_and_may_go_nowhere_is_noted() -> None:
    closed = policy(POLICY.replace("host: api.test", "host: else.test"))
    _, notes = supplies(spec(), closed, {"TOKEN": VALUE})
    assert "TOKEN has nowhere to go: no rule allows its hosts" in notes


def test_with_report_a_secret_that_may_go_nowhere_yet_is_noted() -> None:
    closed = policy(POLICY.replace("host: api.test", "host: else.test"))
    _, notes = supplies(spec("TOKEN", report=True), closed, {"TOKEN": VALUE})
    assert "TOKEN has nowhere to go: no rule allows its hosts" in notes


def test_a_preset_none_of_whose_variables_is_set_says_so() -> None:
    given = spec(presets=("discord", "pip"))
    whole = merged([], [preset_policy("discord", ACCOUNT)], policy("version: 1\n"))

    def told(environment: dict[str, str]) -> tuple[str, ...]:
        return supply(
            given, whole, environment, real_path=lambda _option, path: path, identify=lambda p: p
        )[1]

    assert told({}) == (
        "preset discord: DISCORD_BOT_TOKEN, DISCORD_TOKEN are not set; "
        "sudo passes on only what --preserve-env names",
    )
    assert not any("not set" in note for note in told({"DISCORD_TOKEN": VALUE}))


def test_a_secret_that_nobody_binds_is_refused() -> None:
    with pytest.raises(UsageError, match="--secret FOO: nothing says where it may go") as caught:
        supplies(spec("FOO"), policy(), {"FOO": VALUE})
    assert "secrets:" in caught.value.remedy


def test_a_policy_file_stands_over_a_preset() -> None:
    own = policy(POLICY.replace("TOKEN", "GITHUB_TOKEN"))
    shipped = policy(
        POLICY.replace("TOKEN", "GITHUB_TOKEN").replace("api.test", "x.test"), "preset"
    )
    found = merged([own], [shipped], policy("version: 1\n"))
    assert [binding.hosts for binding in found.secrets] == [("api.test",)]
    assert any("is bound by GITHUB_TOKEN (p.yaml:" in note for note in found.notes)


def test_two_files_that_bind_one_name_are_refused() -> None:
    with pytest.raises(UsageError, match=r"TOKEN is bound twice, .*p\.yaml.* and .*q\.yaml"):
        merged([policy(), policy(name="q.yaml")], [], policy("version: 1\n"))


def test_a_variable_that_a_given_policy_binds_is_a_secret_unasked() -> None:
    found, notes = supplies(spec(), policy(), {"TOKEN": VALUE})
    assert [secret.value for secret in found.secrets] == [VALUE]
    assert any("TOKEN of the environment is a secret" in note for note in notes)


@pytest.mark.parametrize("value", ["", placeholder_of("TOKEN")])
def test_a_bound_variable_without_a_value_of_its_own_is_left(value: str) -> None:
    found, _ = supply(
        spec(),
        policy(),
        {"TOKEN": value},
        real_path=lambda _option, path: path,
        identify=lambda p: p,
    )
    assert found is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (spec("TOKEN", "TOKEN"), "given twice"),
        (spec("TOKEN=fd:7", keep_fds=(7,)), "--keep-fd has that descriptor"),
        (spec("TOKEN=fd:7", status_fd=7), "--status-fd has that descriptor"),
        (spec("TOKEN=fd:7", audit="fd:7"), "--audit has that descriptor"),
        (spec("TOKEN=env:NONE"), "no such variable"),
        (
            spec("TOKEN", command=("curl", f"-HX: {VALUE}")),
            "word 2 of CMD holds the value of TOKEN",
        ),
    ],
)
def test_what_would_show_the_value_is_refused_without_showing_it(given: Spec, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        supplies(given, policy(), {"TOKEN": VALUE})
    assert VALUE not in str(caught.value)


@pytest.mark.parametrize("shown", ["pa%2Fss%3Aword%401", "pa%2fss%3aword%401"])
def test_an_argument_that_holds_the_value_percent_encoded_is_refused(shown: str) -> None:
    given = spec("TOKEN", command=("curl", f"https://u:{shown}@api.test/"))
    with pytest.raises(UsageError, match="word 2 of CMD holds the value of TOKEN") as caught:
        supplies(given, policy(), {"TOKEN": "pa/ss:word@1"})
    assert shown not in str(caught.value)


def test_cmd_keeps_no_descriptor_of_the_secret_s_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(VALUE)
    fd = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(UsageError, match="is the file of the secret TOKEN"):
            supplies(spec(f"TOKEN=file:{path}", keep_fds=(fd,)), policy(), {})
    finally:
        os.close(fd)


def test_the_file_of_a_secret_is_hidden(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(VALUE + "\n")
    found, _ = supplies(spec(f"TOKEN=file:{path}"), policy(), {})
    assert found.hidden == (str(path),)


def test_expose_endpoint_has_readers_and_a_token() -> None:
    found, _ = supplies(spec("TOKEN"), policy(ENDPOINT), {"TOKEN": VALUE})
    [(name, rule)] = found.readers
    assert (name, [binary.path for binary in rule.binaries or ()]) == ("TOKEN", ["/bin/sh"])
    assert len(found.token) == 64
    other, _ = supplies(spec("TOKEN"), policy(ENDPOINT), {"TOKEN": VALUE})
    assert other.token != found.token


def test_expose_env_keeps_the_value_from_the_proxy_because_cmd_has_it() -> None:
    text = POLICY + "    expose: env\n"
    found, _ = supplies(spec("TOKEN", command=("x", VALUE)), policy(text), {"TOKEN": VALUE})
    assert found.for_proxy == ()
    assert found.secrets[0].value == VALUE
    assert found.token == ""


def test_forgetting_leaves_no_value_and_no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETNS_UNIT_TOKEN", VALUE)
    text = POLICY.replace("TOKEN", "NETNS_UNIT_TOKEN")
    found, _ = supplies(spec("NETNS_UNIT_TOKEN"), policy(text), dict(os.environ))
    found.forget()
    assert found.secrets == ()
    assert "NETNS_UNIT_TOKEN" not in os.environ
    assert [entry["name"] for entry in found.listed()] == ["NETNS_UNIT_TOKEN"]


def test_no_value_is_in_a_repr_or_a_listing() -> None:
    found, notes = supplies(spec("TOKEN"), policy(ENDPOINT), {"TOKEN": VALUE})
    lines = dry_run.secret_lines(found)
    for text in (repr(found), repr(found.secrets), str(found.listed()), str(lines), str(notes)):
        assert VALUE not in text
        assert found.token not in text
    assert lines == [
        "TOKEN from env:TOKEN to api.test in header authorization, or read at the endpoint,"
        " by TOKEN (p.yaml:3)"
    ]


def test_a_rule_that_keeps_tls_closed_is_told() -> None:
    text = POLICY.replace("hosts: [api.test]", 'hosts: ["*.test"]')
    notes = notes_on(policy(text), policy(text).secrets)
    assert len(notes) == 1
    assert "TOKEN is not put in on the way to raw.test: `tls: skip`" in notes[0]


def test_a_short_value_in_an_argument_is_not_looked_for() -> None:
    found, _ = supplies(spec("TOKEN", command=("x", "-n1")), policy(), {"TOKEN": "1"})
    supplied.check_arguments(("x", "1"), found.secrets)


def test_a_launch_with_secrets_resolves_whole_and_forgets_at_its_end(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(POLICY)
    given = spec("TOKEN", policies=(str(path),), presets=("discord",), user="root")
    with request.resolve(given, {"TOKEN": VALUE}) as resolved:
        assert resolved.supplied is not None
        assert [secret.value for secret in resolved.supplied.secrets] == [VALUE]
        assert VALUE not in repr(resolved)
        assert "discord.com" in resolved.policy.hosts
        kept = resolved.supplied
    assert kept.secrets == ()


def test_a_launch_without_any_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("netns_runtime.supply.supply", None)
    with request.resolve(spec(allow=("a.test",)), {"TOKEN": VALUE}) as resolved:
        assert resolved.supplied is None


def test_a_launch_with_allow_alone_imports_nothing_of_secrets_and_presets() -> None:
    program = (
        "import sys\n"
        "from netns_runtime.cli.options import parse_command_line\n"
        "from netns_runtime.request import resolve\n"
        "import netns_runtime.environment\n"
        "spec = parse_command_line(['--allow', 'a.test', 'true'])\n"
        "with resolve(spec, {}): pass\n"
        "print(*sys.modules)"
    )
    said = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    assert "netns_runtime.request" in said
    unwanted = {"yaml", "subprocess", "netns_runtime.presets", "netns_runtime.supply"}
    assert not unwanted & set(said)
    assert not {"netns_runtime.supplied", "netns_runtime.secretsource"} & set(said)


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a directory away")
def test_a_link_that_cmd_could_replace_leads_to_no_secret(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(POLICY)
    token = tmp_path / "token"
    token.write_text(VALUE)
    home = tmp_path / "home"
    home.mkdir()
    (home / "link").symlink_to(token)
    given = spec(f"TOKEN=file:{home}/link", policies=(str(tmp_path / "p.yaml"),), user="54321")
    with request.resolve(given, {}) as resolved:
        assert resolved.supplied is not None
        assert resolved.supplied.hidden == (str(token),)
    os.chown(home, 54321, 54321)
    with (
        pytest.raises(UsageError, match="CMD could replace a link on the way to it"),
        request.resolve(given, {}),
    ):
        pass
