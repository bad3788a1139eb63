"""The archives that apt is configured to fetch from: sources.list and sources.list.d.

Both forms are read (sources.list(5)): one line each, and deb822 stanzas. A mirror list that is a
local file (`mirror+file:`) is followed; a disabled entry is not.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from netns_runtime.errors import UsageError
from netns_runtime.presets.origin import Origin, parse_origin

if TYPE_CHECKING:
    from collections.abc import Iterator

    from netns_runtime.presets.account import Account

_LINE: Final = re.compile(r"[ \t]*deb(?:-src)?[ \t]+(?:\[[^\]]*\][ \t]*)?(\S+)[ \t].*")
_NO: Final = frozenset({"no", "false", "without", "off", "disable", "0"})
# apt-transport-mirror(1): without a further scheme the list itself is fetched by http.
_MIRROR_FILE: Final = "mirror+file:"


def origins(account: Account) -> list[Origin]:
    """Raises UsageError where no archive is configured."""
    base = f"{account.root}/etc/apt"
    paths = [
        f"{base}/sources.list",
        *(
            f"{base}/sources.list.d/{name}"
            for name in account.entries(f"{base}/sources.list.d")
            if name.endswith((".list", ".sources"))
        ),
    ]
    found: list[Origin] = []
    for path in paths:
        text = account.read(path) or ""
        urls = stanza_urls(text) if path.endswith(".sources") else line_urls(text)
        for url in urls:
            found += _origins_of(url, path, account)
    if not found:
        raise UsageError(
            "--preset apt: no entry of sources.list names a host", remedy=f"see {base}/sources.list"
        )
    return found


def line_urls(text: str) -> Iterator[str]:
    """The URIs of one-line entries."""
    for line in text.splitlines():
        match = _LINE.fullmatch(line.partition("#")[0] + " ")
        if match is not None:
            yield match[1]


def stanza_urls(text: str) -> Iterator[str]:
    """The URIs of deb822 stanzas that are enabled."""
    lines = (line.rstrip() for line in text.splitlines() if not line.startswith("#"))
    for stanza in "\n".join(lines).split("\n\n"):
        fields: dict[str, str] = {}
        key = ""
        for line in stanza.splitlines():
            if line[:1] in {" ", "\t"}:
                fields[key] = f"{fields.get(key, '')} {line.strip()}"
            else:
                key, _, value = line.partition(":")
                key = key.strip().lower()
                fields[key] = value.strip()
        if fields.get("enabled", "yes").lower() not in _NO:
            yield from fields.get("uris", "").split()


def _origins_of(url: str, said_by: str, account: Account) -> Iterator[Origin]:
    if url.startswith(_MIRROR_FILE):
        path = account.root + "/" + url.removeprefix(_MIRROR_FILE).lstrip("/")
        for line in (account.read(path) or "").splitlines():
            yield from _one(line.partition("#")[0].split("\t")[0], path)
        return
    yield from _one("http" + url[6:] if url.startswith("mirror:") else url, said_by)


def _one(url: str, said_by: str) -> Iterator[Origin]:
    origin = parse_origin(url, said_by)
    if origin is not None:
        yield origin
