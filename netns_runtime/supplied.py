"""The secrets of one launch: what was read, until the proxy has it.

`Supplied` holds the values; `forget` lets go of them once they have been sent, the caller's own
variables included, as far as Python lets a program forget. What stays are names, hosts and slots.
A value never appears in a repr or an error.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from netns_runtime.errors import UsageError
from netns_runtime.secret import Binding, Secret, placeholder_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from netns_runtime.policy.rules import Rule

# A shorter value is too likely to be a part of something else: copies of it are not looked for.
COPY_LENGTH: Final = 6
_PR_SET_DUMPABLE: Final = 4


@dataclass(slots=True)
class Supplied:
    """`readers` are, by secret, who may read it at the endpoint, as a rule without endpoints;
    `token` is what they show there, empty where there is no endpoint. `hidden` are the files that
    values came from, `variables` the caller's variables, `sources` what --dry-run tells."""

    bindings: tuple[Binding, ...]
    values: dict[str, str] = field(repr=False)
    readers: tuple[tuple[str, Rule], ...] = ()
    token: str = field(default="", repr=False)
    hidden: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    sources: dict[str, str] = field(default_factory=dict)

    @property
    def secrets(self) -> tuple[Secret, ...]:
        """All of them with their values; none after `forget`."""
        return tuple(
            Secret(binding, self.values[binding.name])
            for binding in self.bindings
            if binding.name in self.values
        )

    @property
    def for_proxy(self) -> tuple[Secret, ...]:
        """Those that CMD does not hold itself."""
        return tuple(secret for secret in self.secrets if secret.binding.expose != "env")

    @property
    def read_from(self) -> dict[str, str]:
        """The variables that values were read from, by secret."""
        return {
            name: source.removeprefix("env:")
            for name, source in self.sources.items()
            if source.startswith("env:")
        }

    def forget(self) -> None:
        """Let go of the values; the proxy has them, and nothing here needs them again."""
        self.values.clear()
        for name in self.variables:
            _forget_variable(name)

    def listed(self) -> tuple[dict[str, Any], ...]:
        """What netns-debug tells: never a value."""
        return listed(self.bindings)


def listed(bindings: Iterable[Binding]) -> tuple[dict[str, Any], ...]:
    """Bindings as the state record has them."""
    return tuple(
        {
            "name": binding.name,
            "hosts": list(binding.hosts),
            "slots": [str(slot) for slot in binding.slots],
            "expose": binding.expose,
            "rule": binding.text,
        }
        for binding in bindings
    )


def told(entry: dict[str, Any]) -> str:
    """One entry of `Supplied.listed` for a person."""
    expose = {
        "env": ", and CMD has the value itself",
        "endpoint": ", or read at the endpoint",
        "placeholder": "",
    }[entry["expose"]]
    where = f"to {', '.join(entry['hosts'])} in {', '.join(entry['slots'])}"
    return (where if entry["hosts"] else "to no host") + expose


def encoded(value: str) -> tuple[str, str]:
    """The value percent-encoded, in either case of the digits."""
    upper = quote(value, safe="")
    return upper, re.sub("%[0-9A-F]{2}", lambda match: match[0].lower(), upper)


def check_arguments(command: Sequence[str], secrets: Iterable[Secret]) -> None:
    """Raises UsageError where an argument of CMD holds a value, percent-encoded or as it is:
    everybody inside could read it."""
    for secret in secrets:
        if secret.binding.expose == "env" or len(secret.value) < COPY_LENGTH:
            continue
        copies = (secret.value, *encoded(secret.value))
        for number, argument in enumerate(command, 1):
            if any(copy in argument for copy in copies):
                raise UsageError(
                    f"word {number} of CMD holds the value of {secret.name}, for all inside to see",
                    remedy=f"write {placeholder_of(secret.name)} in its place",
                )


def guard_memory() -> None:
    """From here on no core of ours is written and no other process reads our memory."""
    # 1, not 0: a core_pattern that is a pipe is run whatever the limit, unless that is 1.
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (1, 1))
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def _forget_variable(name: str) -> None:
    """Blank the variable where the kernel shows it (/proc/PID/environ), then unset it."""
    if name not in os.environ:
        return
    block = ctypes.POINTER(ctypes.c_void_p).in_dll(ctypes.CDLL(None), "environ")
    wanted = os.fsencode(name) + b"="
    position = 0
    while address := block[position]:
        if ctypes.string_at(address, len(wanted)) == wanted:
            length = len(ctypes.string_at(address)) - len(wanted)
            ctypes.memset(address + len(wanted), ord("x"), length)
        position += 1
    del os.environ[name]
