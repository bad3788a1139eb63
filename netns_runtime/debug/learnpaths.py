"""Paths as few readable globs: what looks like an id becomes `*`, and so do many alike siblings.

`globs_for` gives for each path a glob that covers it, and as few different ones as stay readable.
What a glob covers beyond the paths seen is a segment in the place of an id or of a sibling, and,
past MOST lines, everything under a first segment. Pure.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from netns_runtime.policy.globs import path_fault, path_matches

if TYPE_CHECKING:
    from collections.abc import Iterable

SIBLINGS: Final = 5
"""Values of one segment that make it a variable."""
MOST: Final = 12
"""Globs of one method at one endpoint that are still read."""
EVERYTHING: Final = "/**"
DEEPEST: Final = 32
"""Segments up to which siblings are looked for: the work grows with its square, and who asked for
8,000 of them wants to see us work."""

_ID: Final = re.compile(
    r"""\d+ | [0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}
    | (?=[0-9a-fA-F]*\d)[0-9a-fA-F]{8,} | \d{4}-\d\d-\d\d(?:T[\d:.%A-Z+-]*)?
    | (?=[\w.~=-]*\d)(?=[\w.~=-]*[A-Za-z])[\w~=-]{20,} | .*openshell:resolve:env:.*""",
    re.VERBOSE,
)


def globs_for(paths: Iterable[str]) -> dict[str, str]:
    """Each path with the glob that stands for it; the globs are valid and cover their paths."""
    found = {path: _with_ids(path) for path in paths}
    found = _siblings(found)
    if len(set(found.values())) > MOST:
        found = {path: _under_first(glob) for path, glob in found.items()}
    if len(set(found.values())) > MOST:
        found = dict.fromkeys(found, EVERYTHING)
    return {
        path: glob if path_fault(glob) is None and path_matches(glob, path) else EVERYTHING
        for path, glob in found.items()
    }


def _with_ids(path: str) -> str:
    if not path.startswith("/"):
        return EVERYTHING
    segments = [_segment(segment) for segment in path.split("/")]
    return "/".join(segments)


def _segment(segment: str) -> str:
    if _ID.fullmatch(segment):
        return "*"
    # A glob's own characters stand for themselves when encoded.
    return segment.replace("*", "%2A").replace("[", "%5B").replace("?", "%3F")


def _siblings(found: dict[str, str]) -> dict[str, str]:
    """Where one segment alone differs, in many values, a star stands for it; the last one first."""
    deep = {path: glob for path, glob in found.items() if glob.count("/") > DEEPEST}
    found = {path: glob for path, glob in found.items() if path not in deep}
    longest = max((glob.count("/") for glob in found.values()), default=0)
    for place in range(longest, 0, -1):
        groups: dict[tuple[str, ...], set[str]] = {}
        for glob in found.values():
            segments = glob.split("/")
            if place < len(segments):
                key = (*segments[:place], "\0", *segments[place + 1 :])
                groups.setdefault(key, set()).add(segments[place])
        many = {key for key, values in groups.items() if len(values - {""}) >= SIBLINGS}
        for path, glob in found.items():
            segments = glob.split("/")
            is_there = place < len(segments) and segments[place] != ""
            if is_there and (*segments[:place], "\0", *segments[place + 1 :]) in many:
                segments[place] = "*"
                found[path] = "/".join(segments)
    return found | deep


def _under_first(glob: str) -> str:
    first = glob.split("/")[1] if glob.startswith("/") else ""
    return f"/{first}/**" if first and glob.count("/") > 1 and first != "**" else glob
