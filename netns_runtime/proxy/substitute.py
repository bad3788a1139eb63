"""Gives an admitted request its secrets, and keeps values out of what is written.

The slots and spellings are `wire`'s; here is only who is bound. `give_secrets` changes the request
in place and cannot fail. Imported only where a sandbox has secrets.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from netns_runtime.policy.secrets import bound_to
from netns_runtime.wire.mask import mask
from netns_runtime.wire.response import accept_encoding
from netns_runtime.wire.rewrite import body_rewriter, rewrite_head

if TYPE_CHECKING:
    from collections.abc import Sequence

    from netns_runtime.proxy.inspect import Admitted
    from netns_runtime.secret import Secret


def give_secrets(
    secrets: Sequence[Secret], host: str, admitted: Admitted, has_content: bool
) -> None:
    """Substitute what is bound to the canonical `host`, and watch for the rest of `secrets`."""
    bound, others = _parted(tuple(secrets), host)
    headers = accept_encoding(admitted.headers) if bound else admitted.headers
    head = rewrite_head(admitted.target, headers, bound, others)
    admitted.bound = bound
    admitted.target, admitted.headers = head.target, head.headers
    admitted.substituted, admitted.withheld = tuple(head.substituted), tuple(head.withheld)
    admitted.shown = masked(admitted.shown, secrets)
    if has_content:
        admitted.body = body_rewriter(head.headers, bound, others)


@lru_cache(maxsize=256)
def _parted(
    secrets: tuple[Secret, ...], host: str
) -> tuple[tuple[Secret, ...], tuple[Secret, ...]]:
    bound = bound_to(secrets, host)
    return bound, tuple(secret for secret in secrets if secret not in bound)


def masked(text: str, secrets: Sequence[Secret]) -> str:
    """Text for the audit, in which no secret's value stands."""
    return mask(text.encode("utf-8", "surrogateescape"), secrets).decode("utf-8", "replace")
