"""What goes wrong in TLS, as a person would say it, and who said it. Pure.

OpenSSL's words are translated at this one seam: `failure_of` for a handshake, `in_words` for what
comes later. A failure has an RFC 9209 name; certificates of upstream name what is wrong with them.
"""

from __future__ import annotations

import errno
import re
import ssl
from typing import Final

# X509_STORE_CTX_get_error(3): the codes that a person can do something about.
_CERTIFICATE: Final[dict[int, str]] = {
    9: "is not valid yet",
    10: "has expired",
    18: "is self-signed",
    19: "comes from an authority that is not trusted here (a self-signed root)",
    20: "comes from an authority that is not known here, or lacks an intermediate one",
    21: "comes from an authority that is not known here, or lacks an intermediate one",
    23: "has been revoked",
    26: "is not meant for servers",
    62: "is for another name",
    64: "is for another address",
    66: "has a key that is too weak",
    68: "is signed with a digest that is too weak",
}
UNKNOWN_ROOT: Final = frozenset({18, 19, 20, 21})

# "[SSL: REASON] tlsv1 alert unknown ca (_ssl.c:992)"; Python knows no REASON for some.
_MESSAGE = re.compile(r"\[SSL[^]]*\] (.+?)(?: \(_ssl\.c:\d+\))?")
# ssl/ssl_err.c: five alerts are told without the word.
_ALERT = re.compile(
    r"(?:sslv3|tlsv1|tlsv13|ssl/tls) (?:alert (.+)|(certificate unobtainable|unrecognized name"
    r"|unsupported extension|bad certificate status response|bad certificate hash value))"
)
# By these a client says that it does not take our certificate (RFC 8446, 6.2).
_OF_CERTIFICATES: Final = frozenset(
    {
        *("unknown_ca", "bad_certificate", "certificate_unknown", "unsupported_certificate"),
        *("certificate_expired", "certificate_revoked", "access_denied", "decrypt_error"),
    }
)
# A client that does not take our certificate may not find words for it either.
_WORDLESS: Final = frozenset({"internal_error", "close_notify", "user_cancelled"})


class TlsError(OSError):
    """TLS broke after its handshake. `strerror` is a sentence; `alert` names the peer's, if any."""

    def __init__(self, text: str, alert: str | None = None) -> None:
        super().__init__(errno.EPROTO, text)
        self.alert = alert


class HandshakeFailed(Exception):
    """A handshake failed. `reason` is RFC 9209's name and `detail` a clause about the peer.

    `alert` names the peer's, if it sent one. `code` is OpenSSL's for a certificate of the peer's.
    `is_refusal`: the peer, a client, does not take our certificate, as far as one can tell.
    `wants_certificate`: the peer, a server, asked for a certificate of ours.
    """

    def __init__(
        self,
        reason: str,
        detail: str,
        *,
        alert: str | None = None,
        code: int = 0,
        is_refusal: bool = False,
    ) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail
        self.alert = alert
        self.code = code
        self.is_refusal = is_refusal
        self.wants_certificate = alert == "certificate_required"


def alert_of(error: BaseException) -> str | None:
    """The peer's alert, by its name in RFC 8446, if that is what ended it."""
    match = _ALERT.fullmatch(_message_of(error))
    return (match[1] or match[2]).replace(" ", "_") if match else None


def _message_of(error: BaseException) -> str:
    text = str(error.args[-1]) if error.args else ""
    match = _MESSAGE.fullmatch(text)
    return match[1] if match else text


def failure_of(error: BaseException, *, is_server: bool) -> HandshakeFailed:
    """A handshake's failure; `is_server` where we were the server."""
    if isinstance(error, ssl.SSLCertVerificationError):
        said = _CERTIFICATE.get(error.verify_code, f"is not valid: {error.verify_message}")
        return HandshakeFailed(
            "tls_certificate_error", f"its certificate {said}", code=error.verify_code
        )
    if isinstance(error, EOFError | ssl.SSLEOFError | ssl.SSLZeroReturnError):
        text = "ended the connection in the middle of the TLS handshake"
        return HandshakeFailed("connection_terminated", text, is_refusal=is_server)
    if not isinstance(error, ssl.SSLError):
        text = f"broke off the TLS handshake ({getattr(error, 'strerror', None) or error})"
        return HandshakeFailed("connection_terminated", text, is_refusal=is_server)
    alert = alert_of(error)
    if alert is not None:
        is_refusal = is_server and alert in _OF_CERTIFICATES | _WORDLESS
        text = f"refused the TLS handshake (alert {alert})"
        return HandshakeFailed("tls_alert_received", text, alert=alert, is_refusal=is_refusal)
    return HandshakeFailed("tls_protocol_error", f"broke the TLS protocol ({words_of(error)})")


_PLAIN: Final = {
    "wrong version number": "what it speaks is no TLS",
    "record layer failure": "what it speaks is no TLS",
    "http request": "it speaks plain HTTP",
    "https proxy request": "it speaks plain HTTP",
    "unsupported protocol": "its version is older than TLS 1.2",
    "version too low": "its version is older than TLS 1.2",
    "no shared cipher": "no cipher suite in common",
    "dh key too small": "its key exchange is too weak",
    "ee key too small": "its key is too weak",
    "unsafe legacy renegotiation disabled": "it cannot renegotiate safely (RFC 5746)",
}


# OpenSSL 3.2 and newer say only that the record layer failed; of a first record, that it is no TLS.
_AFTER: Final = {"record layer failure": "decryption failed or bad record mac"}


def words_of(error: ssl.SSLError) -> str:
    """OpenSSL's reason, or ours where that is clearer."""
    text = _message_of(error) or "unknown"
    return _PLAIN.get(text, text)


def in_words(error: ssl.SSLError) -> TlsError:
    """An error of TLS after its handshake."""
    alert = alert_of(error)
    if alert == "certificate_required":
        return TlsError("the server insists on a client certificate (alert certificate_required)")
    if alert is not None:
        return TlsError(f"TLS alert {alert}", alert)
    text = _message_of(error)
    return TlsError(f"TLS: {_AFTER.get(text) or words_of(error)}")
