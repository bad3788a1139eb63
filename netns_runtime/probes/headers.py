"""A kernel header tree for a bcc that our own headers do not serve, from installed headers.

bcc wants one tree; Debian and Ubuntu split it in two packages, and the running kernel's own headers
may not exist at all. Our programs touch only stable contexts (uapi), so any version serves: the
newest pair is merged as symbolic links in the cache. Raises ProbeUnavailable when there is none.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from netns_runtime.probes.unavailable import ProbeUnavailable

SOURCES: Final = Path("/usr/src")
_REMEDY: Final = "install linux-headers-amd64 (Debian) or linux-headers-generic (Ubuntu)"


def version_of(name: str) -> tuple[int, ...]:
    """Numbers of `linux-headers-6.1.0-56-amd64`, for comparing."""
    return tuple(int(number) for number in re.findall(r"\d+", name.removeprefix("linux-headers-")))


def pair_of(names: list[str]) -> tuple[str, str] | None:
    """The newest pair: Debian's `X-amd64` and `X-common`, Ubuntu's `X-generic` and `X`.

    A flavour is any suffix (`-cloud-amd64`, `-rt`, `-aws`): what counts is that its common half is
    there.
    """
    present = {name for name in names if name.startswith("linux-headers-")}
    pairs = []
    for name in present:
        stem = name
        while "-" in stem.removeprefix("linux-headers-"):
            stem = stem.rpartition("-")[0]
            common = next((c for c in (f"{stem}-common", stem) if c in present and c != name), None)
            if common is not None:
                pairs.append((version_of(name), name, common))
                break
    return max(pairs)[1:] if pairs else None


def _links_of(trees: list[Path]) -> dict[Path, Path]:
    """Which link leads where, for arch/ and include/, all that a compiler reads.

    A directory that both trees have is merged; anything else is one link.
    """
    links: dict[Path, Path] = {}
    pending = [
        (Path(top), [tree / top for tree in trees if (tree / top).is_dir()])
        for top in ("arch", "include")
    ]
    while pending:
        place, owners = pending.pop()
        entries: dict[str, list[Path]] = {}
        for owner in owners:
            for entry in os.scandir(owner):
                entries.setdefault(entry.name, []).append(Path(entry.path))
        for name, found in entries.items():
            if len(found) > 1 and all(path.is_dir() for path in found):
                pending.append((place / name, found))
            else:
                links[place / name] = found[0]
    return links


def merged_tree(cache: Path, sources: Path = SOURCES) -> Path:
    """The directory for BCC_KERNEL_SOURCE. Made once per pair, under a name that says which."""
    try:
        pair = pair_of(os.listdir(sources))
    except OSError:
        pair = None
    if pair is None:
        raise ProbeUnavailable("no kernel headers for bcc", remedy=_REMEDY)
    tree = cache / "headers" / pair[0]
    if (tree / "complete").exists():
        return tree
    for place, target in _links_of([sources / name for name in pair]).items():
        link = tree / place
        link.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(target)
    (tree / "complete").touch(mode=0o644)
    return tree
