"""What the lab's servers know of secrets: the values they take, and whether a placeholder came.

A test gives names their values (`accept`); a server asks `name_of` what it was offered, as the real
service would ask its own database. Everything that arrives is looked through by `look`, decoded in
each way a placeholder could be dressed in, and what is found is told in `seen.placeholders`.
"""

from __future__ import annotations

import base64
import binascii
import re
import zlib
from typing import TYPE_CHECKING, Final, Protocol
from urllib.parse import unquote_plus

from tests.support.world import PLACEHOLDER

if TYPE_CHECKING:
    from collections.abc import Iterator

_BASE64: Final = re.compile(r"[A-Za-z0-9+/_-]{16,}={0,2}")
_NOT_MORE: Final = 1 << 20


class SeenPlaceholders(Protocol):
    placeholders: list[tuple[str, str]]


def _unzipped(text: str) -> str:
    try:
        opened = zlib.decompressobj(47).decompress(text.encode("latin-1"), _NOT_MORE)
    except (zlib.error, UnicodeEncodeError):
        return ""
    return opened.decode("latin-1")


def dressed(text: str) -> Iterator[str]:
    """The text, and what it says to somebody who decodes it."""
    text = text[:_NOT_MORE]
    yield text
    yield unquote_plus(text)
    yield re.sub(r"\\u([0-9a-fA-F]{4})", lambda found: chr(int(found[1], 16)), text)
    yield text.replace("\\/", "/")
    yield _unzipped(text)
    for found in _BASE64.findall(text):
        try:
            yield base64.urlsafe_b64decode(
                found.replace("+", "-").replace("/", "_") + "=" * (-len(found) % 4)
            ).decode("latin-1")
        except (binascii.Error, ValueError):
            continue


def mentions(text: str, what: str = PLACEHOLDER) -> bool:
    return any(what in form for form in dressed(text))


class Vault:
    """The values the lab takes, by the secret's name; a name can have several."""

    def __init__(self, seen: SeenPlaceholders) -> None:
        self._seen = seen
        self._values: dict[str, str] = {}

    def accept(self, name: str, value: str) -> None:
        self._values[value] = name

    def name_of(self, offered: str) -> str | None:
        """Whose value this is; None for anything else, a placeholder above all."""
        return self._values.get(offered)

    def look(self, where: str, text: str) -> None:
        """Write down that a placeholder arrived at `where`, if one is in the text."""
        if mentions(text):
            at = max(text.find("openshell") - 40, 0)
            self._seen.placeholders.append((where, text[at : at + 200]))
