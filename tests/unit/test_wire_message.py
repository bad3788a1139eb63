"""The content of requests and the responses to them, whole and byte by byte."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netns_runtime.wire import NEED_DATA, ProtocolError
from netns_runtime.wire.head import parse_head
from netns_runtime.wire.message import (
    ContentReader,
    EndOfContent,
    ResponseReader,
    write_chunk,
    write_head,
    write_last_chunk,
)


def content_reader(*lines: str) -> ContentReader:
    text = "\r\n".join(("POST / HTTP/1.1", "Host: a", *lines)) + "\r\n\r\n"
    return ContentReader(parse_head(text.encode()))


def read(reader: ContentReader, data: bytes, step: int) -> tuple[bytes, EndOfContent | None]:
    """The content and its end, as far as `data` has it."""
    content = b""
    for at in range(0, len(data), step):
        reader.feed(data[at : at + step])
        while (part := reader.next()) is not NEED_DATA:
            if isinstance(part, EndOfContent):
                # What follows the end is still to be fed; a caller would not.
                reader.feed(data[at + step :]) if data[at + step :] else None
                return content, part
            content += part
    return content, None


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_counted_content_ends_at_its_length_and_leaves_the_rest(step: int) -> None:
    reader = content_reader("Content-Length: 5")
    content, end = read(reader, b"helloGET /", step)
    assert (content, end) == (b"hello", EndOfContent([]))
    assert reader.rest() == b"GET /"
    assert reader.is_done


@pytest.mark.parametrize("step", [1, 3, 1000])
def test_chunked_content_ends_at_its_last_chunk_and_leaves_the_rest(step: int) -> None:
    reader = content_reader("Transfer-Encoding: chunked")
    data = b"3\r\nhel\r\n2;x=y\r\nlo\r\n0\r\nX-Sum: 1\r\nHost: b\r\n\r\nGET /"
    content, end = read(reader, data, step)
    assert (content, end) == (b"hello", EndOfContent([(b"X-Sum", b"1")]))
    assert reader.rest() == b"GET /"


@pytest.mark.parametrize(
    ("line", "data"), [("Content-Length: 5", b"hel"), ("Transfer-Encoding: chunked", b"5\r\nhel")]
)
def test_content_that_ends_too_soon_is_a_protocol_error(line: str, data: bytes) -> None:
    reader = content_reader(line)
    reader.feed(data)
    assert reader.next() == b"hel"
    reader.feed(b"")
    with pytest.raises(ProtocolError):
        reader.next()


@given(st.binary(max_size=60), st.integers(1, 60))
def test_chunks_of_any_bytes_are_content_or_a_protocol_error(data: bytes, step: int) -> None:
    reader = content_reader("Transfer-Encoding: chunked")
    try:
        content, _ = read(reader, data, step)
    except ProtocolError:
        return
    assert len(content) <= len(data)


@given(st.binary(max_size=80), st.booleans())
def test_a_response_of_any_bytes_is_a_response_or_a_protocol_error(
    data: bytes, is_upgrade: bool
) -> None:
    reader = ResponseReader("GET", is_upgrade=is_upgrade)
    reader.feed(b"HTTP/1.1 " + data)
    try:
        while reader.next() is not NEED_DATA:
            pass
        reader.feed(b"")
        reader.next()
    except ProtocolError:
        pass


@pytest.mark.parametrize(
    ("method", "status", "has_content"),
    [("GET", 200, True), ("HEAD", 200, False), ("GET", 204, False), ("GET", 304, False)],
)
def test_which_responses_have_content(method: str, status: int, has_content: bool) -> None:
    reader = ResponseReader(method)
    reader.feed(b"HTTP/1.1 %d X\r\nContent-Length: 2\r\n\r\nok" % status)
    assert isinstance(reader.next(), h11.Response)
    if has_content:
        assert reader.next() == b"ok"
    assert isinstance(reader.next(), EndOfContent)
    # Bytes that are nobody's content end the connection's use.
    assert reader.is_reusable is has_content


def test_only_an_upgrade_understands_101() -> None:
    switching = b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\nframes"
    reader = ResponseReader("GET", is_upgrade=True)
    reader.feed(switching)
    event = reader.next()
    assert isinstance(event, h11.InformationalResponse)
    assert reader.rest() == b"frames"
    reader = ResponseReader("GET")
    reader.feed(switching)
    with pytest.raises(ProtocolError):
        reader.next()


def test_a_connection_that_upstream_closes_is_not_used_again() -> None:
    reader = ResponseReader("GET")
    reader.feed(b"HTTP/1.1 200 X\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
    reader.next()
    assert isinstance(reader.next(), EndOfContent)
    assert not reader.is_reusable


def test_what_is_written_is_one_chunk_or_nothing() -> None:
    assert write_chunk(b"") == b""
    assert write_chunk(b"x" * 17) == b"11\r\n" + b"x" * 17 + b"\r\n"
    assert write_last_chunk([]) == b"0\r\n\r\n"
    assert write_last_chunk([(b"A", b"b")]) == b"0\r\nA: b\r\n\r\n"
    assert write_head(b"HTTP/1.1 200 OK", []) == b"HTTP/1.1 200 OK\r\n\r\n"
