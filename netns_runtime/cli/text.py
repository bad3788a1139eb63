"""How netns-debug shows things: columns for a person, JSON for a program.

Whatever comes from a sandbox (names, commands, paths) is written by somebody we do not trust, so
control characters are shown as escapes and never reach the terminal.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence


def printable(text: object) -> str:
    """The text with every control, format and unassigned character escaped."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in str(text)
    )


def columns(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Left-aligned columns; the last one is as long as it is."""
    cells = [list(header), *[[printable(cell) for cell in row] for row in rows]]
    widths = [max(len(row[index]) for row in cells) for index in range(len(header))]
    lines = (
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )
    return "\n".join(lines)


def pairs(values: dict[str, Any]) -> str:
    """One `key  value` line for each."""
    width = max((len(key) for key in values), default=0)
    return "\n".join(f"{key.ljust(width)}  {printable(value)}" for key, value in values.items())


def settle(status: int) -> int:
    """Give out what is buffered; a stream that takes nothing is no reason for Python's 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return status


def internal_error(program: str, error: Exception) -> int:
    """One line for a bug of ours, and where it was; the exit status. -v shows the whole of it."""
    import traceback

    if "-v" in sys.argv or "--verbose" in sys.argv:
        traceback.print_exception(error)
    frame = traceback.extract_tb(error.__traceback__)[-1]
    what = f"{type(error).__name__}: {printable(error)}"
    where = f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"
    sys.stderr.write(f"{program}: internal error, {what} ({where}): please report it\n")
    return 125


def say(text: str) -> None:
    """Print for a person; a reader that went away (`| head`) is no error."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def say_json(value: Any) -> None:
    say(json.dumps(value, ensure_ascii=True, indent=2, default=str))
