"""Values that an upstream reflects become placeholders again, in heads, contents and texts.

A value is found raw, percent-encoded, escaped for JSON or HTML, in any mixture of these, and in the
base64 of Basic credentials where it has such a slot. What is held back is only what may still
become a value: at most its longest spelling (`Masker.held_limit`). Nothing here raises; a value
that is spelt otherwise (compressed twice, encrypted, cut in two by ranges) is not recognised.
"""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from netns_runtime.wire.spelling import beginning, either, longest, octets_of, spellings_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from netns_runtime.secret import Secret
    from netns_runtime.wire.forward import Headers

_BASE64_LEAST: Final = 8
"""Digits of base64 that must be the value's own: fewer occur by accident."""
_ANCHOR_LEAST: Final = 4
_ANCHOR_MOST: Final = 24
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
    unfinished: re.Pattern[bytes]
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
    """One stream. `held_limit` is what it holds back at most, in octets; about six times the
    longest value."""

    def __init__(self, bound: Sequence[Secret]) -> None:
        self._table = _table_of(tuple(bound))
        self._held = b""
        self.held_limit = self._table.held_limit if self._table else 0

    def feed(self, data: bytes) -> bytes:
        """b"" means only that all is held back."""
        if self._table is None:
            return data
        done, self._held = _masked(self._held + data, self._table, is_whole=False)
        return done

    def finish(self) -> bytes:
        """What is left; once, at the end."""
        if self._table is None:
            return b""
        done, self._held = _masked(self._held, self._table, is_whole=True)
        return done


def mask(data: bytes, bound: Sequence[Secret]) -> bytes:
    """`data`, which is whole: a header's value, a text message."""
    table = _table_of(tuple(bound))
    return data if table is None else _masked(data, table, is_whole=True)[0]


def mask_headers(headers: Headers, bound: Sequence[Secret]) -> Headers:
    """All values but those that frame the message."""
    table = _table_of(tuple(bound))
    if table is None:
        return list(headers)
    if not table.may_hold(b"\n".join(value for _, value in headers)):
        return list(headers)
    return [
        (name, value if name.lower() in _FRAMING else _masked(value, table, is_whole=True)[0])
        for name, value in headers
    ]


def _masked(data: bytes, table: _Table, *, is_whole: bool) -> tuple[bytes, bytes]:
    """What is done and what is held back.

    From left to right: a value is replaced unless something that is still unfinished begins before
    it or where it does; so any split of the data gives the same.
    """
    signs = table.signs_in(data)
    match = table.next_in(data, 0, signs)
    parts: list[bytes] = []
    done = 0
    held = len(data) if is_whole else _held_from(data, 0, table)
    while match is not None and match.start() < held:
        parts += (data[done : match.start()], table.placeholders[(match.lastindex or 1) - 1])
        done = match.end()
        if held < done:
            held = _held_from(data, done, table)
        match = table.next_in(data, done, signs)
    if not parts and held == len(data):
        return data, b""
    parts.append(data[done:held])
    return b"".join(parts), data[held:]


def _held_from(data: bytes, position: int, table: _Table) -> int:
    match = table.unfinished.search(data, max(position, len(data) - table.held_limit))
    return match.start() if match else len(data)


@lru_cache(maxsize=64)
def _table_of(bound: tuple[Secret, ...]) -> _Table | None:
    texts: dict[str, bytes] = {}
    for secret in bound:
        for text in _texts_of(secret):
            texts.setdefault(text, secret.placeholder.encode())
    if not texts:
        return None
    ordered = sorted(texts, key=lambda text: (-len(text), text))
    atoms = {text: [spellings_of(character) for character in text] for text in ordered}
    anchors = [_anchor_of(text) for text in ordered]
    codes = sorted({ord(character) for anchor in anchors for character in anchor})
    escapes = b"|".join(b"%02x" % code for code in codes)
    return _Table(
        found=re.compile(
            b"|".join(b"(%s)" % b"".join(map(either, atoms[text])) for text in ordered)
        ),
        unfinished=re.compile(b"|".join(beginning(atoms[text]) for text in ordered)),
        anchors=tuple(map(octets_of, anchors)) if all(anchors) else (),
        escapes=tuple(
            (start, re.compile(re.escape(start) + b"(?i:%s)" % escapes))
            for start in (b"%", b"\\u00")
        ),
        placeholders=tuple(texts[text] for text in ordered),
        held_limit=max(map(longest, atoms.values())),
    )


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
