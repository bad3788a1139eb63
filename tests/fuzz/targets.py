"""What is fuzzed: a function of bytes for each parser under wire/, and bytes to begin with.

A target takes any bytes. It swallows what its parser may raise (`ProtocolError`) and lets all else
out: that is a bug, as is a failed assertion about what the parser gave. The first byte says how
the rest is cut into pieces, because what comes in pieces must be read as if it came whole.
"""

from __future__ import annotations

import gzip
import json
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from netns_runtime.secret import Binding, Secret, Slot
from netns_runtime.wire import NEED_DATA, ProtocolError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

VALUE: Final = 'the-"value"\\&=%+/ü'
PLAIN_VALUE: Final = "abcabcabd"
_SLOTS: Final = (
    *(Slot("header", "authorization"), Slot("header", "x-token"), Slot("basic", "password")),
    *(Slot("query", "token"), Slot("path", "1"), Slot("form", "token"), Slot("json", "/token")),
    *(Slot("json", "/deep/0/token"), Slot("websocket", "/d/token", ("/op", (2, 6)))),
)


def secret(name: str, value: str) -> Secret:
    return Secret(Binding(name, ("a.test",), _SLOTS, codings=("gzip", "deflate")), value)


BOUND: Final = (secret("TOKEN", VALUE),)
PLAIN: Final = (secret("TOKEN", PLAIN_VALUE),)
OTHERS: Final = (secret("OTHER", "another value"),)
HELD: Final = BOUND[0].placeholder
FAULT: Final = "a fault"
HEADS: Final = {
    0: (b"content-type", b"application/json"),
    1: (b"content-type", b"application/x-www-form-urlencoded"),
    2: (b"content-type", b"application/json; charset=utf-8"),
    3: (b"content-type", b"text/plain"),
}


def cut(data: bytes) -> tuple[bytes, list[bytes]]:
    """The data behind the first byte, and the same in pieces of a size that byte says."""
    size, data = (data[0] % 32 + 1 if data else 1), data[1:]
    return data, [data[at : at + size] for at in range(0, len(data), size)]


def values_of(reader: Any, pieces: Iterable[bytes], most: int = 2000) -> Iterator[Any]:
    """All that `feed` and `next` give, FAULT as the last: which one may depend on the pieces."""
    try:
        for piece in pieces:
            reader.feed(piece)
            while (value := reader.next()) is not NEED_DATA and most > 0:
                most -= 1
                yield value
                if getattr(reader, "is_done", False):
                    return
    except ProtocolError:
        yield FAULT


def fuzz_head(data: bytes) -> None:
    from netns_runtime.wire.head import HeadReader

    whole, pieces = cut(data)
    assert list(values_of(HeadReader(), [whole])) == list(values_of(HeadReader(), pieces))


def fuzz_client_hello(data: bytes) -> None:
    from netns_runtime.wire.clienthello import ClientHelloReader

    def first(pieces: list[bytes]) -> Any:
        return next(values_of(ClientHelloReader(), pieces), None)

    whole, pieces = cut(data)
    # What follows a hello is not its reader's: whether it was there already makes the difference.
    one, other = first([whole]), first(pieces)
    assert one == other or isinstance(one, str)


def fuzz_sniff(data: bytes) -> None:
    from netns_runtime.wire.sniff import Sniffer

    _, pieces = cut(data)
    sniffer = Sniffer()
    with suppress(ProtocolError):
        for piece in pieces:
            if sniffer.feed(piece) is not NEED_DATA:
                return


def fuzz_dns(data: bytes) -> None:
    from netns_runtime.wire.dns import Answer, MessageReader, encode, parse_query

    _, pieces = cut(data)
    for message in values_of(MessageReader(), pieces):
        assert isinstance(message, (bytes, str))
    with suppress(ProtocolError):
        query = parse_query(data)
        reply = encode(query, Answer(), 512)
        assert len(reply) <= 512
        assert reply[:2] == data[:2]


def fuzz_path(data: bytes) -> None:
    from netns_runtime.wire.path import normalise_target

    for allowed in (False, True):
        with suppress(ProtocolError):
            normal = normalise_target(data.decode("latin-1"), allow_encoded_slash=allowed)
            again = normalise_target(normal.raw, allow_encoded_slash=allowed)
            assert (again.path, again.pairs) == (normal.path, normal.pairs), "not normal yet"
            assert normal.raw.isascii()
            assert normal.raw.isprintable()
            assert " " not in normal.raw
            segments = normal.path.split("/")
            assert segments[0] == ""
            assert "." not in segments
            assert ".." not in segments
            assert "\0" not in normal.path
            assert "%00" not in normal.path


def fuzz_content(data: bytes) -> None:
    from netns_runtime.wire.head import parse_head
    from netns_runtime.wire.message import ContentReader, EndOfContent

    whole, pieces = cut(data)
    for framing in (b"Transfer-Encoding: chunked", b"Content-Length: 40"):
        head = parse_head(b"POST / HTTP/1.1\r\nHost: a.test\r\n" + framing + b"\r\n\r\n")

        def content(pieces: list[bytes], head: Any = head) -> tuple[bytes, object]:
            parts = list(values_of(ContentReader(head), pieces))
            end = parts[-1] if parts and not isinstance(parts[-1], bytes) else None
            ended = end if isinstance(end, EndOfContent) else bool(end)
            return b"".join(part for part in parts if isinstance(part, bytes)), ended

        one, other = content([whole]), content(pieces)
        if one[1] is not True and other[1] is not True:
            assert one == other


def fuzz_response(data: bytes) -> None:
    from netns_runtime.wire.message import ResponseReader

    _, pieces = cut(data)
    reader = ResponseReader("GET", is_upgrade=bool(data[:1] > b"\x80"))
    for value in values_of(reader, pieces):
        if getattr(value, "status_code", 0) == 101 or type(value).__name__ == "EndOfContent":
            break
    reader.rest()


def fuzz_websocket(data: bytes) -> None:
    from netns_runtime.wire.websocket import FAULTS, Walker

    def walked(pieces: list[bytes], kind: str, *, masked: bool) -> tuple[bytes, object, str]:
        walker, out, fault = Walker(masked=masked, faults=FAULTS[kind]), b"", ""
        try:
            for piece in pieces:
                for passed in walker.feed(piece):
                    out += passed
        except ProtocolError as error:
            fault = str(error)
        return out, walker.closed, fault

    whole, pieces = cut(data)
    for kind in FAULTS:
        for masked in (False, True):
            one = walked([whole], kind, masked=masked)
            other = walked(pieces, kind, masked=masked)
            assert one == other
            assert whole.startswith(one[0])


def fuzz_rewrite_head(data: bytes) -> None:
    from netns_runtime.wire.rewrite import rewrite_head

    target, *lines = data.split(b"\n")
    headers = [(name.lower(), value) for name, _, value in (line.partition(b":") for line in lines)]
    found = rewrite_head(target, headers, BOUND, OTHERS)
    if HELD.encode() not in data and b"%3" not in data and b"asic" not in data:
        assert (found.target, list(found.headers)) == (target, headers)
        assert found.substituted == ()
    if not found.substituted:
        assert (found.target, list(found.headers)) == (target, headers)


def _rewritten(headers: list[tuple[bytes, bytes]], pieces: list[bytes]) -> bytes | None:
    from netns_runtime.wire.rewrite import body_rewriter

    rewriter = body_rewriter(headers, BOUND, OTHERS)
    if rewriter is None:
        return b"".join(pieces)
    try:
        return b"".join(rewriter.feed(piece) for piece in pieces) + rewriter.finish()
    except ProtocolError:
        return None


def fuzz_body(data: bytes) -> None:
    kind = HEADS[data[1] % len(HEADS)] if len(data) > 1 else HEADS[0]
    whole, pieces = cut(data[:1] + data[2:])
    one, other = _rewritten([kind], [whole]), _rewritten([kind], pieces)
    assert one == other, "pieces were read as something else"
    said = whole.lower()
    if one is not None and b"openshell" not in said and not any(c in said for c in b"\\%+"):
        assert one == whole, "changed without a placeholder"


def fuzz_coded_body(data: bytes) -> None:
    kind = HEADS[data[1] % 3] if len(data) > 1 else HEADS[0]
    coding = (b"content-encoding", b"gzip" if data[:1] < b"\x80" else b"deflate")
    _, pieces = cut(data[:1] + data[2:])
    _rewritten([kind, coding], pieces)


def fuzz_masker(data: bytes) -> None:
    from netns_runtime.wire.mask import Masker

    def masked(pieces: list[bytes], bound: tuple[Secret, ...]) -> bytes:
        masker = Masker(bound)
        return b"".join(masker.feed(piece) for piece in pieces) + masker.finish()

    whole, pieces = cut(data)
    for bound in (BOUND, PLAIN):
        one, other = masked([whole], bound), masked(pieces, bound)
        assert one == other, "pieces were masked as something else"
        assert bound[0].value.encode() not in one, "the value came through"


def fuzz_response_masker(data: bytes) -> None:
    from netns_runtime.wire.response import response_masker

    coding = (b"content-encoding", (b"gzip", b"deflate", b"br", b"gzip, gzip")[data[0] % 4])
    _, pieces = cut(data)
    with suppress(ProtocolError):
        masker = response_masker([(b"content-type", b"text/plain"), coding], BOUND)
        out = b"".join(masker.feed(piece) for piece in pieces) + masker.finish()
        assert VALUE.encode() not in out


def fuzz_websocket_text(data: bytes) -> None:
    from netns_runtime.wire.rewrite import websocket_text

    text = data.decode("utf-8", "replace")
    out, hits = websocket_text(text, BOUND)
    if not hits:
        assert out == text
    else:
        document = json.loads(out)
        assert document["d"]["token"].find(VALUE) >= 0
        assert document["op"] in (2, 6)


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


_JSON: Final = json.dumps({"token": HELD, "text": HELD, "deep": [{"token": HELD}]}).encode()
_FORM: Final = f"a=1&token={quote(HELD, safe='')}&text={HELD}".encode()


@dataclass(frozen=True, slots=True)
class Target:
    """`run` is what is fuzzed, `seeds` are what it begins with."""

    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...] = ()


def _hello() -> bytes:
    from tests.support.hellos import ECH, GREASE, hello, records, server_name

    return b"\x07" + records(hello(GREASE, server_name("a.test"), ECH), 40)


TARGETS: Final[dict[str, Target]] = {
    "head": Target(fuzz_head, (b"\x03GET / HTTP/1.1\r\nHost: a.test\r\nA: b\r\n\r\nmore",)),
    "client_hello": Target(fuzz_client_hello, (_hello(),)),
    "sniff": Target(fuzz_sniff, (_hello(), b"\x03GET / HTTP/1.1\r\n", b"\x02SSH-2.0-x\r\n")),
    "dns": Target(fuzz_dns, (b"\x00\x01\x01\0\0\x01\0\0\0\0\0\0\x01a\x04test\0\0\x01\0\x01",)),
    "path": Target(fuzz_path, (b"/a/../b/%2e%2E/c%2Fd?token=%41&b=+", b"//a/./b;x=1?", b"/%c0%af")),
    "content": Target(fuzz_content, (b"\x04" + b"5;x=y\r\nhello\r\n0\r\nA: b\r\n\r\nmore",)),
    "response": Target(
        fuzz_response, (b"\x05HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcHTTP/1.1",)
    ),
    "websocket": Target(fuzz_websocket, (b"\x02\x81\x83\0\0\0\0abc\x88\x82\0\0\0\0\x03\xe8",)),
    "rewrite_head": Target(
        fuzz_rewrite_head,
        (
            f"/a/{HELD}?token={HELD}\nauthorization:Bearer {HELD}\nx:{HELD}".encode(),
            b"/\nauthorization:Basic bWU6b3BlbnNoZWxsOnJlc29sdmU6ZW52OlRPS0VO",
        ),
    ),
    "body": Target(fuzz_body, (b"\x05\0" + _JSON, b"\x03\1" + _FORM)),
    "coded_body": Target(fuzz_coded_body, (b"\x05\0" + gzipped(_JSON), b"\x03\1" + gzipped(_FORM))),
    "masker": Target(
        fuzz_masker, (b"\x02x " + VALUE.encode() + b" y", b"\x01abcabcabcabdabcabcab")
    ),
    "response_masker": Target(fuzz_response_masker, (b"\0" + gzipped(VALUE.encode() * 3),)),
    "websocket_text": Target(
        fuzz_websocket_text, (json.dumps({"op": 2, "d": {"token": HELD}}).encode(),)
    ),
}
