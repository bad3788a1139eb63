"""Finding placeholders in the syntax of a place, and putting bytes there, over any splits of input.

A placeholder is the prefix and then a name, as long as the name's characters go on: TOKEN_2 is
never TOKEN. In a percent-encoded place each character may be %XX, in a JSON string \\u00XX. What is
held back is at most one unfinished placeholder (`HELD_LIMIT`); nothing here raises.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from netns_runtime.secret import PREFIX
from netns_runtime.wire.spelling import beginning, either, json_escaped, percent_encoded

if TYPE_CHECKING:
    from collections.abc import Callable

NAME_LIMIT: Final = 256
"""Characters; a longer name is nobody's, so that what is held back has a limit."""
HELD_LIMIT: Final = 6 * (len(PREFIX) + NAME_LIMIT + 1)
"""Octets, in JSON; half of it in a percent-encoded place, a sixth in plain text."""

_HEX_OF_NAME: Final = rb"(?:3[0-9]|4[1-9A-Fa-f]|5[0-9AaFf]|6[1-9A-Fa-f]|7[0-9Aa])"
_FIRST_WORD: Final = PREFIX.partition(":")[0].encode()
# Needles of five bytes are found at 10 GB/s, those of six to thirty at 3 to 6 (CPython 3.11,
# fastsearch.h: another algorithm from six on).
_SIGN: Final = PREFIX.encode()[-7:-2]
_WATCH_SIGN: Final = _FIRST_WORD[-5:]


@dataclass(frozen=True, slots=True)
class Syntax:
    """How placeholders are spelt in one kind of place.

    `signs`: without one of these the data holds no whole placeholder. `escape`: the byte that
    begins an escape where the escape byte itself may be escaped (JSON), else b"".
    """

    found: re.Pattern[bytes]
    unfinished: re.Pattern[bytes]
    signs: tuple[bytes, ...]
    escape: bytes
    held_limit: int
    decode: Callable[[bytes], str]

    def names(self, data: bytes, *, is_whole: bool = True) -> set[str]:
        """The names of all placeholders in `data`; of one at the end only if that is the end."""
        names: set[str] = set()
        match = self.found.search(data) if self._may_hold(data) else None
        while match is not None:
            if (is_whole or match.end() < len(data)) and not self._is_escaped(data, match.start()):
                names.add(self.decode(match[1]))
            match = self.found.search(data, match.start(1))
        return names

    def replace(
        self, data: bytes, put: Callable[[str], bytes | None], *, is_whole: bool
    ) -> tuple[bytes, bytes]:
        """The data with placeholders replaced, and what is held back: prepend it to what follows.

        `put` gives a name's bytes, or None to leave the placeholder as it is. `is_whole`: the place
        ends with this data, nothing is held back.
        """
        stop = len(data) if is_whole else self._held_from(data, 0)
        if not self._may_hold(data):
            return (data, b"") if stop == len(data) else (data[:stop], data[stop:])
        parts: list[bytes] = []
        done = 0
        match = self.found.search(data)
        while match is not None and match.start() < stop:
            value = None
            if not self._is_escaped(data, match.start()):
                value = put(self.decode(match[1]))
            if value is None:
                # A name that is nobody's may hold the beginning of another placeholder.
                match = self.found.search(data, match.start(1))
                continue
            parts += (data[done : match.start()], value)
            done = match.end()
            if stop < done:
                stop = self._held_from(data, done)
            match = self.found.search(data, done)
        parts.append(data[done:stop])
        return b"".join(parts), data[stop:]

    def _may_hold(self, data: bytes) -> bool:
        return any(sign in data for sign in self.signs)

    def _held_from(self, data: bytes, position: int) -> int:
        position = max(position, len(data) - self.held_limit)
        while match := self.unfinished.search(data, position):
            if not self._is_escaped(data, match.start()):
                return match.start()
            position = match.start() + 1
        return len(data)

    def _is_escaped(self, data: bytes, start: int) -> bool:
        """Whether the byte at `start` is the second half of an escaped escape byte."""
        if not self.escape or data[start : start + 1] != self.escape:
            return False
        before = start
        while before and data[before - 1 : before] == self.escape:
            before -= 1
        return (start - before) % 2 == 1


def _syntax(
    spell: Callable[[str], list[bytes]],
    opening: bytes,
    signs: tuple[bytes, ...],
    decode: Callable[[bytes], str],
    *,
    escape: bytes = b"",
) -> Syntax:
    atoms = [[character.encode(), *spell(character)] for character in PREFIX]
    prefix = b"".join(map(either, atoms))
    name = rb"[A-Za-z0-9_]"
    cut = b""
    if opening:
        name = b"(?:%s|%s%s)" % (name, re.escape(opening), _HEX_OF_NAME)
        starts = [opening[:end] for end in range(len(opening), 0, -1)]
        cut = b"(?:%s[0-9A-Fa-f]|%s)?" % (
            re.escape(opening),
            b"|".join(map(re.escape, starts)),
        )
    after = name + b"{0,%d}" % NAME_LIMIT + cut + rb"\Z"
    return Syntax(
        re.compile(prefix + b"(" + name + b"+)"),
        re.compile(beginning(atoms, after)),
        signs,
        escape,
        HELD_LIMIT * max(1, len(opening) + 2 * bool(opening)) // 6,
        decode,
    )


def _from_json(name: bytes) -> str:
    return re.sub(rb"\\u00(..)", lambda match: bytes.fromhex(match[1].decode()), name).decode()


PLAIN: Final = _syntax(lambda _: [], b"", (_SIGN,), bytes.decode)
PERCENT: Final = _syntax(
    lambda character: percent_encoded(ord(character)),
    b"%",
    (_SIGN, b"%"),
    lambda name: unquote(name.decode()),
)
JSON: Final = _syntax(json_escaped, b"\\u00", (_SIGN, b"\\u00"), _from_json, escape=b"\\")


class Watch:
    """Which of some names are asked for in passing content: reports, changes nothing.

    It sees a placeholder of which at least the first word is plain, in any of the syntaxes. Holds
    the last `HELD_LIMIT` bytes.
    """

    def __init__(self, names: frozenset[str]) -> None:
        self._names = names
        self._last = b""

    def see(self, data: bytes) -> set[str]:
        """Those of the names that this data, or its joint with the data before, asks for."""
        joint = self._last + data[:HELD_LIMIT]
        found = self._in(joint, is_whole=False)
        if len(data) > HELD_LIMIT:
            found |= self._in(data, is_whole=False)
        self._last = (joint if len(data) < HELD_LIMIT else data)[-HELD_LIMIT:]
        return found

    def finish(self) -> set[str]:
        """A name that ends with the content."""
        return self._in(self._last, is_whole=True)

    def _in(self, data: bytes, *, is_whole: bool) -> set[str]:
        if _WATCH_SIGN not in data or _FIRST_WORD not in data:
            return set()
        return names_in(data, is_whole=is_whole) & self._names


def names_in(data: bytes, *, is_whole: bool = True) -> set[str]:
    """The names that `data` asks for in any syntax."""
    return PERCENT.names(data, is_whole=is_whole) | JSON.names(data, is_whole=is_whole)
