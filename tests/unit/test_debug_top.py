"""One frame of top: order, sparklines, and what cannot get out of its cell."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from netns_runtime.debug import top
from netns_runtime.debug.topframe import (
    ASCII,
    BLOCKS,
    SORTS,
    History,
    Tick,
    frame_of,
    ordered,
    sparkline,
)
from netns_runtime.errors import UsageError

ROWS: list[dict[str, Any]] = [
    {"flow": 1, "host": "b.test", "port": 1, "comm": "x", "pid": 1, "rate_in": 5, "bytes_in": 9},
    {"flow": 2, "host": "a.test", "port": 1, "comm": "y", "pid": 2, "rate_in": 50, "bytes_in": 7},
    {"flow": 3, "host": "c.test", "port": 1, "upstream": {"rtt_ms": 3.0, "retransmits": 2}},
]


def drawn(rows: list[dict[str, Any]], width: int = 80, **options: Any) -> list[str]:
    history = History()
    history.ticks.extend([Tick(0, 0, 0), Tick(10, 2000, 1000)])
    out = io.StringIO()
    console = Console(file=out, width=width, highlight=False, markup=False, emoji=False)
    what = {"title": "title", "key": "rate", "ramp": ASCII, **options}
    console.print(frame_of(history=history, rows=rows, width=width, **what))
    return out.getvalue().splitlines()


@pytest.mark.parametrize(
    ("key", "flows"),
    [
        ("rate", [2, 1, 3]),
        ("bytes", [1, 2, 3]),
        ("rtt", [3, 1, 2]),
        ("retransmits", [3, 1, 2]),
        ("host", [2, 1, 3]),
        ("process", [3, 1, 2]),
    ],
)
def test_sorts_by_each_key(key: str, flows: list[int]) -> None:
    assert [row["flow"] for row in ordered(ROWS, key)] == flows
    assert [row["flow"] for row in ordered(ROWS, key, reverse=True)][-1] == flows[0]


def test_the_command_line_and_the_frame_know_the_same_keys() -> None:
    assert set(SORTS) == set(top._SORT_KEYS)
    letters = [letter for letter, _, _ in SORTS.values()]
    assert len(set(letters) - {"q", "i"}) == len(letters)


def test_a_sparkline_shows_the_least_of_something_as_more_than_nothing() -> None:
    assert sparkline([0, 1, 500, 1000]) == BLOCKS[0] + BLOCKS[1] + BLOCKS[4] + BLOCKS[7]
    assert sparkline([0, 0]) == BLOCKS[0] * 2
    assert sparkline([]) == ""


@pytest.mark.parametrize("width", [60, 80, 132])
def test_a_frame_is_never_wider_than_the_screen(width: int) -> None:
    long = {**ROWS[0], "host": "h" * 200, "comm": "c" * 50, "websocket": "open"}
    assert max(map(len, drawn([long, *ROWS], width))) <= width


def test_rows_beyond_the_screen_are_counted() -> None:
    rows = [{**ROWS[0], "flow": number} for number in range(50)]
    lines = drawn(rows, height=20)
    assert "38 more flows are not shown" in lines
    assert len(lines) <= 20


def test_what_the_sandbox_chose_is_neither_markup_nor_control() -> None:
    row = {**ROWS[0], "comm": "[red]x\x1b[2J", "host": ":smile:"}
    text = "\n".join(drawn([row], 120))
    assert "[red]x" in text
    assert ":smile:" in text
    assert "\x1b" not in text


def test_totals_of_the_last_tick_stand_before_their_lines() -> None:
    lines = drawn(ROWS)
    assert lines[1].split()[:2] == ["refused", "10.0/s"]
    assert lines[2].split()[:3] == ["out", "2.0", "kB/s"]
    assert lines[1].endswith(ASCII[0] + ASCII[-1])


def test_keys_choose_reverse_and_quit() -> None:
    options = top.Options()
    assert top._obey(b"a", options)
    assert options.sort == "age"
    assert top._obey(b"i?", options)
    assert options.reverse
    assert not top._obey(b"xq", options)
    assert not top._obey(b"", options)


@pytest.mark.parametrize("words", [["--sort"], ["--interval", "0"], ["--twice"], ["one", "two"]])
def test_bad_words_are_refused(words: list[str]) -> None:
    with pytest.raises(UsageError):
        top.parsed(words)
