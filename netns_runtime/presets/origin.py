"""Where a tool fetches from, as values, and as a policy that lets it read there and no more.

`parse_origin` takes an URL of a configuration file; what no proxy carries (file:, cdrom:) is None.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from netns_runtime.address import AddressError, HostPort, parse_host

if TYPE_CHECKING:
    from collections.abc import Iterable

_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Origin:
    """One host and port; `said_by` is the setting that names it, for the person who asks."""

    target: HostPort
    said_by: str


def parse_origin(url: str, said_by: str) -> Origin | None:
    """The origin of an http or https URL. User and password are not kept."""
    try:
        parts = urlsplit(url.strip())
        # `+` joins transports: pip's git+https, apt's mirror+http.
        scheme = parts.scheme.lower().rpartition("+")[2]
        if scheme not in _PORTS or not parts.hostname:
            return None
        return Origin(HostPort(parse_host(parts.hostname), parts.port or _PORTS[scheme]), said_by)
    except (AddressError, ValueError):
        return None


def no_origin(key: str, said_by: str, url: str) -> str:
    """What is wrong with a setting whose value is no such URL; a password in it is not shown."""
    setting = f"{key} of {said_by}" if "/" in said_by else said_by
    shown = f"...{url[url.rindex('@') :]}" if "@" in url else url
    return f"{setting} is {_line(repr(shown[:80]))}, which is no http or https URL"


def yaml_of(name: str, about: str, origins: Iterable[Origin]) -> str:
    """A policy that allows GET, HEAD and OPTIONS at each origin, once."""
    lines = [f"# {about}", "version: 1", "network_policies:", f"  {name}:", "    endpoints:"]
    for origin in {origin.target: origin for origin in origins}.values():
        lines += [
            f"      # {_line(origin.said_by)}",
            f"      - {{host: {json.dumps(origin.target.host)}, port: {origin.target.port}, "
            "protocol: rest, access: read-only, enforcement: enforce}",
        ]
    return "\n".join([*lines, ""])


def _line(text: str) -> str:
    return text if text.isascii() and text.isprintable() else ascii(text)
