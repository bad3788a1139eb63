"""JSON pointers (RFC 6901) into parsed messages, as rules use them.

A rule that denies must find a value whatever a lenient reader would take for the key, and one that
allows must not be shown another value than upstream sees; so names are compared in both senses.
Pure; `pointer_fault` says what is wrong with a pointer, nothing raises.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any, Final

_BAD_ESCAPE: Final = re.compile(r"~(?![01])")
_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,9}")


def pointer_fault(pointer: str) -> tuple[str, str] | None:
    """Why `pointer` is no JSON pointer, with the remedy, or None."""
    if not pointer.startswith("/"):
        return "a JSON pointer begins with /", f"write /{pointer.lstrip('$.').replace('.', '/')}"
    if _BAD_ESCAPE.search(pointer):
        return "in a JSON pointer ~ stands before 0 or 1 alone", "write ~0 for ~ and ~1 for /"
    if not pointer.isprintable():
        return "it has a control character", ""
    return None


@lru_cache(maxsize=1024)
def tokens_of(pointer: str) -> tuple[str, ...]:
    """The names and indices on the way, decoded."""
    return tuple(part.replace("~1", "/").replace("~0", "~") for part in pointer.split("/")[1:])


def certain_value(document: object, pointer: str) -> tuple[Any, ...]:
    """The value there as a tuple of one, or () where there is none or a second reading of it:
    an object with the same name in another case (which Go, for one, takes as the same field).
    """
    here: Any = document
    for token in tokens_of(pointer):
        if isinstance(here, dict):
            if token not in here:
                return ()
            lower = token.lower()
            if sum(name.lower() == lower for name in here) > 1:
                return ()
            here = here[token]
        elif isinstance(here, list) and _INDEX.fullmatch(token) and int(token) < len(here):
            here = here[int(token)]
        else:
            return ()
    return (here,)


def possible_values(document: object, pointer: str) -> list[Any]:
    """Every value that some reader could find there: names match in any case."""
    found: list[Any] = [document]
    for token in tokens_of(pointer):
        lower = token.lower()
        deeper: list[Any] = []
        for here in found:
            if isinstance(here, dict):
                deeper += (value for name, value in here.items() if name.lower() == lower)
            elif isinstance(here, list) and _INDEX.fullmatch(token) and int(token) < len(here):
                deeper.append(here[int(token)])
        found = deeper
    return found
