"""What every page of a report must be, read as text and seen in a browser."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

from lo_framework.eval.report.page import Term
from tests.eval.report.browser import browser

LARGEST = 1_000_000  # characters
PLAIN = ("difference", "ratio", "axis", "worst")  # they mean what they say before that, too
PHONE, DESKTOP = 390, 1200  # pixels


class Page(HTMLParser):
    """Checks that tags nest, that ids are there once and that nothing outside is asked for."""

    VOID = ("meta", "link", "br", "image", "img", "use", "path", "stop")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.references: list[str] = []
        self.pictures = self.tables = 0
        self.parts: list[str] = []
        self.explained: dict[str, int] = {}  # word -> where in the text
        self.shown = True

    @property
    def text(self) -> str:
        return " ".join("".join(self.parts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids += [given["id"]] if "id" in given else []
        self.references += [x for name, x in given.items() if name in ("src", "href", "xlink:href")]
        for value in given.values():
            self.references += re.findall(r"url\(([^)]*)\)", value)
        self.pictures += tag == "svg"
        if tag == "table":
            self.tables += 1
        if tag in ("table", "svg"):
            assert self.open[-1] == "div.scroll", "what is wide scrolls by itself"
        if tag not in self.VOID:
            self.open.append(f"{tag}.scroll" if given.get("class") == "scroll" else tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop().partition(".")[0] == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("style", "title"):
            return
        if "dfn" in self.open:
            self.explained[data] = len("".join(self.parts))
        self.parts.append(data if data.strip() else " ")


def read(text: str, words: Sequence[Term]) -> Page:
    """Parse a page and hold it to what a page must be."""
    page = Page()
    page.feed(text)
    page.close()
    assert page.open == [] and page.tables and len(text) < LARGEST
    assert len(page.ids) == len(set(page.ids)), "every id is there once"
    inside = [x for x in page.references if x.startswith("#")]
    assert {x[1:] for x in inside} <= set(page.ids), "what is linked is there"
    others = set(page.references) - set(inside)
    assert all(x == "data:," or x.startswith("data:image/png;base64,") for x in others)
    assert "://" not in text and "<script" not in text and "@import" not in text
    heads = [text.index(f'<h2 id="{name}"') for name in ("summary", "origin")]
    assert heads == sorted(heads) and "<table" not in text[: heads[0]]
    assert page.explained.keys() == {term.word for term in words}
    body = "".join(page.parts)
    summary = body.index("Summary", body.index("Summary") + 1)  # the first one is a link
    for word, place in page.explained.items():
        used = re.search(rf"(?<!\w){re.escape(word)}(?!\w)", body[summary:place])
        assert used is None or word in PLAIN, f"{word} is used before it is explained"
    return page


def look_at(path: Path) -> None:
    """Open the page in a browser, as on a phone and on a desk, in the light and in the dark."""
    with browser() as tab:
        grounds = []
        for width in (PHONE, DESKTOP):
            for dark in (False, True):
                tab.open(path, width, dark=dark)
                assert tab.value("document.documentElement.scrollWidth") <= width
                grounds.append(tab.value("getComputedStyle(document.body).backgroundColor"))
                ink = "getComputedStyle(document.querySelector('svg text')).fill"
                assert tab.value(ink) == tab.value("getComputedStyle(document.body).color")
        wide = "[...document.querySelectorAll('.scroll')].some(x => x.scrollWidth > x.clientWidth)"
        tab.open(path, PHONE)
        assert tab.value(wide), "something is wider than a phone, and scrolls"
        assert grounds[0] == grounds[2] != grounds[1] == grounds[3]
        asked = {x for x in tab.asked if not x.startswith("data:")}
        assert asked == {path.resolve().as_uri()} and tab.complaints == []
