"""A WebSocket's handshake, for the audit: what was asked, what was answered, what is wrong with it.

`upgrade_fields` reads two heads and judges nothing: the answer goes to the client as it came, and
the client ends where it does not like it. The audit is then the only place that knows why. Pure.
"""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha1
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from netns_runtime.proxy.refuse import printable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from netns_runtime.wire.forward import Headers
    from netns_runtime.wire.head import RequestHead

LONGEST: Final = 200
"""Characters of a header's value that are kept."""

# RFC 6455, 1.3.
_MAGIC: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_PROTOCOL: Final = b"sec-websocket-protocol"
_EXTENSIONS: Final = b"sec-websocket-extensions"
# What says why, in an answer that is no 101. A Location's query may hold what nobody should write.
_TELLING: Final = (
    *(b"retry-after", b"sec-websocket-version", b"www-authenticate", b"location"),
    *(b"x-ratelimit-remaining", b"x-ratelimit-reset-after"),
)


def upgrade_fields(
    head: RequestHead, status: int, response: Headers, phrase: bytes = b""
) -> dict[str, Any]:
    """Fields of an upgrade's `http.request`. `response` is empty where the answer is ours."""
    fields: dict[str, Any] = {
        "protocol": "websocket",
        "origin": _joined(head.values(b"origin")),
        "offered": _joined(head.values(_PROTOCOL)),
        "chosen": _joined(_values(response, _PROTOCOL)) if status == 101 else None,
        "server": _joined([*_values(response, b"server"), *_values(response, b"via")]),
    }
    if status == 101:
        fault = fault_of_switch(head, response)
        if fault is not None:
            fields |= {"reason": "http_upgrade_failed", "detail": fault}
    elif response:
        fields["detail"] = _why_of(status, response, phrase)
    return fields


def fault_of_switch(head: RequestHead, response: Headers) -> str | None:
    """Why a client must fail the connection after this 101 (RFC 6455, 4.1), or None."""
    accepts = _values(response, b"sec-websocket-accept")
    keys = head.values(b"sec-websocket-key")
    if not accepts:
        return "upstream's 101 has no Sec-WebSocket-Accept"
    if keys and accepts != [b64encode(sha1(keys[0].strip() + _MAGIC).digest())]:
        return "upstream's Sec-WebSocket-Accept does not answer the client's key"
    offered = _words(head.values(_PROTOCOL))
    chosen = _values(response, _PROTOCOL)
    if len(chosen) > 1 or any(value not in offered for value in chosen):
        said = _joined(chosen)
        asked = _joined(offered) or "none"
        return f"upstream chose the subprotocol {said}; the client offered {asked}"
    known = {_name(word) for word in _words(head.values(_EXTENSIONS))}
    for extension in map(_name, _words(_values(response, _EXTENSIONS))):
        if extension not in known:
            said = _shown(extension)
            return f"upstream chose the extension {said}, which the client did not offer"
    return None


def _why_of(status: int, response: Headers, phrase: bytes) -> str | None:
    said = []
    text = phrase.strip().decode("latin-1")
    try:
        usual = HTTPStatus(status).phrase
    except ValueError:
        usual = ""
    if text and text.lower() != usual.lower():
        said.append(f"{status} {_shown(phrase.strip())}")
    for name in _TELLING:
        for value in _values(response, name):
            kept = value.partition(b"?")[0] if name == b"location" else value
            said.append(f"{name.decode().title()}: {_shown(kept)}")
    return "; ".join(said)[:512] or None


def _values(headers: Headers, name: bytes) -> list[bytes]:
    return [value.strip() for key, value in headers if key.lower() == name]


def _words(values: Iterable[bytes]) -> list[bytes]:
    return [word for value in values for part in value.split(b",") if (word := part.strip())]


def _name(extension: bytes) -> bytes:
    return extension.partition(b";")[0].strip().lower()


def _joined(values: Iterable[bytes]) -> str | None:
    return _shown(b", ".join(values)) or None


def _shown(value: bytes) -> str:
    return printable(value[:LONGEST].decode("latin-1"))[: 2 * LONGEST]
