"""Text as it may be spelt on the wire: plain, percent-encoded, escaped for JSON or HTML.

`spelt` is a pattern for a character of what upstream may repeat. What is looked for in requests
becomes a list of atoms instead, one for each character, each with all its spellings; from them come
two regular expressions: one that finds the text, and one that finds a beginning of it at the end of
what has arrived so far, which has to be held back. Pure, and cannot fail.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
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
    "+": (b"&plus;",),
    "/": (b"&sol;",),
    "=": (b"&equals;",),
    ":": (b"&colon;",),
    "_": (b"&lowbar;",),
    ".": (b"&period;",),
    "`": (b"&grave;",),
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


@lru_cache(maxsize=512)
def spelt(character: str) -> tuple[bytes, int]:
    """A pattern of every spelling of a character that an honest upstream may reflect, longer ones
    first; and the length of the longest."""
    raw = octets_of(character)
    if len(raw) > 1:
        lower = "".join(f"%{octet:02x}" for octet in raw)
        found = [raw, *json_escaped(character), lower.encode(), lower.upper().encode()]
        return either(found), max(map(len, found))
    code = raw[0]
    digits = "".join(f"[{d}{d.upper()}]" if d.isalpha() else d for d in f"{code:02x}")
    if character.isalnum():
        return rf"(?:{character}|%{digits}|\\u00{digits})".encode(), len("\\u0000")
    # Go, ASP.NET and Mustache write + / = as numeric entities; a URL in the query of another URL is
    # percent-encoded twice, and JSON in a JSON string has escapes of escapes.
    names = [re.escape(name) for name in _HTML.get(character, ())]
    choices = [rf"&#(?:0{{0,2}}{code}|[xX](?:00)?{digits});", rf"\\{{1,2}}u00{digits}"]
    choices += [rf"%(?:25){{0,2}}{digits}", rf"\\x{digits}"]
    if character in '"\\/':
        choices.append(r"\\{1,3}" + re.escape(character))
    if character == " ":
        choices.append(r"\+")
    patterns = [*names, *(choice.encode() for choice in choices), re.escape(raw)]
    return b"(?:%s)" % b"|".join(patterns), max(len("&#x0000;"), *map(len, names), 0)


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
