"""Host patterns: exact hosts, and wildcards that match label by label.

A pattern is canonical text. `*` inside a label stands for any characters of that label and as a
whole label for exactly one label; `**`, only as the whole first label, for one or more. No wildcard
ever matches an IP address. `canonical_pattern` raises AddressError.
"""

from __future__ import annotations

from functools import lru_cache

from netns_runtime.address import AddressError, parse_host


def is_wildcard(pattern: str) -> bool:
    """Whether the canonical pattern has a wildcard."""
    return "*" in pattern


def canonical_pattern(text: str) -> str:
    """The canonical form of an exact host or a wildcard pattern."""
    if "*" not in text:
        return parse_host(text)
    labels = text.lower().removesuffix(".").split(".")
    literal = [label for label in labels if "*" not in label]
    if not literal:
        raise AddressError(f"{text!a} matches every host: name a domain, as in *.example.com")
    for position, label in enumerate(labels):
        if "*" not in label:
            continue
        if label == "**" and position > 0:
            raise AddressError(f"{text!a}: ** may only be the whole first label")
        if "**" in label and label != "**":
            raise AddressError(f"{text!a}: ** must be a label of its own")
        if label not in {"*", "**"} and (position > 0 or not label.isascii()):
            raise AddressError(
                f"{text!a}: a * inside a label is possible only in the first label, in ASCII"
            )
    # Each wildcard is checked as if it were the letter x, so that every other rule of a host holds.
    checked = parse_host(".".join(label.replace("**", "x").replace("*", "x") for label in labels))
    return ".".join(
        wild if "*" in wild else plain
        for wild, plain in zip(labels, checked.split("."), strict=True)
    )


def host_matches(pattern: str, host: str) -> bool:
    """Whether the canonical name `host` (no IP address) is covered by the canonical pattern."""
    if "*" not in pattern:
        return pattern == host
    wanted = pattern.split(".")
    labels = host.split(".")
    if wanted[0] == "**":
        tail = wanted[1:]
        if len(labels) <= len(tail):
            return False
        return all(map(_label_matches, tail, labels[-len(tail) :]))
    return len(wanted) == len(labels) and all(map(_label_matches, wanted, labels))


def _label_matches(wanted: str, label: str) -> bool:
    if "*" not in wanted:
        return wanted == label
    first, *middle, last = wanted.split("*")
    if len(label) < len(first) + len(last) or not label.startswith(first):
        return False
    if not label.endswith(last):
        return False
    rest = label[len(first) : len(label) - len(last)]
    for part in middle:
        _, found, rest = rest.partition(part) if part else ("", "*", rest)
        if not found:
            return False
    return True


@lru_cache(maxsize=1024)
def specificity(pattern: str) -> tuple[int, int, int, int]:
    """A key that grows with how narrow the pattern is: exact, then `*`, then `**`, then none ("").

    (kind, literal labels, whether every label is bounded, literal characters)
    """
    if not pattern:
        return (0, 0, 0, 0)
    labels = pattern.split(".")
    literal = sum("*" not in label for label in labels)
    characters = len(pattern) - pattern.count("*")
    return (2 if "*" not in pattern else 1, literal, labels[0] != "**", characters)
