"""The slots of a request's head: headers, Basic credentials, query parameters, path segments.

A pure function from a head to a head. Only placeholders change, each escaped for its place; a value
that cannot stand in a place (a control character in a header, a colon in a Basic user) is withheld
from it. Nothing here raises.
"""

from __future__ import annotations

import binascii
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote_to_bytes

from netns_runtime.wire.placeholder import PERCENT, PLAIN, names_in
from netns_runtime.wire.slots import ESCAPES, Fill, Hit, Seen, fills_of, slots_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from netns_runtime.secret import Secret
    from netns_runtime.wire.forward import Headers
    from netns_runtime.wire.placeholder import Syntax

# These frame or route the message; a value in them could only break it.
_NEVER: Final = frozenset(
    {"connection", "content-length", "host", "te", "trailer", "transfer-encoding", "upgrade"}
)
_BASIC: Final = re.compile(rb"([Bb][Aa][Ss][Ii][Cc] +)([A-Za-z0-9+/]+=*)[ \t]*")
_TARGET: Final = re.compile(
    rb"((?:[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*)?)([^?#]*)((?:\?[^#]*)?)(.*)", re.S
)
# A user ends at the first colon that is not a placeholder's own.
_USER: Final = re.compile(b"(?:%s|[^:])*" % PLAIN.found.pattern, re.DOTALL)


@dataclass(frozen=True, slots=True)
class RewrittenHead:
    """`withheld` names the secrets asked for that are not bound to the host."""

    target: bytes
    headers: Headers
    substituted: tuple[Hit, ...]
    withheld: tuple[str, ...]


def rewrite_head(
    target: bytes, headers: Headers, bound: Sequence[Secret], others: Sequence[Secret] = ()
) -> RewrittenHead:
    """The head to send upstream. `target` is in origin or absolute form, as it will be sent."""
    seen = Seen()
    if others:
        seen.withhold(asked_for(target, headers) & {secret.name for secret in others})
    if bound:
        target = _rewrite_target(target, bound, seen)
        headers = _rewrite_headers(headers, bound, seen)
    return RewrittenHead(target, list(headers), tuple(seen.substituted), tuple(seen.withheld))


def _rewrite_target(target: bytes, bound: Sequence[Secret], seen: Seen) -> bytes:
    match = _TARGET.fullmatch(target)
    if match is None or not PERCENT.names(target):
        return target
    path = match[2]
    segments = fills_of(slots_of(bound, "path"), seen)
    if segments:
        parts = path.split(b"/")
        # An origin-form path begins with an empty part; segment 0 is what follows it.
        for number in range(1, len(parts)):
            for name in ("", str(number - 1)):
                if name in segments:
                    parts[number] = _filled(PERCENT, parts[number], segments[name])
        path = b"/".join(parts)
    query = match[3]
    parameters = fills_of(slots_of(bound, "query"), seen)
    if parameters and query:
        query = b"?" + b"&".join(_pair(pair, parameters) for pair in query[1:].split(b"&"))
    return match[1] + path + query + match[4]


def _pair(pair: bytes, parameters: dict[str, Fill]) -> bytes:
    name, equals, value = pair.partition(b"=")
    decoded = unquote_to_bytes(name.replace(b"+", b" ")).decode("utf-8", "surrogateescape")
    fill = parameters.get(decoded)
    if not fill:
        return pair
    # Behind a semicolon some servers see another parameter.
    value, semicolon, rest = value.partition(b";")
    return name + equals + _filled(PERCENT, value, fill) + semicolon + rest


def _rewrite_headers(headers: Headers, bound: Sequence[Secret], seen: Seen) -> Headers:
    slots = {
        name.encode("utf-8", "replace"): fill
        for name, fill in fills_of(slots_of(bound, "header"), seen).items()
        if name.lower() not in _NEVER
    }
    has_basic = bool(slots_of(bound, "basic"))
    done = []
    for name, value in headers:
        lower = name.lower()
        if lower in slots:
            value = _filled(PLAIN, value, slots[lower])
        if has_basic and lower == b"authorization":
            value = _rewrite_basic(value, bound, seen)
        done.append((name, value))
    return done


def _rewrite_basic(value: bytes, bound: Sequence[Secret], seen: Seen) -> bytes:
    match = _BASIC.fullmatch(value)
    credentials = _decoded(match[2]) if match else None
    if match is None or credentials is None or not PLAIN.names(credentials):
        return value
    found = _USER.match(credentials)
    user = found[0] if found else b""
    colon, password = credentials[len(user) :][:1], credentials[len(user) + 1 :]
    entries = slots_of(bound, "basic")
    escape = _as_user if colon else ESCAPES["basic"]
    users = Fill([entry for entry in entries if entry[1].name in ("", "user")], seen, escape)
    passwords = Fill([entry for entry in entries if entry[1].name in ("", "password")], seen)
    filled = _filled(PLAIN, user, users) + colon
    filled += _filled(PLAIN, password, passwords)
    if filled == credentials:
        return value
    return match[1] + binascii.b2a_base64(filled, newline=False)


def _as_user(value: str) -> bytes | None:
    """A user before a colon has none (RFC 7617, 2)."""
    return None if ":" in value else ESCAPES["basic"](value)


def asked_for(target: bytes, headers: Headers) -> set[str]:
    """The names of all placeholders in a head, wherever they stand."""
    names = names_in(target)
    for name, value in headers:
        if b"openshell" in value or b"%" in value:
            names |= names_in(value)
        elif name.lower() == b"authorization" and (match := _BASIC.fullmatch(value)):
            names |= names_in(_decoded(match[2]) or b"")
    return names


def _decoded(credentials: bytes) -> bytes | None:
    bare = credentials.rstrip(b"=")
    try:
        return binascii.a2b_base64(bare + b"=" * (-len(bare) % 4))
    except binascii.Error:
        return None


def _filled(syntax: Syntax, data: bytes, fill: Fill) -> bytes:
    return syntax.replace(data, fill.put, is_whole=True)[0]
