"""What the person asked for: one frozen value, checked at birth.

A `Spec` says what to run and under which rules; it holds no descriptor and nothing of this machine.
`cli.options` makes it from the command line. Every error is a UsageError that names the option.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final, Literal

from netns_runtime.config import Limits
from netns_runtime.errors import UsageError

Probe = Literal["auto", "bpf", "nft"]
PROBES: Final = ("auto", "bpf", "nft")
AUDIT_FORMATS: Final = ("json", "ocsf")

# A cgroup, a state file and audit lines carry the name.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
# What a shell, and the placeholder's syntax, take for a variable's name.
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
# What `--secret NAME=KIND:` lacks, and how to give it.
_MISSING: Final = {
    "": ("the source", "give one of env:VAR, file:PATH, fd:N, or NAME alone"),
    "env:": ("the variable's name", "give env:VAR, or NAME alone for the variable NAME"),
    "file:": ("the path", "give file:PATH"),
    "fd:": ("the number", "give fd:N"),
}
LEAST_MEMORY: Final = 16 << 20
_SIZE: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


@dataclass(frozen=True, slots=True)
class SecretSource:
    """Where the value of the secret `name` is: `place` is a variable, a path or a descriptor."""

    name: str
    kind: Literal["env", "file", "fd"]
    place: str

    def __str__(self) -> str:
        return f"{self.kind}:{self.place}"


@dataclass(frozen=True, slots=True)
class Spec:
    """The request. Paths are as given; `command` has at least one word."""

    command: tuple[str, ...]
    policies: tuple[str, ...] = ()
    presets: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    secrets: tuple[SecretSource, ...] = ()
    redirect: bool = True
    uplink: str | None = None
    resolver: tuple[str, int] | None = None
    upstream_ca: str | None = None
    audit: str | None = None
    audit_format: str = "json"
    status_fd: int | None = None
    user: str | None = None
    read_only: bool = False
    writable: tuple[str, ...] = ()
    expose_sockets: tuple[str, ...] = ()
    keep_fds: tuple[int, ...] = ()
    limits: Limits = field(default_factory=Limits)
    name: str | None = None
    probe: Probe = "auto"
    report: bool = False
    inspect: bool = False
    """Terminate TLS to ports 443 and 8443 wherever no rule says `tls: skip`; for `learn`."""
    dry_run: bool = False
    verbose: bool = False


def parse_name(text: str) -> str:
    """A sandbox's name: letters, digits, `_`, `.`, `-`, at most 63, not beginning with a sign."""
    if not _NAME.fullmatch(text):
        raise UsageError(
            f"--name {text!r}: not a name",
            remedy="use letters, digits, '_', '.' and '-', at most 63, a letter or digit first",
        )
    return text


def parse_descriptor(option: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise UsageError(
            f"{option} {text}: not a descriptor number", remedy=f"give a number: {option} 3"
        )
    return int(text)


def parse_secret(text: str) -> SecretSource:
    """`NAME[=SOURCE]`. What is no source may be a value, so that no error shows it."""
    name, equals, source = text.partition("=")
    if not _VARIABLE.fullmatch(name):
        raise UsageError(
            "--secret: the name is no variable's: "
            "it takes letters, digits and '_' and begins with no digit",
            remedy="give NAME or NAME=SOURCE, SOURCE one of env:VAR, file:PATH, fd:N",
        )
    missing = _MISSING.get(source) if equals else None
    if missing is not None:
        raise UsageError(f"--secret {name}={source}: {missing[0]} is missing", remedy=missing[1])
    kind, _, place = source.partition(":") if equals else ("env", "", name)
    if kind == "env" and place and "=" not in place:
        return SecretSource(name, "env", place)
    if kind == "file" and place:
        return SecretSource(name, "file", place)
    if kind == "fd" and place.isascii() and place.isdigit() and len(place) < 10:
        return SecretSource(name, "fd", str(int(place)))
    raise UsageError(
        f"--secret {name}: the source is none of env:VAR, file:PATH and fd:N",
        remedy="a value itself is never given on the command line",
    )


def parse_resolver(text: str) -> tuple[str, int]:
    """`ADDR`, `ADDR:PORT` or `[ADDR]:PORT`; port 53 where none is given."""
    address, port = text, "53"
    if text.startswith("["):
        address, _, rest = text[1:].partition("]")
        if rest:
            port = rest.removeprefix(":")
    elif text.count(":") == 1:
        address, _, port = text.partition(":")
    try:
        canonical = str(ip_address(address))
    except ValueError as error:
        raise UsageError(
            f"--resolver {text}: {address!r} is no IP address", remedy="give ADDR or ADDR:PORT"
        ) from error
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise UsageError(f"--resolver {text}: {port!r} is no port", remedy="use 1 to 65535")
    return canonical, int(port)


def parse_limit(text: str, limits: Limits) -> Limits:
    """`KEY=N`; N is a positive whole number, for memory also with k, m or g (1024s)."""
    key, _, value = text.partition("=")
    known = ("flows", "names", "pids", "memory")
    if key not in known:
        raise UsageError(
            f"--limit {text}: {key!r} is no limit",
            remedy=f"use KEY=N, KEY one of {', '.join(known)}",
        )
    match = re.fullmatch(r"([0-9]{1,15})([kmg]?)", value.lower())
    if match is None or (match[2] and key != "memory") or int(match[1]) == 0:
        raise UsageError(
            f"--limit {text}: {value!r} is no positive number",
            remedy="give a whole number" + (", with k, m or g if you like" * (key == "memory")),
        )
    values = {name: getattr(limits, name) for name in known}
    values[key] = int(match[1]) * _SIZE[match[2]]
    if key == "memory" and values[key] < LEAST_MEMORY:
        raise UsageError(
            f"--limit {text}: no command starts in that",
            remedy=f"give at least {LEAST_MEMORY >> 20}m",
        )
    return Limits(**values)
