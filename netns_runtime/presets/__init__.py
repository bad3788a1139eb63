"""Shipped policies, by name: a YAML file each, in the policy schema, or made from the user's own
configuration (pip, npm, apt).

`text_of` gives the YAML, which `policy.load_policy` reads as it reads any file. Ends in text, or in
one UsageError for a name that is none, or for a tool that has nothing configured.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final

from netns_runtime.errors import UsageError

if TYPE_CHECKING:
    from netns_runtime.presets.account import Account

CONFIGURED: Final = {
    "apt": "apt: what sources.list and sources.list.d name, read-only.",
    "npm": "npm: the registries that .npmrc and npm_config_* name, read-only.",
    "pip": "pip: the indexes that pip.conf and PIP_* name, read-only.",
}
"""Presets that read the user's configuration at run time, with what they are."""

_PLACE: Final = Path(__file__).parent


@cache
def names() -> tuple[str, ...]:
    """Every preset, in order."""
    return tuple(sorted([*CONFIGURED, *(path.stem for path in _PLACE.glob("*.yaml"))]))


def text_of(name: str, account: Account, said: str = "--preset") -> str:
    """The YAML of the preset `name` for the user `account`; `said` is what asked for it. Raises
    UsageError."""
    if name in CONFIGURED:
        from netns_runtime.presets.origin import yaml_of

        origins = import_module(f"netns_runtime.presets.{name}").origins(account)
        return yaml_of(name, CONFIGURED[name], origins)
    if name not in names():
        raise UsageError(
            f"{said} {name if name.isascii() and name.isprintable() else ascii(name)}: "
            "no such preset",
            remedy=_remedy_for(name),
        )
    return shipped(name)


def _remedy_for(name: str) -> str:
    from difflib import get_close_matches

    known = f"they are {', '.join(names())}"
    words = name.replace(",", " ").split()
    if len(words) > 1 and all(word in names() for word in words):
        return "repeat --preset: " + " ".join(f"--preset {word}" for word in words)
    near = get_close_matches(name, names(), 1, 0.75)
    return f"did you mean {near[0]}? {known}" if near else known


def shipped(name: str) -> str:
    """The YAML of a preset that is a file."""
    return (_PLACE / f"{name}.yaml").read_text(encoding="utf-8")


def about(name: str) -> str:
    """What a preset is, in a few words: its first line."""
    if name in CONFIGURED:
        return CONFIGURED[name].rstrip(".")
    return shipped(name).partition("\n")[0].lstrip("# ").rstrip(".")


def that_mention(secret: str) -> tuple[str, ...]:
    """The files that may bind the secret, without reading any of them as YAML."""
    return tuple(
        name for name in names() if name not in CONFIGURED and f"\n  {secret}:" in shipped(name)
    )
