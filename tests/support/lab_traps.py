"""Routes of the lab's web servers that a proxy could be led astray by, and certificates likewise.

`ROUTES` and `UPGRADES` join those of `lab_http`. `contexts` gives the names whose certificate no
client should accept. Errors of a peer are `lab_http`'s to deal with.
"""

from __future__ import annotations

import datetime
import gzip
import json
import ssl
import zlib
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import h11
import trio
import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support.lab_ws import WebSocket

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.support.lab_http import Connection, Web

    Answer = Callable[[Web, Connection, h11.Request, bytes, str, dict[str, str]], Awaitable[None]]

CODINGS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "unknown": lambda data: data[::-1],
}
MIB: Final = 1 << 20
BAD_CERTIFICATES: Final = ("expired", "selfsigned", "wronghost", "unknown-issuer", "not-yet")


async def reflect(
    web: Web, c: Connection, request: h11.Request, body: bytes, rest: str, query: dict[str, str]
) -> None:
    """An error page (or whatever status is asked for) that repeats the whole request.

    `coding`: gzip, deflate, unknown. `piece`: bytes in each write. `header`: repeats
    Authorization in a header too.
    """
    headers = [(bytes(k).decode("latin-1"), bytes(v).decode("latin-1")) for k, v in request.headers]
    said = {"target": request.target.decode("latin-1"), "headers": headers}
    page = json.dumps({**said, "body": body.decode("latin-1")}).encode()
    fields = [("content-type", "text/html")]
    if query.get("header"):
        fields += [("x-reflected", dict(headers).get("authorization", ""))]
    if coding := query.get("coding"):
        page = CODINGS[coding](page)
        fields += [("content-encoding", "x-lab" if coding == "unknown" else coding)]
    size = int(query.get("piece", "65536"))
    chunked = size < len(page)
    fields += [("transfer-encoding", "chunked") if chunked else ("content-length", str(len(page)))]
    await c.send(h11.Response(status_code=int(rest or "500"), headers=fields))
    for at in range(0, len(page), size):
        await c.send(h11.Data(data=page[at : at + size]))
    await c.send(h11.EndOfMessage())


async def redirect(
    web: Web, c: Connection, request: h11.Request, body: bytes, rest: str, query: dict[str, str]
) -> None:
    """302 to the host in the path, with this request's query and the rest of its path."""
    host, _, path = rest.partition("/")
    asked = urlsplit(request.target.decode("latin-1")).query
    await c.answer(302, b"", location=f"https://{host}/echo/{path}?{asked}")


async def bomb(
    web: Web, c: Connection, request: h11.Request, body: bytes, rest: str, query: dict[str, str]
) -> None:
    """So many MiB of zeros, gzipped to a thousandth."""
    packed = zlib.compressobj(9, wbits=31)
    fields = [("content-encoding", "gzip"), ("transfer-encoding", "chunked")]
    await c.send(h11.Response(status_code=200, headers=fields))
    for _ in range(int(rest)):
        if data := packed.compress(bytes(MIB)):
            await c.send(h11.Data(data=data))
    await c.send(h11.Data(data=packed.flush()))
    await c.send(h11.EndOfMessage())


async def headers(
    web: Web, c: Connection, request: h11.Request, body: bytes, rest: str, query: dict[str, str]
) -> None:
    """A response head of so many MiB, in fields of 8000 bytes."""
    await c.stream.send_all(b"HTTP/1.1 200 OK\r\n")
    field = b"x-%06d: " + b"h" * 7986 + b"\r\n"
    for number in range(int(rest) * MIB // 8000):
        await c.stream.send_all(field % number)
    await c.stream.send_all(b"content-length: 0\r\n\r\n")


async def when_upgraded(
    web: Web, c: Connection, request: h11.Request, body: bytes, rest: str, query: dict[str, str]
) -> None:
    """What a client falls back to after `refuse_upgrade`."""
    await c.answer(200, b"served without a socket\n", x_lab="fallback")


async def refuse_upgrade(web: Web, c: Connection, request: h11.Request, rest: str) -> None:
    await c.body()
    body = f"no socket here: {rest}\n".encode()
    await c.answer(int(rest), body, x_lab="handshake", www_authenticate="Lab")


async def stay_silent(web: Web, c: Connection, request: h11.Request, rest: str) -> None:
    await trio.sleep_forever()


async def drip(
    web: Web, c: Connection, request: h11.Request, body: bytes, rest: str, query: dict[str, str]
) -> None:
    """`text`, then nothing for so many seconds, then the end."""
    await c.send(h11.Response(status_code=200, headers=[("transfer-encoding", "chunked")]))
    await c.send(h11.Data(data=query["text"].encode()))
    await trio.sleep(float(rest))
    await c.send(h11.Data(data=b" END"))
    await c.send(h11.EndOfMessage())


async def swallow(web: Web, c: Connection, request: h11.Request, rest: str) -> None:
    """Accepts, and listens without understanding or answering."""
    await WebSocket.accept(c, request)
    while await c.stream.receive_some(1 << 18):
        pass


ROUTES: Final[dict[str, Answer]] = {
    "bomb": bomb,
    "drip": drip,
    "headers": headers,
    "redirect": redirect,
    "reflect": reflect,
    "upgrade": when_upgraded,
}
UPGRADES: Final[dict[str, Callable[[Web, Any, h11.Request, str], Awaitable[None]]]] = {
    "upgrade": refuse_upgrade,
    "silent": stay_silent,
    "swallow": swallow,
}


def _context(certificate: trustme.LeafCert) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate.configure_cert(context)
    context.set_alpn_protocols(["http/1.1"])
    return context


def _self_signed(host: str, now: datetime.datetime, day: datetime.timedelta) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    names = x509.SubjectAlternativeName([x509.DNSName(host)])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now - day, now + 30 * day)
    certificate = builder.add_extension(names, critical=False).sign(key, hashes.SHA256())
    return _context(
        trustme.LeafCert(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.TraditionalOpenSSL,
                serialization.NoEncryption(),
            ),
            certificate.public_bytes(serialization.Encoding.PEM),
            [],
        )
    )


def contexts(authority: trustme.CA) -> dict[str, ssl.SSLContext]:
    """By server name, a certificate that is not valid for it (`BAD_CERTIFICATES`)."""
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)

    def leaf(issuer: trustme.CA, name: str, since: int, until: int) -> trustme.LeafCert:
        return issuer.issue_cert(
            name,
            key_type=trustme.KeyType.ECDSA,
            not_before=now + since * day,
            not_after=now + until * day,
        )

    stranger = trustme.CA(key_type=trustme.KeyType.ECDSA)
    found = {
        "expired": leaf(authority, "expired.lab.test", -30, -1),
        "not-yet": leaf(authority, "not-yet.lab.test", 1, 30),
        "wronghost": leaf(authority, "elsewhere.test", -1, 30),
        "unknown-issuer": leaf(stranger, "unknown-issuer.lab.test", -1, 30),
    }
    contexts = {f"{kind}.lab.test": _context(certificate) for kind, certificate in found.items()}
    return {**contexts, "selfsigned.lab.test": _self_signed("selfsigned.lab.test", now, day)}
