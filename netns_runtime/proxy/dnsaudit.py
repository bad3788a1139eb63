"""Refused names on their way to the audit: the first at once, repetitions as a count.

Agents retry in tight loops, and every lookup asks twice (A and AAAA), so a line for each query
would bury the rest. `count` is lookups: for each name, how often the type asked most was asked. A
line without `count` is one. Names beyond a token bucket are told together, without their host, by
the number of their queries; so the lines add up to everything that was refused. Ends with
`flush(everything=True)`, which leaves nothing untold.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from netns_runtime.audit import AuditError
from netns_runtime.proxy.flow import owner_fields
from netns_runtime.wire.dns import AAAA, A

if TYPE_CHECKING:
    from collections.abc import Callable

    from netns_runtime.audit import AuditLog
    from netns_runtime.owner import Owner

NAMES: Final = 2048
"""Names counted one by one; past these the one refused longest ago is told and forgotten."""
BURST: Final = 512
PER_SECOND: Final = 2.0
"""Names of their own line: so many at once, then so many a second."""
FIRST_REPEAT: Final = 10.0
LAST_REPEAT: Final = 640.0
"""Seconds until repetitions are told; doubled each time for as long as they go on."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Why a name was refused; `kind` is the type asked for, all text is printable ASCII."""

    name: str
    kind: int
    reason: str
    detail: str
    remedy: str | None = None
    rule: str | None = None
    said_by: str = "policy"

    def fields(self) -> dict[str, Any]:
        """What every line about it says."""
        return {
            "host": self.name or ".",
            "action": "refuse",
            "reason": self.reason,
            "rule": self.rule,
            "said_by": self.said_by,
            "detail": self.detail,
            "remedy": self.remedy,
        }


@dataclass(slots=True, eq=False)
class _Entry:
    refused: Refused
    due: float
    wait: float = FIRST_REPEAT
    told: int = 1
    asked: dict[int, int] = field(default_factory=dict)

    def ask(self, kind: int) -> None:
        column = kind if kind in {A, AAAA} else 0
        self.asked[column] = self.asked.get(column, 0) + 1

    @property
    def untold(self) -> int:
        return max(self.asked.values()) - self.told


class RefusedNames:
    """The refused names of one sandbox. `clock` gives seconds; `report` takes a bug's line."""

    def __init__(
        self,
        audit: AuditLog,
        clock: Callable[[], float],
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._audit = audit
        self._clock = clock
        self._report = report
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._tokens = float(BURST)
        self._filled: float | None = None
        self._nameless: Counter[str] = Counter()
        self._complained = False

    def note(self, refused: Refused) -> bool:
        """Count one refused query. True where the caller is to `tell` it, as the name's first."""
        entry = self._entries.get(refused.name)
        if entry is not None:
            entry.ask(refused.kind)
            self._entries.move_to_end(refused.name)
            return False
        if not self._take_token():
            self._nameless[refused.reason] += 1
            return False
        entry = _Entry(refused, self._clock() + FIRST_REPEAT)
        entry.ask(refused.kind)
        self._entries[refused.name] = entry
        if len(self._entries) > NAMES:
            self._tell_rest(self._entries.popitem(last=False)[1])
        return True

    def tell(self, refused: Refused, owner: Owner | None, protocol: str) -> None:
        """Write the line of a name's first refusal."""
        self._write(protocol=protocol, **refused.fields(), **owner_fields(owner))

    def untold(self) -> Counter[str]:
        """Refused lookups by reason that no line has yet."""
        found = self._nameless.copy()
        for entry in self._entries.values():
            found[entry.refused.reason] += entry.untold
        return found

    def flush(self, *, everything: bool = False) -> None:
        """Tell the repetitions that are due, or all; forget names that have rested."""
        now = self._clock()
        for name, entry in list(self._entries.items()):
            if not everything and entry.due > now:
                continue
            if entry.untold:
                self._tell_rest(entry)
                entry.wait = min(2 * entry.wait, LAST_REPEAT)
                entry.due = now + entry.wait
            else:
                del self._entries[name]
        for reason, count in self._nameless.items():
            self._write(
                action="refuse",
                reason=reason,
                count=count,
                detail="more names were refused than are told one by one",
            )
        self._nameless.clear()

    def _tell_rest(self, entry: _Entry) -> None:
        if entry.untold:
            self._write(**entry.refused.fields(), count=entry.untold)
            entry.told += entry.untold

    def _take_token(self) -> bool:
        now = self._clock()
        if self._filled is not None:
            self._tokens = min(BURST, self._tokens + (now - self._filled) * PER_SECOND)
        self._filled = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def _write(self, **fields: Any) -> None:
        try:
            self._audit.write("dns.refused", **fields)
        except AuditError as error:
            if not self._complained:
                self._complained = True
                self._report(f"dns: {error}")
