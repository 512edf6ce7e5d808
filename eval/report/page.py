"""One self-contained HTML page: what came out, where it comes from, what the words mean, and then
tables and pictures, section by section.

Every report has its page from here (`Report.html`). Nothing on it asks for anything outside.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from lo_framework.errors import visible
from lo_framework.eval.report.drawing import COLOURS, DARK
from lo_framework.eval.report.svg import Drawn, svg
from lo_framework.eval.report.table import Table
from lo_framework.optional import require

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Term:
    """A word or a symbol, and what it means.

    Attributes:
        first: the summary says it, so that it is explained there.
        names: what else tables call it; in their headers and first columns it leads here.
    """

    word: str
    meaning: str
    first: bool = False
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.word}: {self.meaning}"


@dataclass(frozen=True)
class Picture:
    """A figure as an SVG element, and what there is to see."""

    svg: Drawn
    caption: str

    def numbered(self, number: int) -> str:
        """Return the element with ids that no other picture of the page has."""
        return self.svg.text.replace(self.svg.mark, f"picture-{number}")


@dataclass(frozen=True)
class Folded:
    """Parts that are shown when a person asks for them."""

    title: str
    parts: tuple[Part, ...]


Part = str | list[str] | Table | Picture | Folded  # a title, a list of lines, ...


@dataclass(frozen=True)
class Section:
    title: str
    parts: Sequence[Part]


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a page says, in its order.

    Attributes:
        lead: one line on what was run.
        cautions: what the numbers cannot tell.
        origin: where they come from, in lines; details: the rest of that, folded.
        loud: texts of cells that stand out.
    """

    title: str
    lead: str
    summary: list[str]
    cautions: list[str]
    failures: list[str]
    command: str
    origin: list[str]
    words: list[Term]
    sections: list[Section]
    details: list[Part] = field(default_factory=list)
    loud: tuple[str, ...] = ()


def picture(figure: Figure | None, caption: str) -> list[Part]:
    """Return the figure as a part of a section; nothing where there is no figure."""
    return [] if figure is None else [Picture(svg(figure), caption)]


def render(page: Page) -> str:
    """Return the HTML document; every text is made visible, then escaped."""
    require("jinja2")
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        # Every value passes here before it is escaped; what a macro made has done so already.
        finalize=lambda value: value if hasattr(value, "__html__") else visible(value),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    number = itertools.count(1)
    environment.filters |= {
        "kind": lambda part: type(part).__name__,
        "drawn": lambda part: Markup(part.numbered(next(number))),
    }
    places = {id(term): f"word-{i}" for i, term in enumerate(page.words, 1)}
    return environment.get_template("page.html").render(
        page=page,
        places=[(term, places[id(term)]) for term in page.words],
        links=_links(page.words, places),
        colours=[*zip(COLOURS, DARK)],
    )


def _links(words: Iterable[Term], places: dict[int, str]) -> dict[str, str]:
    """What a cell says -> the id of the word that explains it."""
    return {name: places[id(term)] for term in words for name in (term.word, *term.names)}
