"""Secrets as tests want them, and the ways to cut an input in pieces."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from netns_runtime.secret import Binding, Secret, Slot

if TYPE_CHECKING:
    from collections.abc import Callable

# What escapes differ in; control characters are no part of a value.
AWKWARD = "\"\\/&%+=;?#: <>'é€😀7z"
VALUES = st.text(st.sampled_from(AWKWARD), min_size=1, max_size=12)


def secret(
    value: str, *slots: Slot, name: str = "TOKEN", codings: tuple[str, ...] = (), **rest: Any
) -> Secret:
    return Secret(Binding(name, ("up.test",), slots, codings=codings, **rest), value)


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data` cut at `cuts`, each taken modulo its length."""
    at = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in pairwise(at)]


def run(feed: Callable[[bytes], bytes], finish: Callable[[], bytes], pieces: list[bytes]) -> bytes:
    return b"".join(map(feed, pieces)) + finish()


CUTS = st.lists(st.integers(0, 1 << 30), max_size=12)
