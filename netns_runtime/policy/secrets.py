"""Which secrets may go to a host, and what a new policy changes about them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from netns_runtime.policy.hosts import host_matches
from netns_runtime.secret import Binding

if TYPE_CHECKING:
    from collections.abc import Iterable

    from netns_runtime.secret import Secret


def bound_to(secrets: Iterable[Secret], host: str) -> tuple[Secret, ...]:
    """Those of `secrets` that are bound to the canonical `host`."""
    return tuple(
        secret
        for secret in secrets
        if any(host_matches(pattern, host) for pattern in secret.binding.hosts)
    )


def rebound(binding: Binding, given: Iterable[Binding]) -> Binding:
    """The binding after a policy with `given` took the place of the rules and policy files.

    A preset's stays where the policy has none; a replaced file's is gone, and the secret then goes
    nowhere.
    """
    for new in given:
        if new.name == binding.name:
            return new
    return binding if binding.preset else Binding(binding.name, (), ())


def rebound_all(
    bindings: Iterable[Binding], given: Iterable[Binding]
) -> tuple[tuple[Binding, ...], tuple[str, ...]]:
    """Every secret's binding after such a swap, and what to tell whoever swapped."""
    listed, notes, found = tuple(given), [], []
    for old in bindings:
        if old.expose == "env":
            # CMD has the value, and the proxy has not.
            found.append(old)
            if any(new.name == old.name and new.expose != "env" for new in listed):
                notes.append(f"{old.name} stays in CMD's environment, as it was given at the start")
            continue
        new = rebound(old, listed)
        found.append(new)
        if old.hosts and not new.hosts:
            notes.append(f"{old.name} is no longer bound")
        if new.expose != "placeholder" and _exposure(new) != _exposure(old):
            notes.append(f"{old.name} cannot be exposed otherwise than at the start: start anew")
    known = {binding.name for binding in found}
    notes += [
        f"{binding.name} has no value: it was not given at the start"
        for binding in listed
        if binding.name not in known
    ]
    return tuple(found), tuple(notes)


def may_still_read(old: Binding, new: Binding) -> bool:
    """Whether who could read the secret at the endpoint still can."""
    return new.expose == "endpoint" and _exposure(new) == _exposure(old)


def _exposure(binding: Binding) -> tuple[str, tuple[str, ...]]:
    return binding.expose, binding.executables
