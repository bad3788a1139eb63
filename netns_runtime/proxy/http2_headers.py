"""HTTP/2's header lists to the headers that everything else knows, and what makes one malformed.

Pure. A list is read strictly (RFC 9113, 8.2 and 8.3): pseudo-headers first, each once and known;
names in lower case; nothing of a connection's; no CR, LF or NUL and no other control character, so
that no server behind ours can read another message out of it. Every fault is a ProtocolError, which
is a stream's and not the connection's. h2 does not look at headers itself: it would end all streams
for one, and costs twice the time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from hpack import NeverIndexedHeaderTuple

from netns_runtime.wire import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from netns_runtime.wire.forward import Headers

    Fields = Iterable[tuple[bytes, bytes]]

_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+").fullmatch
_VALUE = re.compile(
    rb"(?:[^\x00-\x20\x7f](?:[^\x00-\x08\x0a-\x1f\x7f]*[^\x00-\x20\x7f])?)?"
).fullmatch
_METHOD = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,64}").fullmatch
_PATH = re.compile(rb"(?:/[\x21\x22\x24-\x7e]*|\*)").fullmatch
_STATUS = re.compile(rb"[1-5][0-9][0-9]").fullmatch
_CONNECTION: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"}
)
_FOR_PROXIES: Final = frozenset(
    {b"proxy-authenticate", b"proxy-authentication-info", b"proxy-authorization"}
)
_DROPPED: Final = _CONNECTION | _FOR_PROXIES
_REQUEST: Final = frozenset({b":method", b":scheme", b":authority", b":path", b":protocol"})
# What a peer would rather not have in a compression table (RFC 7541, 7.1.3).
_SENSITIVE: Final = frozenset({b"authorization", b"cookie", b"set-cookie"})
# What we change that is no secret.
_OURS: Final = frozenset({b"host", b"accept-encoding", b"content-length"})


@dataclass(slots=True)
class Asked:
    """A request's head. `authorities` are :authority and Host, as far as there are any.

    `headers` are end-to-end and without Host; `wants_trailers` is TE's only word in HTTP/2.
    """

    method: str
    path: str
    authorities: tuple[bytes, ...]
    headers: Headers
    wants_trailers: bool = False
    protocol: bytes | None = None


def parse_request(fields: Fields) -> Asked:
    """Read a request's header list. Raises ProtocolError."""
    pseudo, rest = _split(fields, _REQUEST)
    headers: Headers = []
    hosts: list[bytes] = []
    wants_trailers = False
    for pair in rest:
        name, value = pair
        if name == b"host":
            hosts.append(value)
        elif name == b"te":
            if value.lower() != b"trailers":
                raise ProtocolError("TE says more than trailers, which HTTP/2 does not know")
            wants_trailers = True
        elif name in _CONNECTION:
            raise ProtocolError(f"HTTP/2 has no header {name.decode('ascii')}")
        elif name not in _FOR_PROXIES:
            headers.append(pair)
    if len(hosts) > 1:
        raise ProtocolError("Host comes twice")
    method = pseudo.get(b":method", b"")
    if not _METHOD(method):
        raise ProtocolError(":method is missing or no token")
    if method == b"CONNECT" and b":protocol" not in pseudo:
        if b":authority" not in pseudo or pseudo.keys() & {b":path", b":scheme"}:
            raise ProtocolError("CONNECT takes :authority and nothing else")
        return Asked("CONNECT", "", (pseudo[b":authority"],), headers)
    path, scheme = pseudo.get(b":path", b""), pseudo.get(b":scheme", b"")
    if not _PATH(path) or (path == b"*" and method != b"OPTIONS"):
        raise ProtocolError(":path is missing or no path")
    if scheme != b"https":
        raise ProtocolError(":scheme is missing or not https, inside TLS")
    authority = pseudo.get(b":authority")
    if authority is not None:
        hosts.insert(0, authority)
    return Asked(
        *(method.decode("ascii"), path.decode("ascii"), tuple(hosts), headers),
        *(wants_trailers, pseudo.get(b":protocol")),
    )


def parse_response(fields: Fields) -> tuple[int, Headers]:
    """A response's status and end-to-end headers; what is the connection's is left out."""
    pseudo, rest = _split(fields, {b":status"})
    status = pseudo.get(b":status", b"")
    if not _STATUS(status):
        raise ProtocolError(":status is missing or no number", status=502)
    if status == b"101":
        raise ProtocolError("HTTP/2 has no status 101", status=502)
    return int(status), [pair for pair in rest if pair[0] not in _DROPPED]


def parse_trailers(fields: Fields) -> Headers:
    """A trailer section. Raises ProtocolError."""
    _, rest = _split(fields, ())
    return [pair for pair in rest if pair[0] not in _DROPPED]


def _split(
    fields: Fields, known: frozenset[bytes] | set[bytes] | tuple[bytes, ...]
) -> tuple[dict[bytes, bytes], Headers]:
    pseudo: dict[bytes, bytes] = {}
    rest: Headers = []
    for pair in fields:
        name, value = pair
        if name[:1] == b":":
            if rest:
                raise ProtocolError("a pseudo-header comes after a header")
            if name not in known:
                raise ProtocolError(
                    f"the pseudo-header {name.decode('latin-1')!a} has no place here"
                )
            if name in pseudo:
                raise ProtocolError(f"{name.decode('ascii')} comes twice")
            pseudo[name] = value
        else:
            if not _NAME(name):
                raise ProtocolError(f"{name[:64].decode('latin-1')!a} is no header's name")
            rest.append(pair)
        if not _VALUE(value):
            raise ProtocolError(f"the value of {name.decode('ascii')} holds what no value may")
    return pseudo, rest


def request_list(
    asked: Asked, authority: bytes, target: bytes, headers: Headers, was: Sequence[object]
) -> Headers:
    """The header list to send upstream. `was` is the list before values were put in place: what
    is not in it, and the target where it changed, stays out of compression tables."""
    path: tuple[bytes, bytes] = (b":path", target)
    if was is not headers and target != asked.path.encode("ascii"):
        path = NeverIndexedHeaderTuple(*path)
    result: Headers = [
        (b":method", asked.method.encode("ascii")),
        (b":scheme", b"https"),
        (b":authority", authority),
        path,
    ]
    for pair in headers:
        name = pair[0].lower()
        if name in _SENSITIVE or (was is not headers and _is_new(pair, was)):
            result.append(NeverIndexedHeaderTuple(name, pair[1]))
        elif name != b"host":
            result.append(pair if name == pair[0] else (name, pair[1]))
    if asked.wants_trailers:
        result.append((b"te", b"trailers"))
    return result


def _is_new(pair: tuple[bytes, bytes], was: Sequence[object]) -> bool:
    return pair not in was and pair[0].lower() not in _OURS


def sensitive(headers: Headers) -> Headers:
    """The headers with what belongs in no compression table marked so."""
    return [NeverIndexedHeaderTuple(*pair) if pair[0] in _SENSITIVE else pair for pair in headers]
