"""What tests.bench.terminated prints: a table of medians, and the aims of issue 4.

Pure. A ratio is of the same round, and the median over the rounds (`tunnel_report.ratio`).
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.bench.tunnel_report import Results

COLUMNS: Final = {
    "h1 p50": ("h1", "p50 us", "8.0f"),
    "h1 p99": ("", "p99 us", "8.0f"),
    "h1-rate": ("h1", "req/s", "8.0f"),
    "h1-rate secret": ("+secret", "req/s", "8.0f"),
    "h2 p50": ("h2", "p50 us", "8.0f"),
    "h2 p99": ("", "p99 us", "8.0f"),
    "h2-rate": ("h2", "req/s", "8.0f"),
    "websocket": ("ws", "msg/s", "8.0f"),
    "websocket secret": ("+secret", "msg/s", "8.0f"),
    "upload": ("upload", "MB/s", "8.1f"),
    "upload secret": ("+secret", "MB/s", "8.1f"),
    "cpu": ("h1 cpu", "us/req", "8.0f"),
}
THREE_TIMES: Final = ("h1-rate", "h1-rate secret", "h2-rate", "websocket", "websocket secret")
LEAF_MS: Final = 2.0
KEPT: Final = 0.9
"""Of an upload's throughput, with substitution."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """Milliseconds to mint a leaf, context included."""

    p50: float
    p99: float


def _paired(mine: list[float], its: list[float]) -> float | None:
    found = [one / other for one, other in zip(mine, its, strict=False) if other > 0]
    return median(found) if found else None


def table(results: Results) -> Iterator[str]:
    """Medians, a line for each contender."""
    for row in (0, 1):
        yield " " * 12 + "".join(f"{heads[row]:>9}" for heads in COLUMNS.values())
    for name, measured in results.items():
        line = f"{name:12}"
        for column, (_, _, form) in COLUMNS.items():
            values = measured.get(column)
            line += " " + (format(median(values), form) if values else f"{'-':>8}")
        yield line


def judged(results: Results, leaf: Leaf | None) -> Iterator[tuple[str, bool]]:
    """A line for each aim, and whether it was missed."""
    ours, its = results.get("ours", {}), results.get("mitmproxy", {})
    for column in THREE_TIMES:
        value = _paired(ours.get(column, []), its.get(column, []))
        yield _line(f"{column} next to mitmproxy's", value, 3.0)
    kept = _paired(ours.get("upload secret", []), ours.get("upload", []))
    yield _line("upload with substitution, next to without", kept, KEPT)
    if leaf is None:
        yield "leaf minting: not measured", False
    else:
        missed = leaf.p50 >= LEAF_MS
        said = "missed" if missed else "met"
        yield (
            f"leaf minting: {leaf.p50:.2f} ms, p99 {leaf.p99:.2f} (under {LEAF_MS}: {said})",
            missed,
        )


def _line(what: str, value: float | None, least: float) -> tuple[str, bool]:
    if value is None:
        return f"{what}: not measured", False
    missed = value < least
    return f"{what}: {value:.2f} (at least {least}: {'missed' if missed else 'met'})", missed
