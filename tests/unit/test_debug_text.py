"""How explanations look: width, colour, and nothing of the sandbox's on the terminal raw."""

from __future__ import annotations

import io

import pytest

from netns_runtime.debug.text import Page, age_of, clock_of, shown, size_of, where_of, who_of


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        ("plain", "plain"),
        ("\x1b[31mred", "\\x1b[31mred"),
        ("a\nb", "a\\nb"),
        ("b\u00fccher", "b\\xfccher"),
        ("\u202egnp", "\\u202egnp"),
        (None, "None"),
    ],
)
def test_what_the_sandbox_chose_is_printable_ascii(raw: object, told: str) -> None:
    assert shown(raw) == told


def test_text_without_end_is_cut() -> None:
    assert shown("x" * 5000, 10) == "xxxxxxx..."


def test_a_page_that_is_no_terminal_is_plain_and_80_wide() -> None:
    page = Page(io.StringIO())
    assert (page.width, page.paint("x", "red")) == (80, "x")
    assert Page(io.StringIO(), colour=True).paint("x", "red") == "\x1b[31mx\x1b[0m"


def test_a_paragraph_wraps_below_its_first_word_and_keeps_long_words_whole() -> None:
    page = Page(io.StringIO(), width=40)
    path = "/" + "p" * 60
    text = page.paragraph(f"word {path} and some more words to fill it", indent="lead  ")
    assert path in text
    assert all(line.startswith("      ") for line in text.splitlines()[1:])
    assert all(len(line) <= 40 for line in text.splitlines() if path not in line)


def test_a_table_fits_and_puts_numbers_right() -> None:
    page = Page(io.StringIO(), width=40)
    table = page.table(("NAME", "N"), [("a\x1b", 5), ("b" * 50, 12345)])
    assert "\x1b" not in table
    assert all(len(line) <= 40 for line in table.splitlines())


def test_an_event_with_nothing_in_it_is_told_as_unknown() -> None:
    assert who_of({}) == "an unknown process"
    assert where_of({}) == "-"
    assert clock_of({}) == "-"
    assert where_of({"address": "2001:db8::1", "port": 443}) == "[2001:db8::1]:443"


def test_sizes_and_ages_are_short() -> None:
    assert [size_of(n) for n in (0, 999, 1500, 2_000_000)] == ["0 B", "999 B", "1.5 kB", "2.0 MB"]
    assert [age_of(n) for n in (0.44, 59, 65, 7260, 100_000)] == [
        *("0.4s", "59s", "1m05s", "2h01m"),
        "1d03h",
    ]
