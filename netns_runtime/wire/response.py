"""A response on its way to the client: its coding opened, its head and content masked.

gzip and deflate are opened and not closed again; `accept_encoding` asks upstream for nothing else,
so any other coding is upstream's fault and raises ProtocolError (502), as does a charset in which
values look otherwise. Memory: the Masker's and
zlib's 300 KiB, and pieces of 256 KiB.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from netns_runtime.wire import ProtocolError
from netns_runtime.wire.coding import Opened, coding_of
from netns_runtime.wire.reflection import Masker, mask, mask_headers

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from netns_runtime.secret import Secret
    from netns_runtime.wire.forward import Headers

_CODINGS: Final = frozenset({b"gzip", b"x-gzip", b"deflate", b"identity"})
# They tell the length, or are digests or ranges of octets that are no longer these.
_OF_THE_CODED: Final = frozenset({b"content-encoding", b"content-length", b"accept-ranges"})
_FRAMED: Final = (b"application/grpc", b"application/connect+")
_MESSAGE_CODINGS: Final = frozenset({b"grpc-encoding", b"connect-content-encoding"})
_MESSAGE_ACCEPTS: Final = frozenset({b"grpc-accept-encoding", b"connect-accept-encoding"})
_SPELT_OTHERWISE: Final = re.compile(
    rb"^application/grpc-web-text"
    rb"|;\s*charset\s*=[\s\"']*(?:x-|cs)?(?:utf-?(?:7|16|32)|ucs|unicode|iso-?10646|ebcdic|ibm0?37)",
    re.IGNORECASE,
)
_OF_THE_LENGTH: Final = frozenset({b"content-length"})


class ResponseMasker:
    """`headers` are the ones to send, masked.

    Where `may_change` is False (no secret is bound), content and framing stay. Where True, the
    length may change: `headers` has no Content-Length, frame anew; or use `whole` for a content
    that is at hand to its end.
    """

    def __init__(self, headers: Headers, bound: Sequence[Secret], opened: Opened | None) -> None:
        self._bound, self._opened = bound, opened
        self._masker = Masker(bound, framed=_is_framed(headers))
        self.may_change = bool(bound)
        dropped = _OF_THE_CODED if opened else _OF_THE_LENGTH if bound else frozenset()
        self.headers = [
            pair for pair in mask_headers(headers, bound) if pair[0].lower() not in dropped
        ]

    def feed(self, data: bytes) -> bytes:
        """b"" means only that all is held back; 4 MiB and 200 times `data` at most. Raises
        ProtocolError."""
        if self._opened is None:
            return self._masker.feed(data)
        return b"".join(self.pieces(data))

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """As `feed`, in pieces of bounded size, never empty. Raises ProtocolError."""
        expanded = iter((data,)) if self._opened is None else self._opened.pieces(data)
        for piece in expanded:
            done = self._masker.feed(piece)
            if done:
                yield done

    def finish(self) -> bytes:
        """What is left; once, at the end. Raises ProtocolError for a coding that ends too soon."""
        if self._opened is not None:
            self._opened.finish()
        return self._masker.finish()

    def whole(self, content: bytes) -> tuple[Headers, bytes]:
        """In place of feed and finish: the headers with the exact Content-Length, and the masked
        content. Keep `content` small (64 KiB). Raises ProtocolError."""
        if self._opened is None:
            done = mask(content, self._bound)
        else:
            done = self.feed(content) + self.finish()
        headers = [pair for pair in self.headers if pair[0].lower() != b"content-length"]
        return [*headers, (b"Content-Length", b"%d" % len(done))], done


def _is_framed(headers: Headers) -> bool:
    """gRPC, gRPC-Web and Connect's streams."""
    kinds = [value.lower() for name, value in headers if name.lower() == b"content-type"]
    return any(kind.startswith(_FRAMED) for kind in kinds)


def _compresses_messages(headers: Headers) -> bool:
    """Whether each message in a framed content may be compressed, whatever Content-Encoding says.

    A server may answer in the coding that its client wrote in (grpc-go does), asked for or not.
    """
    codings = [value.strip().lower() for name, value in headers if name.lower() in _MESSAGE_CODINGS]
    return any(coding not in {b"", b"identity"} for coding in codings)


def _is_spelt_otherwise(headers: Headers) -> bool:
    """Whether a client may have had the text written in octets that a value does not show in: in
    base64 by gRPC-Web's text form, or in UTF-16, which ASP.NET Core writes for Accept-Charset."""
    kinds = [value for name, value in headers if name.lower() == b"content-type"]
    return any(_SPELT_OTHERWISE.search(kind) for kind in kinds)


def response_masker(headers: Headers, bound: Sequence[Secret]) -> ResponseMasker:
    """For a response with content. One without (HEAD, 1xx, 204, 304) needs mask_headers alone.

    Raises ProtocolError, status 502, for a coding that cannot be opened.
    """
    if not bound:
        return ResponseMasker(headers, (), None)
    coding = coding_of(headers)
    if coding is None or _compresses_messages(headers) or _is_spelt_otherwise(headers):
        raise ProtocolError(
            "upstream sent a content coding or charset that cannot be searched for secrets",
            status=502,
        )
    return ResponseMasker(headers, bound, Opened(coding, status=502) if coding else None)


def accept_encoding(headers: Headers) -> Headers:
    """A request's headers, asking only for codings that `response_masker` opens; of gRPC's none.

    A request for a range asks for none: a part of a coded content cannot be opened.
    """
    is_range = any(name.lower() == b"range" for name, _ in headers)
    asked = [
        word.strip(b" \t")
        for name, value in headers
        if name.lower() == b"accept-encoding"
        for word in value.split(b",")
    ]
    kept = [word for word in asked if word.partition(b";")[0].rstrip().lower() in _CODINGS]
    wanted = b"identity" if is_range or not kept else b", ".join(kept)
    done, is_there = [], False
    for name, value in headers:
        if name.lower() in _MESSAGE_ACCEPTS:
            continue
        if name.lower() != b"accept-encoding":
            done.append((name, value))
        elif not is_there:
            done.append((name, wanted))
            is_there = True
    if not is_there:
        done.append((b"Accept-Encoding", wanted))
    return done
