"""What a forwarding proxy changes: targets and headers."""

from __future__ import annotations

import pytest

from netns_runtime.wire import ProtocolError
from netns_runtime.wire.forward import (
    end_to_end,
    request_headers,
    split_absolute,
    wants_websocket,
)
from netns_runtime.wire.head import RequestHead, parse_head


def head_of(target: str, *lines: str, method: str = "GET") -> RequestHead:
    text = "\r\n".join((f"{method} {target} HTTP/1.1", "Host: other.test", *lines)) + "\r\n\r\n"
    return parse_head(text.encode())


@pytest.mark.parametrize(
    ("target", "authority", "path"),
    [
        ("http://h.test", "h.test", "/"),
        ("HTTP://H.test:81/a?b=c", "H.test:81", "/a?b=c"),
        ("http://h.test?x", "h.test", "/?x"),
        ("http://[::1]:8/", "[::1]:8", "/"),
        ("ws://h.test/s", "h.test", "/s"),
        ("http://h.test/\u00fc", "h.test", "/%C3%BC"),
        ("http://h.test/%2e%2E/x", "h.test", "/%2e%2E/x"),
    ],
)
def test_an_absolute_target_is_split(target: str, authority: str, path: str) -> None:
    split = split_absolute(head_of(target))
    assert (split.authority, split.path) == (authority, path)


def test_options_without_a_path_asks_about_the_server() -> None:
    assert split_absolute(head_of("http://h.test", method="OPTIONS")).path == "*"


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("/path", "this is a proxy"),
        ("*", "this is a proxy"),
        ("h.test:80", "this is a proxy"),
        ("https://h.test/", "use CONNECT"),
        ("wss://h.test/", "use CONNECT"),
        ("ftp://h.test/", "not ftp://"),
        ("http://u:p@h.test/", "not taken"),
        ("http://h.test/#f", "fragment"),
    ],
)
def test_other_targets_are_refused_with_an_explanation(target: str, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        split_absolute(head_of(target))


def test_host_is_rewritten_from_the_target_and_comes_first() -> None:
    headers = request_headers(head_of("http://h.test/"), b"h.test")
    assert headers == [(b"Host", b"h.test")]


def test_hop_by_hop_headers_end_here_and_listed_ones_too() -> None:
    head = head_of(
        "http://h.test/",
        "Connection: keep-alive, X-Mine",
        "Proxy-Connection: keep-alive",
        "Proxy-Authorization: Basic eDp5",
        "Keep-Alive: timeout=5",
        "TE: trailers",
        "X-Mine: 1",
        "X-Theirs: 2",
        "Upgrade: h2c",
    )
    assert request_headers(head, b"h.test") == [(b"Host", b"h.test"), (b"X-Theirs", b"2")]


def test_connection_cannot_take_away_what_frames_the_message() -> None:
    pairs = [(b"Connection", b"content-length, host"), (b"Content-Length", b"5")]
    assert end_to_end(pairs) == [(b"Content-Length", b"5")]


def test_a_websocket_upgrade_passes_and_another_does_not() -> None:
    socket = head_of("ws://h.test/", "Connection: Upgrade", "Upgrade: WebSocket")
    assert wants_websocket(socket)
    assert request_headers(socket, b"h.test") == [(b"Host", b"h.test")]
    assert not wants_websocket(head_of("http://h.test/", "Connection: Upgrade", "Upgrade: h2c"))
