"""The command line of `netns-debug why`: which connection, or which request, is asked about.

`parse` gives an Asking or raises one UsageError; nothing is looked up here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from netns_runtime.address import AddressError, parse_authority, parse_host
from netns_runtime.debug.text import shown
from netns_runtime.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE: Final = """\
usage: netns-debug why HOST[:PORT] [OPTIONS] [--json]
       netns-debug why --url URL [OPTIONS] [--json]

  --sandbox NAME   which running sandbox, or which one of an audit file
  --url URL        judge this request too; wss:// and ws:// are WebSockets
  --method M       its method (default GET)
  --exe PATH       judge for this executable (default: the last attempt's)
  --policy FILE    judge by this policy, not by the one in force; repeatable
  --from AUDIT     explain what an audit file recorded; - is standard input

Needs root, save with --policy or --from. Exit status 0 with any answer; 125 for an error.
"""
_OPTIONS: Final = ("--sandbox", "--url", "--method", "--exe", "--policy", "--from")
_SCHEMES: Final = {"http": 80, "ws": 80, "https": 443, "wss": 443}


@dataclass(frozen=True, slots=True)
class Asking:
    """The command line. `port` None: not said."""

    host: str
    port: int | None
    path: str | None
    method: str
    is_websocket: bool
    sandbox: str | None
    exe: str | None
    policies: tuple[str, ...]
    source: str | None


def parse(words: Sequence[str]) -> Asking:
    """Read the command line. Raises UsageError."""
    given: dict[str, list[str]] = {}
    hosts: list[str] = []
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if name in _OPTIONS:
            found = value if equals else next(rest, None)
            if found is None:
                raise UsageError(f"{name} needs a value", remedy="see netns-debug why --help")
            given.setdefault(name, []).append(found)
        elif word.startswith("-"):
            raise UsageError(f"unknown option {shown(word)}", remedy="see netns-debug why --help")
        else:
            hosts.append(word)
    twice = next((n for n, v in given.items() if len(v) > 1 and n != "--policy"), None)
    if twice is not None:
        raise UsageError(f"{twice} is given twice", remedy="give it once")
    if len(hosts) > 1:
        raise UsageError(f"why takes one host, not {shown(hosts[1])} too", remedy="ask one by one")
    one = {name: values[0] for name, values in given.items()}
    url = one.get("--url")
    host, port, path, scheme = _target(hosts[0] if hosts else None, url)
    return Asking(
        host,
        port,
        path,
        one.get("--method", "GET"),
        scheme in ("ws", "wss"),
        one.get("--sandbox"),
        one.get("--exe"),
        tuple(given.get("--policy", ())),
        one.get("--from"),
    )


def _target(host: str | None, url: str | None) -> tuple[str, int | None, str | None, str]:
    scheme, path, authority = "", None, ""
    if host is not None and "://" in host and url is None:
        host, url = None, host
    if url is not None:
        scheme, sign, after = url.partition("://")
        if not sign:
            scheme, after = "", url if url.startswith("/") else f"//{url}"
        elif scheme.lower() not in _SCHEMES:
            known = ", ".join(_SCHEMES)
            raise UsageError(f"--url {shown(url)}: no URL of HTTP's", remedy=f"use {known}")
        scheme = scheme.lower()
        cut = min((after.find(c) for c in "/?#" if c in after), default=len(after))
        authority, path = after[:cut], after[cut:].partition("#")[0]
        path = path if path.startswith("/") else f"/{path}"
    if host is None and not authority:
        raise UsageError("why needs a host", remedy="as in netns-debug why api.example.com:443")
    try:
        of_url = _parted(authority.rpartition("@")[2]) if authority else None
        given = _parted(host) if host is not None else None
    except AddressError as error:
        raise UsageError(f"why: {error}", remedy="give HOST[:PORT]") from None
    if given and of_url and given[0] != of_url[0]:
        raise UsageError(
            f"the URL is on {of_url[0]}, not on {given[0]}", remedy="leave the host out"
        )
    name, port = given or of_url or ("", None)
    port = port or (of_url[1] if of_url else None) or _SCHEMES.get(scheme)
    return name, port, path, scheme


def _parted(text: str) -> tuple[str, int | None]:
    if text.count(":") > 1 and not text.startswith("["):
        return parse_host(text), None
    if text.endswith("]") or ":" not in text:
        return parse_host(text), None
    target = parse_authority(text)
    return target.host, target.port
