"""What the audit says of a WebSocket's handshake: headers of both sides, and what is wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from netns_runtime.proxy.upgrade import LONGEST, fault_of_switch, upgrade_fields
from netns_runtime.wire import NEED_DATA
from netns_runtime.wire.head import HeadReader, RequestHead

if TYPE_CHECKING:
    from netns_runtime.wire.forward import Headers

# RFC 6455, 1.3.
KEY, ACCEPT = "dGhlIHNhbXBsZSBub25jZQ==", b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
GOOD: Headers = [(b"Sec-WebSocket-Accept", ACCEPT)]


def head_of(*lines: str) -> RequestHead:
    reader = HeadReader()
    base = ["GET /s HTTP/1.1", "Host: ws.test", "Upgrade: websocket", "Connection: Upgrade"]
    base += [f"Sec-WebSocket-Key: {KEY}", "Sec-WebSocket-Version: 13", *lines, "", ""]
    reader.feed("\r\n".join(base).encode())
    head = reader.next()
    assert head is not NEED_DATA
    assert isinstance(head, RequestHead)
    return head


OFFER = "Sec-WebSocket-Protocol: chat, superchat"
EXTEND = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"


@pytest.mark.parametrize(
    ("lines", "response", "fault"),
    [
        ((), GOOD, None),
        ((), [], "has no Sec-WebSocket-Accept"),
        ((), [(b"sec-websocket-accept", b"nonsense")], "does not answer the client's key"),
        ((), [*GOOD, *GOOD], "does not answer"),
        ((OFFER,), [*GOOD, (b"Sec-WebSocket-Protocol", b"superchat")], None),
        ((OFFER,), GOOD, None),
        ((OFFER,), [*GOOD, (b"Sec-WebSocket-Protocol", b"Chat")], "subprotocol Chat"),
        ((OFFER,), [*GOOD, (b"Sec-WebSocket-Protocol", b"chat, superchat")], "subprotocol chat, "),
        ((), [*GOOD, (b"Sec-WebSocket-Protocol", b"chat")], "the client offered none"),
        ((EXTEND,), [*GOOD, (b"Sec-WebSocket-Extensions", b"PerMessage-Deflate; x=1")], None),
        ((EXTEND,), [*GOOD, (b"Sec-WebSocket-Extensions", b"x-other")], "extension x-other"),
    ],
)
def test_names_what_a_client_must_fail_the_connection_for(
    lines: tuple[str, ...], response: Headers, fault: str | None
) -> None:
    found = fault_of_switch(head_of(*lines), response)
    assert (found is None) is (fault is None), found
    assert (fault or "") in (found or "")


def test_a_switch_tells_both_sides_choice() -> None:
    head = head_of(OFFER, "Origin: https://app.test")
    response = [*GOOD, (b"Sec-WebSocket-Protocol", b"chat"), (b"Server", b"gw"), (b"Via", b"1 x")]
    fields = upgrade_fields(head, 101, response)
    assert {key: value for key, value in fields.items() if value is not None} == {
        "protocol": "websocket",
        "origin": "https://app.test",
        "offered": "chat, superchat",
        "chosen": "chat",
        "server": "gw, 1 x",
    }


def test_a_refusal_tells_the_headers_that_say_why_and_no_query() -> None:
    response = [
        (b"Retry-After", b"30"),
        (b"Location", b"https://else.test/s?token=hidden"),
        (b"Set-Cookie", b"session=hidden"),
    ]
    detail = upgrade_fields(head_of(), 429, response, b"Slow Down")["detail"]
    assert detail == "429 Slow Down; Retry-After: 30; Location: https://else.test/s"


def test_an_ordinary_refusal_has_no_detail() -> None:
    assert upgrade_fields(head_of(), 404, [(b"Server", b"x")], b"Not Found")["detail"] is None


def test_what_we_answer_ourselves_has_no_server() -> None:
    fields = upgrade_fields(head_of(), 403, [])
    assert fields["server"] is None
    assert "detail" not in fields


def test_what_upstream_wrote_is_short_and_printable() -> None:
    response = [(b"Server", b"\x1b[31m" + b"x" * 10_000)]
    server = upgrade_fields(head_of(), 500, response)["server"]
    assert server.isascii()
    assert server.isprintable()
    assert len(server) <= 2 * LONGEST
