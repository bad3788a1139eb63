"""Placeholders become values in the declared slots of heads, contents and WebSocket texts.

Everywhere else a placeholder passes as it is, and so does every other byte. What may be replaced is
`bound`: the secrets bound to the host; `others` are only watched for, and reported as withheld, as
are placeholders of `bound` that are left in a content that is text.
Nothing raises except a content's coding, with ProtocolError; no value is in any message.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final, Protocol

from netns_runtime.wire.coding import Closed, Opened, coding_of
from netns_runtime.wire.form import MultipartRewriter, UrlencodedRewriter, boundary_of
from netns_runtime.wire.headslots import RewrittenHead, rewrite_head
from netns_runtime.wire.jsonscan import segments_of
from netns_runtime.wire.jsonstream import JsonRewriter
from netns_runtime.wire.placeholder import JSON, Watch, names_in
from netns_runtime.wire.slots import Hit, Seen, as_json, as_part, fills_of, slots_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from netns_runtime.secret import Secret, Slot
    from netns_runtime.wire.forward import Headers

__all__ = [
    "BodyRewriter",
    "Hit",
    "RewrittenHead",
    "body_rewriter",
    "rewrite_head",
    "websocket_text",
    "withheld_in",
]

_JSON_TYPE: Final = re.compile(rb"application/(?:[\w.!#$&^+-]+\+)?json", re.IGNORECASE)
# Where a person's words may hold a placeholder: files that are sent up are not searched for one.
_TEXT_TYPE: Final = re.compile(
    rb"text/|application/(?:[\w.!#$&^-]+\+)?(?:json|xml)\b|application/x-www-form-urlencoded\b"
    rb"|multipart/form-data\b",
    re.IGNORECASE,
)


class Rewriter(Protocol):
    def feed(self, data: bytes) -> bytes: ...
    def finish(self) -> bytes: ...


class BodyRewriter:
    """A request's content on its way.

    Where `may_change` is False it passes as it is and keeps its length and framing. Where True its
    length may change: leave out Content-Length and frame anew, or feed a small content whole and
    count the result. A coding that is opened is closed again, so Content-Encoding stays.
    `substituted` and `withheld` have each entry once.

    Memory: one unfinished token or header block (16 KiB) and, for an opened coding, zlib's 300 KiB
    and pieces of 256 KiB (`feed` joins them: 4 MiB and 200 times its data at most).
    """

    def __init__(
        self,
        rewriter: Rewriter | None,
        seen: Seen,
        watch: Watch | None,
        opened: Opened | None,
        left: Watch | None = None,
    ) -> None:
        self._rewriter, self._seen, self._watch, self._opened = rewriter, seen, watch, opened
        self._left = left
        self._closed: Closed | None = None
        self.may_change = rewriter is not None

    @property
    def substituted(self) -> list[Hit]:
        return self._seen.substituted

    @property
    def withheld(self) -> list[str]:
        return self._seen.withheld

    def feed(self, data: bytes) -> bytes:
        """b"" means only that all is held back. Raises ProtocolError."""
        if self._opened is None:
            return self._plain(data)
        return b"".join(self.pieces(data))

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """As `feed`, in pieces of bounded size, never empty. Raises ProtocolError."""
        if self._opened is None:
            expanded: Iterator[bytes] = iter((data,))
        else:
            expanded = self._opened.pieces(data)
        for piece in expanded:
            if self._opened is not None and self._closed is None:
                self._closed = Closed(self._opened.window_bits)
            plain = self._plain(piece)
            done = self._closed.feed(plain) if self._closed else plain
            if done:
                yield done

    def finish(self) -> bytes:
        """What is left; once, at the end. Raises ProtocolError for content that ends too soon."""
        rest = self._rewriter.finish() if self._rewriter else b""
        if self._watch is not None:
            self._seen.withhold(self._watch.finish())
        if self._left is not None:
            self._seen.withhold(self._left.see(rest) | self._left.finish())
        if self._opened is None:
            return rest
        self._opened.finish()
        if self._closed is None:
            return b""
        return self._closed.feed(rest) + self._closed.finish()

    def _plain(self, data: bytes) -> bytes:
        if self._watch is not None:
            self._seen.withhold(self._watch.see(data))
        done = self._rewriter.feed(data) if self._rewriter else data
        if self._left is not None:
            self._seen.withhold(self._left.see(done))
        return done


def body_rewriter(
    headers: Headers, bound: Sequence[Secret], others: Sequence[Secret] = ()
) -> BodyRewriter | None:
    """For the content that these headers announce; None where there is nothing to look for."""
    coding = coding_of(headers)
    if coding is None:
        return None
    if coding:
        name = coding.decode()
        bound = [secret for secret in bound if name in secret.binding.codings]
    seen = Seen()
    rewriter = _rewriter_for(headers, bound, seen)
    names = frozenset(secret.name for secret in bound) if _is_text(headers) else frozenset()
    left = Watch(names) if names and rewriter is not None else None
    watched = frozenset(secret.name for secret in others) | (frozenset() if left else names)
    if rewriter is None and (coding or not watched):
        return None
    watch = Watch(watched) if watched else None
    opened = Opened(coding, status=400) if coding else None
    return BodyRewriter(rewriter, seen, watch, opened, left)


def _is_text(headers: Headers) -> bool:
    given = [value for name, value in headers if name.lower() == b"content-type"]
    return len(given) == 1 and _TEXT_TYPE.match(given[0]) is not None


def _rewriter_for(headers: Headers, bound: Sequence[Secret], seen: Seen) -> Rewriter | None:
    given = [value for name, value in headers if name.lower() == b"content-type"]
    if len(given) != 1 or not bound:
        return None
    kind = given[0].partition(b";")[0].strip().lower()
    if _JSON_TYPE.fullmatch(kind):
        entries = slots_of(bound, "json")
        return JsonRewriter(fills_of(entries, seen)) if entries else None
    entries = slots_of(bound, "form")
    if not entries:
        return None
    if kind == b"application/x-www-form-urlencoded":
        return UrlencodedRewriter(fills_of(entries, seen))
    boundary = boundary_of(given[0].strip())
    if boundary is not None:
        return MultipartRewriter(boundary, fills_of(entries, seen, as_part))
    return None


def websocket_text(text: str, bound: Sequence[Secret]) -> tuple[str, tuple[Hit, ...]]:
    """A client's text message with the WebSocket slots filled in whose `when` holds.

    Byte for byte the same outside of replaced placeholders; what is not JSON is left alone.
    """
    entries = slots_of(bound, "websocket")
    if not entries or ("openshell" not in text and "\\u00" not in text):
        return text, ()
    octets = text.encode("utf-8", "surrogatepass")
    names = JSON.names(octets)
    entries = [(secret, slot) for secret, slot in entries if secret.name in names]
    if not entries:
        return text, ()
    try:
        document = json.loads(text, object_pairs_hook=_object_of)
    except (ValueError, RecursionError):
        return text, ()
    seen = Seen()
    fills = fills_of([entry for entry in entries if _holds(entry[1], document)], seen, as_json)
    if not fills:
        return text, ()
    rewriter = JsonRewriter(fills)
    done = rewriter.feed(octets) + rewriter.finish()
    return done.decode("utf-8", "surrogatepass"), tuple(seen.substituted)


def withheld_in(text: str, others: Sequence[Secret]) -> tuple[str, ...]:
    """The names among `others` that a WebSocket text asks for."""
    if not others or ("openshell" not in text and "\\u00" not in text):
        return ()
    names = names_in(text.encode("utf-8", "surrogatepass"))
    return tuple(secret.name for secret in others if secret.name in names)


class _Doubtful:
    """In place of a value whose key is there twice: which one counts is up to the reader."""


def _object_of(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        made[key] = _Doubtful() if key in made else value
    return made


def _holds(slot: Slot, document: Any) -> bool:
    if slot.when is None:
        return True
    pointer, allowed = slot.when
    segments = segments_of(pointer)
    if segments is None:
        return False
    value = document
    for segment in segments:
        if isinstance(value, dict) and segment in value:
            value = value[segment]
        elif (
            isinstance(value, list)
            and re.fullmatch(r"0|[1-9][0-9]{0,8}", segment)
            and int(segment) < len(value)
        ):
            value = value[int(segment)]
        else:
            return False
    return any(_is_same(value, one) for one in allowed)


def _is_same(value: Any, other: Any) -> bool:
    if isinstance(value, bool) or isinstance(other, bool):
        return value is other
    return bool(value == other)
