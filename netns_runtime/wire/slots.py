"""What goes into a place: the bound secrets that have a slot there, escaped for it.

A `Fill` answers for one place (a header, a field, a pointer) with the bytes for a placeholder's
name; a `Seen` keeps what was substituted and what was withheld, each once, so that neither grows
with the content. A value that cannot stand in a place is withheld from it. Nothing here raises.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import quote_from_bytes

from netns_runtime.wire.spelling import octets_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from netns_runtime.secret import Secret, Slot, SlotKind

_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
# What encodeURIComponent and Telegram's clients leave in a segment, and no server splits at.
_SEGMENT_SAFE: Final = ":@!$'()*,"


@dataclass(frozen=True, slots=True)
class Hit:
    """One substitution: the secret's name and the slot as `str(slot)` says it."""

    secret: str
    slot: str


@dataclass(slots=True)
class Seen:
    """What was done so far, each once."""

    substituted: list[Hit] = field(default_factory=list)
    withheld: list[str] = field(default_factory=list)

    def substitute(self, hit: Hit) -> None:
        if hit not in self.substituted:
            self.substituted.append(hit)

    def withhold(self, names: Iterable[str]) -> None:
        self.withheld += (name for name in sorted(names) if name not in self.withheld)


def _as_text(value: str) -> bytes | None:
    octets = octets_of(value)
    return None if _CONTROL.search(octets) else octets


def _as_parameter(value: str) -> bytes | None:
    return quote_from_bytes(octets_of(value), safe="").encode()


def _as_segment(value: str) -> bytes | None:
    return quote_from_bytes(octets_of(value), safe=_SEGMENT_SAFE).encode()


def as_json(value: str) -> bytes | None:
    """The inside of a JSON string, ASCII, so that it stands in any encoding based on it."""
    return json.dumps(value)[1:-1].encode()


ESCAPES: Final[dict[SlotKind, Callable[[str], bytes | None]]] = {
    "header": _as_text,
    "basic": _as_text,
    "query": _as_parameter,
    "path": _as_segment,
    "form": _as_parameter,
    "json": as_json,
    "websocket": as_json,
}


class Fill:
    """The values of one place. `put` is what `Syntax.replace` asks; it notes what it gave."""

    def __init__(
        self,
        entries: Iterable[tuple[Secret, Slot]],
        seen: Seen,
        escape: Callable[[str], bytes | None] | None = None,
    ) -> None:
        self._seen = seen
        self._values = {
            secret.name: ((escape or ESCAPES[slot.kind])(secret.value), Hit(secret.name, str(slot)))
            for secret, slot in entries
        }

    def __bool__(self) -> bool:
        return bool(self._values)

    def put(self, name: str) -> bytes | None:
        value, hit = self._values.get(name, (b"", None))
        if hit is None:
            return None
        if value is None:
            self._seen.withhold([name])
        else:
            self._seen.substitute(hit)
        return value


def slots_of(bound: Sequence[Secret], kind: SlotKind) -> list[tuple[Secret, Slot]]:
    """All slots of a kind, each with its secret."""
    return [
        (secret, slot) for secret in bound for slot in secret.binding.slots if slot.kind == kind
    ]


def fills_of(
    entries: Iterable[tuple[Secret, Slot]],
    seen: Seen,
    escape: Callable[[str], bytes | None] | None = None,
) -> dict[str, Fill]:
    """By the slots' names."""
    by_name: dict[str, list[tuple[Secret, Slot]]] = {}
    for secret, slot in entries:
        by_name.setdefault(slot.name, []).append((secret, slot))
    return {name: Fill(entries, seen, escape) for name, entries in by_name.items()}


def as_part(value: str) -> bytes | None:
    """A multipart field's content, which has no escapes."""
    return _as_text(value)
