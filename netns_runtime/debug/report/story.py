"""What a report tells, as values: the vocabulary between the evidence and the page.

Every text in a Story is printable ASCII and bounded (`told`), every sequence is as long as `limits`
lets it be, and what was left out is said in `left_out`. Times are the audit's own (RFC 3339, UTC).
Pure values; nothing here can fail.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from netns_runtime.debug.text import shown

if TYPE_CHECKING:
    from netns_runtime.debug.report.timeline import Timeline

OUTCOMES: Final = ("passed", "open", "noted", "failed", "refused")
"""From the mildest to the worst. `noted` is what report mode let pass."""

CARDS: Final = 60
"""Refusals, failures and WebSockets that are explained, each."""
ROWS: Final = 300
"""Rows of any table."""
GROUPS: Final = 5000
"""Groups that are told apart at all; clients choose names and paths without an end."""


def told(value: object, limit: int = 300) -> str:
    """`shown`, at a cost that is bounded too."""
    return shown(str(value)[: limit + 1], limit)


@dataclass(frozen=True, slots=True)
class Trouble:
    """Attempts of one process at one thing that ended alike. `id` is its place in the page.

    `count` is how many events tell, `counted` how many refused connects the kernel counted at that
    destination, where it was asked. The words from `step` to `advice` are `netns-debug why`'s.
    """

    id: str
    outcome: str
    where: str
    what: str
    who: str
    pids: tuple[int, ...]
    exe: str
    count: int
    counted: int | None
    first: str
    last: str
    step: str
    reason: str
    cause: str
    verdict: str
    rule: str
    changes: tuple[str, ...]
    advice: str
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Socket:
    """WebSockets of one host that ended alike, the last of them in detail (`netns-debug ws`)."""

    id: str
    where: str
    path: str
    who: str
    count: int
    first: str
    last: str
    kind: str
    is_failed: bool
    is_open: bool
    duration: float | None
    code: int | None
    messages_in: int | None
    messages_out: int | None
    ended_by: str
    evidence: tuple[str, ...]
    usually: str
    do: str


@dataclass(frozen=True, slots=True)
class Talk:
    """All that one executable did with one destination; counts are attempts."""

    who: str
    where: str
    passed: int
    noted: int
    failed: int
    refused: int
    bytes_in: int
    bytes_out: int

    @property
    def attempts(self) -> int:
        return self.passed + self.noted + self.failed + self.refused


@dataclass(frozen=True, slots=True)
class Asked:
    """HTTP requests to one host. `statuses`: counts of 2xx to 5xx, and of those refused by us."""

    where: str
    count: int
    methods: tuple[tuple[str, int], ...]
    statuses: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Slow:
    """From the decision to the head of the answer; dial and TLS are in it."""

    time: str
    where: str
    what: str
    status: int | None
    milliseconds: float


@dataclass(frozen=True, slots=True)
class Secret:
    """What became of one secret. `withheld` says where it was asked for and not given."""

    name: str
    bound: tuple[str, ...]
    substituted: int
    slots: tuple[str, ...]
    hosts: tuple[str, ...]
    withheld: int
    why: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Flow:
    """One connection that the proxy decided about; `seconds` None where it has no end yet."""

    number: int
    time: str
    seconds: float | None
    where: str
    who: str
    entry: str
    protocol: str
    outcome: str
    bytes_in: int
    bytes_out: int
    requests: int


@dataclass(frozen=True, slots=True)
class Totals:
    """`refused` is the kernel's exact count and None where nobody says it; `untold` of these have
    no event of their own. `places_refused` are destinations, and more if `is_more`."""

    refused: int | None
    counted_bpf: int
    counted_nft: int
    reasons: tuple[tuple[str, int], ...]
    events_refused: int
    untold: int
    names_refused: int
    names_answered: int
    flows: int
    flows_open: int
    attempts: tuple[tuple[str, int], ...]
    bytes_in: int
    bytes_out: int
    requests: int
    sockets: int
    sockets_failed: int
    places_refused: int
    is_more: bool
    published: int


@dataclass(frozen=True, slots=True)
class Story:
    """One sandbox. `seen_at` is when a running one was asked, "" of an audit; `ended` is "" where
    no end is told."""

    name: str
    source: str
    command: str
    facts: tuple[tuple[str, str], ...]
    began: str
    ended: str
    seen_at: str
    seconds: float
    status: int | None
    totals: Totals
    refusals: tuple[Trouble, ...]
    failures: tuple[Trouble, ...]
    sockets: tuple[Socket, ...]
    talks: tuple[Talk, ...]
    requests: tuple[Asked, ...]
    slowest: tuple[Slow, ...]
    secrets: tuple[Secret, ...]
    flows: tuple[Flow, ...]
    timeline: Timeline
    notes: tuple[str, ...]
    left_out: tuple[str, ...]
