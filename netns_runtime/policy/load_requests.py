"""Reads what an endpoint says about requests, as `RequestRules`.

OpenShell's schema, and two things it lacks: `message` in a rule of a WebSocket (conditions on JSON
pointers into text messages) and `websocket: refuse` on an endpoint. What cannot be applied (mcp,
json-rpc, sql and GraphQL operations, and whatever stands beside `tls: skip`) is told by its key, so
that the endpoint allows nothing. Ends in rules or in one UsageError with file, line and key.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from netns_runtime.policy import schema
from netns_runtime.policy.globs import EVERY_PATH, glob_fault, path_fault
from netns_runtime.policy.matchers import (
    MESSAGES,
    TEXT,
    Condition,
    Matcher,
    RequestRules,
    preset,
)
from netns_runtime.policy.nodes import Entry, line_of, shown, type_of
from netns_runtime.policy.pointers import pointer_fault

if TYPE_CHECKING:
    import yaml

    from netns_runtime.policy.nodes import Reader
    from netns_runtime.policy.rules import Inspection

_TOKEN: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_MATCHER: Final = frozenset({"method", "path", "query", "message"})
_SCALARS: Final = frozenset({"str", "int", "float", "bool", "null"})
_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,18})(?:\.[0-9]{1,18})?")
ENFORCED: Final = (
    "rules on requests are enforced where `enforcement` is missing; OpenShell only audits"
)
"""A note that a file gets once, at the first such endpoint."""
_NO_UPGRADE: Final = (
    "no rule of this endpoint allows the upgrade (`method: GET`) to a WebSocket, so its rules for "
    "messages match nothing"
)


@dataclass(frozen=True, slots=True)
class Requests:
    """What was found: rules, or the key that cannot be applied; `notes` (key, text) for the
    user."""

    rules: RequestRules | None = None
    missing: str | None = None
    notes: tuple[tuple[str, str], ...] = ()


def read_requests(
    reader: Reader, fields: dict[str, Entry], inspection: Inspection, line: int
) -> Requests:
    """The request rules of an endpoint whose raw fields were read already."""
    where = f"{reader.name}:{line}"
    path = inspection.path
    if path is not None:
        _check_path(reader, fields["path"][1], path)
    missing = schema.unenforced(inspection)
    if missing is not None and inspection.enforcement == "audit":
        note = missing, "this restriction on requests, in audit mode, is not evaluated"
        if inspection.tls == "skip" or inspection.protocol == "sql":
            return Requests(notes=(note,))
        every = RequestRules("rest", preset("full", "rest"), path=path, audits=True, where=where)
        return Requests(every, notes=(note,))
    if missing is not None:
        return Requests(RequestRules(path=path, where=where), missing)
    if inspection.protocol not in {None, "rest", "websocket", "graphql"}:
        return Requests()
    protocol: Literal["rest", "websocket", "graphql"] = "rest"
    if inspection.protocol in {"websocket", "graphql"}:
        protocol = inspection.protocol  # type: ignore[assignment]
    elif inspection.protocol is None and not schema.restricts(inspection):
        return Requests()
    key = "rules" if "rules" in fields else "access"
    allows = tuple(_allow(reader, node) for node in _items(reader, fields, "rules"))
    if not allows:
        allows = preset(inspection.access or "full", protocol)
    denies = tuple(
        _matcher(reader, node, "deny_rules") for node in _items(reader, fields, "deny_rules")
    )
    refuses = fields["websocket"][0] if inspection.websocket == "refuse" else None
    refused = f"{reader.name}:{line_of(refuses)}" if refuses is not None else None
    if protocol == "graphql":
        refused = where
    added: list[tuple[str, str]] = []
    if inspection.protocol is None and (key in fields or "path" in fields):
        key = key if key in fields else "path"
        added.append((key, f"`{key}` without `protocol` is applied as with `protocol: rest`"))
    elif inspection.enforcement is None and key in fields and inspection.access != "full":
        added.append((key, ENFORCED))
    if (refused or not any(item.has_method("GET") for item in allows)) and any(
        item.method in MESSAGES for item in allows
    ):
        added.append((key, _NO_UPGRADE))
    return Requests(
        RequestRules(
            protocol,
            allows,
            denies,
            path,
            inspection.access,
            inspection.enforcement == "audit",
            refused,
            inspection.options.get("allow_encoded_slash") is True,
            where,
        ),
        None,
        tuple(added),
    )


def read_conditions(reader: Reader, node: yaml.Node, key: str) -> tuple[Condition, ...]:
    """`message`: one condition or a list of them."""
    nodes = [node] if type_of(node) == "map" else reader.sequence(node, key)
    if not nodes:
        raise reader.error(node, key, "is empty", "write {pointer: /op, in: [1]}")
    return tuple(_condition(reader, item, key) for item in nodes)


def read_pointer(reader: Reader, node: yaml.Node, key: str) -> str:
    """A JSON pointer."""
    text = reader.text(node, key)
    fault = pointer_fault(text)
    if fault is not None:
        raise reader.error(node, key, f"{shown(text)}: {fault[0]}", fault[1])
    return text


def read_scalars(reader: Reader, node: yaml.Node, key: str) -> tuple[Any, ...]:
    """A list of JSON scalars, at least one."""
    found = tuple(_scalar(reader, item, key) for item in reader.sequence(node, key))
    if not found:
        raise reader.error(node, key, "is empty", "list the values, as in [1, 2]")
    return found


def _scalar(reader: Reader, node: yaml.Node, key: str) -> object:
    kind = type_of(node)
    if kind not in _SCALARS:
        raise reader.error(node, key, "takes texts, numbers, true, false and null")
    if kind in {"int", "float"}:
        text = str(node.value)
        if _NUMBER.fullmatch(text) is None:
            raise reader.error(node, key, f"{shown(text)} is no decimal number", "or quote it")
        return float(text) if kind == "float" else int(text)
    if kind == "str":
        return str(node.value)
    return reader.boolean(node, key) if kind == "bool" else None


def _condition(reader: Reader, node: yaml.Node, key: str) -> Condition:
    fields = reader.mapping(node, key, {"pointer", "in", "matches", "present"})
    if "pointer" not in fields:
        raise reader.error(node, key, "has no `pointer`", "write {pointer: /op, in: [1]}")
    pointer = read_pointer(reader, fields["pointer"][1], "pointer")
    given = fields.keys() - {"pointer"}
    if len(given) != 1:
        raise reader.error(
            node, key, "takes one of `in`, `matches` and `present`", "write {pointer: /op, in: [1]}"
        )
    (name,) = given
    value = fields[name][1]
    if name == "in":
        return Condition(pointer, read_scalars(reader, value, "in"))
    if name == "matches":
        return Condition(pointer, globs=_globs(reader, value, "matches"))
    if not reader.boolean(value, "present"):
        raise reader.error(value, "present", "false is not a condition", "leave it out")
    return Condition(pointer, present=True)


def _items(reader: Reader, fields: dict[str, Entry], key: str) -> list[yaml.Node]:
    return reader.sequence(fields[key][1], key) if key in fields else []


def _allow(reader: Reader, node: yaml.Node) -> Matcher:
    return _matcher(reader, reader.mapping(node, "rules")["allow"][1], "allow")


def _matcher(reader: Reader, node: yaml.Node, key: str) -> Matcher:
    fields = reader.mapping(node, key)
    for name, (key_node, _) in fields.items():
        if name not in _MATCHER:
            raise reader.error(key_node, name, "matches no request of this `protocol`", "remove it")
    message: tuple[Condition, ...] = ()
    if "message" in fields:
        message = read_conditions(reader, fields["message"][1], "message")
    else:
        for name in ("method", "path"):
            if name not in fields:
                raise reader.error(node, key, f"has no `{name}`", _MISSING[name])
    method = TEXT if message else "*"
    if "method" in fields:
        value = fields["method"][1]
        method = reader.text(value, "method").upper()
        if _TOKEN.fullmatch(method) is None or ("*" in method and method != "*"):
            raise reader.error(
                value, "method", f"{shown(method)} is no method", "write one method, or * for any"
            )
        if message and method != TEXT:
            remedy = f"write {TEXT}"
            raise reader.error(value, "method", "a rule with `message` is for text", remedy)
    path = "/**"
    if "path" in fields:
        path = reader.text(fields["path"][1], "path")
        _check_path(reader, fields["path"][1], path)
    query = _query(reader, fields["query"][1]) if "query" in fields else ()
    return Matcher(method, path, query, message, f"{reader.name}:{line_of(node)}")


_MISSING: Final = {
    "method": "write `method: GET`, or * for any",
    "path": "write `path: /**` for every path",
}


def _query(reader: Reader, node: yaml.Node) -> tuple[tuple[str, tuple[str, ...]], ...]:
    found = []
    for name, (_, value) in reader.mapping(node, "query").items():
        globs: tuple[str, ...]
        if type_of(value) == "map":
            fields = reader.mapping(value, name, {"any", "glob"})
            if len(fields) != 1:
                raise reader.error(value, name, "takes a glob or {any: [globs]}")
            ((key, (_, inner)),) = fields.items()
            globs = _globs(reader, inner, key)
        else:
            globs = _globs(reader, value, name)
        found.append((name, globs))
    return tuple(found)


def _globs(reader: Reader, node: yaml.Node, key: str) -> tuple[str, ...]:
    pairs = (
        list(reader.texts(node, key))
        if type_of(node) == "seq"
        else [(node, reader.text(node, key))]
    )
    if not pairs:
        raise reader.error(node, key, "is empty", "write a glob; ** is any value")
    for item, text in pairs:
        fault = glob_fault(text)
        if fault is not None:
            raise reader.error(item, key, f"{shown(text)}: {fault}")
    return tuple(text for _, text in pairs)


def _check_path(reader: Reader, node: yaml.Node, path: str) -> None:
    if path in EVERY_PATH:
        return
    fault = path_fault(path)
    if fault is not None:
        raise reader.error(node, "path", f"{shown(path)}: {fault[0]}", fault[1])
