"""Which certificate authorities are trusted: the system's store and `--upstream-ca`.

Certificates are handled as PEM text and checked with OpenSSL, through the ssl module, only where a
person handed us a file. A bundle without a readable certificate ends in one UsageError. Only
certificates are passed on: a private key that sits in the same file is left out.
"""

from __future__ import annotations

import binascii
import hashlib
import os
import re
import stat
import struct
from typing import TYPE_CHECKING, Final

from netns_runtime.errors import UsageError, file_error

if TYPE_CHECKING:
    from collections.abc import Callable

# The order in which Go's crypto/x509 (root_linux.go) looks.
SYSTEM_STORES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Arch, Gentoo
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL 6
    "/etc/ssl/ca-bundle.pem",  # openSUSE
    "/etc/pki/tls/cacert.pem",  # OpenELEC
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",  # CentOS, RHEL 7
    "/etc/ssl/cert.pem",  # Alpine
)
# Where OpenSSL itself looks for a bundle, by distribution: mostly links to one of the above.
OPENSSL_FILES: Final = ("/usr/lib/ssl/cert.pem", "/etc/pki/tls/cert.pem", "/usr/local/ssl/cert.pem")
# What the distributions' JVMs link to. Others are reached by their options.
JAVA_STORES: Final = (
    "/etc/ssl/certs/java/cacerts",  # Debian, Ubuntu
    "/etc/pki/ca-trust/extracted/java/cacerts",  # Fedora, RHEL
    "/var/lib/ca-certificates/java-cacerts",  # openSUSE
    "/etc/ca-certificates/extracted/java-cacerts.jks",  # Arch
)
MAX_BYTES: Final = 16 << 20

_BLOCK: Final = re.compile(
    rb"-----BEGIN CERTIFICATE-----[ \t]*\r?\n([A-Za-z0-9+/=\s]+?)-----END CERTIFICATE-----"
)
_DER_SEQUENCE: Final = b"\x30\x82"


def system_store(is_file: Callable[[str], bool] = os.path.isfile) -> str | None:
    """The path of the system's own bundle, or None where no known place has one."""
    return next((path for path in SYSTEM_STORES if is_file(path)), None)


def other_stores(besides: str, is_file: Callable[[str], bool] = os.path.isfile) -> tuple[str, ...]:
    """The paths of every other bundle of the system, each real file once and `besides` left out."""
    found = {os.path.realpath(besides): besides}
    for path in (*SYSTEM_STORES, *OPENSSL_FILES):
        if is_file(path):
            found.setdefault(os.path.realpath(path), path)
    return tuple(path for path in found.values() if path != besides)


def java_stores(is_file: Callable[[str], bool] = os.path.isfile) -> tuple[str, ...]:
    """The paths of the system's key stores for Java."""
    return tuple(path for path in JAVA_STORES if is_file(path))


def certificates_in(data: bytes) -> tuple[bytes, ...]:
    """The PEM blocks of certificates in `data`, each with LF line ends and a newline at its end."""
    return tuple(
        b"-----BEGIN CERTIFICATE-----\n"
        + b"".join(line + b"\n" for line in match.group(1).split())
        + b"-----END CERTIFICATE-----\n"
        for match in _BLOCK.finditer(data)
    )


def merged_bundle(system: bytes, extra: bytes) -> bytes:
    """One PEM bundle with the certificates of both, the extra ones first, none of them twice."""
    return b"".join(dict.fromkeys(certificates_in(extra) + certificates_in(system)))


def java_truststore(bundle: bytes) -> bytes:
    """A PEM bundle as a Java key store, in the format JKS (sun.security.provider.JavaKeyStore).

    Every JVM since 1.2 reads it, those that prefer PKCS #12 too (keystore.type.compat), and needs
    no password for certificates. The digest at its end is by the password that JVMs come with.
    """
    entries = [_der_of(block) for block in dict.fromkeys(certificates_in(bundle))]
    parts = [struct.pack(">III", 0xFEEDFEED, 2, len(entries))]
    for number, der in enumerate(entries):
        alias = b"netns-runtime-%d" % number
        parts.append(struct.pack(">IH", 2, len(alias)) + alias + bytes(8))
        parts.append(struct.pack(">H", 5) + b"X.509" + struct.pack(">I", len(der)) + der)
    store = b"".join(parts)
    seed = "changeit".encode("utf-16-be") + b"Mighty Aphrodite"
    return store + hashlib.sha1(seed + store, usedforsecurity=False).digest()


def _der_of(block: bytes) -> bytes:
    """The DER of one PEM block."""
    return binascii.a2b_base64(b"".join(block.splitlines()[1:-1]))


def parse_roots(data: bytes, name: str) -> bytes:
    """The certificates of a file that a person named with `--upstream-ca`, as one PEM bundle.

    Raises UsageError if there is none, or one that OpenSSL cannot read.
    """
    if len(data) > MAX_BYTES:
        raise UsageError(
            f"--upstream-ca {name}: larger than {MAX_BYTES >> 20} MiB",
            remedy="give the roots that are needed alone",
        )
    blocks = certificates_in(data)
    if not blocks and data.startswith(_DER_SEQUENCE):
        raise UsageError(
            f"--upstream-ca {name}: this is DER and not PEM",
            remedy="convert it: openssl x509 -inform der -in FILE -out FILE.pem",
        )
    if not blocks:
        raise UsageError(
            f"--upstream-ca {name}: no certificate in it",
            remedy="give a PEM file with at least one BEGIN CERTIFICATE",
        )
    _check(blocks, name)
    return b"".join(dict.fromkeys(blocks))


def read_upstream_ca(path: str) -> bytes:
    """Open the file once and return its certificates (see parse_roots)."""
    shown = path if path.isascii() and path.isprintable() else ascii(path)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            mode = os.fstat(fd).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
                raise UsageError(
                    f"--upstream-ca {shown}: neither a file nor a pipe", remedy="name a PEM file"
                )
            os.set_blocking(fd, True)
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise file_error(f"--upstream-ca {shown}", error) from error
    return parse_roots(data, shown)


def _check(blocks: tuple[bytes, ...], name: str) -> None:
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for number, block in enumerate(blocks, 1):
        try:
            context.load_verify_locations(cadata=block.decode("ascii"))
        except (ssl.SSLError, ValueError):
            raise UsageError(
                f"--upstream-ca {name}: certificate {number} of {len(blocks)} is damaged",
                remedy="export it again",
            ) from None
