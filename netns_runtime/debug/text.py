"""How an explanation looks: as narrow as the terminal, coloured on one, plain anywhere else.

What the sandbox chose (names, paths, processes) goes through `shown` before it is printed: in
printable ASCII it cannot steer a terminal. What could pass for words of ours beside it, as a
process called "x (pid 1) < y", goes through `named`. Pure but for `Page`'s look at standard output.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import textwrap
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import TextIO

WIDTH: Final = 80
NARROWEST: Final = 40
_CODES: Final = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
_SPANS: Final = ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s"))
_WORD: Final = re.compile(r"[A-Za-z0-9_./:@%+=~#*-]+")
_CODE: Final = re.compile(r"\x1b\[[0-9;]*m")


def shown(text: object, limit: int = 2000) -> str:
    """Printable ASCII; everything else as a backslash escape, and no longer than `limit`."""
    raw = str(text)
    if not (raw.isascii() and raw.isprintable()):
        raw = "".join(
            c if c.isascii() and c.isprintable() else c.encode("unicode_escape").decode("ascii")
            for c in raw
        )
    return raw if len(raw) <= limit else raw[: limit - 3] + "..."


def named(text: object, limit: int = 2000) -> str:
    """`shown`, and in quotes unless it is one plain word."""
    raw = shown(text, limit)
    return raw if _WORD.fullmatch(raw) else '"' + raw.replace('"', '\\"') + '"'


def who_of(event: Mapping[str, Any]) -> str:
    """`comm (pid N)` of an event, or "an unknown process"."""
    if "pid" not in event and "comm" not in event:
        return "an unknown process"
    pid = f" (pid {shown(event['pid'])})" if "pid" in event else ""
    comm = event.get("comm")
    return (named(comm) if comm else "a process") + pid


def where_of(event: Mapping[str, Any]) -> str:
    """`host:port` of an event, its address where there is no name, "-" where there is neither."""
    host = shown(event.get("host") or event.get("address") or "-")
    port = event.get("port")
    if port is None:
        return host
    return f"[{host}]:{shown(port)}" if ":" in host else f"{host}:{shown(port)}"


def clock_of(event: Mapping[str, Any]) -> str:
    """`HH:MM:SS.mmm` (UTC) of an event's time, as much as there is of it."""
    return shown(str(event.get("time", "-"))[11:23] or "-", 12)


def size_of(number: float) -> str:
    """Bytes for a person: `17 B`, `4.2 kB`, `1.0 MB` (powers of 1000)."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000 or unit == "GB":
            break
        number /= 1000
    return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"


def age_of(seconds: float) -> str:
    """A time span for a person: `0.4s`, `12s`, `3m05s`, `2h07m`, `3d04h`."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = int(seconds)
    for size, unit, below, rest in _SPANS:
        if whole >= size:
            return f"{whole // size}{unit}{whole % size // below:02}{rest}"
    return f"{whole}s"


class Page:
    """What is printed for a person. `width` is columns; colour only where `is_coloured`."""

    def __init__(
        self, stream: TextIO | None = None, *, width: int | None = None, colour: bool | None = None
    ) -> None:
        stream = stream or sys.stdout
        is_terminal = stream.isatty()
        if width is None:
            # COLUMNS and the terminal's own answer, in this order (shutil); a pipe is 80 wide.
            width = shutil.get_terminal_size((WIDTH, 24)).columns if is_terminal else WIDTH
        self.width = max(NARROWEST, width)
        wants = is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        self.is_coloured = wants if colour is None else colour

    def paint(self, text: str, *styles: str) -> str:
        """The text in a colour or weight: bold dim red green yellow cyan."""
        if not self.is_coloured or not text:
            return text
        codes = ";".join(_CODES[style] for style in styles)
        return f"\x1b[{codes}m{text}\x1b[0m"

    def paragraph(self, text: str, *, indent: str = "", hanging: str | None = None) -> str:
        """Wrapped to the width: first line after `indent`, the others after `hanging`.

        A word that is longer than a line (a path, a policy line) stays whole, to be copied.
        """
        return (
            "\n".join(
                textwrap.wrap(
                    text,
                    self.width,
                    initial_indent=indent,
                    subsequent_indent=" " * len(_CODE.sub("", indent))
                    if hanging is None
                    else hanging,
                    break_long_words=False,
                    break_on_hyphens=False,
                )
            )
            or indent.rstrip()
        )

    def table(self, header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
        """Left-aligned columns of `shown` cells, numbers to the right; the last is cut to fit."""
        cells = [[shown(cell) for cell in row] for row in rows]
        numeric = [
            bool(rows) and all(isinstance(row[index], (int, float)) for row in rows)
            for index in range(len(header))
        ]
        widths = [
            max([len(name), *(len(row[index]) for row in cells)])
            for index, name in enumerate(header)
        ]
        lines = []
        for row in [list(header), *cells]:
            line = "  ".join(
                cell.rjust(width) if right else cell.ljust(width)
                for cell, width, right in zip(row, widths, numeric, strict=True)
            ).rstrip()
            lines.append(line if len(line) <= self.width else line[: self.width - 1] + ">")
        lines[0] = self.paint(lines[0], "bold")
        return "\n".join(lines)
