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
DEFAULT_PORTS: Final = {"http": 80, "ws": 80, "https": 443, "wss": 443}
_OVER_TLS: Final = frozenset({"https", "wss"})


@dataclass(frozen=True, slots=True)
class AbsoluteTarget:
    """An absolute-form target: `authority` as written, `path` in origin form."""

    scheme: str
    authority: str
    path: str


def split_absolute(head: RequestHead, *, is_tls: bool = False) -> AbsoluteTarget:
    """Split `http://authority/path?query`; inside TLS, where `is_tls`, `https://` likewise.

    Raises ProtocolError, which explains the proxy's use.
    """
    match = _ABSOLUTE.fullmatch(head.target)
    if match is None:
        raise ProtocolError(
            "this is a proxy: it takes CONNECT host:port or a whole URL"
            f" ({head.method} http://host/path), not a path"
        )
    scheme, authority, path, fragment = match[1].lower(), match[2], match[3], match[4]
    if is_tls and scheme not in _OVER_TLS:
        raise ProtocolError(f"a request for {scheme}:// inside TLS")
    if scheme in _OVER_TLS and not is_tls:
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


def split_origin(head: RequestHead, *, is_tls: bool = False) -> AbsoluteTarget:
    """A request's target inside a connection that has one host: a path, or a whole URL of it.

    `authority` is "" where the target names none. Raises ProtocolError.
    """
    scheme = "https" if is_tls else "http"
    if head.method == "CONNECT":
        return AbsoluteTarget(scheme, head.target, "")
    if not head.target.startswith("/") and head.target != "*":
        return split_absolute(head, is_tls=is_tls)
    path, mark, _ = head.target.partition("#")
    if mark:
        raise ProtocolError("a request target has no fragment")
    return AbsoluteTarget(scheme, "", path if path.isascii() else quote(path, safe=_ASCII))


def wants_websocket(head: RequestHead) -> bool:
    """Whether the request asks to become a WebSocket; other upgrades are not passed on.

    One with content or of HTTP/1.0 is none: where the frames would begin has two readings.
    """
    if head.words(b"upgrade") != {b"websocket"} or b"upgrade" not in head.words(b"connection"):
        return False
    return head.method == "GET" and head.version == (1, 1) and not head.has_body


UPGRADE: Final = ((b"Connection", b"Upgrade"), (b"Upgrade", b"websocket"))


def request_headers(head: RequestHead, authority: bytes) -> Headers:
    """The end-to-end headers to send upstream: Host first, from the target.

    What frames the content and what upgrades is added when it is sent. No Via: upstream sees the
    request as the client would have sent it.
    """
    headers = [(b"Host", authority)]
    headers += (pair for pair in end_to_end(head.headers) if pair[0].lower() != b"host")
    return headers


def end_to_end(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Leave out what RFC 9110, 7.6.1 names hop-by-hop and what Connection lists."""
    pairs = [(name.lower(), (name, value)) for name, value in headers]
    dropped = _HOP_BY_HOP
    for lower, (_, value) in pairs:
        if lower == b"connection":
            listed = {word.strip(b" \t").lower() for word in value.split(b",")}
            dropped |= listed - _NEVER_LISTED
    return [pair for lower, pair in pairs if lower not in dropped]
