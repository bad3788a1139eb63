"""HTML that cannot be injected into: what is text and what is markup is told apart by type.

`tag` is the only way to make Markup. Whatever else it is given, as content or as an attribute, is
text and is escaped, control and direction characters become visible escapes, and names of elements
and attributes come from closed lists: no script, style, handler or address can be made of what an
audit says. Raises ValueError for anything beyond the lists, which is a bug of ours.
"""

from __future__ import annotations

import base64
import hashlib
import re
import unicodedata
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

ELEMENTS: Final = frozenset(
    {
        *("a", "article", "caption", "code", "dd", "details", "div", "dl", "dt", "footer", "g"),
        *("h1", "h2", "h3", "header", "input", "label", "li", "line", "main", "nav", "ol", "p"),
        *("path", "polygon", "rect", "section", "small", "span", "strong", "summary", "svg"),
        *("circle", "symbol", "table", "tbody", "td", "text", "th", "thead", "time", "title"),
        *("tr", "ul", "use"),
    }
)
_VOID: Final = frozenset({"input"})
_SPELLED: Final = {
    "class_": "class",
    "for_": "for",
    "viewbox": "viewBox",
    "preserve": "preserveAspectRatio",
    "aria_label": "aria-label",
    "aria_hidden": "aria-hidden",
    "type_": "type",
    "id_": "id",
    "labelledby": "aria-labelledby",
    "stroke_width": "stroke-width",
}
ATTRIBUTES: Final = frozenset(
    {
        *_SPELLED.values(),
        *("checked", "colspan", "cx", "cy", "d", "datetime", "focusable", "height", "href", "name"),
        *("open", "overflow", "points", "r", "role", "rx", "scope", "tabindex", "width", "x", "x1"),
        *("x2", "y", "y1", "y2"),
    }
)
_PLACE: Final = re.compile(r"#[a-z][a-z0-9-]*")
_UNSEEN: Final = frozenset({"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"})
_ESCAPES: Final = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;"}
)


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


Content = str | int | float | None


def escaped(value: object) -> str:
    """Text as it stands between tags or in a quoted attribute."""
    raw = str(value)
    if not (raw.isascii() and raw.isprintable()):
        raw = "".join(
            c.encode("unicode_escape").decode("ascii") if unicodedata.category(c) in _UNSEEN else c
            for c in raw
        )
    return raw.translate(_ESCAPES)


def tag(
    name: str, /, *content: Content | Iterable[Content], **attributes: str | float | bool | None
) -> Markup:
    """One element. None and False leave an attribute out; content may be nested iterables."""
    if name not in ELEMENTS:
        raise ValueError(f"no element {name!r} is made here")
    said = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{name}{said}>")
    return Markup(f"<{name}{said}>{together(*content)}</{name}>")


def together(*content: Content | Iterable[Content]) -> Markup:
    """Several as one."""
    return Markup("".join(_pieces(content)))


def _pieces(content: Iterable[Content | Iterable[Content]]) -> Iterable[str]:
    for piece in content:
        if piece is None:
            continue
        if isinstance(piece, Markup):
            yield piece
        elif isinstance(piece, (str, int, float)):
            yield escaped(piece)
        else:
            yield from _pieces(piece)


def _attribute(key: str, value: str | float | bool | None) -> str:
    name = _SPELLED.get(key, key)
    if name not in ATTRIBUTES:
        raise ValueError(f"no attribute {name!r} is made here")
    if value is None or value is False:
        return ""
    if value is True:
        return f" {name}"
    if name == "href" and _PLACE.fullmatch(str(value)) is None:
        raise ValueError("a page links to places in itself and to nothing else")
    return f' {name}="{escaped(value)}"'


def document(title: str, style: str, body: Markup) -> str:
    """The whole page. Its policy lets in this one style sheet: no script, no address, no form."""
    digest = base64.b64encode(hashlib.sha256(style.encode("utf-8")).digest()).decode("ascii")
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    if "</" in style:
        raise ValueError("a style sheet ends no element")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<meta name="referrer" content="no-referrer">\n'
        f"<title>{escaped(title)}</title>\n<style>{style}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )
