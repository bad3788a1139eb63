"""Text as it may be spelt on the wire: plain, percent-encoded, escaped for JSON or HTML.

A text becomes a list of atoms, one for each character, each with all its spellings; from them come
two regular expressions: one that finds the text, and one that finds a beginning of it at the end of
what has arrived so far, which has to be held back. Pure, and cannot fail.
"""

from __future__ import annotations

import json
import re
from itertools import product
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_HTML: Final = {
    "&": (b"&amp;",),
    "<": (b"&lt;",),
    ">": (b"&gt;",),
    '"': (b"&quot;", b"&#34;"),
    "'": (b"&#39;", b"&#x27;", b"&apos;"),
}


def octets_of(text: str) -> bytes:
    """UTF-8; octets that the environment holds undecoded come out as they were. Never raises."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def any_case(digits: str) -> list[str]:
    """Every mixture of cases of some hexadecimal digits."""
    return ["".join(mixed) for mixed in product(*({d.lower(), d.upper()} for d in digits))]


def percent_encoded(octet: int) -> list[bytes]:
    return [f"%{digits}".encode() for digits in any_case(f"{octet:02x}")]


def json_escaped(character: str) -> list[bytes]:
    """Its \\uXXXX forms, and the short one if there is one; in one case of digits if not ASCII."""
    short = [json.dumps(character)[1:-1].encode()] if character in '"\\' else []
    if character == "/":
        short = [b"\\/"]
    if ord(character) < 0x80:
        return short + [f"\\u{digits}".encode() for digits in any_case(f"{ord(character):04x}")]
    lower = json.dumps(character)[1:-1]
    return [lower.encode(), lower.upper().replace("\\U", "\\u").encode()]


def spellings_of(character: str) -> list[bytes]:
    """Every spelling of a character that an honest upstream may reflect."""
    raw = octets_of(character)
    found = [raw, *json_escaped(character), *_HTML.get(character, ())]
    if len(raw) == 1:
        found += percent_encoded(raw[0])
    else:
        lower = "".join(f"%{octet:02x}" for octet in raw)
        found += [lower.encode(), lower.upper().encode()]
    if character == " ":
        found.append(b"+")
    return found


def either(spellings: Iterable[bytes]) -> bytes:
    """A pattern of one atom, longest spelling first."""
    return b"(?:%s)" % b"|".join(_ordered(spellings))


def _ordered(spellings: Iterable[bytes]) -> list[bytes]:
    ordered = sorted(set(spellings), key=lambda spelling: (-len(spelling), spelling))
    return [re.escape(spelling) for spelling in ordered]


def _cut(spellings: Iterable[bytes]) -> list[bytes]:
    parts = {spelling[:end] for spelling in spellings for end in range(1, len(spelling))}
    return [re.escape(part) + rb"\Z" for part in sorted(parts, key=lambda part: (-len(part), part))]


def beginning(atoms: Sequence[Sequence[bytes]], after: bytes | None = None) -> bytes:
    """A pattern of a true beginning of `atoms` that reaches the end of the data.

    `after`: what may follow the whole text and still leave it unfinished, a pattern ending in \\Z;
    None: the whole text is no beginning. The end of data matches in place of any atom but the
    first: once it has, so do all that follow, because \\Z has no width.
    """
    parts = []
    for number, spellings in enumerate(atoms):
        # Flat, not a group in a group: only then does sre skip by the set of first bytes (2.5x).
        choices = _ordered(spellings)
        if number == len(atoms) - 1 and after is None:
            choices = []
        choices += _cut(spellings)
        if number:
            choices.append(rb"\Z")
        parts.append(b"(?:%s)" % b"|".join(choices) if choices else rb"(?!)")
    return b"".join(parts) + (after or b"")


def longest(atoms: Sequence[Sequence[bytes]]) -> int:
    return sum(max(map(len, spellings)) for spellings in atoms)
