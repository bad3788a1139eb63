"""What a run did, as a policy would have to allow it: connections, requests, WebSockets, lookups.

`seen_of` reads audit events, best those of a run with --report, in which what would have been
refused went on. Each `Seen` is one kind of thing that happened, with how often; what was refused
all the same (screened addresses, direct connects, fronting) is kept apart, since no policy that is
written here could have allowed it, or none should. Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from netns_runtime.address import AddressError, parse_host
from netns_runtime.policy.matchers import MESSAGES
from netns_runtime.wire import ProtocolError
from netns_runtime.wire.path import normalise_target

if TYPE_CHECKING:
    from netns_runtime.debug.evidence import Event, Evidence

_LOOKED_INTO: Final = frozenset({"http", "https", "h2"})
# What report mode lets pass and only an endpoint that says so can allow.
_RAW: Final = frozenset({"sni_missing", "ech_unverifiable", "http_unverifiable"})
_TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'+.^_`|~-]{1,64}")  # RFC 9110, 5.6.2; `*` is a glob
# A glob's characters would name others too; YAML takes no character beyond these as it is escaped.
_EXE: Final = re.compile(r"(?!.*/\.\.?(?:/|$))/[^\x00-\x1f\x7f*?\[\]\ud800-\U0010ffff]+")
_FRONTING: Final = frozenset({"sni_mismatch", "host_mismatch"})


@dataclass(frozen=True, slots=True)
class Request:
    """`path` is normalised, without its query. `sends`: a WebSocket that sent messages."""

    method: str
    path: str
    is_websocket: bool = False
    sends: bool = False


@dataclass(frozen=True, slots=True)
class Seen:
    """One thing that happened. `port` None is a lookup without a connection.

    `request` None is a connection in which no request was seen; `moved`: it carried something all
    the same. `is_raw`: it could not be looked into, and no rule about requests would let it pass.
    """

    host: str
    port: int | None
    exe: str | None = None
    request: Request | None = None
    is_raw: bool = False
    moved: bool = False


@dataclass(slots=True)
class Learned:
    """`seen` with counts, in order. `refused` are events that no policy here will allow."""

    seen: dict[Seen, int] = field(default_factory=dict)
    refused: list[Event] = field(default_factory=list)
    command: str | None = None

    def add(self, seen: Seen) -> None:
        """Count it once more."""
        self.seen[seen] = self.seen.get(seen, 0) + 1

    def refuse(self, event: Event) -> None:
        """Keep what was refused: of a flow once, though its request may have a line as well."""
        number = event.get("flow")
        if number is None or all(other.get("flow") != number for other in self.refused[-8:]):
            self.refused.append(event)


@dataclass(slots=True)
class _Flow:
    """What is known of one flow so far."""

    seen: Seen | None = None
    requests: list[Request] = field(default_factory=list)
    has_refused: bool = False
    moved: bool = True
    is_cut: bool = False
    """Its requests are looked into, and the evidence ends before any: what it asked is unknown."""


def seen_of(evidence: Evidence) -> Learned:
    """Everything that happened, in the order it first did."""
    found = Learned()
    flows: dict[tuple[str, int], _Flow] = {}
    looked_up: dict[str, Seen] = {}
    for event in evidence.events:
        name, number = event["event"], event.get("flow")
        if name == "sandbox.started" and isinstance(event.get("command"), str):
            found.command = event["command"]
        elif name == "connect.refused" or (name == "dns.refused" and event.get("host")):
            found.refuse(event)
        elif name == "dns.answered" and _is_host(event.get("host")):
            looked_up.setdefault(event["host"], Seen(event["host"], None))
        elif name in ("flow.decided", "flow.closed") and event.get("action") == "refuse":
            found.refuse(event)
        elif isinstance(number, int):
            flow = flows.setdefault((str(event.get("sandbox", "")), number), _Flow())
            _follow(flow, event, found)
    for flow in flows.values():
        if flow.seen is None or (flow.is_cut and not flow.requests):
            continue
        # Whose every request was refused: the connection alone would be allowed whatever it asks.
        if not flow.requests and not flow.has_refused:
            found.add(replace(flow.seen, moved=flow.moved))
        for request in flow.requests:
            found.add(replace(flow.seen, request=request))
    connected = {seen.host for seen in found.seen}
    for host, seen in looked_up.items():
        if host not in connected:
            found.add(seen)
    return found


def _follow(flow: _Flow, event: Event, found: Learned) -> None:
    name, reason = event["event"], event.get("reason")
    host, port = event.get("host"), event.get("port")
    if name == "flow.decided" and isinstance(host, str) and isinstance(port, int):
        if reason in _FRONTING or not _is_host(host) or not 0 < port < 65536:
            found.refuse(event)
            return
        exe = event.get("exe")
        exe = exe if isinstance(exe, str) else None
        flow.seen = Seen(host, port, exe, is_raw=reason in _RAW)
        flow.is_cut = event.get("protocol") in _LOOKED_INTO
    elif name == "http.request":
        method = str(event.get("method", ""))
        request = None if event.get("action") == "refuse" else _request_of(event, method)
        if request is None:
            flow.has_refused = True
            found.refuse(event)
        elif method != "CONNECT":
            flow.requests.append(request)
    elif name == "flow.closed":
        flow.moved = bool(event.get("bytes_out") or event.get("bytes_in"))
        flow.is_cut = False
    elif name == "ws.closed" and flow.requests and flow.requests[-1].is_websocket:
        sends = bool(event.get("messages_out"))
        flow.requests[-1] = replace(flow.requests[-1], sends=sends)


def _is_host(text: object) -> bool:
    try:
        return isinstance(text, str) and parse_host(text) == text
    except AddressError:
        return False


def _request_of(event: Event, method: str) -> Request | None:
    """None where no rule can say it: a rule that was wider would be none that it asked for."""
    # A rule's method of this name allows to send messages, whatever was sent here.
    if _TOKEN.fullmatch(method) is None or method.upper() in MESSAGES:
        return None
    is_websocket = event.get("protocol") == "websocket"
    path = str(event.get("path", "/")).partition("?")[0] or "/"
    if path == "*" and method != "OPTIONS":
        return None
    try:
        path = path if path == "*" else normalise_target(path, allow_encoded_slash=True).path
    except ProtocolError:
        return None
    # Until its end says otherwise, an open one may have sent something.
    sends = is_websocket and event.get("status") == 101
    return Request(method.upper(), path, is_websocket, sends)


def nameable(learned: Learned) -> Learned:
    """The same without what executables did whose names would say more, or nothing, in a policy:
    those go to `refused`. For policies with `binaries`."""
    kept: dict[Seen, int] = {}
    refused = list(learned.refused)
    for seen, count in learned.seen.items():
        if seen.exe is None or _EXE.fullmatch(seen.exe):
            kept[seen] = count
            continue
        why = "no policy can name its executable alone"
        refused.append({"comm": seen.exe, "host": seen.host, "port": seen.port, "reason": why})
    return replace(learned, seen=kept, refused=refused)
