"""Fields of forms, streaming: application/x-www-form-urlencoded and multipart/form-data.

Both skip to the next declared field with searches at C speed and change only placeholders in its
content; every other byte passes as it came. They hold back no more than an unfinished name, header
block (`PART_LIMIT`), delimiter or placeholder. Content that is no form passes unchanged; nothing
here raises.

Servers differ in where a field ends: at `;` too, at a lone CR or LF before the boundary. So a field
is one here up to the first of these, and what names it has one reading, or it is none: else a value
could be put where a server sees another field, which it may publish.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from netns_runtime.wire.placeholder import PERCENT, PLAIN
from netns_runtime.wire.spelling import either, longest, octets_of, percent_encoded

if TYPE_CHECKING:
    from collections.abc import Mapping

    from netns_runtime.wire.slots import Fill

PART_LIMIT: Final = 16 * 1024
"""Octets of one part's header block; a longer one is not a declared field."""

_TOKEN: Final = rb"[\w!#$%&'*+.^`|~-]+"
# Unquoted boundaries have characters that no token should.
_VALUE: Final = rb"(?:[\w!#$%&'*+.^`|~/:=?()@-]+|\"(?:[^\"\\\r\n]|\\.)*\")"
_PARAMETERS: Final = re.compile(
    rb"[\w/.+-]+[ \t]*(?:;[ \t]*(?:%s=%s[ \t]*)?)*" % (_TOKEN, _VALUE), re.DOTALL
)
_PARAMETER: Final = re.compile(rb";[ \t]*(%s)=(%s)" % (_TOKEN, _VALUE), re.DOTALL)
_DISPOSITION: Final = re.compile(rb"(?im)^content-disposition[ \t]*:[ \t]*([^\r\n]*)")
_MULTIPART: Final = re.compile(rb"(?i)multipart/form-data[ \t]*;")
# RFC 2046, 5.1.1; some clients go beyond its 70 characters.
_BOUNDARY: Final = re.compile(rb"[0-9A-Za-z'()+_,./:=? -]{0,199}[0-9A-Za-z'()+_,./:=?-]")
_ENCODED_PART: Final = re.compile(
    rb"(?im)^content-transfer-encoding[ \t]*:[ \t]*(?!7bit|8bit|binary)"
)
_FOLDED: Final = re.compile(rb"\n[ \t]|\r(?!\n)|(?<!\r)\n")
_LINE_END: Final = re.compile(rb"[\r\n]")


class UrlencodedRewriter:
    """`fills` by the field's decoded name."""

    def __init__(self, fills: Mapping[str, Fill]) -> None:
        atoms = {name: [_parameter_atom(octet) for octet in octets_of(name)] for name in fills}
        names = [b"(%s)" % b"".join(map(either, atoms[name])) for name in fills]
        self._field = re.compile(b"&(?:" + b"|".join(names) + b")=")
        self._longest = 2 + max(map(longest, atoms.values()))
        self._fills = list(fills.values())
        self._fill: Fill | None = None
        # The first field is found like all others; _join takes this octet out again.
        self._held = b"&"
        self._is_first = True

    def feed(self, data: bytes) -> bytes:
        return self._run(data, is_end=False)

    def finish(self) -> bytes:
        return self._run(b"", is_end=True)

    def _run(self, data: bytes, *, is_end: bool) -> bytes:
        data = self._held + data if self._held else data
        self._held = b""
        parts: list[bytes] = []
        position = 0
        while position < len(data):
            step = self._skip if self._fill is None else self._substitute
            position = step(data, position, parts, is_end)
        return self._join(parts)

    def _skip(self, data: bytes, position: int, parts: list[bytes], is_end: bool) -> int:
        if data.find(b"&", position) >= 0:
            match = self._field.search(data, position)
            if match is not None:
                self._fill = self._fills[(match.lastindex or 1) - 1]
                parts.append(data[position : match.end()])
                return match.end()
        stop = len(data)
        if not is_end:
            begun = data.rfind(b"&", max(position, stop - self._longest))
            stop = begun if begun >= 0 else stop
        parts.append(data[position:stop] if position or stop < len(data) else data)
        self._held = data[stop:]
        return len(data)

    def _substitute(self, data: bytes, position: int, parts: list[bytes], is_end: bool) -> int:
        assert self._fill is not None
        end = data.find(b"&", position)
        other = data.find(b";", position, end if end >= 0 else len(data))
        end = other if other >= 0 else end
        value = data[position : end if end >= 0 else len(data)]
        done, self._held = PERCENT.replace(value, self._fill.put, is_whole=is_end or end >= 0)
        parts.append(done)
        if end < 0:
            return len(data)
        self._fill = None
        return end

    def _join(self, parts: list[bytes]) -> bytes:
        joined = parts[0] if len(parts) == 1 else b"".join(parts)
        if self._is_first and joined:
            self._is_first = False
            return joined[1:]
        return joined


def _parameter_atom(octet: int) -> list[bytes]:
    return [bytes([octet]), *percent_encoded(octet), *([b"+"] if octet == 0x20 else [])]


class MultipartRewriter:
    """`fills` by the field's name; parts that are files are not fields."""

    def __init__(self, boundary: bytes, fills: Mapping[str, Fill]) -> None:
        self._delimiter = b"\r\n--" + boundary
        self._fills = fills
        self._fill: Fill | None = None
        self._state = self._content
        # The first delimiter needs no line before it; feed takes these two octets out again.
        self._held = b"\r\n"
        self._extra = 2

    def feed(self, data: bytes) -> bytes:
        return self._run(data, is_end=False)

    def finish(self) -> bytes:
        return self._run(b"", is_end=True)

    def _run(self, data: bytes, *, is_end: bool) -> bytes:
        data = self._held + data if self._held else data
        self._held = b""
        parts: list[bytes] = []
        position = 0
        while position < len(data):
            position = self._state(data, position, parts, is_end)
        joined = parts[0] if len(parts) == 1 else b"".join(parts)
        if self._extra and joined:
            cut = min(self._extra, len(joined))
            self._extra -= cut
            return joined[cut:]
        return joined

    def _content(self, data: bytes, position: int, parts: list[bytes], is_end: bool) -> int:
        """Preamble or a part's content, up to a delimiter."""
        begun = position
        while True:
            at = data.find(self._delimiter, begun)
            if at < 0:
                stop = len(data) if is_end else self._delimiter_begun(data, position)
                return self._pass(data, position, stop, parts, is_end=is_end)
            end = at + len(self._delimiter)
            follows = data[end : end + 2]
            if follows == b"\r\n" or follows == b"--" or follows[:1] in {b" ", b"\t"}:
                break
            if not is_end and follows in {b"", b"\r", b"-"}:
                return self._pass(data, position, at, parts, is_end=False)
            begun = at + 2
        self._emit(data[position:at], parts, is_whole=True)
        self._fill = None
        if follows != b"\r\n":
            # The end; or padding, with which it is a delimiter to some servers alone.
            self._state = self._epilogue
            return self._epilogue(data, at, parts, is_end)
        parts.append(data[at:end])
        self._state = self._headers
        return end

    def _headers(self, data: bytes, position: int, parts: list[bytes], is_end: bool) -> int:
        """From the line end after a delimiter to the empty line."""
        limit = position + PART_LIMIT
        next_one = data.find(self._delimiter, position, limit)
        end = data.find(b"\r\n\r\n", position, next_one + 4 if next_one >= 0 else limit)
        if 0 <= end < next_one:
            next_one = -1
        if next_one < 0 and end >= 0:
            self._fill = self._field_of(data[position : end + 2])
            parts.append(data[position : end + 4])
            self._state = self._content
            return end + 4
        if next_one < 0 and not is_end and len(data) - position < PART_LIMIT:
            self._held = data[position:]
            return len(data)
        self._state = self._content
        return self._content(data, position, parts, is_end)

    def _epilogue(self, data: bytes, position: int, parts: list[bytes], is_end: bool) -> int:
        parts.append(data[position:])
        return len(data)

    def _delimiter_begun(self, data: bytes, position: int) -> int:
        at = data.find(b"\r", max(position, len(data) - len(self._delimiter) + 1))
        while at >= 0:
            if self._delimiter.startswith(data[at:]):
                return at
            at = data.find(b"\r", at + 1)
        return len(data)

    def _pass(
        self, data: bytes, position: int, stop: int, parts: list[bytes], *, is_end: bool
    ) -> int:
        self._emit(data[position:stop] if position or stop < len(data) else data, parts, is_end)
        self._held += data[stop:]
        return len(data)

    def _emit(self, content: bytes, parts: list[bytes], is_whole: bool) -> None:
        if self._fill is None:
            parts.append(content)
            return
        line_end = _LINE_END.search(content)
        rest = b""
        if line_end is not None:
            content, rest, is_whole = content[: line_end.start()], content[line_end.start() :], True
        content, self._held = PLAIN.replace(content, self._fill.put, is_whole=is_whole)
        parts += (content, rest)
        if line_end is not None:
            self._fill = None

    def _field_of(self, block: bytes) -> Fill | None:
        found = _DISPOSITION.findall(block)
        if len(found) != 1 or _ENCODED_PART.search(block) or _FOLDED.search(block):
            return None
        given = parameters_of(found[0])
        if given is None:
            return None
        names = [value for name, value in given if name == b"name"]
        if len(names) != 1 or any(name.startswith((b"filename", b"name*")) for name, _ in given):
            return None
        raw = names[0].decode("utf-8", "replace")
        for spelt in (raw, re.sub(r"\\(.)", r"\1", raw), unquote(raw)):
            if spelt in self._fills:
                return self._fills[spelt]
        return None


def parameters_of(value: bytes) -> list[tuple[bytes, bytes]] | None:
    """A header's parameters: names in lower case, values without quotes; None for bad syntax. Each
    octet has one way to match, so that what fails does so in linear time."""
    if _PARAMETERS.fullmatch(value) is None:
        return None
    return [
        (name.lower(), text[1:-1] if text.startswith(b'"') else text)
        for name, text in _PARAMETER.findall(value)
    ]


def boundary_of(content_type: bytes) -> bytes | None:
    """The boundary of multipart/form-data; None where servers could find another, or none."""
    if _MULTIPART.match(content_type) is None:
        return None
    given = parameters_of(content_type) or []
    found = [value for name, value in given if name.partition(b"*")[0] == b"boundary"]
    if len(found) != 1 or any(name.startswith(b"boundary*") for name, _ in given):
        return None
    return found[0] if _BOUNDARY.fullmatch(found[0]) else None
