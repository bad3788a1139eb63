"""The sandbox's own certificate authority, and a server's TLS context for each host under it.

`Authority()` makes a P-256 key and a self-signed certificate that exist in this process alone; only
`pem`, the certificate, ever leaves it. `context_for` mints a leaf for one host at first use and
keeps a bounded number of contexts; a leaf is minted anew long before it ends and whenever the clock
has jumped. Nothing here waits, and it ends with ValueError for a host that no certificate can name.

OpenSSL takes a certificate and its key from files alone (Python's `load_cert_chain`), so both pass
through a memfd: memory with a descriptor, read once and closed, never in any directory.
"""

from __future__ import annotations

import os
import ssl
import time
from collections import OrderedDict
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

if TYPE_CHECKING:
    from collections.abc import Callable

# One context is some 20 KiB. Past this the least recently used host is minted again: 0.5 ms.
CONTEXTS: Final = 1024
# A client whose clock is behind still finds everything valid.
SKEW: Final = timedelta(days=2)
# The key dies with its sandbox, so what a short life would protect is gone already; a bot runs for
# months, and a clock may jump.
CA_LIFE: Final = timedelta(days=825)
# Chromium and Apple refuse leaves of more than 398 days, and Apple of 825 under a private root.
LEAF_LIFE: Final = timedelta(days=30)
LEAF_RENEWED: Final = timedelta(days=7).total_seconds()

_COMMON_NAME_LIMIT: Final = 64  # RFC 5280, ub-common-name


class Authority:
    """One sandbox's. `pem` is the certificate, without its key."""

    pem: bytes

    def __init__(
        self,
        name: str = "",
        *,
        limit: int = CONTEXTS,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._now = now
        self._limit = limit
        self._contexts: OrderedDict[tuple[str, str | None], tuple[float, ssl.SSLContext]] = (
            OrderedDict()
        )
        self._key = ec.generate_private_key(ec.SECP256R1())
        # One key for all leaves: whoever reads one out of this process reads the authority's too.
        self._leaf_key = ec.generate_private_key(ec.SECP256R1())
        self._leaf_pem = self._leaf_key.private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        )
        begins = self._instant(now()) - SKEW
        self._ends = begins + CA_LIFE
        self._begins = begins
        # The serial in the name keeps two sandboxes' authorities apart in one trust store.
        serial = x509.random_serial_number()
        common = f"netns-runtime {name} {serial & 0xFFFFFFFF:08x}"
        self._subject = _named(" ".join(common.split())[:_COMMON_NAME_LIMIT])
        public = self._key.public_key()
        self._identifier = x509.SubjectKeyIdentifier.from_public_key(public)
        certificate = (
            x509.CertificateBuilder(self._subject, self._subject, public, serial)
            .not_valid_before(begins)
            .not_valid_after(self._ends)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(key_cert_sign=True, crl_sign=True), critical=True)
            .add_extension(self._identifier, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        self.pem = certificate.public_bytes(Encoding.PEM)

    def context_for(self, host: str, alpn: str | None) -> ssl.SSLContext:
        """A server's context: `host` (canonical name or address) in its certificate, and for ALPN
        exactly `alpn`, or none. Raises ValueError for a host that cannot be named."""
        now = self._now()
        key = (host, alpn)
        found = self._contexts.get(key)
        if found is not None and abs(now - found[0]) < LEAF_RENEWED:
            self._contexts.move_to_end(key)
            return found[1]
        context = server_context(self.leaf_for(host), alpn)
        self._contexts[key] = (now, context)
        self._contexts.move_to_end(key)
        while len(self._contexts) > self._limit:
            self._contexts.popitem(last=False)
        return context

    def leaf_for(self, host: str) -> bytes:
        """A new certificate for `host` with its key, as one PEM text."""
        try:
            name: x509.GeneralName = x509.IPAddress(ip_address(host))
        except ValueError:
            name = x509.DNSName(host)
        now = self._instant(self._now())
        begins = max(now - SKEW, self._begins)
        leaf_public = self._leaf_key.public_key()
        common = host if len(host) <= _COMMON_NAME_LIMIT else "netns-runtime"
        certificate = (
            x509.CertificateBuilder(
                self._subject, _named(common), leaf_public, x509.random_serial_number()
            )
            .not_valid_before(begins)
            .not_valid_after(max(min(now + LEAF_LIFE, self._ends), begins + timedelta(seconds=1)))
            .add_extension(x509.SubjectAlternativeName([name]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(digital_signature=True), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(leaf_public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(self._identifier),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )
        return certificate.public_bytes(Encoding.PEM) + self._leaf_pem

    @staticmethod
    def _instant(seconds: float) -> datetime:
        return datetime.fromtimestamp(int(seconds), UTC)


def _named(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _usage(**claims: bool) -> x509.KeyUsage:
    every = (
        *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
        *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
    )
    return x509.KeyUsage(**(dict.fromkeys(every, False) | claims))


def server_context(chain: bytes, alpn: str | None) -> ssl.SSLContext:
    """What we serve TLS with. `chain` is a certificate and its key, in PEM."""
    context = bare_server_context(alpn)
    load_chain(context, chain)
    return context


def bare_server_context(alpn: str | None) -> ssl.SSLContext:
    """A server's context without a certificate: TLS 1.2 at least, for ALPN `alpn` or none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    # Two tickets would go to each client, none of which has far to go for a full handshake.
    context.num_tickets = 0
    if alpn is not None:
        context.set_alpn_protocols([alpn])
    return context


def load_chain(context: ssl.SSLContext, chain: bytes) -> None:
    """Give the context a certificate and its key, in PEM, in place of what it had."""
    fd = os.memfd_create("leaf", os.MFD_CLOEXEC)
    try:
        view = memoryview(chain)
        while view:
            view = view[os.write(fd, view) :]
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)
