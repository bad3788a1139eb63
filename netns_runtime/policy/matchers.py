"""Rules on requests and messages, compiled when a policy loads: frozen, picklable, pure.

A `Matcher` is one entry of `rules` or `deny_rules`; `RequestRules` is all that one endpoint says.
Matching to allow and matching to deny differ: what allows must hold in every reading of a request,
what denies in any (OpenShell: every value of a repeated parameter, against one of them).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal

from netns_runtime.policy.globs import (
    path_matches,
    path_matches_any_case,
    selector_matches,
    value_matches,
)
from netns_runtime.policy.pointers import certain_value, possible_values

TEXT: Final = "WEBSOCKET_TEXT"
BINARY: Final = "WEBSOCKET_BINARY"
MESSAGES: Final = frozenset({TEXT, BINARY})

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Condition:
    """One entry of `message`: what the value at `pointer` must be.

    One of the others is given: `values` (JSON scalars, one of which it equals), `globs` (one of
    which covers it, a text) or `present`.
    """

    pointer: str
    values: tuple[Any, ...] = ()
    globs: tuple[str, ...] = ()
    present: bool = False

    def surely_holds(self, document: object) -> bool:
        """Whether it holds however the message is read."""
        found = certain_value(document, self.pointer)
        return bool(found) and self._accepts(found[0])

    def may_hold(self, document: object) -> bool:
        """Whether it holds in some reading of the message."""
        return any(map(self._accepts, possible_values(document, self.pointer)))

    def _accepts(self, value: object) -> bool:
        if self.present:
            return True
        if self.globs:
            return isinstance(value, str) and any(value_matches(glob, value) for glob in self.globs)
        return any(_is_same(wanted, value) for wanted in self.values)


@dataclass(frozen=True, slots=True)
class Matcher:
    """One rule. `method` is upper case, "*" for any; `path` a glob; `query` names with globs, one
    of which must cover each value; `message` conditions that must hold together. `where` is its
    file and line.
    """

    method: str
    path: str
    query: tuple[tuple[str, tuple[str, ...]], ...] = ()
    message: tuple[Condition, ...] = ()
    where: str = field(default="", compare=False)

    def has_method(self, method: str) -> bool:
        """HEAD goes where GET goes, as in OpenShell."""
        return self.method in {"*", method} or (method == "HEAD" and self.method == "GET")

    def allows(self, path: str, pairs: Pairs) -> bool:
        """Whether the path and every value of each parameter is covered."""
        return path_matches(self.path, path) and all(
            _all_match(globs, [value for name, value in pairs if name == key])
            for key, globs in self.query
        )

    def denies(self, path: str, pairs: Pairs) -> bool:
        """Whether the path, in any case of letters, and some value of each parameter is covered."""
        return path_matches_any_case(self.path, path) and all(
            any(name == key and _any_matches(globs, value) for name, value in pairs)
            for key, globs in self.query
        )


@dataclass(frozen=True, slots=True)
class RequestRules:
    """What one endpoint says about requests.

    `path` None selects every request. `allows` are the expanded preset or the `rules`. `audits` is
    `enforcement: audit`. `refuses_websocket` is where the file says so. `where` is the endpoint's
    file and line.
    """

    protocol: Literal["rest", "websocket", "graphql"] = "rest"
    allows: tuple[Matcher, ...] = ()
    denies: tuple[Matcher, ...] = ()
    path: str | None = None
    access: str | None = None
    audits: bool = False
    refuses_websocket: str | None = None
    allow_encoded_slash: bool = False
    where: str = ""

    @property
    def judges_messages(self) -> bool:
        """Whether this endpoint has a say in what an allowed upgrade may send."""
        return self.protocol == "websocket" or any(
            item.method in MESSAGES for item in self.allows + self.denies
        )

    def selects(self, path: str) -> bool:
        """Whether the endpoint's `path` covers the request."""
        return self.path is None or selector_matches(self.path, path)


def preset(access: str, protocol: str) -> tuple[Matcher, ...]:
    """The rules that an `access` preset stands for."""
    if protocol == "websocket":
        methods = {"read-only": ("GET",), "read-write": ("GET", TEXT, BINARY), "full": ("*",)}
    else:
        reads = ("GET", "HEAD", "OPTIONS")
        methods = {
            "read-only": reads,
            "read-write": (*reads, "POST", "PUT", "PATCH"),
            "full": ("*",),
        }
    return tuple(Matcher(method, "**") for method in methods[access])


def _all_match(globs: tuple[str, ...], values: list[str]) -> bool:
    return bool(values) and all(_any_matches(globs, value) for value in values)


def _any_matches(globs: tuple[str, ...], value: str) -> bool:
    return any(value_matches(glob, value) for glob in globs)


def _is_same(wanted: object, value: object) -> bool:
    # In Python True == 1; in JSON 1 and 1.0 are one number and true is none.
    if isinstance(wanted, bool) or isinstance(value, bool):
        return wanted is value
    return wanted == value
