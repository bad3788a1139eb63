"""What tests.bench.tunnel prints: a table of medians, ratios of paired rounds, and the aims.

Pure. A ratio is ours through the other's of the same round, and the median over the rounds; an aim
is a ratio and the bound that issue 3 sets it.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

Results = dict[str, dict[str, list[float]]]
"""By contender and column, a number for each round."""

OURS: Final = ("explicit", "redirected")
COLUMNS: Final = {
    "setup p50": ("set-up", "p50 us", "8.0f"),
    "setup p99": ("", "p99 us", "8.0f"),
    "short rate": ("short", "conn/s", "8.0f"),
    "short cpu": ("", "cpu us", "8.0f"),
    "echo p50": ("echo", "p50 us", "8.1f"),
    "echo p99": ("", "p99 us", "8.1f"),
    "bulk rate": ("bulk", "GB/s", "8.2f"),
    "bulk cpu": ("", "cpu s/GB", "8.2f"),
    "idle": ("idle", "KiB/flow", "8.1f"),
}
RATIOS: Final = ("setup p50", "short rate", "echo p50", "bulk rate", "bulk cpu", "idle")


@dataclass(frozen=True, slots=True)
class Aim:
    """Both of ours, in `column`, next to `other`: at least `bound` times its figure, or at most."""

    what: str
    column: str
    other: str
    bound: float
    at_most: bool = False


AIMS: Final = (
    Aim("bulk ahead of HAProxy", "bulk rate", "haproxy", 1.0),
    Aim("new connections ahead of squid", "short rate", "squid", 1.0),
    Aim("new connections ahead of redsocks+squid", "short rate", "redsocks+squid", 1.0),
    Aim("echo p50 within 15 % of HAProxy's", "echo p50", "haproxy", 1.15, at_most=True),
)


def ratio(results: Results, ours: str, other: str, column: str) -> float | None:
    """The median of the paired rounds' ratios; None where one of them was not measured."""
    pairs = zip(
        results.get(ours, {}).get(column, ()), results.get(other, {}).get(column, ()), strict=False
    )
    found = [mine / its for mine, its in pairs if its > 0]
    return median(found) if found else None


def table(results: Results) -> Iterator[str]:
    """Medians, a line for each contender."""
    for row in (0, 1):
        yield " " * 18 + "".join(f"{heads[row]:>9}" for heads in COLUMNS.values())
    for name, measured in results.items():
        line = f"{name:18}"
        for column, (_, _, form) in COLUMNS.items():
            values = measured.get(column)
            line += " " + (format(median(values), form) if values else f"{'-':>8}")
        yield line


def ratios(results: Results) -> Iterator[str]:
    """Ours through each of the others, as medians of paired rounds."""
    width = max(map(len, results), default=0) + 13
    yield " " * width + "".join(f"{column:>11}" for column in RATIOS)
    for ours in OURS:
        for other in results:
            if other not in OURS:
                line = f"{f'{ours} / {other}':{width}}"
                for column in RATIOS:
                    value = ratio(results, ours, other, column)
                    line += " " + (f"{value:10.2f}" if value is not None else f"{'-':>10}")
                yield line


def judged(results: Results) -> Iterator[tuple[str, bool]]:
    """A line for each aim, and whether it was missed."""
    for aim in AIMS:
        for ours in OURS:
            value = ratio(results, ours, aim.other, aim.column)
            bound = f"{'at most' if aim.at_most else 'above'} {aim.bound:.2f}"
            line = f"{aim.what}, {ours}: "
            if value is None:
                yield f"{line}not measured", False
                continue
            missed = value > aim.bound if aim.at_most else value <= aim.bound
            yield f"{line}{value:.2f} ({bound}: {'missed' if missed else 'met'})", missed
