"""Gives an admitted request its secrets, and keeps values out of what is written.

The slots and spellings are `wire`'s; here is only who is bound, and why one that is bound is kept
back: from what policy only reported (`--report`), and from what leaves unencrypted. `give_secrets`
changes the request in place and cannot fail. Imported only where a sandbox has secrets.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Final

from netns_runtime.policy.secrets import bound_to
from netns_runtime.wire.headslots import asked_for
from netns_runtime.wire.mask import mask
from netns_runtime.wire.response import accept_encoding
from netns_runtime.wire.rewrite import body_rewriter, rewrite_head

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from netns_runtime.proxy.inspect import Admitted
    from netns_runtime.secret import Secret


REPORTED: Final = "the policy would refuse this"
"""Why nothing is put into what passes because of `--report` alone."""


def give_secrets(
    secrets: Sequence[Secret],
    host: str,
    admitted: Admitted,
    has_content: bool,
    *,
    is_reported: bool,
    is_encrypted: bool,
) -> None:
    """Substitute what is bound to the canonical `host`, and watch for the rest of `secrets`.

    `is_reported`: without `--report` policy would refuse the request; `is_encrypted`: it leaves
    over TLS.
    """
    bound, others = _parted(tuple(secrets), host)
    kept = _kept(bound, is_reported, is_encrypted)
    given = bound
    if kept:
        given = tuple(secret for secret in bound if secret.name not in kept)
        others += tuple(secret for secret in bound if secret.name in kept)
    headers = accept_encoding(admitted.headers) if bound else admitted.headers
    head = rewrite_head(admitted.target, headers, given, others)
    admitted.bound, admitted.kept = bound, kept
    admitted.target, admitted.headers = head.target, head.headers
    admitted.substituted, admitted.withheld = tuple(head.substituted), tuple(head.withheld)
    if given:
        # What is still a placeholder of theirs stands in no slot.
        left = asked_for(head.target, head.headers) & {secret.name for secret in given}
        admitted.withheld += tuple(sorted(left.difference(head.withheld)))
    admitted.shown = masked(admitted.shown, secrets)
    if has_content:
        admitted.body = body_rewriter(head.headers, given, others)


def _kept(bound: Sequence[Secret], is_reported: bool, is_encrypted: bool) -> dict[str, str]:
    """Why which of the host's secrets are kept from this request, by name."""
    if is_reported:
        return dict.fromkeys((secret.name for secret in bound), REPORTED)
    if is_encrypted:
        return {}
    return {
        secret.name: "it would leave unencrypted: use https, or `plain_http: true` for "
        + secret.name
        for secret in bound
        if not secret.binding.plain_http
    }


def why_withheld(name: str, host: str, bound: Sequence[Secret], kept: Mapping[str, str]) -> str:
    """What the audit says of a placeholder that leaves as it is."""
    if name in kept:
        return kept[name]
    for secret in bound:
        if secret.name == name:
            places = ", ".join(map(str, secret.binding.slots))
            return f"no slot of {name} is there: it goes into {places}"
    return f"it is not bound to {host}"


@lru_cache(maxsize=256)
def _parted(
    secrets: tuple[Secret, ...], host: str
) -> tuple[tuple[Secret, ...], tuple[Secret, ...]]:
    bound = bound_to(secrets, host)
    return bound, tuple(secret for secret in secrets if secret not in bound)


def masked(text: str, secrets: Sequence[Secret]) -> str:
    """Text for the audit, in which no secret's value stands."""
    return mask(text.encode("utf-8", "surrogateescape"), secrets).decode("utf-8", "replace")
