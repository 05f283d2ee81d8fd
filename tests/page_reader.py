"""Reads a page as a browser would: balanced tags, nothing loaded from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser


class Reader(HTMLParser):
    """Checks that tags are balanced, and keeps tags, attributes and text."""

    VOID = ("meta", "img", "br", "path", "use")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read(page: str) -> Reader:
    """The page's content; fails if a tag is left open."""
    reader = Reader()
    reader.feed(page)
    reader.close()
    assert reader.open == []
    return reader


def loads_nothing(page: str) -> bool:
    """Whether the page can be shown without any other file or server."""
    for tag, attributes in read(page).seen:
        if tag in ("link", "iframe", "object", "script"):
            return False
        for key in ("src", "href", "xlink:href"):
            value = attributes.get(key)
            if value is not None and not value.startswith(("data:", "#")):
                return False
    local = set(re.findall(r"url\((#[^)]*)", page))
    return "@import" not in page and set(re.findall(r"url\(([^)]*)", page)) <= local
