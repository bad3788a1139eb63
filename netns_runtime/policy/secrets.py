"""Which secrets may go to a host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from netns_runtime.policy.hosts import host_matches

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
