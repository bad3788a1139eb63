"""Bundles of certificate authorities."""

from __future__ import annotations

import hashlib
import ssl
import struct
from typing import TYPE_CHECKING

import pytest
import trustme

from netns_runtime import trust
from netns_runtime.errors import UsageError
from netns_runtime.trust import certificates_in, merged_bundle, parse_roots, read_upstream_ca

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def roots() -> tuple[bytes, bytes]:
    return trustme.CA().cert_pem.bytes(), trustme.CA().cert_pem.bytes()


def test_takes_a_certificate(roots: tuple[bytes, bytes]) -> None:
    assert certificates_in(parse_roots(roots[0], "ca.pem")) == certificates_in(roots[0])


def test_takes_several_with_text_between_and_crlf(roots: tuple[bytes, bytes]) -> None:
    data = b"Subject: one\r\n" + b"\r\n# two\r\n".join(roots).replace(b"\n", b"\r\n")
    bundle = parse_roots(data, "ca.pem")
    assert len(certificates_in(bundle)) == 2
    assert b"\r" not in bundle
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=bundle.decode())
    assert len(context.get_ca_certs()) == 2


def test_never_passes_on_a_private_key(roots: tuple[bytes, bytes]) -> None:
    key = b"-----BEGIN PRIVATE KEY-----\nMC4CAQ\n-----END PRIVATE KEY-----\n"
    assert b"PRIVATE" not in parse_roots(key + roots[0], "ca.pem")
    assert b"PRIVATE" not in merged_bundle(key, roots[0])


def test_a_merged_bundle_has_both_and_none_twice(roots: tuple[bytes, bytes]) -> None:
    first, second = roots
    assert certificates_in(merged_bundle(first + second, second)) == certificates_in(second + first)


def damaged(roots: tuple[bytes, bytes]) -> bytes:
    lines = roots[1].splitlines(keepends=True)
    return roots[0] + b"".join([*lines[:3], *lines[4:]])


def test_names_the_damaged_certificate(roots: tuple[bytes, bytes]) -> None:
    with pytest.raises(UsageError, match="certificate 2 of 2 is damaged"):
        parse_roots(damaged(roots), "ca.pem")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no certificate in it"),
        (b"hello", "no certificate in it"),
        (b"-----BEGIN CERTIFICATE-----\n", "no certificate in it"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "is damaged"),
        (b"-----BEGIN CERTIFICATE-----\n=\n-----END CERTIFICATE-----\n", "is damaged"),
        (b"\x30\x82\x03\x00" + bytes(100), "this is DER"),
        (b"-----BEGIN PRIVATE KEY-----\nAA\n-----END PRIVATE KEY-----\n", "no certificate in it"),
    ],
)
def test_refuses_what_holds_no_certificate(data: bytes, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        parse_roots(data, "ca.pem")
    assert str(caught.value).startswith("--upstream-ca ca.pem: ")


def test_refuses_a_huge_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "MAX_BYTES", 10)
    with pytest.raises(UsageError, match="larger than"):
        parse_roots(b"x" * 11, "ca.pem")


def test_reads_a_file(tmp_path: Path, roots: tuple[bytes, bytes]) -> None:
    path = tmp_path / "ca.pem"
    path.write_bytes(roots[0])
    assert read_upstream_ca(str(path)) == parse_roots(roots[0], "ca.pem")


@pytest.mark.parametrize("name", ["missing", "."])
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"^--upstream-ca "):
        read_upstream_ca(str(tmp_path / name))


def test_a_device_is_no_bundle() -> None:
    with pytest.raises(UsageError, match="neither a file nor a pipe"):
        read_upstream_ca("/dev/zero")


def test_finds_the_first_store_that_exists() -> None:
    assert trust.system_store(lambda _: False) is None
    assert trust.system_store(lambda path: path == "/etc/ssl/cert.pem") == "/etc/ssl/cert.pem"
    assert trust.system_store(lambda _: True) == "/etc/ssl/certs/ca-certificates.crt"


def test_every_other_bundle_of_the_system_is_found_once() -> None:
    first, second, third = trust.SYSTEM_STORES[:3]
    assert trust.other_stores(first, lambda _: False) == ()
    found = trust.other_stores(first, lambda path: path in {first, second, third})
    assert found == (second, third)


def test_a_link_to_the_bundle_is_no_other_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, link = tmp_path / "bundle.crt", tmp_path / "cert.pem"
    bundle.write_bytes(b"")
    link.symlink_to(bundle)
    monkeypatch.setattr(trust, "OPENSSL_FILES", (str(link),))
    monkeypatch.setattr(trust, "SYSTEM_STORES", (str(bundle),))
    assert trust.other_stores(str(bundle)) == ()


def test_a_java_key_store_holds_every_certificate_once(roots: tuple[bytes, bytes]) -> None:
    """keytool and a JVM read it in tests/e2e; here its bytes are taken apart again."""
    store = trust.java_truststore(roots[0] + roots[1] + roots[0])
    body, digest = store[:-20], store[-20:]
    seed = "changeit".encode("utf-16-be") + b"Mighty Aphrodite"
    assert hashlib.sha1(seed + body).digest() == digest
    magic, version, count = struct.unpack_from(">III", body)
    assert (magic, version, count) == (0xFEEDFEED, 2, 2)
    at, found = 12, []
    for _ in range(count):
        kind, size = struct.unpack_from(">IH", body, at)
        assert kind == 2
        at += 6 + size + 8
        (size,) = struct.unpack_from(">H", body, at)
        assert body[at + 2 : at + 2 + size] == b"X.509"
        at += 2 + size
        (size,) = struct.unpack_from(">I", body, at)
        found.append(body[at + 4 : at + 4 + size])
        at += 4 + size
    assert at == len(body)
    assert found == [ssl.PEM_cert_to_DER_cert(root.decode()) for root in roots]
