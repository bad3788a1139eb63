"""Which packets of the uplink are this proxy's: those of connections that it says it dials.

The uplink may be the host's own namespace, with everybody's packets in it. A packet is taken only
while its two ends are a connection that the proxy told of, and a new connection with the same ends
counts as somebody else's until the proxy says that it is its own. Pure; nothing else is looked at.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from netns_runtime.debug.capturewho import TCP, named_of, packed
from netns_runtime.debug.text import shown, where_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from netns_runtime.debug.capturewho import Address, Ends

CONNECTIONS: Final = 65_536
SOON: Final = 1_000_000_000
"""Nanoseconds between a SYN and the proxy's word that it dials; on the same clock."""
# Own address and port, the peer's address and port.
Dial = tuple["Address", int, "Address", int]


@dataclass(slots=True)
class _Dialled:
    """`at` is when the proxy dialled, 0 for before the capture; `sequence` is its SYN's number."""

    at: int
    host: str
    flow: int | None = None
    link: int | None = None
    sequence: int | None = None

    def begins(self, sequence: int, when: int) -> bool:
        """Whether a SYN is this connection's: its first or that sent again."""
        if self.sequence is None and self.at and abs(when - self.at) < SOON:
            self.sequence = sequence
        return self.sequence == sequence


@dataclass(slots=True)
class Dials:
    """The proxy's connections to upstreams, as far as it has told of them."""

    _known: dict[Dial, _Dialled] = field(default_factory=dict)
    _flows: dict[int, dict[str, Any]] = field(default_factory=dict)

    def told(self, message: Mapping[str, Any]) -> None:
        """A message of the proxy's (proxy.tap), whichever."""
        number = message.get("flow")
        if "dialling" in message:
            dial = _dial_of(message["dialling"])
            if dial is not None:
                self._add(dial, _Dialled(int(message.get("at", 0)), str(message.get("host", ""))))
        elif isinstance(number, int):
            if len(self._flows) >= CONNECTIONS:
                del self._flows[next(iter(self._flows))]
            self._flows[number] = {**self._flows.get(number, {}), **message}
            dial = _dial_of(message.get("upstream"))
            if dial is not None:
                if dial not in self._known:
                    self._add(dial, _Dialled(0, str(message.get("host", ""))))
                self._known[dial].flow = number

    def _add(self, dial: Dial, dialled: _Dialled) -> None:
        self._known.pop(dial, None)
        self._known[dial] = dialled
        if len(self._known) > CONNECTIONS:
            del self._known[next(iter(self._known))]

    def remark(self, ends: Ends, when: int, link: int) -> str | None:
        """The comment of a packet of the proxy's; None for anybody else's.

        `link` is the interface's index: what passes several (a bridge, a bond) is taken once.
        """
        if ends.protocol != TCP:
            return None
        dial = (ends.source, ends.source_port, ends.destination, ends.destination_port)
        if dial in self._known:
            if ends.is_syn and not self._known[dial].begins(ends.sequence, when):
                del self._known[dial]
                return None
        else:
            dial = (dial[2], dial[3], dial[0], dial[1])
        known = self._known.get(dial)
        if known is None or (known.at and known.sequence is None):
            return None
        if known.link is None:
            known.link = link
        return self._text_of(known) if known.link == link else None

    def _text_of(self, known: _Dialled) -> str:
        flow = self._flows.get(known.flow or 0)
        if flow is None:
            return f"the proxy -> {shown(known.host, 300)}"
        who = named_of(flow)
        return f"the proxy for {who} -> {where_of(flow)}, flow {known.flow}"


def _dial_of(ends: object) -> Dial | None:
    if not isinstance(ends, list) or len(ends) != 4:
        return None
    own, port, peer, peer_port = ends
    try:
        return packed(str(own)), int(port), packed(str(peer)), int(peer_port)
    except (TypeError, ValueError):
        return None
