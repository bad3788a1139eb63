"""Reads the `secrets:` section, as `Binding`s.

    secrets:
      NAME:
        hosts: [api.example.com, "*.example.com"]
        slots:
          - header: authorization      - basic: user | password | any     - query: token
          - path: any | N              - form: token                      - json: /token
          - websocket: /d/token
            when: {pointer: /op, in: [2, 6]}
        expose: placeholder | endpoint | env
        codings: [gzip, deflate]
        plain_http: true | false
        binaries: [{path: /usr/bin/node}]

Unknown keys, names and slots that cannot work end in one UsageError with file, line and key.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, cast

from netns_runtime.address import AddressError
from netns_runtime.policy import schema
from netns_runtime.policy.hosts import canonical_pattern
from netns_runtime.policy.load_requests import read_pointer, read_scalars
from netns_runtime.policy.nodes import Entry, line_of, shown, type_of
from netns_runtime.secret import Binding, Expose, Slot, SlotKind

if TYPE_CHECKING:
    from collections.abc import Callable

    import yaml

    from netns_runtime.policy.nodes import Reader
    from netns_runtime.policy.rules import Binary

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_FIELD: Final = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]+")
# Fields that carry the message or the connection: a value there would be another request.
_NO_SECRET: Final = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "via",
    }
)
_KINDS: Final[tuple[SlotKind, ...]] = (
    "header",
    "basic",
    "query",
    "path",
    "form",
    "json",
    "websocket",
)
_BASIC: Final = {"any": "", "user": "user", "password": "password"}
_EXPOSE: Final = ("placeholder", "endpoint", "env")
_CODINGS: Final = ("gzip", "deflate")
_SUBPROTOCOL: Final = "sec-websocket-protocol"  # where browsers and some APIs put a token


def read_secrets(
    reader: Reader, entry: Entry, read_binary: Callable[[yaml.Node], Binary]
) -> tuple[Binding, ...]:
    """Every binding of the section."""
    if type_of(entry[1]) == "null":
        return ()
    entries = reader.mapping(entry[1], "secrets")
    return tuple(_binding(reader, name, *entries[name], read_binary) for name in entries)


def _binding(
    reader: Reader,
    name: str,
    key_node: yaml.Node,
    value: yaml.Node,
    read_binary: Callable[[yaml.Node], Binary],
) -> Binding:
    if _NAME.fullmatch(name) is None:
        raise reader.error(
            key_node, name, "is no name of a secret", "use letters, digits and _, as a variable has"
        )
    fields = reader.mapping(value, name, schema.SECRET)
    expose = "placeholder"
    if "expose" in fields:
        expose = reader.choice(fields["expose"][1], "expose", _EXPOSE)
    for needed, remedy in (
        ("hosts", "list the hosts that it may go to"),
        ("slots", "say where it goes, as in `- header: authorization`"),
    ):
        is_given = needed in fields and bool(reader.sequence(fields[needed][1], needed))
        if not is_given and (expose == "placeholder" or needed in fields):
            node = fields[needed][0] if needed in fields else key_node
            what = "is empty" if needed in fields else f"is missing for {shown(name)}"
            raise reader.error(node, needed, what, remedy)
    return Binding(
        name,
        _hosts(reader, fields),
        _slots(reader, fields),
        cast("Expose", expose),
        _codings(reader, fields),
        _executables(reader, fields, key_node, expose, read_binary),
        f"{shown(name)} ({reader.name}:{line_of(key_node)})",
        "plain_http" in fields and reader.boolean(fields["plain_http"][1], "plain_http"),
    )


def _hosts(reader: Reader, fields: dict[str, Entry]) -> tuple[str, ...]:
    if "hosts" not in fields:
        return ()
    found: dict[str, None] = {}
    for node, text in reader.texts(fields["hosts"][1], "hosts"):
        try:
            pattern = canonical_pattern(text)
        except AddressError as error:
            remedy = "give a name, *.example.com or an IP address, without a port"
            raise reader.error(node, "hosts", str(error), remedy) from None
        found[pattern] = None
    return tuple(found)


def _slots(reader: Reader, fields: dict[str, Entry]) -> tuple[Slot, ...]:
    if "slots" not in fields:
        return ()
    found: list[Slot] = []
    for node in reader.sequence(fields["slots"][1], "slots"):
        slot = _slot(reader, node)
        if slot in found:
            raise reader.error(node, slot.kind, "the same slot is given twice", "remove one")
        found.append(slot)
    return tuple(found)


def _slot(reader: Reader, node: yaml.Node) -> Slot:
    fields = reader.mapping(node, "slots", {*_KINDS, "when"})
    kinds = [kind for kind in _KINDS if kind in fields]
    if len(kinds) != 1:
        what = "names no slot" if not kinds else "names two slots"
        raise reader.error(node, "slots", what, f"give one of {', '.join(_KINDS)} to each entry")
    kind = kinds[0]
    name = _READERS[kind](reader, fields[kind][1], kind)
    when = None
    if "when" in fields:
        if kind != "websocket":
            raise reader.error(
                fields["when"][0], "when", f"is no part of a slot of kind {kind}", "remove it"
            )
        when = _when(reader, fields["when"][1])
    return Slot(kind, name, when)


def _when(reader: Reader, node: yaml.Node) -> tuple[str, tuple[Any, ...]]:
    fields = reader.mapping(node, "when", {"pointer", "in"})
    for key in ("pointer", "in"):
        if key not in fields:
            raise reader.error(node, "when", f"has no `{key}`", "write {pointer: /op, in: [2, 6]}")
    pointer = read_pointer(reader, fields["pointer"][1], "pointer")
    return pointer, read_scalars(reader, fields["in"][1], "in")


def _header(reader: Reader, node: yaml.Node, key: str) -> str:
    text = reader.text(node, key)
    name = text.lower()
    if _FIELD.fullmatch(name) is None:
        raise reader.error(
            node, key, f"{shown(text)} is no name of a header", "write it like x-api-key"
        )
    is_handshake = name.startswith("sec-websocket-") and name != _SUBPROTOCOL
    if name in _NO_SECRET or is_handshake:
        raise reader.error(
            node, key, f"`{name}` carries the message itself", "name a header that is the secret's"
        )
    return name


def _basic(reader: Reader, node: yaml.Node, key: str) -> str:
    return _BASIC[reader.choice(node, key, _BASIC)]


def _path(reader: Reader, node: yaml.Node, key: str) -> str:
    if type_of(node) == "int":
        return str(reader.integer(node, key, 0, 255))
    text = reader.text(node, key)
    if text.isascii() and text.isdigit() and int(text[:4]) <= 255:
        return str(int(text[:4]))
    if text != "any":
        raise reader.error(
            node,
            key,
            f"{shown(text)} is no segment of a path",
            "write `any`, or its number counted from 0",
        )
    return ""


def _parameter(reader: Reader, node: yaml.Node, key: str) -> str:
    text = reader.text(node, key)
    if not text.isprintable():
        raise reader.error(node, key, f"{shown(text)} has a control character")
    return text


_READERS: Final[dict[str, Callable[[Reader, yaml.Node, str], str]]] = {
    "header": _header,
    "basic": _basic,
    "query": _parameter,
    "path": _path,
    "form": _parameter,
    "json": read_pointer,
    "websocket": read_pointer,
}


def _codings(reader: Reader, fields: dict[str, Entry]) -> tuple[str, ...]:
    if "codings" not in fields:
        return ()
    items = reader.sequence(fields["codings"][1], "codings")
    return tuple(dict.fromkeys(reader.choice(item, "codings", _CODINGS) for item in items))


def _executables(
    reader: Reader,
    fields: dict[str, Entry],
    key_node: yaml.Node,
    expose: str,
    read_binary: Callable[[yaml.Node], Binary],
) -> tuple[str, ...]:
    if "binaries" not in fields:
        if expose == "endpoint":
            raise reader.error(
                key_node,
                "binaries",
                "is missing: `expose: endpoint` needs it",
                "list who may read the value, as in [{path: /usr/bin/node}]",
            )
        return ()
    if expose != "endpoint":
        raise reader.error(
            fields["binaries"][0],
            "binaries",
            f"has no effect with `expose: {expose}`",
            "remove it, or write `expose: endpoint`",
        )
    items = reader.sequence(fields["binaries"][1], "binaries")
    if not items:
        raise reader.error(fields["binaries"][0], "binaries", "is empty: nobody could read it")
    return tuple(read_binary(item).path for item in items)
