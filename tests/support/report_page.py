"""Reads a report's page as a browser would, strictly: what is in it, and whether it is well-formed.

`read` raises AssertionError where elements do not nest or an attribute is none that we write.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = frozenset({"meta", "input"})
ADDRESSES = frozenset({"src", "srcset", "action", "formaction", "data", "poster", "background"})


@dataclass
class Page:
    """`text` is what a person reads; `elements` are counts; `links` and `ids` without their #."""

    text: str = ""
    elements: dict[str, int] = field(default_factory=dict)
    links: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    attributes: set[str] = field(default_factory=set)
    metas: dict[str, str] = field(default_factory=dict)
    style: str = ""


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.page = Page()
        self.stack: list[str] = []
        self.said: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        page = self.page
        page.elements[tag] = page.elements.get(tag, 0) + 1
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), (tag, names)
        given = dict(attrs)
        for name, value in attrs:
            page.attributes.add(name)
            assert not name.startswith("on"), (tag, name)
            assert name not in ADDRESSES, (tag, name)
            if name == "href":
                assert value is not None
                assert value.startswith("#"), value
                page.links.append(value[1:])
            if name == "id":
                page.ids.append(str(value))
        if tag == "meta":
            key = given.get("http-equiv") or given.get("name") or "charset"
            page.metas[key.lower()] = str(given.get("content") or given.get("charset"))
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack, f"</{tag}> ends nothing"
        opened = self.stack.pop()
        assert opened == tag, f"</{tag}> ends <{opened}>"

    def handle_data(self, data: str) -> None:
        if self.stack and self.stack[-1] == "style":
            self.page.style += data
        else:
            self.said.append(data)


def read(html: str) -> Page:
    reader = _Reader()
    reader.feed(html)
    reader.close()
    assert not reader.stack, reader.stack
    reader.page.text = " ".join(" ".join(reader.said).split())
    return reader.page
