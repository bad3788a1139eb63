"""Request targets in one spelling, which is judged and which is forwarded.

Dot segments are resolved (RFC 3986, 5.2.4; `%2e` is a dot), unreserved characters are decoded and
every other escape is in upper case. What two programs could read differently is refused: encoded
slashes and backslashes, NUL and control characters, broken escapes, overlong UTF-8, dot segments
behind parameters or a second encoding. Reserved characters, `//` and `;params` stay as sent, since
to some servers they are data: rules hold however those are read (policy/requests.py). Ends in a
NormalTarget or in ProtocolError.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

from netns_runtime.wire import ProtocolError

MAX_PATH: Final = 8192  # OpenShell 4096; nginx and Apache take 8190 for the whole request line
MAX_PAIRS: Final = 4096
MAX_LAYERS: Final = 8
"""How often a segment may be encoded over: nobody means more than two."""
_TAKES_SLASHES: Final = "write `allow_encoded_slash: true` at the policy's endpoint"

_RESERVED: Final = "!$&'()*+,;=:@"
# The common path: nothing to decode and no segment that could be a dot segment in some reading.
_PLAIN: Final = re.compile(rf"(?:/(?!\.)[{_RESERVED}A-Za-z0-9._~-]*)+")
_ESCAPE: Final = re.compile(r"%([0-9A-Fa-f]{2})")
_BROKEN: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_BARE: Final = re.compile(rf"[^{_RESERVED}A-Za-z0-9._~/%-]")
_UNRESERVED: Final = re.compile(r"[A-Za-z0-9._~-]")
_CONTROL: Final = re.compile(r"[\x00-\x20\x7f]")
_OVERLONG: Final = re.compile(
    rb"[\xc0\xc1][\x80-\xbf]|\xe0[\x80-\x9f][\x80-\xbf]|\xf0[\x80-\x8f][\x80-\xbf]{2}"
    rb"|[\xf8-\xfd][\x80-\xbf]"
)


@dataclass(frozen=True, slots=True)
class NormalTarget:
    """`path` begins with "/" and is percent-encoded; `query` is what followed the first `?`, as
    sent (None where there was none); `pairs` are its names and values, decoded, in order.
    """

    path: str
    query: str | None
    pairs: tuple[tuple[str, str], ...]

    @property
    def raw(self) -> str:
        """The target to forward, ASCII without spaces."""
        return self.path if self.query is None else f"{self.path}?{self.query}"

    @property
    def shown(self) -> str:
        """The target with the query's values left out, for the audit."""
        if self.query is None:
            return self.path
        return f"{self.path}?" + "&".join(pair.partition("=")[0] for pair in self.query.split("&"))


def normalise_target(raw: str, *, allow_encoded_slash: bool = False) -> NormalTarget:
    """The normal form of a target in origin form. `*` and absolute forms are the caller's.

    `allow_encoded_slash` lets %2F and %5C pass as data; dot segments around them are refused all
    the same. Raises ProtocolError, whose text names no part of the target's query.
    """
    path, mark, query = raw.partition("?")
    if not path.startswith("/"):
        raise ProtocolError("a request target begins with /")
    if len(path) <= MAX_PATH and _PLAIN.fullmatch(path) is None:
        path = _normal_path(path, allow_encoded_slash)
    if len(path) > MAX_PATH:
        raise ProtocolError(f"the path is longer than {MAX_PATH} characters", status=414)
    if not mark:
        return NormalTarget(path, None, ())
    query = _safe_query(query)
    return NormalTarget(path, query, _pairs_of(query))


def _normal_path(path: str, allow_encoded_slash: bool) -> str:
    if "#" in path:
        raise ProtocolError("a request target has no fragment")
    if "\\" in path:
        raise ProtocolError(
            "the path has a backslash, which some servers take for a slash",
            remedy=f"let the client send %5C, and {_TAKES_SLASHES}",
        )
    if _CONTROL.search(path):
        raise ProtocolError("the path has a space or a control character")
    if _BROKEN.search(path):
        raise ProtocolError("the path has a percent sign without two hexadecimal digits")
    octets = unquote_to_bytes(_as_ascii(path))
    if _OVERLONG.search(octets):
        raise ProtocolError("the path has an overlong form of UTF-8")
    # Escapes first: what is a dot segment shows itself only then.
    path = _ESCAPE.sub(_canonical, _BARE.sub(_escaped, _as_ascii(path)))
    for segment in path.split("/"):
        _check_segment(segment, allow_encoded_slash)
    return _without_dots(path)


def _as_ascii(text: str) -> str:
    """Characters beyond ASCII as the escapes of their bytes."""
    if text.isascii():
        return text
    try:
        octets = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise ProtocolError("the request target is not UTF-8") from None
    return "".join(chr(octet) if octet < 0x80 else f"%{octet:02X}" for octet in octets)


def _escaped(found: re.Match[str]) -> str:
    return f"%{ord(found[0]):02X}"


def _canonical(found: re.Match[str]) -> str:
    character = chr(int(found[1], 16))
    return character if _UNRESERVED.match(character) else found[0].upper()


def _check_segment(segment: str, allow_encoded_slash: bool) -> None:
    if segment in {".", ".."}:
        return
    if "%" in segment:
        text = _decoded(segment)
        if any(character < " " or character == "\x7f" for character in text):
            raise ProtocolError("the path has an encoded NUL or control character")
        if not allow_encoded_slash and ("/" in text or "\\" in text):
            raise ProtocolError(
                "the path has an encoded slash or backslash, which some servers decode",
                remedy=_TAKES_SLASHES,
            )
    elif ";" in segment:
        text = segment
    else:
        return
    for part in re.split(r"[/\\]", text):
        if part.partition(";")[0].strip() in {".", ".."}:
            raise ProtocolError("the path hides a dot segment behind an encoding or parameters")


def _decoded(segment: str) -> str:
    """Decoded until nothing changes: servers behind servers decode twice."""
    text = segment
    for _ in range(MAX_LAYERS):
        inner = _ESCAPE.sub(lambda found: chr(int(found[1], 16)), text)
        if inner == text:
            return text
        text = inner
    raise ProtocolError(f"the path is percent-encoded more than {MAX_LAYERS} times over")


def _without_dots(path: str) -> str:
    if "/." not in path:
        return path
    kept: list[str] = []
    segments = path.split("/")[1:]
    for number, segment in enumerate(segments):
        is_last = number == len(segments) - 1
        if segment == "..":
            if not kept:
                raise ProtocolError("the path leads above its root")
            kept.pop()
        elif segment != ".":
            kept.append(segment)
            continue
        if is_last:
            kept.append("")
    return "/" + "/".join(kept)


def _safe_query(query: str) -> str:
    if "#" in query:
        raise ProtocolError("a request target has no fragment")
    if _CONTROL.search(query):
        raise ProtocolError("the query has a space or a control character")
    return _as_ascii(query)


def _pairs_of(query: str) -> tuple[tuple[str, str], ...]:
    if not query:
        return ()
    if query.count("&") >= MAX_PAIRS:
        raise ProtocolError(f"the query has more than {MAX_PAIRS} parameters")
    pairs = []
    for pair in query.split("&"):
        if pair:
            name, _, value = pair.partition("=")
            pairs.append((_decoded_value(name), _decoded_value(value)))
    return tuple(pairs)


def _decoded_value(text: str) -> str:
    if "%" not in text and "+" not in text:
        return text
    return unquote_to_bytes(text.replace("+", " ")).decode("utf-8", "replace")
