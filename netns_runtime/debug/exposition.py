"""Prometheus' text format 0.0.4, from families of samples. Pure.

A family is one metric: name, type, help, and its samples by labels. `exposition_of` writes families
in the order they come, each once; what the sandbox chose is shown as printable ASCII.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal

from netns_runtime.debug.text import shown

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_NAME: Final = re.compile(r"[a-z][a-z0-9_]*")
_LABEL_LIMIT: Final = 120

Kind = Literal["counter", "gauge", "histogram"]
Labels = tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Family:
    """One metric. `samples` are (suffix, labels, value)."""

    name: str
    kind: Kind
    about: str
    samples: list[tuple[str, Labels, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"{self.name!r} is no metric's name")
        if (self.kind == "counter") is not self.name.endswith("_total"):
            raise ValueError(f"{self.name}: counters, and they alone, end with _total")

    def add(self, value: float, labels: Mapping[str, object]) -> None:
        """One sample."""
        self.samples.append(("", labels_of(labels), value))

    def add_histogram(
        self,
        bounds: Sequence[float],
        counts: Sequence[int],
        total: float,
        labels: Mapping[str, object],
    ) -> None:
        """The buckets of one histogram; `counts` has one more than `bounds` and is not summed."""
        own = labels_of(labels)
        so_far = 0
        for bound, count in zip((*map(number_of, bounds), "+Inf"), counts, strict=True):
            so_far += count
            self.samples.append(("_bucket", (*own, ("le", bound)), so_far))
        self.samples += [("_sum", own, total), ("_count", own, so_far)]


def labels_of(labels: Mapping[str, object]) -> Labels:
    """Labels in order, their values printable."""
    return tuple((name, shown(value, _LABEL_LIMIT)) for name, value in labels.items())


def number_of(value: float) -> str:
    """A number without a needless fraction."""
    return str(int(value)) if float(value).is_integer() else repr(float(value))


def exposition_of(families: Iterable[Family]) -> str:
    """The document. A family without samples is left out."""
    lines = []
    for family in families:
        if not family.samples:
            continue
        about = family.about.replace("\\", "\\\\").replace("\n", " ")
        lines += [f"# HELP {family.name} {about}", f"# TYPE {family.name} {family.kind}"]
        for suffix, labels, value in family.samples:
            inside = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels)
            braces = f"{{{inside}}}" if inside else ""
            lines.append(f"{family.name}{suffix}{braces} {number_of(value)}")
    return "\n".join([*lines, ""])


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
