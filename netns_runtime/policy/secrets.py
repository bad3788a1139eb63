"""Which secrets may go to a host, and which rules keep one from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from netns_runtime.policy.hosts import host_matches

if TYPE_CHECKING:
    from collections.abc import Iterable

    from netns_runtime.policy.rules import Rule
    from netns_runtime.secret import Binding, Secret


def bound_to(secrets: Iterable[Secret], host: str) -> tuple[Secret, ...]:
    """Those of `secrets` that are bound to the canonical `host`."""
    return tuple(
        secret
        for secret in secrets
        if any(host_matches(pattern, host) for pattern in secret.binding.hosts)
    )


def notes_on_skips(rules: Iterable[Rule], bindings: Iterable[Binding]) -> tuple[str, ...]:
    """A line for each rule whose `tls: skip` keeps a secret from a host that it is bound to."""
    listed = tuple(bindings)
    return tuple(
        f"{rule.text}: `tls: skip` (line {endpoint.line}) keeps {binding.name} from being "
        f"substituted at {endpoint.host}: the placeholder passes as it is"
        for rule in rules
        for endpoint in rule.endpoints
        if endpoint.inspection is not None and endpoint.inspection.tls == "skip"
        for binding in listed
        if any(_overlap(pattern, endpoint.host) for pattern in binding.hosts)
    )


def _overlap(one: str, other: str) -> bool:
    return one == other or host_matches(one, other) or host_matches(other, one)
