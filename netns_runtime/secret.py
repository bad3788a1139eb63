"""Secrets as values: which there are, where they may go, and in which slots.

A `Binding` is what a policy says about a secret: hosts, slots, and how CMD may come by it. A
`Secret` is a binding with its value; it exists in the supervisor until the proxy has it, and in the
proxy. CMD sees the placeholder (`placeholder_of`). A value never appears in a repr.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal

PREFIX: Final = "openshell:resolve:env:"
"""OpenShell's placeholder syntax: the prefix and the secret's name."""

SlotKind = Literal["header", "basic", "query", "path", "form", "json", "websocket"]
Expose = Literal["placeholder", "endpoint", "env"]


@dataclass(frozen=True, slots=True)
class Slot:
    """One declared place of a request.

    `name` is by `kind`: header: the field's name, lower case; basic: "user", "password" or "" for
    either; query and form: the parameter; path: "" for any segment, or its zero-based number as
    decimal digits; json and websocket: a JSON pointer (RFC 6901). `when`, of websocket alone, is a
    pointer and the values (JSON scalars) of which it must point to one.
    """

    kind: SlotKind
    name: str = ""
    when: tuple[str, tuple[Any, ...]] | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.name}".rstrip()


@dataclass(frozen=True, slots=True)
class Binding:
    """What a policy or preset says about the secret `name`.

    `hosts` are canonical hosts or patterns, `text` names the binding as rules are named.
    `codings` are the content codings (gzip, deflate) in which a request's content is opened for its
    body slots. `executables` may read it where `expose` is "endpoint".
    Without `plain_http` the value leaves over TLS alone. `preset` is the shipped preset that the
    binding is from, "" for a policy file's.
    """

    name: str
    hosts: tuple[str, ...]
    slots: tuple[Slot, ...]
    expose: Expose = "placeholder"
    codings: tuple[str, ...] = ()
    executables: tuple[str, ...] = ()
    text: str = ""
    plain_http: bool = False
    preset: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Secret:
    """A binding with its value, text without control characters. Equal to itself alone, since
    what is compiled for a set of secrets is looked up by the set at each request."""

    binding: Binding
    value: str = field(repr=False)

    @property
    def name(self) -> str:
        return self.binding.name

    @property
    def placeholder(self) -> str:
        return placeholder_of(self.binding.name)


def placeholder_of(name: str) -> str:
    """What CMD holds in place of the value."""
    return PREFIX + name
