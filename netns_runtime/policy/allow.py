"""`--allow HOST[:PORT]` as a rule.

No port means 80 and 443, `HOST:*` any. A leading `*.` is one or more labels and not the bare name,
as a person typing it expects; in a policy file, where OpenShell's meaning holds, that is `**.`.
Raises UsageError with one line; a host that is private, loopback or metadata may be written here,
but only a file's `allowed_ips` lifts the screening of addresses.
"""

from __future__ import annotations

from typing import Final

from netns_runtime.address import AddressError, parse_port
from netns_runtime.errors import UsageError
from netns_runtime.policy.hosts import canonical_pattern
from netns_runtime.policy.rules import Endpoint, Rule

DEFAULT_PORTS: Final = (80, 443)


def parse_allow(text: str) -> Rule:
    """The rule for one `--allow`. `Rule.text` is the flag as it was given."""
    shown = text if text.isascii() and text.isprintable() else ascii(text)
    host, port = _split(text, shown)
    try:
        pattern = canonical_pattern(host)
        ports = _ports_of(port)
    except AddressError as error:
        raise UsageError(f"--allow {shown}: {error}", remedy="give HOST[:PORT]") from None
    if pattern.startswith("*."):
        pattern = "*" + pattern
    return Rule(f"--allow {shown}", (Endpoint(pattern, ports, every_request=True),))


def _split(text: str, shown: str) -> tuple[str, str | None]:
    for sign, remedy in (
        ("://", "give the host alone, without a scheme"),
        ("/", "give HOST[:PORT]; a path or an address range goes in a policy file"),
        ("@", "give HOST[:PORT] without a user"),
    ):
        if sign in text:
            raise UsageError(f"--allow {shown}: {sign} is no part of a host", remedy=remedy)
    if text.startswith("["):
        host, bracket, rest = text.partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise UsageError(f"--allow {shown}: the brackets are wrong", remedy="give [V6]:PORT")
        return host + bracket, rest[1:] if rest else None
    if text.count(":") > 1:
        raise UsageError(
            f"--allow {shown}: an IPv6 address needs brackets", remedy="give [V6] or [V6]:PORT"
        )
    host, colon, port = text.partition(":")
    return host, port if colon else None


def _ports_of(port: str | None) -> tuple[int, ...] | None:
    if port is None:
        return DEFAULT_PORTS
    return None if port == "*" else (parse_port(port),)
