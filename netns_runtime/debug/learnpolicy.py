"""Writes the smallest readable policy that would have allowed what happened, and proves it.

`policy_for` groups what was seen by executable (where asked), host and port; `text_of` writes the
file. Nothing written here is believed: the product's own rules judge everything seen by it
(`learnjudge`), and an endpoint whose rules do not carry that is widened and says so: to every path
of the method that lacks it, and at last to the whole host and port. Pure.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from netns_runtime.debug.learnjudge import LOOKUP_PORT, refusals_of
from netns_runtime.debug.learnpaths import EVERYTHING, globs_for
from netns_runtime.debug.text import shown, where_of
from netns_runtime.policy import load_policy

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from netns_runtime.debug.learned import Learned, Seen

_PLAIN: Final = re.compile(r"[A-Za-z0-9/._~][A-Za-z0-9/._~%$+@=-]*")
_NUMBERISH: Final = re.compile(r"[0-9._+-]+|true|false|null|yes|no|on|off|~", re.IGNORECASE)
_ALL: Final = "*"
"""No method: in place of one, all of them and every path."""
_WIDER: Final = "no narrower rule allows all that it asked for"

Wide = dict[tuple[str | None, str, int], set[str]]
"""Methods to be allowed on every path, by executable, host and port."""


@dataclass(frozen=True, slots=True)
class Line:
    """One rule of an endpoint."""

    method: str
    path: str

    def __str__(self) -> str:
        return f"allow: {{method: {yaml_of(self.method)}, path: {yaml_of(self.path)}}}"


@dataclass(frozen=True, slots=True)
class Place:
    """One endpoint. `lines` None says nothing about requests; `note` is a comment."""

    host: str
    ports: tuple[int, ...]
    protocol: str | None = None
    lines: tuple[Line, ...] | None = None
    takes_slash: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class Group:
    """Endpoints and who may use them; `binaries` None is any process."""

    name: str
    places: tuple[Place, ...]
    binaries: tuple[str, ...] | None = None


def policy_for(learned: Learned, *, binaries: bool = False) -> tuple[Group, ...]:
    """The groups of the policy. Raises nothing; what cannot be put into a policy is left out."""
    wide: Wide = {}
    while True:
        groups = _groups(learned.seen, wide, binaries=binaries)
        policy = load_policy(text_of(groups).encode("ascii"), "learned")
        is_wider = False
        for seen, _ in refusals_of(policy, learned.seen):
            if seen.port is None:
                continue
            methods = wide.setdefault((_exe_of(seen, binaries), seen.host, seen.port), set())
            method = seen.request.method if seen.request is not None else _ALL
            method = _ALL if method in methods else method
            is_wider = is_wider or method not in methods
            methods.add(method)
        if not is_wider:
            return groups


def _exe_of(seen: Seen, binaries: bool) -> str | None:
    # Lookups are asked by resolvers of the system as a rule: they go to everybody.
    return seen.exe if binaries and seen.port is not None else None


def _groups(seen: Iterable[Seen], wide: Wide, *, binaries: bool) -> tuple[Group, ...]:
    by_exe: dict[str | None, list[Seen]] = {}
    for one in seen:
        by_exe.setdefault(_exe_of(one, binaries), []).append(one)
    merged: dict[tuple[Place, ...], list[str | None]] = {}
    for exe, group in by_exe.items():
        merged.setdefault(_places(group, exe, wide), []).append(exe)
    groups = []
    names: set[str] = set()
    for places, exes in merged.items():
        if not places:
            continue
        known = sorted(exe for exe in exes if exe is not None)
        anybody = None in exes
        name = first = "learned" if anybody else _name_of(known[0])
        number = 1
        while name in names:
            number += 1
            name = f"{first}-{number}"
        names.add(name)
        groups.append(Group(name, places, None if anybody else tuple(known)))
    return tuple(groups)


def _name_of(exe: str) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", exe.rpartition("/")[2].lower()).strip("-")
    return name if name and not name[0].isdigit() else f"exe-{name}"


def _places(seen: Sequence[Seen], exe: str | None, wide: Wide) -> tuple[Place, ...]:
    by_target: dict[tuple[str, int], list[Seen]] = {}
    lookups = dict.fromkeys(one.host for one in seen if one.port is None)
    for one in seen:
        if one.port is not None:
            by_target.setdefault((one.host, one.port), []).append(one)
    places = [
        _place(host, port, group, wide.get((exe, host, port), set()))
        for (host, port), group in by_target.items()
    ]
    places += [
        Place(host, (LOOKUP_PORT,), note="looked up only; the port is a guess") for host in lookups
    ]
    merged: dict[Place, list[int]] = {}
    for place in places:
        merged.setdefault(replace(place, ports=()), []).extend(place.ports)
    found = [replace(place, ports=tuple(sorted(set(ports)))) for place, ports in merged.items()]
    return tuple(sorted(found, key=lambda place: (place.host.split(".")[::-1], place.ports)))


def _place(host: str, port: int, seen: Sequence[Seen], wide: Collection[str]) -> Place:
    requests = [one.request for one in seen if one.request is not None]
    if any(one.is_raw for one in seen):
        return Place(host, (port,), protocol="tcp", note="what it speaks could not be looked into")
    # What nobody looked into may have been anything: then only the whole port will do. One that
    # carried nothing was opened in advance, as browsers do, which every endpoint allows.
    is_opaque = any(one.request is None and one.moved for one in seen)
    if not requests or is_opaque:
        return Place(host, (port,))
    if _ALL in wide:
        return Place(host, (port,), note=f"{_WIDER}: everything is allowed")
    lines: dict[Line, None] = {}
    for method in dict.fromkeys(request.method for request in requests):
        paths = [request.path for request in requests if request.method == method]
        globs = dict.fromkeys(paths, EVERYTHING) if method in wide else globs_for(paths)
        lines |= dict.fromkeys(Line(method, glob) for glob in globs.values())
    sending = [request.path for request in requests if request.is_websocket and request.sends]
    sent = dict.fromkeys(sending, EVERYTHING) if wide else globs_for(sending)
    lines |= dict.fromkeys(Line("WEBSOCKET_TEXT", glob) for glob in sent.values())
    # HEAD goes where GET goes.
    kept = tuple(
        line for line in lines if not (line.method == "HEAD" and Line("GET", line.path) in lines)
    )
    protocol = "websocket" if any(request.is_websocket for request in requests) else "rest"
    slash = any(part in request.path for request in requests for part in ("%2F", "%5C"))
    every = sorted({line.method for line in kept if line.path == EVERYTHING})
    note = f"any path is allowed with {', '.join(every)}" if every else ""
    note = f"{_WIDER}: {note}" if wide else note
    return Place(host, (port,), protocol, tuple(sorted(kept, key=str)), slash, note)


def yaml_of(text: str) -> str:
    """A scalar, quoted where YAML would read it as something else."""
    if _PLAIN.fullmatch(text) and not _NUMBERISH.fullmatch(text):
        return text
    return json.dumps(text)


def _host_of(host: str) -> str:
    try:
        ip_address(host)
    except ValueError:
        return yaml_of(host)
    return json.dumps(host)


def text_of(groups: Iterable[Group], comments: Sequence[str] = (), rest: Sequence[str] = ()) -> str:
    """The policy file: printable ASCII, loadable. `comments` go before it, `rest` after."""
    lines = [f"# {comment}" for comment in comments]
    lines += ["version: 1", "network_policies:"]
    count = len(lines)
    for group in groups:
        lines += [f"  {yaml_of(group.name)}:", "    endpoints:"]
        for place in group.places:
            lines += _lines_of(place)
        if group.binaries is not None:
            lines.append("    binaries:")
            lines += [f"      - {{path: {yaml_of(path)}}}" for path in group.binaries]
    if len(lines) == count:
        lines[-1] += " {}"
    lines += [f"# {comment}" for comment in rest]
    return "\n".join(lines) + "\n"


def _lines_of(place: Place) -> list[str]:
    port = f"port: {place.ports[0]}"
    if len(place.ports) > 1:
        port = f"ports: [{', '.join(map(str, place.ports))}]"
    note = f"  # {place.note}" if place.note else ""
    host = f"host: {_host_of(place.host)}"
    if place.lines is None:
        protocol = f", protocol: {place.protocol}" if place.protocol else ""
        return [f"      - {{{host}, {port}{protocol}}}{note}"]
    lines = [f"      - {host}{note}", f"        {port}", f"        protocol: {place.protocol}"]
    if place.takes_slash:
        lines.append("        allow_encoded_slash: true")
    return [*lines, "        rules:", *(f"          - {line}" for line in place.lines)]


def comments_on(learned: Learned) -> tuple[str, ...]:
    """What was refused while learning and is not allowed by the policy, one comment each."""
    counted: dict[str, int] = {}
    for event in learned.refused:
        what = f"{shown(event.get('comm') or 'a process')} to {where_of(event)}"
        why = event.get("reason") or event.get("detail") or "refused"
        line = f"{what}: {shown(why, 200)}"
        if event.get("remedy"):
            line += f"; {shown(event['remedy'], 300)}"
        counted[line] = counted.get(line, 0) + 1
    if not counted:
        return ()
    told = [
        f"  {line}" + (f" ({count} times)" if count > 1 else "") for line, count in counted.items()
    ]
    return ("Refused while learning, and not allowed by this policy:", *told[:50])
