"""Reads YAML as nodes with line numbers and never constructs an object from a tag.

`compose` bounds size, depth, node and alias counts on the event stream before it builds anything,
so that neither nesting nor an alias bomb costs more than reading the file. `Reader` turns nodes
into values of the wanted type. Everything that is wrong ends in one UsageError:
`FILE:LINE: key: what: remedy`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import yaml

from netns_runtime.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

MAX_BYTES: Final = 4 << 20  # OpenShell's own limit
MAX_DEPTH: Final = 24
MAX_NODES: Final = 100_000
MAX_ALIASES: Final = 256

_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG: Final = "tag:yaml.org,2002:"
_TYPES: Final = {
    "map": "a mapping",
    "seq": "a list",
    "str": "text",
    "int": "a number",
    "float": "a number with a point",
    "bool": "true or false",
    "null": "nothing",
    "timestamp": "a date",
}
# What a person may have meant to write, by key and by type.
_SHAPES: Final = {
    "policy": "a policy begins with `network_policies:` and its rules",
    "network_policies": "write `NAME:` and below it `endpoints:`",
    "endpoints": "write `- {host: api.example.com, port: 443}`",
    "binaries": "write `- {path: /usr/bin/curl}`",
    "rules": "write `- allow: {method: GET, path: /v1/**}`",
    "allow": "write `- allow: {method: GET, path: /v1/**}`",
    "deny_rules": "write `- {method: GET, path: /admin/**}`",
    "message": "write {pointer: /op, in: [1]}",
    "secrets": "write `NAME:` and below it `hosts:` and `slots:`",
    "slots": "write `- header: authorization`",
}
_SHAPE_OF: Final = {
    "map": "write `key: value` below it, or {key: value}",
    "seq": "write it as a list, [a, b]",
    "int": "write a whole number without quotes",
    "bool": "write true or false",
}
_DECIMAL: Final = re.compile(r"0|[1-9][0-9]{0,9}")
_BOOLEANS: Final = {"true": True, "false": False}

_LEVELS: Final = "levels of nesting"
Entry = tuple[yaml.Node, yaml.Node]


def shown(text: str) -> str:
    """Short printable ASCII, for a message."""
    text = text if len(text) <= 80 else text[:77] + "..."
    return text if text.isascii() and text.isprintable() else ascii(text)


def compose(data: bytes, name: str) -> yaml.Node:
    """The root node of the one document in `data`. `name` is the file's, for messages."""
    if len(data) > MAX_BYTES:
        raise UsageError(f"{name}: larger than {MAX_BYTES >> 20} MiB", remedy="is it a policy?")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{name}:{line}: not UTF-8", remedy="save the policy as UTF-8") from None
    try:
        _check_bounds(text, name)
        root: yaml.Node | None = yaml.compose(text, Loader=_LOADER)
    except yaml.YAMLError as error:
        raise _syntax_error(error, text, name) from None
    if root is None:
        raise UsageError(
            f"{name}: the policy is empty", remedy="write `network_policies: {}` to allow nothing"
        )
    return root


def _check_bounds(text: str, name: str) -> None:
    depth = nodes = aliases = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        aliases += isinstance(event, yaml.AliasEvent)
        nodes += isinstance(event, yaml.NodeEvent)
        for count, limit, what in (
            (depth, MAX_DEPTH, _LEVELS),
            (aliases, MAX_ALIASES, "aliases"),
            (nodes, MAX_NODES, "nodes"),
        ):
            if count > limit:
                mark = event.start_mark
                raise _too_much(name, mark.line + 1 if mark else 0, limit, what)


def _too_much(name: str, line: int, limit: int, what: str) -> UsageError:
    return UsageError(f"{name}:{line}: more than {limit} {what}", remedy="simplify it")


def _syntax_error(error: yaml.YAMLError, text: str, name: str) -> UsageError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is not None:
        line = mark.line + 1
        lines = text.splitlines()
        source = lines[mark.line] if mark.line < len(lines) else ""
        if source[: len(source) - len(source.lstrip())].count("\t"):
            return UsageError(
                f"{name}:{line}: a tab indents this line", remedy="YAML is indented with spaces"
            )
    else:
        position = getattr(error, "position", 0)
        line = text.count("\n", 0, position if isinstance(position, int) else 0) + 1
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "not YAML"
    # libyaml's scanner looks ahead; since 0.2.6 it has a limit of its own, which it may meet first.
    if "nesting depth" in str(problem):
        return _too_much(name, line, MAX_DEPTH, _LEVELS)
    return UsageError(f"{name}:{line}: {shown(str(problem))}", remedy="correct the YAML")


class Reader:
    """Typed access to the nodes of one file. Every method raises UsageError for a wrong type."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._left = MAX_NODES

    def error(self, node: yaml.Node, key: str, what: str, remedy: str = "") -> UsageError:
        """The error to raise about `key` at this node's line."""
        return UsageError(f"{self.name}:{line_of(node)}: key `{shown(key)}`: {what}", remedy=remedy)

    def mapping(
        self, node: yaml.Node, key: str, known: Collection[str] | None = None
    ) -> dict[str, Entry]:
        """Keys with their key node and value node. `known` None accepts any key."""
        self._spend(node, key)
        if not isinstance(node, yaml.MappingNode):
            raise self._wrong(node, key, "map")
        entries: dict[str, Entry] = {}
        for key_node, value in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise self.error(key_node, key, "a key must be plain text")
            name = str(key_node.value)
            if name in entries:
                first = line_of(entries[name][0])
                raise self.error(
                    key_node, name, f"given twice, first on line {first}", "keep one of them"
                )
            if known is not None and name not in known:
                raise self.error(key_node, name, "unknown key", _suggestion(name, known))
            entries[name] = (key_node, value)
        return entries

    def sequence(self, node: yaml.Node, key: str) -> list[yaml.Node]:
        """The items of a list."""
        self._spend(node, key)
        if not isinstance(node, yaml.SequenceNode):
            raise self._wrong(node, key, "seq")
        return list(node.value)

    def texts(self, node: yaml.Node, key: str) -> Iterator[tuple[yaml.Node, str]]:
        """The items of a list of texts, each with its node."""
        for item in self.sequence(node, key):
            yield item, self.text(item, key)

    def text(self, node: yaml.Node, key: str) -> str:
        """A text that is not empty."""
        self._spend(node, key)
        if not isinstance(node, yaml.ScalarNode) or type_of(node) != "str":
            raise self._wrong(node, key, "str")
        if not node.value:
            raise self.error(node, key, "is empty", "give a value or leave the key out")
        return str(node.value)

    def integer(self, node: yaml.Node, key: str, low: int, high: int) -> int:
        """A decimal number in low..high."""
        self._spend(node, key)
        if not isinstance(node, yaml.ScalarNode) or type_of(node) != "int":
            raise self._wrong(node, key, "int")
        if _DECIMAL.fullmatch(node.value) is None or not low <= int(node.value) <= high:
            meant = f"{low}" if low == high else f"a decimal number from {low} to {high}"
            raise self.error(node, key, f"{shown(node.value)} is not {meant}", f"write {meant}")
        return int(node.value)

    def boolean(self, node: yaml.Node, key: str) -> bool:
        """`true` or `false`; YAML 1.1's yes, no, on and off are refused, as OpenShell does."""
        self._spend(node, key)
        if type_of(node) != "bool" or str(node.value).lower() not in _BOOLEANS:
            raise self._wrong(node, key, "bool")
        return _BOOLEANS[str(node.value).lower()]

    def choice(self, node: yaml.Node, key: str, choices: Collection[str]) -> str:
        """One of a few words."""
        value = self.text(node, key)
        if value not in choices:
            remedy = _suggestion(value, choices)
            raise self.error(node, key, f"{shown(value)} is not a value it takes", remedy)
        return value

    def plain(self, node: yaml.Node, key: str, depth: int = 0) -> object:
        """Lists, dicts, numbers, booleans and text, as written; keys stay unique."""
        self._spend(node, key)
        if depth > MAX_DEPTH:
            raise self.error(node, key, "refers to itself")
        if isinstance(node, yaml.MappingNode):
            return {
                name: self.plain(value, name, depth + 1)
                for name, (_, value) in self.mapping(node, key).items()
            }
        if isinstance(node, yaml.SequenceNode):
            return [self.plain(item, key, depth + 1) for item in node.value]
        match type_of(node):
            case "int" if _DECIMAL.fullmatch(node.value):
                return int(node.value)
            case "bool" if str(node.value).lower() in _BOOLEANS:
                return _BOOLEANS[str(node.value).lower()]
            case "null":
                return None
            case _:
                return str(node.value)

    def _wrong(self, node: yaml.Node, key: str, wanted: str) -> UsageError:
        found = type_of(node)
        if wanted == "str" and found in {"int", "float", "bool"}:
            remedy = "quote it"
        else:
            remedy = _SHAPES.get(key, _SHAPE_OF.get(wanted, ""))
        return self.error(
            node, key, f"must be {_TYPES[wanted]}, not {_TYPES.get(found, shown(found))}", remedy
        )

    def _spend(self, node: yaml.Node, key: str) -> None:
        # Aliases make a few nodes stand for many: what counts is how often nodes are visited.
        self._left -= 1
        if self._left < 0:
            raise self.error(node, key, f"aliases expand to more than {MAX_NODES} nodes")


def line_of(node: yaml.Node) -> int:
    """The line a node begins on, counted from 1."""
    return int(node.start_mark.line) + 1


def type_of(node: yaml.Node) -> str:
    """`str`, `int`, `map` and so on, or the whole tag where it is none of YAML's own."""
    return str(node.tag).removeprefix(_TAG)


def _suggestion(name: str, known: Collection[str]) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"did you mean `{near[0]}`?"
    return "known: " + ", ".join(sorted(known))
