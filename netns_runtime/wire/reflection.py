"""Values that an upstream reflects become placeholders again, in heads, contents and texts.

A value is found raw, percent-encoded (also over and over), escaped for JSON, JavaScript or HTML, in
any mixture of these, and in the base64 of Basic credentials where it has such a slot. Nothing here
raises; a value that is spelt otherwise (compressed twice, encrypted, cut in two by ranges) is not
recognised, nor are escaped letters and digits, which nobody escapes, in one of more than PLAIN_FROM
characters: an expression for them takes seconds to compile.

What a stream holds back must not depend on what it says. Holding only what may become a value would
tell whoever makes an upstream repeat a guess whether that begins the value, and give it away byte
by byte. So the last `Masker.held_limit` octets wait, whatever they are, but never what lies before
a line's end, nor before the end of a message where the content has such: no value has one inside.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from netns_runtime.wire.spelling import octets_of, spelt

if TYPE_CHECKING:
    from collections.abc import Sequence

    from netns_runtime.secret import Secret
    from netns_runtime.wire.forward import Headers

_BASE64_LEAST: Final = 8
"""Digits of base64 that must be the value's own: fewer occur by accident."""
_ANCHOR_LEAST: Final = 4
_ANCHOR_MOST: Final = 24
PLAIN_FROM: Final = 128
_RUN: Final = re.compile(r"[A-Za-z0-9]+")
# These frame the message: never a reflection, and a value of digits must not break them.
_FRAMING: Final = frozenset(
    {b"connection", b"content-length", b"date", b"sec-websocket-accept", b"transfer-encoding"}
)


@dataclass(frozen=True, slots=True)
class _Table:
    """Compiled once for a set of secrets. Every spelling of a value has one of `anchors` or a
    match of one of `escapes` in it; no anchors: always look."""

    found: re.Pattern[bytes]
    anchors: tuple[bytes, ...]
    escapes: tuple[tuple[bytes, re.Pattern[bytes]], ...]
    placeholders: tuple[bytes, ...]
    held_limit: int

    def may_hold(self, data: bytes) -> bool:
        if not self.anchors or any(anchor in data for anchor in self.anchors):
            return True
        return any(start in data and escape.search(data) for start, escape in self.escapes)

    def next_in(
        self, data: bytes, position: int, signs: list[int] | None
    ) -> re.Match[bytes] | None:
        """The first value from `position` on; takes off the end of `signs` what is behind it.

        Only the surroundings of signs are looked at: the rest has no value in it.
        """
        if signs is None:
            return self.found.search(data, position)
        while signs:
            sign = signs[-1]
            if sign >= position:
                start = max(position, sign - self.held_limit)
                match = self.found.search(data, start, sign + 2 * self.held_limit)
                if match is not None and match.start() <= sign:
                    return match
            signs.pop()
        return None

    def signs_in(self, data: bytes) -> list[int] | None:
        """Where anchors and escapes are, last first; None: look at everything, because there are
        so many that it is the faster way, or because nothing is a sign."""
        if not self.anchors:
            return None
        most = len(data) // (4 * self.held_limit) + 1
        signs: list[int] = []
        for anchor in self.anchors:
            at = data.find(anchor)
            while at >= 0 and len(signs) <= most:
                signs.append(at)
                at = data.find(anchor, at + 1)
        for start, escape in self.escapes:
            if start not in data:
                continue
            for match in escape.finditer(data):
                signs.append(match.start())
                if len(signs) > most:
                    break
        return sorted(signs, reverse=True) if len(signs) <= most else None


class Masker:
    """One stream. `held_limit` is what it holds back at most, in octets: one less than the longest
    spelling, which is six to eight times the longest value. `framed`: the content is messages of a
    flag octet and four octets of length each (gRPC), whose ends let go of all before them.
    """

    def __init__(self, bound: Sequence[Secret], *, framed: bool = False) -> None:
        self._table = _table_of(tuple(bound))
        self._held = b""
        self._messages = _Messages() if framed else None
        self.held_limit = self._table.held_limit - 1 if self._table else 0

    def feed(self, data: bytes) -> bytes:
        """b"" means only that all is held back."""
        if self._table is None:
            return data
        ended = self._messages.end_in(data) if self._messages is not None else 0
        message = len(self._held) + ended if ended else 0
        data = self._held + data
        line = data.rfind(b"\n") + 1
        certain = max(len(data) - self.held_limit, line, message)
        done, self._held = _masked(data, self._table, certain)
        return done

    def finish(self) -> bytes:
        """What is left; once, at the end."""
        if self._table is None:
            return b""
        done, self._held = _masked(self._held, self._table, len(self._held))
        return done


class _Messages:
    """Where messages end in a stream of them: a flag, a length (big endian, 32 bits), so much."""

    def __init__(self) -> None:
        self._head = b""
        self._left = 0

    def end_in(self, data: bytes) -> int:
        """The position in `data` after the last message that ends in it; 0: none does."""
        position = end = 0
        while position < len(data):
            if self._left:
                taken = min(self._left, len(data) - position)
                self._left -= taken
                position += taken
            else:
                taken = min(5 - len(self._head), len(data) - position)
                self._head += data[position : position + taken]
                position += taken
                if len(self._head) < 5:
                    break
                self._left, self._head = int.from_bytes(self._head[1:], "big"), b""
            if not self._left and not self._head:
                end = position
        return end


def mask(data: bytes, bound: Sequence[Secret]) -> bytes:
    """`data`, which is whole: a header's value, a text message."""
    table = _table_of(tuple(bound))
    return data if table is None else _masked(data, table, len(data))[0]


def mask_headers(headers: Headers, bound: Sequence[Secret]) -> Headers:
    """All values but those that frame the message; a field whose name holds a value is left out,
    since no placeholder could stand there."""
    table = _table_of(tuple(bound))
    if table is None:
        return list(headers)
    if not table.may_hold(b"\n".join(part for pair in headers for part in pair)):
        return list(headers)
    return [
        (name, value if name.lower() in _FRAMING else _masked(value, table, len(value))[0])
        for name, value in headers
        if _masked(name, table, len(name))[0] == name
    ]


def _masked(data: bytes, table: _Table, certain: int) -> tuple[bytes, bytes]:
    """What is done and what is held back: every value that begins before `certain` is replaced,
    and there is none that begins there and ends beyond the data; so any split gives the same.
    """
    signs = table.signs_in(data)
    match = table.next_in(data, 0, signs)
    parts: list[bytes] = []
    done = 0
    while match is not None and match.start() < certain:
        parts += (data[done : match.start()], table.placeholders[(match.lastindex or 1) - 1])
        done = match.end()
        match = table.next_in(data, done, signs)
    certain = max(certain, done)
    if not parts and certain == len(data):
        return data, b""
    parts.append(data[done:certain])
    return b"".join(parts), data[certain:]


@lru_cache(maxsize=64)
def _table_of(bound: tuple[Secret, ...]) -> _Table | None:
    texts: dict[str, bytes] = {}
    for secret in bound:
        for text in _texts_of(secret):
            texts.setdefault(text, secret.placeholder.encode())
    if not texts:
        return None
    ordered = sorted(texts, key=lambda text: (-len(text), text))
    patterns = [_spelt(text) for text in ordered]
    anchors = [_anchor_of(text) for text in ordered]
    codes = sorted({ord(character) for anchor in anchors for character in anchor})
    escapes = b"|".join(b"%02x" % code for code in codes)
    return _Table(
        found=re.compile(b"|".join(b"(%s)" % pattern for pattern, _ in patterns)),
        anchors=tuple(map(octets_of, anchors)) if all(anchors) else (),
        escapes=tuple(
            (start, re.compile(re.escape(start) + b"(?i:%s)" % escapes))
            for start in (b"%", b"\\u00")
        ),
        placeholders=tuple(texts[text] for text in ordered),
        held_limit=max(length for _, length in patterns),
    )


def _spelt(text: str) -> tuple[bytes, int]:
    """A pattern of every spelling of a text, and the length of the longest."""
    is_plain = len(text) >= PLAIN_FROM
    parts = [
        (octets_of(character), 1) if is_plain and character.isalnum() else spelt(character)
        for character in text
    ]
    return b"".join(pattern for pattern, _ in parts), sum(length for _, length in parts)


def _anchor_of(text: str) -> str:
    """A run of letters and digits; nobody escapes these, and if somebody does, it shows."""
    run = max(_RUN.findall(text), key=len, default="")
    return run[:_ANCHOR_MOST] if len(run) >= _ANCHOR_LEAST else ""


def _texts_of(secret: Secret) -> list[str]:
    if not secret.value:
        return []
    texts = [secret.value]
    if any(slot.kind == "basic" for slot in secret.binding.slots):
        texts += (text for text in _base64_of(secret.value) if len(text) >= _BASE64_LEAST)
    return texts


def _base64_of(value: str) -> list[str]:
    """The digits that the value alone decides, wherever it stands in what is encoded.

    As a password it follows a colon, as a user it is followed by one: then these digits hold all of
    it. In between others, up to five bits of its first and last octet stay outside of them.
    """
    octets, found = octets_of(value), []
    for before, after in ((b":", b""), (b"", b":"), (b"", b"")):
        known = before + octets + after
        for offset in range(3):
            digits = base64.b64encode(bytes(offset) + known).decode().rstrip("=")
            first = (offset * 8 + 5) // 6
            ends_here = before and not after
            whole = len(digits) if ends_here else (offset + len(known)) * 8 // 6
            found.append(digits[first:whole])
    return found
