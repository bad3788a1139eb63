"""Regular expressions that skip JSON at C speed, and a trie of pointers, which they must not skip.

Everything here works on whole tokens inside one window of the input; what is cut off at its end is
left to the stepwise reader (jsonstream). Nothing is possessive around a group: CPython before
3.11.5 then takes input that a failed branch had consumed (gh-106052; seen here). Single classes
are, so that backing out stays linear.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Final

from netns_runtime.wire.spelling import octets_of

WINDOW: Final = 64 * 1024
"""Octets matched at once: sre keeps a mark for each step of a group."""

_STRING: Final = rb'"[^"\\]*+(?:\\.[^"\\]*+)*"'
# Numbers and words, NaN and Infinity too. Neither comments nor single quotes, in which a lenient
# reader would see other strings than we do.
_SCALAR: Final = rb"-+.0-9EINaefilnrstuy \t\r\n"
_REST: Final = b"[%s:,]++" % _SCALAR
_FLAT: Final = rb"(?:%s|%s)*" % (_REST, _STRING)
_NESTED: Final = rb"(?:%s|%s|\{%s\}|\[%s\])*" % (_REST, _STRING, _FLAT, _FLAT)

STRING: Final = re.compile(_STRING, re.DOTALL)
STRING_REST: Final = re.compile(rb'[^"\\]*+(?:\\.[^"\\]*+)*', re.DOTALL)
BALANCED: Final = re.compile(
    rb"(?:%s|%s|\{%s\}|\[%s\])*" % (_REST, _STRING, _NESTED, _NESTED), re.DOTALL
)
OPENERS: Final = re.compile(rb"[\[{]*+")
SPACE: Final = re.compile(rb"[ \t\r\n]*+")
REST: Final = re.compile(_REST)
SCALAR_REST: Final = re.compile(b"[%s]*+" % _SCALAR)

_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,8}")


@dataclass(slots=True)
class Node:
    """A place on the way to a slot: `pointer` where it is one, `children` by decoded key."""

    pointer: str | None = None
    children: dict[str, Node] = field(default_factory=dict)
    last_index: int = -1
    key_limit: int = 0
    members: re.Pattern[bytes] | None = None

    def seal(self) -> None:
        """Compile what skips the members of an object that lead nowhere."""
        indexes = [int(key) for key in self.children if _INDEX.fullmatch(key)]
        self.last_index = max(indexes, default=-1)
        if not self.children:
            return
        self.key_limit = 6 * max(len(octets_of(key)) for key in self.children) + 2
        names = b"|".join(re.escape(octets_of(key)) for key in self.children)
        value = rb"(?:%s|\{%s\}|\[%s\]|[%s]++)" % (_STRING, _NESTED, _NESTED, _SCALAR)
        self.members = re.compile(
            rb'(?:[ \t\r\n]*+"(?!(?:%s)")[^"\\]*+"[ \t\r\n]*+:[ \t\r\n]*+%s[ \t\r\n]*+,)*'
            % (names, value),
            re.DOTALL,
        )
        for child in self.children.values():
            child.seal()


@lru_cache(maxsize=256)
def trie_of(pointers: tuple[str, ...]) -> Node:
    """From JSON pointers (RFC 6901). A pointer that is none leads nowhere."""
    root = Node()
    for pointer in pointers:
        node = root
        segments = segments_of(pointer)
        if segments is None:
            continue
        for segment in segments:
            node = node.children.setdefault(segment, Node())
        node.pointer = pointer
    root.seal()
    return root


def segments_of(pointer: str) -> list[str] | None:
    """The decoded reference tokens; None for what is no pointer."""
    if not pointer:
        return []
    if not pointer.startswith("/"):
        return None
    return [part.replace("~1", "/").replace("~0", "~") for part in pointer[1:].split("/")]
