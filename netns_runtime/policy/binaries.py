"""Ties `binaries` to inodes at launch, before CMD exists.

A path names an executable only if CMD can neither write the file nor replace anything on the way to
it; otherwise the entry names nobody and a note says so, so that a rule never becomes wider than it
reads. The identity is an inode, not a program: whoever may run a listed interpreter, or preload a
library into it, has its rights, and a child of a listed executable has
none of its own, unlike in OpenShell.
"""

from __future__ import annotations

import os
import stat
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from netns_runtime.errors import UsageError
from netns_runtime.policy.nodes import shown
from netns_runtime.policy.reach import Reach, trail_of
from netns_runtime.policy.rules import Binary, Identity, Policy, Rule

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

MAX_ENTRIES: Final = 100_000
"""Directory entries looked at for one policy: `/**` is refused instead of walked."""
_MAGIC: Final = frozenset("*?[")


def identify_binaries(
    policy: Policy,
    writable_by: tuple[int, Collection[int]],
    writable_trees: Collection[str] | None = None,
) -> Policy:
    """The policy with every `Binary` tied to the inodes it names now.

    `writable_by` is CMD's uid and its gids; `writable_trees` the directories it may write in at
    all, or None where its file system is not read-only. Raises UsageError for a glob that looks at
    too much; what does not exist, or is within CMD's reach, is left without identities and noted.
    """
    if all(rule.binaries is None for rule in policy.rules):
        return policy
    uid, gids = writable_by
    trees = None if writable_trees is None else tuple(map(os.path.realpath, writable_trees))
    search = _Search(Reach(uid, frozenset(gids), trees))
    rules = tuple(search.identified(rule) for rule in policy.rules)
    return replace(policy, rules=rules, notes=policy.notes + tuple(search.notes))


def kernel_device(device: int) -> int:
    """A `st_dev` as the kernel's own dev_t, which the probe reports."""
    return os.major(device) << 20 | os.minor(device)


class _TooManyError(Exception):
    """The budget of directory entries is spent."""


class _Search:
    """One look at the file system, for all rules of a policy together."""

    def __init__(self, reach: Reach) -> None:
        self.reach = reach
        self.left = MAX_ENTRIES
        self.notes: list[str] = []

    def identified(self, rule: Rule) -> Rule:
        if rule.binaries is None:
            return rule
        return replace(
            rule, binaries=tuple(self._identified(binary, rule) for binary in rule.binaries)
        )

    def _identified(self, binary: Binary, rule: Rule) -> Binary:
        found = []
        for path in self._expanded(binary, rule):
            try:
                trail = list(trail_of(path))
                status = os.stat(trail[-1], follow_symlinks=False)
                step = self.reach.writable_step(path)
            except OSError as error:
                if not _is_glob(binary.path):
                    self._note(rule, path, str(error.strerror))
                continue
            if not stat.S_ISREG(status.st_mode) or not status.st_mode & 0o111:
                if not _is_glob(binary.path):
                    self._note(rule, path, "it is no executable file")
            elif step is not None:
                self._note(rule, path, f"CMD could write {shown(step)}")
            else:
                found.append(Identity(status.st_ino, kernel_device(status.st_dev), trail[-1]))
        return replace(binary, identities=tuple(found))

    def _note(self, rule: Rule, path: str, why: str) -> None:
        self.notes.append(f"{rule.text}: {shown(path)} names nobody: {why}")

    def _expanded(self, binary: Binary, rule: Rule) -> list[str]:
        if not _is_glob(binary.path):
            return [binary.path]
        segments = [part for part in binary.path.split("/") if part]
        try:
            return sorted(self._walk("/", segments))
        except _TooManyError:
            raise UsageError(
                f"{rule.text}: {shown(binary.path)} looks at more than {MAX_ENTRIES} files",
                remedy="name the directory more closely",
            ) from None

    def _walk(self, base: str, segments: list[str]) -> Iterator[str]:
        if not segments:
            yield base
            return
        head, rest = segments[0], segments[1:]
        if head == "**":
            for entry in self._entries(base):
                if not rest:
                    yield entry.path
                if entry.is_dir(follow_symlinks=False):
                    if rest:
                        yield from self._walk(entry.path, rest)
                    yield from self._walk(entry.path, segments)
        elif _is_glob(head):
            for entry in self._entries(base):
                if fnmatchcase(entry.name, head):
                    yield from self._walk(entry.path, rest)
        elif os.path.lexists(step := os.path.join(base, head)):
            yield from self._walk(step, rest)

    def _entries(self, directory: str) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    self.left -= 1
                    if self.left < 0:
                        raise _TooManyError
                    yield entry
        except OSError:
            return


def _is_glob(path: str) -> bool:
    return not _MAGIC.isdisjoint(path)
