"""The last events, numbered, so that a reader knows what it missed.

The proxy keeps its own and the supervisor its own. `since` gives a batch that fits one message, and
`batches_of` makes such batches of anything alike, however long the sandbox made its fields; what
was pushed out before it could be read is told as a number, never silently.
"""

from __future__ import annotations

import json
from collections import deque
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

LIMIT: Final = 1000
BATCH_BYTES: Final = 48 * 1024
"""Less than what the supervisor takes in one message."""
LONGEST: Final = 2000
"""Characters of one field, as it is told here; the audit has it whole."""
ENCODED: Final = 12
"""Bytes of one character in JSON, at most: two escapes for one beyond the BMP."""
_encode: Final = json.JSONEncoder(ensure_ascii=True, check_circular=False).encode


class Recent:
    """The newest `limit` events; `total` of them were ever taken."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.total = 0
        self._kept: deque[dict[str, Any]] = deque(maxlen=limit)

    def take(self, event: dict[str, Any]) -> None:
        """Keep one more. The event is not changed, and must not be from now on."""
        self.total += 1
        self._kept.append(event)

    def since(
        self, number: int, octets: int = BATCH_BYTES
    ) -> tuple[list[dict[str, Any]], int, int]:
        """Events after the first `number`, as many as fit; how many were lost; the next number."""
        first = self.total - len(self._kept)
        start = min(max(number, first), self.total)
        events: list[dict[str, Any]] = []
        taken = start
        for at in range(start - first, len(self._kept)):
            event = _short(self._kept[at])
            octets -= len(_encode(event)) + 2
            if octets < 0 and events:
                break
            events.append(event)
            taken += 1
        return events, start - number if number < start else 0, taken


def batches_of(entries: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """All of them in order, in lists that fit one message each; one empty list of none."""
    batch: list[dict[str, Any]] = []
    room = BATCH_BYTES
    for entry in map(_short, entries):
        size = len(_encode(entry)) + 2
        if batch and size > room:
            yield batch
            batch, room = [], BATCH_BYTES
        batch.append(entry)
        room -= size
    yield batch


def _short(event: dict[str, Any]) -> dict[str, Any]:
    """As long as one message can carry: paths and headers are as long as the sandbox likes."""
    longest = LONGEST
    while True:
        lengths = [len(value) for value in event.values() if isinstance(value, str)]
        if max(lengths, default=0) > longest:
            event = {
                key: value[:longest] + "..."
                if isinstance(value, str) and len(value) > longest
                else value
                for key, value in event.items()
            }
        if sum(lengths) * ENCODED < BATCH_BYTES or len(_encode(event)) < BATCH_BYTES or not longest:
            return event
        longest //= 2
