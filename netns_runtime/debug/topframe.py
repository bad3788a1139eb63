"""One frame of `netns-debug top`, from values: history, rows, and the order they are shown in.

`History` keeps what the sparklines show, `ordered` sorts, `frame_of` makes what rich prints. Pure
but for the import of rich, which costs 50 ms and is nowhere else but in `top`. What the sandbox
chose goes in as Text, never as rich's markup.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from rich.console import Group
from rich.table import Table
from rich.text import Text

from netns_runtime.debug.text import age_of, shown, size_of, where_of, who_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from netns_runtime.debug.flowlist import Row

BLOCKS: Final = "▁▂▃▄▅▆▇█"
ASCII: Final = "_.-:=+*#"
KEPT: Final = 240
"""Points of a sparkline."""


def _number(row: Row, *names: str) -> float:
    return sum(float(row.get(name) or 0) for name in names)


def _rtt(row: Row) -> float:
    return float((row.get("upstream") or {}).get("rtt_ms") or 0)


def _again(row: Row) -> float:
    return sum(
        float((row.get(side) or {}).get("retransmits") or 0) for side in ("client", "upstream")
    )


# The letter that chooses it, what it sorts by, and whether the largest comes first.
SORTS: Final[dict[str, tuple[str, Callable[[Row], Any], bool]]] = {
    "rate": ("r", lambda row: _number(row, "rate_in", "rate_out"), True),
    "bytes": ("b", lambda row: _number(row, "bytes_in", "bytes_out"), True),
    "age": ("a", lambda row: _number(row, "duration_ms"), True),
    "rtt": ("t", _rtt, True),
    "retransmits": ("x", _again, True),
    "host": ("h", lambda row: (str(row.get("host")), row.get("port") or 0), False),
    "process": ("p", lambda row: (str(row.get("comm")), row.get("pid") or 0), False),
}


@dataclass(slots=True)
class Tick:
    """What one moment adds: sums over the sandboxes shown, for one second."""

    refused: float
    bytes_out: float
    bytes_in: float


@dataclass(slots=True)
class History:
    """The last ticks, oldest first."""

    ticks: deque[Tick] = field(default_factory=lambda: deque(maxlen=KEPT))

    def line(self, name: str, width: int, ramp: str) -> str:
        """A sparkline of one of Tick's fields, the newest at the right."""
        values = [getattr(tick, name) for tick in self.ticks][-max(1, width) :]
        return sparkline(values, ramp)


def sparkline(values: Sequence[float], ramp: str = BLOCKS) -> str:
    """One character for each value; the largest is the last of `ramp`, zero the first."""
    most = max(values, default=0.0)
    if most <= 0:
        return ramp[0] * len(values)
    steps = len(ramp) - 1
    # What is not zero is never shown as zero.
    return "".join(ramp[max(value > 0, round(value / most * steps))] for value in values)


def ordered(rows: Iterable[Row], key: str, *, reverse: bool = False) -> list[Row]:
    """Rows by one of SORTS; equal ones by sandbox and flow."""
    _, of, is_descending = SORTS[key]
    stable = sorted(rows, key=lambda row: (str(row.get("sandbox")), row.get("flow") or 0))
    return sorted(stable, key=of, reverse=is_descending is not reverse)


def frame_of(
    *,
    title: str,
    history: History,
    rows: Sequence[Row],
    key: str,
    width: int,
    height: int | None = None,
    ramp: str = BLOCKS,
    note: str = "",
    keys: bool = False,
) -> Group:
    """Everything that is on the screen; rows beyond `height` are left out, and counted."""
    tick = history.ticks[-1] if history.ticks else Tick(0, 0, 0)
    graph = max(8, width - 34)
    parts: list[Any] = [Text(title[:width], style="bold", no_wrap=True, overflow="ellipsis")]
    for label, name, value, style in (
        ("refused", "refused", f"{tick.refused:.1f}/s", "red"),
        ("out", "bytes_out", f"{size_of(tick.bytes_out)}/s", "green"),
        ("in", "bytes_in", f"{size_of(tick.bytes_in)}/s", "cyan"),
    ):
        line = Text(f"{label:<8}{value:>12}  ", no_wrap=True)
        line.append(history.line(name, graph, ramp), style=style)
        parts.append(line)
    room = len(rows) if height is None else max(1, height - 8)
    parts.append(_table(rows[:room], key, with_sandbox=len({r.get("sandbox") for r in rows}) > 1))
    if len(rows) > room:
        parts.append(Text(f"{len(rows) - room} more flows are not shown", style="dim"))
    if note:
        parts.append(Text(note, style="yellow"))
    if keys:
        choices = "  ".join(f"{letter} {name}" for name, (letter, _, _) in SORTS.items())
        parts.append(Text(f"q quit  i reverse  {choices}"[:width], style="dim", no_wrap=True))
    return Group(*parts)


def _table(rows: Sequence[Row], key: str, *, with_sandbox: bool) -> Table:
    table = Table(box=None, pad_edge=False, expand=False, header_style="bold", padding=(0, 1, 0, 0))
    names = {"process": "PROCESS", "host": "HOST", "age": "AGE", "rtt": "RTT", "retransmits": "RTX"}

    def column(name: str, text: str, **options: Any) -> None:
        chosen = "underline" if names.get(name) == text and name == key else ""
        table.add_column(Text(text, style=chosen), no_wrap=True, overflow="ellipsis", **options)

    if with_sandbox:
        column("", "SANDBOX", max_width=14)
    column("", "FLOW", justify="right")
    column("process", "PROCESS", max_width=24)
    column("host", "HOST", min_width=12)
    for name, text in (("age", "AGE"), ("", "OUT/s"), ("", "IN/s"), ("rtt", "RTT")):
        column(name, text, justify="right")
    column("retransmits", "RTX", justify="right")
    column("", "WS", max_width=12)
    for row in rows:
        cells = [
            str(row.get("flow", "-")),
            who_of(row).replace(" (pid ", "/").replace(")", ""),
            where_of(row),
            age_of(_number(row, "duration_ms") / 1000),
            size_of(_number(row, "rate_out")),
            size_of(_number(row, "rate_in")),
            f"{_rtt(row):.1f}ms" if _rtt(row) else "-",
            f"{_again(row):.0f}",
            websocket_of(row),
        ]
        sandbox = [shown(row.get("sandbox", "-"))] if with_sandbox else []
        table.add_row(*(Text(cell) for cell in (*sandbox, *cells)))
    return table


def websocket_of(row: Row) -> str:
    """Messages out and in of an open WebSocket, "-" of anything else."""
    if "websocket" not in row:
        return "-"
    return f"{row.get('messages_out', 0)}>{row.get('messages_in', 0)}<"
