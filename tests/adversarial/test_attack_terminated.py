"""What an attacker tried on terminated flows, and what has to hold.

Each test is a way by which a value came back, was published, or a rule was passed by; none needs
more than the pieces it attacks.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from h2.events import RequestReceived, StreamEnded, StreamReset
from wsproto.frame_protocol import Opcode

from netns_runtime.address import HostPort
from netns_runtime.policy import load_policy
from netns_runtime.policy.requests import Asked, decide_request
from netns_runtime.proxy.websocket_examine import Incoming
from netns_runtime.secret import Slot
from netns_runtime.wire import ProtocolError
from netns_runtime.wire.mask import Masker, accept_encoding, mask, mask_headers, response_masker
from netns_runtime.wire.path import normalise_target
from netns_runtime.wire.rewrite import body_rewriter, rewrite_head
from netns_runtime.wire.websocket import FAULTS, Close, write_close, write_frame
from netns_runtime.wire.websocket_inspect import Inspector
from tests.support.http2_stage import play_http2
from tests.support.secrets import pieces_of, run, secret

if TYPE_CHECKING:
    from tests.support.http2_stage import Both

VALUE = "Ab12cd/34+ef:56=.xyz_w1234=="
SLOTS = (Slot("json", "/token"), Slot("form", "token"), Slot("query", "token"))
TOKEN = secret(VALUE, *SLOTS, codings=("gzip",))
P = TOKEN.placeholder.encode()


def each(text: str, spell: str) -> str:
    """Every character of `text` but letters and digits, spelt."""
    return "".join(c if c.isalnum() else spell.format(c=ord(c)) for c in text)


SPELT = {
    "a URL in a URL's query": quote(quote(VALUE, safe=""), safe=""),
    "and in one more": quote(quote(quote(VALUE, safe=""), safe=""), safe=""),
    "Go's html/template": VALUE.replace("+", "&#43;").replace("=", "&#61;"),
    "ASP.NET": VALUE.replace("+", "&#x2B;"),
    "Mustache": VALUE.replace("/", "&#x2F;").replace("=", "&#x3D;"),
    "WordPress": each(VALUE, "&#{c:03d};"),
    "ESAPI": each(VALUE, "&#x{c:02x};"),
    "names": VALUE.replace("+", "&plus;").replace("/", "&sol;").replace("=", "&equals;"),
    "JavaScript": each(VALUE, "\\x{c:02X}"),
    "JSON in a JSON string": each(VALUE, "\\\\u{c:04x}"),
    "PHP's JSON in its JSON": VALUE.replace("/", "\\\\\\/"),
}


@pytest.mark.parametrize("spelt", SPELT.values(), ids=SPELT.keys())
@pytest.mark.parametrize("step", [1, 7, 1000])
def test_a_value_is_known_again_as_libraries_write_it(spelt: str, step: int) -> None:
    masker = Masker([TOKEN])
    data = f"<{spelt}>".encode()
    cuts = list(range(0, len(data), step))
    assert run(masker.feed, masker.finish, pieces_of(data, cuts)) == b"<" + P + b">"


def test_a_header_whose_name_is_the_value_does_not_come_through() -> None:
    assert mask_headers([(b"x-" + VALUE.encode(), b"1"), (b"a", b"b")], [TOKEN]) == [(b"a", b"b")]


def heard(data: bytes, step: int = 1000) -> bytes:
    inspector = Inspector(
        masked=False, faults=FAULTS["none"], codec=None, examiner=Incoming([TOKEN])
    )
    return b"".join(
        piece
        for part in pieces_of(data, list(range(0, len(data), step)))
        for piece in inspector.feed(part)
    )


@pytest.mark.parametrize("step", [1, 1000])
@pytest.mark.parametrize("opcode", [Opcode.PING, Opcode.PONG])
def test_a_control_frame_says_no_value(opcode: Opcode, step: int) -> None:
    before, after = (write_frame(0x81, text, masked=False) for text in (b"one", b"two"))
    frame = write_frame(0x80 | opcode, b"<" + VALUE.encode() + b">", masked=False)
    assert heard(before + frame + after, step) == (
        before + write_frame(0x80 | opcode, b"<" + P + b">", masked=False) + after
    )


@pytest.mark.parametrize("length", [0, 94, 95])
def test_a_close_frames_reason_says_no_value_and_fits(length: int) -> None:
    reason = "x" * length + VALUE
    frame = heard(write_close(Close(4004, reason), masked=False))
    assert frame == write_close(Close(4004, "x" * length + P.decode()), masked=False)
    assert VALUE.encode() not in frame
    assert frame[1] <= 125


@pytest.mark.parametrize("status", ["204", "304"])
def test_content_where_none_belongs_is_not_passed_on_in_http2(status: str) -> None:
    async def scenario(both: Both) -> None:
        both.client.ask(1)
        await both.upstream.until(RequestReceived)
        both.upstream.answer(1, int(status), content=VALUE.encode())
        await both.client.until(StreamReset, 1)
        assert both.client.content(1) == b""
        assert await both.exchange(3) == b"ok"

    play_http2(scenario, secrets=(TOKEN,))


def test_a_malformed_header_list_is_not_quoted_to_the_client_nor_to_the_audit() -> None:
    async def scenario(both: Both) -> None:
        both.client.ask(1)
        await both.upstream.until(RequestReceived)
        both.upstream.h2.config.validate_outbound_headers = False
        both.upstream.h2.config.normalize_outbound_headers = False
        both.upstream.answer(1, 200, (f"x {VALUE}", "1"))
        await both.client.until(StreamEnded, 1)
        assert VALUE.encode() not in both.client.content(1)

    stage = play_http2(scenario, secrets=(TOKEN,))
    assert VALUE not in repr(stage.events)


def test_messages_of_grpc_are_not_compressed_where_a_value_could_be_in_them() -> None:
    asked = accept_encoding([(b"grpc-accept-encoding", b"gzip"), (b"te", b"trailers")])
    assert asked == [(b"te", b"trailers"), (b"Accept-Encoding", b"identity")]
    kind = (b"content-type", b"application/grpc")
    with pytest.raises(ProtocolError, match="coding"):
        response_masker([kind, (b"grpc-encoding", b"gzip")], [TOKEN])
    response_masker([kind, (b"grpc-encoding", b"identity")], [TOKEN])


@pytest.mark.parametrize(
    "kind",
    [
        b"application/grpc-web-text+proto",
        b"application/json; charset=utf-16",
        b'text/plain;charset="UTF-16LE"',
        b"text/html; charset = utf-32be",
        b"text/html;version=1; charset=UTF-7",
    ],
)
def test_a_client_cannot_have_it_written_so_that_nobody_knows_it_again(kind: bytes) -> None:
    with pytest.raises(ProtocolError, match="charset") as raised:
        response_masker([(b"Content-Type", kind)], [TOKEN])
    assert raised.value.status == 502
    response_masker([(b"Content-Type", kind)], [])
    response_masker([(b"Content-Type", b"text/html; charset=utf-8")], [TOKEN])


LENIENT = {
    "a single-quoted string": b"""{"message":'a,"token":"P"'}""",
    "a comment to the line's end": b"""{"message"://,"token":\n"P"}""",
    "a comment": b"""{"message":/*,"a":1,"token":*/"P"}""",
    "a quoted bracket": b"""{"message":['],"token":"P"']}""",
    "a quoted bracket, deep": b"""{"message":[[[['"]]]],"token":"P"',"']]]]}""",
    "a hash": b"""{"message":#,"token":\n"P"}""",
}


@pytest.mark.parametrize("text", LENIENT.values(), ids=LENIENT.keys())
def test_a_lenient_reader_of_json_is_not_given_the_value_in_another_place(text: bytes) -> None:
    assert filled(b"application/json", text.replace(b"P", P)) == text.replace(b"P", P)


def filled(kind: bytes, content: bytes, step: int = 1000) -> bytes:
    rewriter = body_rewriter([(b"Content-Type", kind)], [TOKEN])
    if rewriter is None:
        return content
    pieces = pieces_of(content, list(range(0, len(content), step)))
    return run(rewriter.feed, rewriter.finish, pieces)


MULTIPART = {
    "two boundaries": (b"boundary=evil; boundary=b", b"--evil\r\nN=token\r\n\r\nP\r\n--evil--"),
    "one in quotes": (
        b'a="; boundary=evil"; boundary=b',
        b"--evil\r\nN=token\r\n\r\nP\r\n--evil--",
    ),
    "an extended one": (b"boundary*=b; boundary=evil", b"--evil\r\nN=token\r\n\r\nP\r\n--evil--"),
    "a delimiter after LF": (b"boundary=b", b"--b\r\nN=token\r\n\r\nx\n--b\nN=message\n\nP\n--b--"),
    "one after CR": (b"boundary=b", b"--b\r\nN=token\r\n\r\nx\r--b\rN=message\r\rP\r--b--"),
    "a padded delimiter": (
        b"boundary=b",
        b"--b\r\nN=message\r\n\r\nx\r\n--b \r\nN=token\r\n\r\nP\r\n--b--",
    ),
    "a header after CR": (b"boundary=b", b"--b\r\nX: a\rN=message\r\nN=token\r\n\r\nP\r\n--b--"),
    "a quote that is open": (b"boundary=b", b'--b\r\nN=a"; name=token; y="\r\n\r\nP\r\n--b--'),
}


@pytest.mark.parametrize(("parameters", "text"), MULTIPART.values(), ids=MULTIPART.keys())
@pytest.mark.parametrize("step", [1, 1000])
def test_servers_that_read_a_form_otherwise_do_not_get_the_value_in_another_field(
    parameters: bytes, text: bytes, step: int
) -> None:
    content = (
        text.replace(b"N=", b"Content-Disposition: form-data; name=").replace(b"P", P) + b"\r\n"
    )
    assert filled(b"multipart/form-data; " + parameters, content, step) == content


@pytest.mark.parametrize(
    "kind", [b"multipart/form-data; boundary=b", b'multipart/form-data;boundary="b"']
)
def test_an_ordinary_form_is_filled_all_the_same(kind: bytes) -> None:
    content = b'--b\r\nContent-Disposition: form-data; name="token"\r\n\r\na %b b\r\n--b--\r\n'
    assert filled(kind, content % P) == content % VALUE.encode()


@pytest.mark.parametrize("step", [1, 1000])
def test_behind_a_semicolon_there_may_be_another_parameter(step: int) -> None:
    done, left = quote(VALUE, safe="").encode(), b"token=a%b;message=%b&token=%b"
    content, expected = left % (P, P, P), left % (done, P, done)
    assert filled(b"application/x-www-form-urlencoded", content, step) == expected
    assert rewrite_head(b"/?" + content, [], [TOKEN]).target == b"/?" + expected


POLICY = b"""
version: 1
network_policies:
  ruled:
    endpoints:
      - host: up.test
        port: 443
        protocol: rest
        enforcement: enforce
        rules:
          - allow: {method: GET, path: "/**"}
          - allow: {method: PUT, path: "/q", query: {mode: "safe*"}}
        deny_rules:
          - {method: "*", path: "/admin/**"}
          - {method: "*", path: "/x", query: {cmd: drop}}
  talking:
    endpoints:
      - host: ws.test
        port: 443
        protocol: websocket
        enforcement: enforce
        rules:
          - allow: {method: GET, path: "/**"}
          - allow: {method: WEBSOCKET_TEXT, path: "/**"}
        deny_rules:
          - {method: WEBSOCKET_TEXT, path: "/**", message: {pointer: /op, in: [8]}}
"""


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/x?cmd=drop;a=1"),
        ("GET", "/x?a;cmd=drop"),
        ("GET", "/x?;cmd=drop"),
        ("GET", "/%2561dmin/x"),
        ("GET", "/%25252561dmin/x"),
        ("GET", "/a%252F..%252Fadmin/x"),
        ("PUT", "/q?mode=safe;mode=unsafe"),
        ("PUT", "/q?a;mode=unsafe&mode=safe"),
    ],
)
def test_a_rule_holds_however_servers_part_and_decode(method: str, target: str) -> None:
    try:
        normal = normalise_target(target)
    except ProtocolError:
        return
    asked = Asked(method, normal.path, normal.pairs, is_websocket=False)
    policy = load_policy(POLICY, "test.yaml")
    assert not decide_request(policy, HostPort("up.test", 443), None, asked).is_allowed


@pytest.mark.parametrize(
    "text", ['/* */{"op":8}', '// a\n{"op":8}', '\x00 \n{"op":8}', '#\n /**/ {"op":8}']
)
def test_a_message_of_lenient_json_is_not_vouched_for(text: str) -> None:
    asked = Asked("GET", "/", (), is_websocket=True)
    policy = load_policy(POLICY, "test.yaml")
    rules = decide_request(policy, HostPort("ws.test", 443), None, asked).websocket
    assert rules is not None
    assert not rules.judge(text, None).is_allowed
    assert rules.judge("/* no JSON", None).is_allowed


@pytest.mark.parametrize("content", [b"--b\r\n", b"\r\n--bX"])
def test_a_form_of_nothing_but_delimiters_stops_nobody_else(content: bytes) -> None:
    """It took a second for a piece of 256 KiB, which a client that compresses has sent in 1 KiB."""
    rewriter = body_rewriter([(b"Content-Type", b"multipart/form-data; boundary=b")], [TOKEN])
    assert rewriter is not None
    begun = time.thread_time()
    rewriter.feed(content * ((256 << 10) // len(content)))
    assert time.thread_time() - begun < 0.15


@pytest.mark.parametrize("slots", [(), (Slot("basic"),)], ids=["plain", "basic"])
def test_a_long_secret_stops_nobody_when_it_is_first_looked_for(slots: tuple[Slot, ...]) -> None:
    """An expression for one of 8 KiB took 8 seconds to compile where it has a Basic slot."""
    long_one = secret(VALUE * 300, *slots)
    begun = time.thread_time()
    assert mask(long_one.value.encode(), [long_one]) == P
    assert time.thread_time() - begun < 3
