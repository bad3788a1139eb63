"""`netns-debug preset`: which presets there are, and what each allows and binds."""

from __future__ import annotations

import os
from typing import Any

from netns_runtime import presets
from netns_runtime.cli.text import columns, say, say_json
from netns_runtime.policy import Policy, load_policy
from netns_runtime.request import account_of, resolve_user


def list_presets(*, as_json: bool) -> None:
    """Print every preset with the secrets it knows."""
    rows = [
        {"name": name, "about": presets.about(name), "secrets": _secrets_of(name)}
        for name in presets.names()
    ]
    if as_json:
        say_json(rows)
        return
    cells = [(row["name"], row["about"], " ".join(row["secrets"]) or "-") for row in rows]
    say(columns(("NAME", "WHAT", "SECRETS"), cells))


def show_preset(name: str, *, as_json: bool) -> None:
    """Print one preset as YAML, or as JSON. Raises UsageError for a name that is none."""
    account = account_of(resolve_user(None, os.environ), os.environ)
    text = presets.text_of(name, account, "preset show")
    if not as_json:
        say(text.rstrip("\n"))
        return
    say_json({"name": name, "about": presets.about(name), **described(_loaded(name, text))})


def described(policy: Policy) -> dict[str, Any]:
    """Endpoints and bindings as plain values."""
    return {
        "endpoints": [
            {
                "host": endpoint.host,
                "ports": endpoint.ports,
                "protocol": endpoint.inspection.protocol if endpoint.inspection else None,
                "access": endpoint.inspection.access if endpoint.inspection else None,
                "tls": endpoint.inspection.tls if endpoint.inspection else None,
            }
            for rule in policy.rules
            for endpoint in rule.endpoints
        ],
        "secrets": [
            {
                "name": binding.name,
                "hosts": binding.hosts,
                "slots": [str(slot) for slot in binding.slots],
                "expose": binding.expose,
            }
            for binding in policy.secrets
        ],
    }


def _secrets_of(name: str) -> list[str]:
    if name in presets.CONFIGURED:
        return []
    return [binding.name for binding in _loaded(name, presets.shipped(name)).secrets]


def _loaded(name: str, text: str) -> Policy:
    return load_policy(text.encode("utf-8"), f"preset {name}")
