"""What pip is configured to fetch from: index-url, extra-index-url, find-links.

Read as pip reads them: the environment over the user's pip.conf over the system's. Where nothing is
configured, or the index is pip's own, pip itself is asked for its index and where that keeps files.
A virtual environment's pip.conf is not read: it lies where CMD writes.
"""

from __future__ import annotations

import configparser
from typing import TYPE_CHECKING, Final

from netns_runtime.errors import UsageError
from netns_runtime.presets.origin import Origin, no_origin, parse_origin

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netns_runtime.presets.account import Account

KEYS: Final = ("index-url", "extra-index-url", "find-links")
_ASK: Final = (
    "from pip._internal.models.index import PyPI as index\n"
    "print(index.simple_url, 'https://' + index.file_storage_domain)"
)


def origins(account: Account) -> list[Origin]:
    """Raises UsageError where no index is known."""
    found: list[Origin] = []
    wrong = ""
    has_index = False
    for key, url, said_by in _settings(account):
        origin = parse_origin(url, f"{key} of {said_by}")
        has_index = has_index or key == "index-url"
        if origin is not None:
            found.append(origin)
        elif key != "find-links" and not url.startswith("file:"):
            wrong = wrong or no_origin(key, said_by, url)
    own = _own(account)
    if not has_index:
        found += own
    elif any(origin.target == own[0].target for origin in found if own):
        found += own[1:]
    if not found and wrong:
        raise UsageError(f"--preset pip: {wrong}", remedy="correct it")
    if not found:
        raise UsageError(
            "--preset pip: pip has no index configured and cannot be asked for its own",
            remedy="set index-url in pip.conf or PIP_INDEX_URL, or install pip for python3",
        )
    return found


def _files(account: Account) -> list[str]:
    """From the weakest to the strongest (pip's configuration.py, get_configuration_files)."""
    environment, home = account.environment, account.home
    named = environment.get("PIP_CONFIG_FILE", "")
    if named == "/dev/null":
        return []
    shared = environment.get("XDG_CONFIG_DIRS") or "/etc/xdg"
    own = environment.get("XDG_CONFIG_HOME") or f"{home}/.config"
    return [
        *(f"{account.root}{place}/pip/pip.conf" for place in reversed(shared.split(":")) if place),
        f"{account.root}/etc/pip.conf",
        f"{home}/.pip/pip.conf",
        f"{own}/pip/pip.conf",
        *([named] if named else []),
    ]


def _settings(account: Account) -> Iterator[tuple[str, str, str]]:
    """(key, URL, where it is said): of each section of the files the strongest."""
    values: dict[tuple[str, str], tuple[str, str]] = {}
    for path in _files(account):
        text = account.read(path)
        if text is None:
            continue
        parser = configparser.RawConfigParser()
        try:
            parser.read_string(text)
        except configparser.Error:
            raise UsageError(f"--preset pip: {path} is no pip.conf", remedy="correct it") from None
        for section in parser.sections():
            for name, value in parser.items(section):
                key = name.lower().replace("_", "-")
                values[section, key] = (value, path)
    for key in KEYS:
        variable = f"PIP_{key.upper().replace('-', '_')}"
        if account.environment.get(variable):
            chosen = [(account.environment[variable], variable)]
        else:
            chosen = [value for (_, name), value in values.items() if name == key]
        for value, said_by in chosen:
            for url in [value] if key == "index-url" else value.split():
                yield key, url, said_by


def _own(account: Account) -> list[Origin]:
    said = account.ask("python3", "-I", "-c", _ASK) or ""
    found = [parse_origin(word, "pip's own default") for word in said.split()]
    return [origin for origin in found if origin is not None]
