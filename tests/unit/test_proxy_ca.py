"""The sandbox's certificate authority."""

from __future__ import annotations

import os
import ssl
import time
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from netns_runtime.proxy.ca import CA_LIFE, LEAF_LIFE, SKEW, Authority

AUTHORITY = Authority()


def leaf_of(authority: Authority, host: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate(authority.leaf_for(host))


def names_of(certificate: x509.Certificate) -> list[object]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [name.value for name in found]


def greeting(
    server: ssl.SSLContext, client: ssl.SSLContext, host: str
) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Both ends of a handshake in memory."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        client.wrap_bio(down, up, server_hostname=host),
        server.wrap_bio(up, down, server_side=True),
    )
    for _ in range(3):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return ends


def trusting(authority: Authority, alpn: tuple[str, ...] = ()) -> ssl.SSLContext:
    """A client as strict as they come."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.hostname_checks_common_name = False
    context.load_verify_locations(cadata=authority.pem.decode())
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


@pytest.mark.parametrize(
    "host",
    ["up.test", "xn--bcher-kva.test", "_srv.up.test", "192.0.2.1", "2001:db8::1", "a" * 60 + ".b"],
)
def test_a_strict_client_takes_the_leaf_for_exactly_that_host(host: str) -> None:
    client, _ = greeting(AUTHORITY.context_for(host, None), trusting(AUTHORITY), host)
    assert client.version() == "TLSv1.3"
    other = "192.0.2.2" if host[0].isdigit() else f"x.{host}"
    with pytest.raises(ssl.SSLCertVerificationError, match=r"mismatch|not valid for"):
        greeting(AUTHORITY.context_for(host, None), trusting(AUTHORITY), other)


def test_a_host_of_any_length_has_a_certificate() -> None:
    host = ".".join(["a" * 60] * 4)
    assert names_of(leaf_of(AUTHORITY, host)) == [host]


def test_only_the_certificate_leaves_the_authority() -> None:
    assert AUTHORITY.pem.count(b"-----BEGIN") == 1
    assert b"PRIVATE" not in AUTHORITY.pem


def test_the_authority_signs_leaves_and_nothing_below() -> None:
    root = x509.load_pem_x509_certificate(AUTHORITY.pem)
    constraints = root.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value == x509.BasicConstraints(ca=True, path_length=0)
    leaf = leaf_of(AUTHORITY, "up.test")
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH]


def test_serials_and_authorities_are_all_different() -> None:
    serials = {leaf_of(AUTHORITY, f"h{number}.test").serial_number for number in range(20)}
    assert len(serials) == 20
    assert all(serial.bit_length() <= 159 for serial in serials)
    subjects = {x509.load_pem_x509_certificate(Authority().pem).subject for _ in range(3)}
    assert len(subjects) == 3


@pytest.mark.parametrize("hours", [-24 * 2 + 1, -1, 0, 1, 24 * 20])
def test_a_client_whose_clock_is_off_still_finds_everything_valid(hours: int) -> None:
    shown = datetime.now(UTC) + timedelta(hours=hours)
    for certificate in (
        leaf_of(AUTHORITY, "up.test"),
        x509.load_pem_x509_certificate(AUTHORITY.pem),
    ):
        assert certificate.not_valid_before_utc < shown < certificate.not_valid_after_utc


def test_no_leaf_lives_longer_than_browsers_take() -> None:
    leaf = leaf_of(AUTHORITY, "up.test")
    assert leaf.not_valid_after_utc - leaf.not_valid_before_utc <= timedelta(days=398)


def test_a_leaf_never_outlives_its_authority() -> None:
    clock = [time.time()]
    authority = Authority(now=lambda: clock[0])
    root = x509.load_pem_x509_certificate(authority.pem)
    for days in (CA_LIFE.days - 20, CA_LIFE.days + 40, -400):
        clock[0] = time.time() + timedelta(days=days).total_seconds()
        leaf = leaf_of(authority, "up.test")
        assert leaf.not_valid_before_utc >= root.not_valid_before_utc
        assert leaf.not_valid_after_utc <= root.not_valid_after_utc or days > CA_LIFE.days
        assert leaf.not_valid_before_utc < leaf.not_valid_after_utc


def test_one_context_serves_a_host_until_the_leaf_ages_or_the_clock_jumps() -> None:
    clock = [1_900_000_000.0]
    authority = Authority(now=lambda: clock[0])
    first = authority.context_for("up.test", "h2")
    clock[0] += 3600
    assert authority.context_for("up.test", "h2") is first
    assert authority.context_for("up.test", None) is not first
    clock[0] += LEAF_LIFE.total_seconds() / 2
    second = authority.context_for("up.test", "h2")
    assert second is not first
    clock[0] -= 2 * SKEW.total_seconds() + LEAF_LIFE.total_seconds()
    assert authority.context_for("up.test", "h2") is not second


def test_the_cache_is_bounded_and_keeps_what_is_used() -> None:
    authority = Authority(limit=2)
    kept = authority.context_for("a.test", None)
    authority.context_for("b.test", None)
    assert authority.context_for("a.test", None) is kept
    gone = authority.context_for("b.test", None)
    authority.context_for("a.test", None)
    authority.context_for("c.test", None)
    assert authority.context_for("a.test", None) is kept
    assert authority.context_for("b.test", None) is not gone


@pytest.mark.parametrize(
    ("chosen", "offered", "agreed"),
    [
        ("h2", ("http/1.1", "h2"), "h2"),
        ("http/1.1", ("h2", "http/1.1"), "http/1.1"),
        (None, ("h2", "http/1.1"), None),
        ("h2", ("http/1.1",), None),
        ("h2", (), None),
    ],
)
def test_a_context_agrees_to_its_one_protocol_alone(
    chosen: str | None, offered: tuple[str, ...], agreed: str | None
) -> None:
    context = AUTHORITY.context_for("up.test", chosen)
    client, server = greeting(context, trusting(AUTHORITY, offered), "up.test")
    assert client.selected_alpn_protocol() == server.selected_alpn_protocol() == agreed


def test_old_versions_of_tls_are_refused() -> None:
    client = trusting(AUTHORITY)
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        client.minimum_version = ssl.TLSVersion.TLSv1
    with pytest.warns(DeprecationWarning, match="TLSv1"):
        client.maximum_version = ssl.TLSVersion.TLSv1_1
    client.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError, match=r"(?i)protocol|version"):
        greeting(AUTHORITY.context_for("up.test", None), client, "up.test")


def test_no_descriptor_is_left_of_a_leaf() -> None:
    before = os.listdir("/proc/self/fd")
    AUTHORITY.context_for("descriptors.test", None)
    assert os.listdir("/proc/self/fd") == before


def test_what_cannot_be_named_has_no_certificate() -> None:
    with pytest.raises(ValueError, match="DNSName"):
        AUTHORITY.leaf_for("bücher.test")
