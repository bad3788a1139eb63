"""A JSON document passing by, in which the strings at some pointers are filled in.

A stepwise reader with one method for each state: it follows only containers on the way to a slot
and skips all else at C speed (jsonscan), so its memory is the depth of the pointers and one
unfinished token (a key that may match, a
placeholder). Duplicate keys are each a slot. From the first byte
that is not JSON on, and after the document's end, everything passes unchanged; nothing raises.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from netns_runtime.wire.jsonscan import (
    BALANCED,
    OPENERS,
    REST,
    SCALAR_REST,
    SPACE,
    STRING,
    STRING_REST,
    WINDOW,
    Node,
    trie_of,
)
from netns_runtime.wire.placeholder import JSON

if TYPE_CHECKING:
    from collections.abc import Mapping

    from netns_runtime.wire.slots import Fill

_BOM: Final = b"\xef\xbb\xbf"

State = Callable[[bytes, int, bool], int]
"""Data, position and whether it ends there, to the position reached; `_waits`: not without more."""


class _Frame:
    __slots__ = ("index", "is_array", "node")

    def __init__(self, node: Node, *, is_array: bool) -> None:
        self.node, self.is_array, self.index = node, is_array, 0


class JsonRewriter:
    """`fills` by JSON pointer; only strings are slots, the whole or a part of one."""

    def __init__(self, fills: Mapping[str, Fill]) -> None:
        self._node: Node | None = trie_of(tuple(fills))
        self._fills = fills
        self._state: State = self._start
        self._frames: list[_Frame] = []
        self._depth = 0
        self._is_key = False
        self._held = b""
        self._parts: list[bytes] = []
        self._passed = 0
        self._waits = False

    def feed(self, data: bytes) -> bytes:
        if len(data) <= WINDOW:
            return self._run(data, is_end=False)
        return b"".join(
            self._run(data[start : start + WINDOW], is_end=False)
            for start in range(0, len(data), WINDOW)
        )

    def finish(self) -> bytes:
        return self._run(b"", is_end=True)

    def _run(self, data: bytes, *, is_end: bool) -> bytes:
        data = self._held + data if self._held else data
        self._held, self._passed = b"", 0
        position, self._waits = 0, False
        while position < len(data) and not self._waits:
            position = self._state(data, position, is_end)
        if is_end:
            position = len(data)
        self._held = data[position:]
        if not self._parts and not self._passed and position == len(data):
            return data
        self._parts.append(data[self._passed : position])
        whole = b"".join(self._parts)
        self._parts.clear()
        return whole

    def _start(self, data: bytes, position: int, is_end: bool) -> int:
        if not is_end and len(data) < len(_BOM) and _BOM.startswith(data):
            self._waits = True
            return position
        self._state = self._value
        return len(_BOM) if data.startswith(_BOM) else position

    def _value(self, data: bytes, position: int, is_end: bool) -> int:
        match = SPACE.match(data, position)
        at = match.end() if match else position
        if at == len(data):
            return at
        node, first = self._node, data[at : at + 1]
        if first == b'"':
            self._state = (
                self._slot if node is not None and node.pointer is not None else self._string
            )
            self._is_key = False
            return at + 1
        if first in (b"{", b"["):
            is_array = first == b"["
            if node is not None and (node.last_index >= 0 if is_array else node.children):
                self._frames.append(_Frame(node, is_array=is_array))
                self._state = self._key
                if is_array:
                    self._node, self._state = node.children.get("0"), self._value
            else:
                self._depth, self._state = 1, self._skip
            return at + 1
        self._state = self._after
        return at

    def _key(self, data: bytes, position: int, is_end: bool) -> int:
        node = self._frames[-1].node
        if node.members is not None:
            match = node.members.match(data, position, position + WINDOW)
            position = match.end() if match else position
        match = SPACE.match(data, position)
        at = match.end() if match else position
        if at == len(data):
            return at
        if data[at : at + 1] != b'"':
            self._state = self._after if data[at : at + 1] == b"}" else self._pass
            return at
        key = STRING.match(data, at, at + node.key_limit)
        self._is_key = True
        if key is not None:
            self._node = node.children.get(_decoded(key[0]))
            self._state = self._colon
            return key.end()
        if len(data) - at < node.key_limit and not is_end:
            self._waits = True
            return at
        self._node, self._state = None, self._string
        return at + 1

    def _colon(self, data: bytes, position: int, is_end: bool) -> int:
        match = SPACE.match(data, position)
        at = match.end() if match else position
        if at == len(data):
            return at
        is_colon = data[at : at + 1] == b":"
        self._state = self._value if is_colon else self._pass
        return at + is_colon

    def _after(self, data: bytes, position: int, is_end: bool) -> int:
        """After a string or container, or at a number or word."""
        match = SCALAR_REST.match(data, position)
        at = match.end() if match else position
        if at == len(data):
            return at
        sign = data[at : at + 1]
        if not self._frames or sign not in (b",", b"]", b"}"):
            self._state = self._pass
            return at
        frame = self._frames[-1]
        if sign != b",":
            self._frames.pop()
        elif not frame.is_array:
            self._state = self._key
        elif frame.index >= frame.node.last_index:
            self._frames.pop()
            self._depth, self._state = 1, self._skip
        else:
            frame.index += 1
            self._node, self._state = frame.node.children.get(str(frame.index)), self._value
        return at + 1

    def _skip(self, data: bytes, position: int, is_end: bool) -> int:
        """To the end of a container that leads to no slot, `_depth` levels down in it."""
        match = BALANCED.match(data, position, position + WINDOW)
        at = match.end() if match else position
        if at == len(data):
            return at
        sign = data[at : at + 1]
        if sign == b'"':
            self._state = self._skip_string
            return at + 1
        if sign in (b"{", b"["):
            run = OPENERS.match(data, at)
            deep = run.end() - at if run else 1
            if deep > len("[[["):
                self._depth += deep
                return at + deep
            self._depth += 1
        elif sign in (b"}", b"]"):
            self._depth -= 1
        elif (rest := REST.match(data, at)) is not None:
            return rest.end()
        else:
            self._state = self._pass
            return at
        if not self._depth:
            self._state = self._after
        return at + 1

    def _skip_string(self, data: bytes, position: int, is_end: bool) -> int:
        return self._to_quote(data, position, self._skip)

    def _string(self, data: bytes, position: int, is_end: bool) -> int:
        return self._to_quote(data, position, self._colon if self._is_key else self._after)

    def _to_quote(self, data: bytes, position: int, then: State) -> int:
        end = _string_end(data, position)
        if data[end : end + 1] == b'"':
            self._state = then
            return end + 1
        self._waits = end < len(data)
        return end

    def _slot(self, data: bytes, position: int, is_end: bool) -> int:
        assert self._node is not None
        assert self._node.pointer is not None
        fill = self._fills[self._node.pointer]
        end = _string_end(data, position)
        is_closed = data[end : end + 1] == b'"'
        filled, held = JSON.replace(data[position:end], fill.put, is_whole=is_closed or is_end)
        self._parts += (data[self._passed : position], filled)
        self._passed = end - len(held)
        if is_closed:
            self._state = self._after
            return end + 1
        self._waits = True
        return self._passed

    def _pass(self, data: bytes, position: int, is_end: bool) -> int:
        return len(data)


def _string_end(data: bytes, position: int) -> int:
    """Where the closing quote is, or what is unfinished begins: a lone backslash or the end."""
    quote = data.find(b'"', position)
    stop = quote if quote >= 0 else len(data)
    if data.find(b"\\", position, stop) < 0:
        return stop
    match = STRING_REST.match(data, position)
    return match.end() if match else stop


def _decoded(key: bytes) -> str:
    if b"\\" not in key:
        return key[1:-1].decode("utf-8", "surrogateescape")
    try:
        return str(json.loads(key.decode("utf-8", "surrogateescape")))
    except ValueError:
        return ""
