"""What the report's HTML is made of: nothing that is given as text can become anything else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netns_runtime.debug.report import html, parts, style
from netns_runtime.debug.report.html import Markup, document, escaped, tag, together
from tests.support.report_page import read

PACKAGE = Path(html.__file__).parent


@settings(max_examples=60)
@given(st.text())
def test_any_text_reads_back_as_text_and_as_nothing_else(text: str) -> None:
    made = tag("p", tag("code", text), text, class_=text)
    page = read(made)
    assert page.elements == {"p": 1, "code": 1}
    assert page.attributes == {"class"}
    assert not set(made) & {*map(chr, range(32)), "\x7f", "\u202e", "\u2066", "\u200b", "\ufeff"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a<b>&\"'", "a&lt;b&gt;&amp;&quot;&#39;"),
        ("\x1b[31m\r\n", "\\x1b[31m\\r\\n"),
        ("\u202eexe\u2066", "\\u202eexe\\u2066"),
        ("\ud800", "\\ud800"),
        ("\u2028\x85", "\\u2028\\x85"),
        ("b\u00fccher \u00d7", "b\u00fccher \u00d7"),
        (7, "7"),
    ],
)
def test_text_is_escaped_and_what_is_unseen_is_shown(text: object, said: str) -> None:
    assert escaped(text) == said


def test_markup_is_kept_and_a_string_that_looks_like_it_is_not() -> None:
    assert tag("p", Markup("<b>"), "<b>", None, [1, "<i>"]) == "<p><b>&lt;b&gt;1&lt;i&gt;</p>"
    assert isinstance(together("<"), Markup)


@pytest.mark.parametrize("name", ["script", "style", "img", "iframe", "b onload", "foreignObject"])
def test_no_other_element_can_be_made(name: str) -> None:
    with pytest.raises(ValueError, match="no element"):
        tag(name)


@pytest.mark.parametrize("name", ["onload", "style", "src", "srcdoc", "formaction", "xlink:href"])
def test_no_other_attribute_can_be_made(name: str) -> None:
    with pytest.raises(ValueError, match="no attribute"):
        tag("p", **{name: "x"})


@pytest.mark.parametrize("place", ["javascript:alert(1)", "http://a.test/", "#", "#A", "#a b", "a"])
def test_a_link_leads_to_the_page_itself_only(place: str) -> None:
    with pytest.raises(ValueError, match="links to places in itself"):
        tag("a", href=place)


def test_markup_is_made_in_one_module_alone() -> None:
    makers = {
        path.name for path in PACKAGE.glob("*.py") if re.search(r"\bMarkup\(", path.read_text())
    }
    assert makers == {"html.py"}


def test_a_style_that_ends_its_element_is_no_style() -> None:
    with pytest.raises(ValueError, match="ends no element"):
        document("t", "a{}</style>", together())


def _luminance(colour: str) -> float:
    parts_of = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts_of]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", [style.LIGHT, style.DARK])
@pytest.mark.parametrize("ground", ["ground", "card", "tint"])
def test_text_has_the_contrast_that_wcag_asks_for(scheme: dict[str, str], ground: str) -> None:
    below = _luminance(scheme[ground])
    for name in ("ink", "soft", "passed", "open", "noted", "failed", "refused", "closed"):
        above = _luminance(scheme[name])
        ratio = (max(above, below) + 0.05) / (min(above, below) + 0.05)
        assert ratio >= 4.5, (name, ground, round(ratio, 2))


def test_every_class_that_is_coloured_has_a_word_and_a_sign() -> None:
    signs = read(parts.signs())
    assert set(signs.ids) == {f"m-{outcome}" for outcome in parts.WORDS}


@pytest.mark.parametrize(
    ("number", "said"), [(0, "0"), (9999, "9\u202f999"), (59_680, "60k"), (1_234_567, "1.2M")]
)
def test_a_number_without_room_is_short(number: int, said: str) -> None:
    assert parts.compact(number) == said
