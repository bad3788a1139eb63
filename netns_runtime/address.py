"""Hosts, ports and authorities, in one canonical spelling each.

Everything the proxy compares goes through here first: a policy and a client that mean the same
host get the same text, and whatever two programs could read differently (`127.1`, `0x7f.1`,
`017700000001`, a zone id, a percent sign, an empty label) is refused with `AddressError`. An
IPv4-mapped IPv6 address is the IPv4 address: that is what Linux sends on the wire. Nothing here
resolves a name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from netns_runtime.screening import screen

__all__ = ["AddressError", "HostPort", "parse_authority", "parse_host", "screen"]

_NAME: Final = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
# What inet_aton, and with it getaddrinfo and curl, reads as a part of an IPv4 address. A name that
# ends so is a number to some program, whatever comes before (WHATWG URL, "ends in a number").
_NUMBER: Final = re.compile(r"[0-9]+|0x[0-9a-f]*")
_MAX_NAME: Final = 253  # RFC 1035: 255 octets on the wire, less the root's and the first length
_MAX_TEXT: Final = 512


class AddressError(ValueError):
    """The text is no host, port or authority; the message is one printable line."""


@dataclass(frozen=True, slots=True)
class HostPort:
    """A canonical host and a port from 1 to 65535; `str()` gives the authority form.

    `host` is a lower-case name in A-labels without a trailing dot, or the canonical text of an IP
    address without brackets. Raises AddressError for anything else.
    """

    host: str
    port: int

    def __post_init__(self) -> None:
        if _canonical(self.host) != self.host:
            raise AddressError(f"{_shown(self.host)} is not in canonical form")
        if not 1 <= self.port <= 65535:
            raise AddressError(f"port {self.port} is not between 1 and 65535")

    @property
    def address(self) -> IPv4Address | IPv6Address | None:
        """The IP address, or None for a name."""
        return _address_of(self.host)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@lru_cache(maxsize=1024)
def _address_of(host: str) -> IPv4Address | IPv6Address | None:
    if ":" in host:
        return IPv6Address(host)
    if host.rpartition(".")[2].isdigit():
        return IPv4Address(host)
    return None


def parse_authority(text: str, default_port: int | None = None) -> HostPort:
    """Parse `HOST:PORT`, `[V6]:PORT` or, where there is a default port, the host alone.

    Raises AddressError; user information, an empty port and IPv6 without brackets are errors.
    """
    if text.startswith("["):
        host, bracket, rest = text.partition("]")
        if not bracket:
            raise AddressError(f"{_shown(text)} has no closing bracket")
        host += bracket
        if rest and not rest.startswith(":"):
            raise AddressError(f"{_shown(text)} has something between the bracket and the port")
        colon, port = rest[:1], rest[1:]
    else:
        host, colon, port = text.partition(":")
        if ":" in port:
            raise AddressError(f"{_shown(text)} is ambiguous: an IPv6 address needs brackets")
    if colon:
        return HostPort(_canonical(host), parse_port(port))
    if default_port is None:
        raise AddressError(f"{_shown(text)} has no port")
    return HostPort(_canonical(host), default_port)


def parse_host(text: str) -> str:
    """The canonical form of a name or of an IP address, IPv6 with or without brackets."""
    return _canonical(text)


def parse_port(text: str) -> int:
    """A decimal port from 1 to 65535, ASCII digits only. Raises AddressError."""
    if not (text.isascii() and text.isdigit() and len(text) <= 5 and 1 <= int(text) <= 65535):
        raise AddressError(f"port {_shown(text)} is not a number from 1 to 65535")
    return int(text)


@lru_cache(maxsize=4096)
def _canonical(text: str) -> str:
    if not text:
        raise AddressError("the host is empty")
    if len(text) > _MAX_TEXT:
        raise AddressError(f"the host is longer than {_MAX_NAME} characters")
    if text.startswith("[") and text.endswith("]") and ":" in text:
        return _canonical_ipv6(text[1:-1])
    if ":" in text:
        return _canonical_ipv6(text)
    host = text.lower() if text.isascii() else text
    if not text.isascii() or "xn--" in host:
        host = _a_labels(host)
    host = host.removesuffix(".")
    if _NAME.fullmatch(host) is None:
        raise AddressError(f"{_shown(text)} is not a host: {_fault_of(host)}")
    if len(host) > _MAX_NAME:
        raise AddressError(f"the host is longer than {_MAX_NAME} characters")
    if _NUMBER.fullmatch(host.rpartition(".")[2]):
        return _canonical_ipv4(host)
    return host


def _canonical_ipv4(text: str) -> str:
    try:
        return str(IPv4Address(text))
    except ValueError:
        raise AddressError(
            f"{_shown(text)} is a number that programs read as different addresses: "
            "write four decimal parts"
        ) from None


def _canonical_ipv6(text: str) -> str:
    if "%" in text:
        raise AddressError(f"{_shown(text)} has a zone id, which names a link and not a host")
    try:
        address = IPv6Address(text)
    except ValueError:
        raise AddressError(f"{_shown(text)} is not an IPv6 address") from None
    return str(address.ipv4_mapped or address)


def _a_labels(text: str) -> str:
    import idna

    try:
        return idna.encode(text, uts46=True, std3_rules=True).decode("ascii")
    except (ValueError, IndexError):
        raise AddressError(f"{_shown(text)} is not a valid internationalised name") from None


def _fault_of(host: str) -> str:
    labels = host.split(".")
    if "" in labels:
        return "a label is empty"
    if _NAME.fullmatch("".join(labels)[:63]) and max(map(len, labels)) > 63:
        return "a label is longer than 63 characters"
    return "it has a character that no host name has"


def _shown(text: str) -> str:
    """The text, quoted, short, and without anything a terminal or a header would act on."""
    return ascii(text if len(text) <= 80 else text[:77] + "...")
