"""OpenShell's globs over paths and query values, as regular expressions that take linear time.

`*` is any characters but the separator, a whole segment `**` any segments (one at least), `?` one
character, `[a-z]` and `[!a-z]` one of a set. Every repetition is atomic up to the literal text that
follows it, which loses no match (the leftmost place for each piece leaves the most room for the
rest) and leaves a hostile path nothing to backtrack into. `glob_fault` says what is wrong with a
pattern; compiled expressions are kept by pattern, so the values that hold them stay picklable.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

# Reserved characters that mean the same to a rule raw and percent-encoded (RFC 3986, 2.2): the
# target keeps the client's spelling, because to some servers the two differ.
_RESERVED: Final = frozenset("!$&'()*+,;=:@")
_UNRESERVED: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
_HEX: Final = re.compile(r"%[0-9A-Fa-f]{2}")
_SET: Final = re.compile(r"\[([!^]?)(\]?[^\]]+)\]")
# One character of a path: itself, or the percent-encoded bytes of one in UTF-8.
_ONE: Final = (
    r"(?:[^/%]|%[0-7][0-9A-F]|%[CD][0-9A-F]%[89AB][0-9A-F]|%E[0-9A-F](?:%[89AB][0-9A-F]){2}"
    r"|%F[0-7](?:%[89AB][0-9A-F]){3}|%[89AB][0-9A-F])"
)
EVERY_PATH: Final = frozenset({"**", "/**"})


def glob_fault(pattern: str) -> str | None:
    """Why `pattern` is no glob, or None."""
    if any(not character.isprintable() for character in pattern):
        return "it has a control character"
    rest = _SET.sub("", pattern)
    if "[" in rest:
        return "a bracket is not closed"
    for low, high in re.findall(r"(.)-(.)", "".join(found[1] for found in _SET.findall(pattern))):
        if low > high:
            return f"the range {low}-{high} is empty"
    return None


def path_fault(pattern: str) -> tuple[str, str] | None:
    """Why `pattern` can match no path, with the remedy, or None."""
    why = glob_fault(pattern)
    if why is not None:
        return why, "encode a character that is meant as itself, as in %5B for ["
    if pattern in EVERY_PATH:
        return None
    if not pattern.startswith(("/", "**/")):
        return "a path begins with /", "write /** for every path"
    if "#" in pattern:
        return "a path has no # in it", "encode it as %23"
    if "?" in pattern and "=" in pattern.partition("?")[2]:
        return "a query is no part of a path", "use `query`"
    segments = [segment.replace("%2e", ".").replace("%2E", ".") for segment in pattern.split("/")]
    if "." in segments or ".." in segments:
        return "paths are compared with dot segments resolved", "write the path they lead to"
    return None


def path_matches(pattern: str, path: str) -> bool:
    """Whether a normalised, percent-encoded path is covered."""
    return _path(pattern, False).fullmatch(path) is not None


def path_matches_any_case(pattern: str, path: str) -> bool:
    """The same whatever the case of letters, for rules that deny."""
    return _path(pattern, True).fullmatch(path) is not None


def value_matches(pattern: str, value: str) -> bool:
    """Whether a decoded query value is covered; the separator is the dot, as in OpenShell."""
    return _value(pattern).fullmatch(value) is not None


def selector_matches(pattern: str, path: str) -> bool:
    """Whether an endpoint's `path` selects: "/v1/**" has "/v1" too, and elsewhere * crosses /."""
    return _selector(pattern).fullmatch(path) is not None


def selector_specificity(pattern: str | None) -> tuple[int, int]:
    """Grows with how narrow an endpoint's `path` is: none or everything, then by literal text."""
    if pattern is None or pattern in EVERY_PATH:
        return (0, 0)
    return (2 if "*" not in pattern else 1, len(pattern) - pattern.count("*"))


@lru_cache(maxsize=4096)
def _path(pattern: str, any_case: bool) -> re.Pattern[str]:
    text = ".*" if pattern in EVERY_PATH else _translated(pattern, "/")
    return re.compile(text, re.DOTALL | (re.IGNORECASE if any_case else 0))


@lru_cache(maxsize=4096)
def _value(pattern: str) -> re.Pattern[str]:
    return re.compile(".*" if pattern == "**" else _translated(pattern, "."), re.DOTALL)


@lru_cache(maxsize=4096)
def _selector(pattern: str) -> re.Pattern[str]:
    if pattern in EVERY_PATH:
        return re.compile(".*", re.DOTALL)
    tail = ""
    if pattern.endswith("/**"):
        pattern, tail = pattern[:-3], "(?:/.*)?"
    return re.compile(_segment(pattern, "", "") + tail, re.DOTALL | re.IGNORECASE)


def _translated(pattern: str, separator: str) -> str:
    """Runs of segments between whole-segment `**`."""
    runs: list[list[str]] = [[]]
    for segment in pattern.split(separator):
        if segment == "**":
            runs.append([])
        else:
            runs[-1].append(segment)
    sign = re.escape(separator)
    joined = [sign.join(_segment(segment, separator, sign) for segment in run) for run in runs]
    first, *rest = joined
    text = first
    starts_wild = not runs[0]
    for number, run in enumerate(rest):
        lead = "" if number == 0 and starts_wild else sign
        is_last = number == len(rest) - 1
        if is_last:
            text += f"{lead}.+{sign}{run}" if runs[-1] else f"{lead}.*"
        elif runs[number + 1]:
            text += f"(?>{lead}.+?{sign}{run}(?={sign}))"
        else:
            text += f"(?>{lead}.+?(?={sign}))"
    return text


def _segment(segment: str, separator: str, sign: str) -> str:
    """One segment: literal pieces around stars, each star atomic with the piece after it."""
    other = f"[^{sign}]" if separator else "."
    first, *rest = (_literal(piece, separator) for piece in re.split(r"\*+", _star_in_set(segment)))
    if not rest:
        return first
    *middle, last = rest
    return first + "".join(f"(?>{other}*?{piece})" for piece in middle) + f"{other}*{last}"


def _star_in_set(segment: str) -> str:
    # A star inside brackets is a star: hide it from the split.
    return _SET.sub(lambda found: found[0].replace("*", "\x00"), segment)


def _literal(text: str, separator: str) -> str:
    """A piece without stars: `?`, sets and characters."""
    out, at = [], 0
    is_path = separator != "."
    while at < len(text):
        found = _SET.match(text, at)
        if found is not None:
            inner = found[2].replace("\x00", "*")
            inner = re.sub(r"([\\\[\]^&~|])", r"\\\1", inner)
            out.append(f"[^{inner}{re.escape(separator)}]" if found[1] else f"[{inner}]")
            at = found.end()
            continue
        character = text[at]
        if character == "?":
            out.append(_ONE if is_path else r"[^.]")
            at += 1
        elif is_path and (escape := _HEX.match(text, at)) is not None:
            out.append(_encoded(chr(int(escape[0][1:], 16)), escape[0].upper()))
            at = escape.end()
        else:
            out.append(_spelled(character) if is_path else re.escape(character))
            at += 1
    return "".join(out)


def _spelled(character: str) -> str:
    if character in _RESERVED:
        return _encoded(character, f"%{ord(character):02X}")
    if character in _UNRESERVED or character == "/":
        return re.escape(character)
    return "".join(f"%{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))


def _encoded(character: str, escape: str) -> str:
    if character in _RESERVED:
        return f"(?:{re.escape(character)}|{escape})"
    return re.escape(character) if character in _UNRESERVED else escape
