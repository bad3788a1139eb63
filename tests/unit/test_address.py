"""Hosts and authorities: what is one spelling of what, and what is refused."""

from __future__ import annotations

import contextlib
import pickle
import socket
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netns_runtime.address import AddressError, HostPort, parse_authority, parse_host

SAME = {
    "upper case is lowered": ("EXAMPLE.COM:443", "example.com:443"),
    "one trailing dot is dropped": ("example.com.:443", "example.com:443"),
    "a port keeps no leading zeros": ("example.com:00443", "example.com:443"),
    "an underscore is a name's": ("_dmarc.example.com:80", "_dmarc.example.com:80"),
    "a single label is a name": ("localhost:80", "localhost:80"),
    "a U-label becomes an A-label": ("bücher.example:80", "xn--bcher-kva.example:80"),
    "UTS 46 maps upper case": ("BÜCHER.example:80", "xn--bcher-kva.example:80"),
    "a decomposed U-label is the same": ("bu\u0308cher.example:80", "xn--bcher-kva.example:80"),
    "the ideographic full stop is a dot": ("bücher。example:80", "xn--bcher-kva.example:80"),
    "an A-label in upper case": ("XN--BCHER-KVA.example:80", "xn--bcher-kva.example:80"),
    "sharp s is kept, as IDNA 2008 has it": ("faß.example:80", "xn--fa-hia.example:80"),
    "a dotted quad": ("192.0.2.1:80", "192.0.2.1:80"),
    "a dotted quad with a dot behind": ("192.0.2.1.:80", "192.0.2.1:80"),
    "a dotted quad in full-width digits": ("\uff11\uff19\uff12.0.2.1:80", "192.0.2.1:80"),
    "IPv6 is compressed": ("[2001:DB8:0:0::1]:80", "[2001:db8::1]:80"),
    "IPv4-mapped IPv6 is IPv4": ("[::ffff:192.0.2.1]:80", "192.0.2.1:80"),
    "IPv4-mapped in hexadecimal": ("[::ffff:c000:201]:80", "192.0.2.1:80"),
}

REFUSED = {
    "nothing": "",
    "no host": ":80",
    "only a dot": ".:80",
    "no port": "example.com",
    "an empty port": "example.com:",
    "port 0": "example.com:0",
    "port 65536": "example.com:65536",
    "a signed port": "example.com:+80",
    "a port in Arabic digits": "example.com:٨٠",
    "a port with a space": "example.com: 80",
    "a space in front": " example.com:80",
    "a space behind": "example.com :80",
    "a newline behind": "example.com\n:80",
    "NUL": "example.com\0.evil.test:80",
    "a percent sign": "ex%61mple.com:80",
    "user information": "user@example.com:80",
    "a slash": "example.com/:80",
    "a backslash": "example.com\\:80",
    "a question mark": "example.com?:80",
    "a wildcard": "*.example.com:80",
    "an empty label": "example..com:80",
    "a leading dot": ".example.com:80",
    "two trailing dots": "example.com..:80",
    "a label of 64": "x" * 64 + ".test:80",
    "a name of 255": ".".join(["x" * 63] * 4) + ":80",
    "a name of a megabyte": "x" * (1 << 20) + ":80",
    "IPv6 without brackets": "::1:80",
    "IPv6 with a zone id": "[fe80::1%eth0]:80",
    "IPv6 with an escaped zone id": "[fe80::1%25eth0]:80",
    "an unclosed bracket": "[::1:80",
    "something behind the bracket": "[::1]x:80",
    "a name in brackets": "[example.com]:80",
    "IPv4 in brackets": "[192.0.2.1]:80",
    "a future address form": "[v1.x]:80",
    "empty brackets": "[]:80",
    "two parts": "127.1:80",
    "three parts": "127.0.1:80",
    "a decimal number": "2130706433:80",
    "an octal number": "017700000001:80",
    "a hexadecimal number": "0x7f000001:80",
    "hexadecimal and short": "0x7f.1:80",
    "hexadecimal in upper case": "0X7F.1:80",
    "an octal part": "0177.0.0.1:80",
    "a leading zero": "192.0.02.1:80",
    "a part above 255": "192.0.2.256:80",
    "five parts": "192.0.2.1.5:80",
    "a bare 0x": "0x:80",
    "a name that ends in a number": "example.123:80",
    "a name that ends in a hexadecimal number": "example.0x1f:80",
    "two parts in full-width digits": "\uff11\uff12\uff17.1:80",
    "two parts and a trailing dot": "127.1.:80",
    "a label that is no IDNA": "xn--a.example:80",
    "an A-label that hides ASCII": "xn--example-.test:80",
    "a zero-width joiner alone": "\u200d:80",
    "a right-to-left override": "a\u202eb.example:80",
}


@pytest.mark.parametrize(("text", "canonical"), SAME.values(), ids=SAME)
def test_is_the_same_authority(text: str, canonical: str) -> None:
    assert str(parse_authority(text)) == canonical


@pytest.mark.parametrize("text", REFUSED.values(), ids=REFUSED)
def test_refuses(text: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse_authority(text)
    message = str(caught.value)
    assert message.isascii()
    assert message.isprintable()
    assert len(message) < 250


def test_takes_the_default_port_only_where_none_is_given() -> None:
    assert parse_authority("h", 80) == HostPort("h", 80)
    assert parse_authority("[::1]", 80) == HostPort("::1", 80)
    assert parse_authority("h:81", 80) == HostPort("h", 81)
    with pytest.raises(AddressError):
        parse_authority("h:", 80)


def test_a_host_may_have_brackets_or_not() -> None:
    assert parse_host("[::1]") == parse_host("::1") == "::1"


def test_knows_an_address_from_a_name() -> None:
    assert HostPort("192.0.2.1", 1).address == IPv4Address("192.0.2.1")
    assert HostPort("2001:db8::1", 1).address == IPv6Address("2001:db8::1")
    assert HostPort("192-0-2-1.test", 1).address is None
    assert HostPort("h1", 1).address is None


@pytest.mark.parametrize(
    "host", ["Example.com", "example.com.", "[::1]", "127.1", "::ffff:1.2.3.4"]
)
def test_no_value_exists_that_is_not_canonical(host: str) -> None:
    with pytest.raises(AddressError):
        HostPort(host, 80)


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_no_value_exists_with_an_impossible_port(port: int) -> None:
    with pytest.raises(AddressError):
        HostPort("h", port)


def test_survives_pickling() -> None:
    target = HostPort("example.com", 443)
    assert pickle.loads(pickle.dumps(target)) == target


# Text that is mostly made of what addresses are made of, so that many examples get through.
_TEXT = st.one_of(
    st.text(alphabet="0123456789abcdefxXABCDEF.:[]%-_", max_size=24),
    st.text(max_size=24),
    st.from_regex(r"[0-9a-fx]{1,4}(\.[0-9a-fx]{1,4}){0,4}\.?", fullmatch=True),
    st.ip_addresses().map(str),
)


@settings(max_examples=80, deadline=None, database=None)
@given(_TEXT)
def test_a_canonical_host_is_its_own_canonical_form(text: str) -> None:
    try:
        host = parse_host(text)
    except AddressError:
        return
    assert parse_host(host) == host
    target = HostPort(host, 443)
    assert parse_authority(str(target)) == target


@settings(max_examples=80, deadline=None, database=None)
@given(_TEXT)
def test_never_takes_for_a_name_what_getaddrinfo_reads_as_an_address(text: str) -> None:
    try:
        target = HostPort(parse_host(text), 443)
    except AddressError:
        return
    try:
        found = socket.getaddrinfo(target.host, None, flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        assert target.address is None
    else:
        assert {info[4][0] for info in found} == {target.host}
        assert str(target.address) == target.host


@settings(max_examples=100, deadline=None, database=None)
@given(st.binary(max_size=40))
def test_ends_in_a_value_or_an_address_error_and_nothing_else(data: bytes) -> None:
    with contextlib.suppress(AddressError):
        parse_authority(data.decode("latin-1"))
