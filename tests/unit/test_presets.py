"""Every shipped preset: that it loads, what it binds, and what it never does."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from netns_runtime import presets
from netns_runtime.address import HostPort
from netns_runtime.errors import UsageError
from netns_runtime.policy import Policy, decide, load_policy
from netns_runtime.policy.hosts import host_matches
from netns_runtime.presets.account import Account

SHIPPED = tuple(name for name in presets.names() if name not in presets.CONFIGURED)
NOBODY = Account(65534, 65534, (65534,), "/nonexistent", {})


@cache
def loaded(name: str) -> Policy:
    return load_policy(presets.shipped(name).encode(), f"preset {name}")


def test_the_presets_of_the_contract_are_there() -> None:
    assert set(presets.names()) == {
        *("slack", "discord", "telegram", "github", "anthropic", "openai", "nvidia"),
        *("huggingface", "microsoft-teams", "gmail", "jira", "whatsapp", "pip", "npm", "apt"),
    }


@pytest.mark.parametrize("name", SHIPPED)
def test_a_preset_loads_without_notes_and_names_itself_in_its_rules(name: str) -> None:
    policy = loaded(name)
    assert policy.notes == ()
    assert all(f"(preset {name}:" in rule.text for rule in policy.rules)
    assert all(f"(preset {name}:" in binding.text for binding in policy.secrets)
    assert presets.about(name)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_host_that_a_secret_goes_to_is_allowed_by_its_preset(name: str) -> None:
    policy = loaded(name)
    for binding in policy.secrets:
        for host in binding.hosts:
            target = HostPort(host.replace("*", "x"), 443)
            assert decide(policy, target).is_allowed, (binding.name, host)


def test_no_two_presets_bind_one_name() -> None:
    found = [binding.name for name in SHIPPED for binding in loaded(name).secrets]
    assert len(found) == len(set(found))


@pytest.mark.parametrize(
    ("name", "secret", "slots"),
    [
        ("slack", "SLACK_BOT_TOKEN", {"header authorization", "form token"}),
        ("slack", "SLACK_APP_TOKEN", {"header authorization", "form token"}),
        ("discord", "DISCORD_BOT_TOKEN", {"header authorization", "websocket /d/token"}),
        ("telegram", "TELEGRAM_BOT_TOKEN", {"path 0", "path 1"}),
        ("github", "GITHUB_TOKEN", {"header authorization", "basic password", "basic user"}),
        ("github", "GH_TOKEN", {"header authorization", "basic password", "basic user"}),
        ("anthropic", "ANTHROPIC_API_KEY", {"header x-api-key", "header authorization"}),
        ("openai", "OPENAI_API_KEY", {"header authorization"}),
        ("nvidia", "NVIDIA_API_KEY", {"header authorization"}),
        ("huggingface", "HF_TOKEN", {"header authorization", "basic password"}),
    ],
)
def test_a_secret_goes_where_the_ecosystem_puts_it(name: str, secret: str, slots: set[str]) -> None:
    [binding] = [binding for binding in loaded(name).secrets if binding.name == secret]
    assert {str(slot) for slot in binding.slots} == slots
    assert presets.that_mention(secret) == (name,)


def test_discord_puts_the_token_into_identify_and_resume_alone() -> None:
    binding = next(b for b in loaded("discord").secrets if b.name == "DISCORD_BOT_TOKEN")
    [slot] = [slot for slot in binding.slots if slot.kind == "websocket"]
    assert slot.when == ("/op", (2, 6))
    assert any(host_matches(host, "gateway-us-east1-b.discord.gg") for host in binding.hosts)


@pytest.mark.parametrize(
    ("name", "host"),
    [
        ("discord", "cdn.discordapp.com"),
        ("github", "objects.githubusercontent.com"),
        ("huggingface", "cas-bridge.xethub.hf.co"),
        ("slack", "slack.com.attacker.test"),
        ("discord", "discord.gg"),
    ],
)
def test_a_secret_does_not_go_to_storage_or_strangers(name: str, host: str) -> None:
    for binding in loaded(name).secrets:
        assert not any(host_matches(pattern, host) for pattern in binding.hosts)


def test_an_unknown_preset_is_one_line_that_guesses() -> None:
    with pytest.raises(UsageError, match="did you mean slack"):
        presets.text_of("slakc", NOBODY)
    with pytest.raises(UsageError, match="no such preset: they are anthropic"):
        presets.text_of("../../etc/passwd", NOBODY)
    with pytest.raises(UsageError) as caught:
        presets.text_of("nope", NOBODY, "preset show")
    assert str(caught.value).startswith("preset show nope: no such preset: they are anthropic")
    with pytest.raises(UsageError, match="repeat --preset: --preset discord --preset slack"):
        presets.text_of("discord,slack", NOBODY)


def test_no_file_of_a_configured_preset_names_a_host() -> None:
    place = Path(presets.__file__).parent
    for name in (*presets.CONFIGURED, "origin", "account", "__init__"):
        text = (place / f"{name}.py").read_text(encoding="utf-8")
        assert not re.search(
            r"\b[a-z0-9-]+\.(?:org|com|net|io|dev)\b(?!/?\))", text.replace("nodejs.org", "")
        ), name
