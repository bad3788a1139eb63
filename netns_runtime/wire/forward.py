"""What a forwarding proxy changes in a request and a response: targets and hop-by-hop headers.

Pure functions from heads to header lists. Message framing stays with h11; what a header may do to
it (`Connection: content-length`) is decided here, once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from netns_runtime.wire import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from netns_runtime.wire.head import RequestHead

Headers = list[tuple[bytes, bytes]]

_ABSOLUTE = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]*)://([^/?#]*)([^#]*)(#?).*")
_HOP_BY_HOP: Final = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    }
)
# Connection may not take these away: they carry the message itself (RFC 9110, 7.6.1).
_NEVER_LISTED: Final = frozenset({b"host", b"content-length", b"content-type", b"cache-control"})
_ASCII: Final = "".join(map(chr, range(0x21, 0x7F)))
DEFAULT_PORTS: Final = {"http": 80, "ws": 80}


@dataclass(frozen=True, slots=True)
class AbsoluteTarget:
    """An absolute-form target: `authority` as written, `path` in origin form."""

    scheme: str
    authority: str
    path: str

    @property
    def shown_path(self) -> str:
        """The path with the query's values left out, for the audit."""
        path, mark, query = self.path.partition("?")
        if not mark:
            return path
        return path + "?" + "&".join(pair.partition("=")[0] for pair in query.split("&"))


def split_absolute(head: RequestHead) -> AbsoluteTarget:
    """Split `http://authority/path?query`. Raises ProtocolError, which explains the proxy's use."""
    match = _ABSOLUTE.fullmatch(head.target)
    if match is None:
        raise ProtocolError(
            "this is a proxy: it takes CONNECT host:port or a whole URL"
            f" ({head.method} http://host/path), not a path"
        )
    scheme, authority, path, fragment = match[1].lower(), match[2], match[3], match[4]
    if scheme in {"https", "wss"}:
        raise ProtocolError(f"{scheme}:// goes through a tunnel: use CONNECT")
    if scheme not in DEFAULT_PORTS:
        raise ProtocolError(f"the proxy carries http:// and ws://, not {scheme}://")
    if fragment:
        raise ProtocolError("a request target has no fragment")
    if "@" in authority:
        raise ProtocolError("user names and passwords in a request target are not taken")
    if not path:
        path = "*" if head.method == "OPTIONS" else "/"
    elif path[0] == "?":
        path = "/" + path
    return AbsoluteTarget(scheme, authority, quote(path, safe=_ASCII))


def split_origin(head: RequestHead) -> AbsoluteTarget:
    """A request's target inside a connection that has one host: a path, or a whole URL of it.

    `authority` is "" where the target names none. Raises ProtocolError.
    """
    if head.method == "CONNECT":
        return AbsoluteTarget("http", head.target, "")
    if not head.target.startswith("/") and head.target != "*":
        return split_absolute(head)
    path, mark, _ = head.target.partition("#")
    if mark:
        raise ProtocolError("a request target has no fragment")
    return AbsoluteTarget("http", "", quote(path, safe=_ASCII))


def wants_websocket(head: RequestHead) -> bool:
    """Whether the request asks to become a WebSocket; other upgrades are not passed on."""
    return b"upgrade" in head.words(b"connection") and head.words(b"upgrade") == {b"websocket"}


def request_headers(head: RequestHead, authority: bytes) -> Headers:
    """The headers to send upstream: Host first, from the target, and nothing hop-by-hop.

    No Via: upstream sees the request as the client would have sent it.
    """
    headers = [(b"Host", authority)]
    headers += (pair for pair in end_to_end(head.headers) if pair[0].lower() != b"host")
    if head.values(b"transfer-encoding"):
        headers.append((b"Transfer-Encoding", b"chunked"))
    if wants_websocket(head):
        headers += ((b"Connection", b"Upgrade"), (b"Upgrade", b"websocket"))
    return headers


def end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Leave out what RFC 9110, 7.6.1 names hop-by-hop and what Connection lists."""
    pairs = list(headers)
    listed = {
        word.strip(b" \t").lower()
        for name, value in pairs
        if name.lower() == b"connection"
        for word in value.split(b",")
    }
    dropped = _HOP_BY_HOP | (listed - _NEVER_LISTED)
    return [pair for pair in pairs if pair[0].lower() not in dropped]
