"""Plain tables for the terminal and in Markdown: ``Table(*headers)``, ``add(*cells)``,
``print(table)``.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from lo_framework.errors import visible
from lo_framework.eval.report.text import markdown

GAP = "  "
LONGEST = 400  # characters of a cell
# as 1.2x, 95%, 0.87*, -, 0.41 ±0.02, 0.4 [0.3, 0.5], 12 (2 of 5 never), 2 of 5 diverged
_NUMBER = re.compile(
    r"-?|(never|[-+]?(\d[\d.,]*(e[-+]?\d+)?|inf|nan)[%x]?\*?)( ?[±[(].*| of \d+( diverged)?)?",
    re.IGNORECASE,
)


def cell(value: Any) -> str:
    """Return one line of text: floats to four significant digits, None as a dash, the rest (an
    `Estimate` too) by ``str``.
    """
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = visible(" ".join(str(value).split()))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def width(text: str) -> int:
    """Count the columns of a terminal: wide characters take two, combining marks none."""
    return sum(
        0 if unicodedata.combining(c) else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


class Table:
    """Rows of cells under headers. Columns of words are set left, columns of numbers right.

    Args:
        headers: one per column.
        title: a line above.
        notes: lines below: what an interval is, how many seeds.
        words: so many columns from the left are set left on an HTML page.
    """

    def __init__(
        self, *headers: str, title: str = "", notes: tuple[str, ...] = (), words: int = 1
    ) -> None:
        if not headers:
            raise ValueError("a table needs at least one column")
        self.headers = [cell(header) for header in headers]
        self.title = cell(title)
        self.notes = tuple(map(visible, notes))
        self.words = words
        self._rows: list[list[str] | None] = []  # None: a rule between groups of rows
        self._words = [False] * len(headers)

    def add(self, *cells: Any) -> None:
        """Append a row. Raises ValueError unless it has one cell per column."""
        if len(cells) != len(self.headers):
            raise ValueError(
                f"a row of {len(cells)} cells in a table of {len(self.headers)} columns"
            )
        self._words = [
            words or (isinstance(value, str) and not _numeric(value))
            for words, value in zip(self._words, cells, strict=True)
        ]
        self._rows.append([cell(value) for value in cells])

    def __bool__(self) -> bool:
        return bool(self._rows)

    def rule(self) -> None:
        """Draw a line between the rows so far and the next ones (not at the ends, never twice)."""
        if self._rows and self._rows[-1] is not None:
            self._rows.append(None)

    def __str__(self) -> str:
        return self.plain()

    def plain(self) -> str:
        """Return lines aligned with spaces, headers underlined; no trailing blanks."""
        widths = self._widths()
        line = GAP.join("-" * w for w in widths)
        lines = [self.title, ""] if self.title else []
        lines += [self._join(self.headers, widths, GAP), line]
        lines += [line if row is None else self._join(row, widths, GAP) for row in self.rows]
        lines += ["", *self.notes] if self.notes else []
        return "\n".join(text.rstrip() for text in lines)

    def markdown(self) -> str:
        """Return a Markdown table, its source aligned too; rules become nothing."""
        headers, *body = (
            [markdown(text).replace("|", "\\|") for text in row]
            for row in (self.headers, *self.rows)
            if row is not None
        )
        widths = [max(3, *(width(row[i]) for row in [headers, *body])) for i in range(len(headers))]
        marks = [
            "-" * w if words else "-" * (w - 1) + ":"
            for w, words in zip(widths, self._words, strict=True)
        ]
        lines = [f"**{markdown(self.title)}**", ""] if self.title else []
        lines += [f"| {self._join(row, widths, ' | ')} |" for row in (headers, marks, *body)]
        for note in self.notes:
            lines += ["", markdown(note)]
        return "\n".join(lines)

    @property
    def rows(self) -> list[list[str] | None]:
        """Return the cells of each row; None is a rule between two."""
        return self._rows[:-1] if self._rows and self._rows[-1] is None else self._rows

    def _widths(self) -> list[int]:
        rows = [self.headers, *(row for row in self._rows if row is not None)]
        return [max(width(row[i]) for row in rows) for i in range(len(self.headers))]

    def _join(self, row: list[str], widths: list[int], gap: str) -> str:
        padded = []
        for text, w, words in zip(row, widths, self._words, strict=True):
            blank = " " * (w - width(text))
            padded.append(text + blank if words else blank + text)
        return gap.join(padded)


def _numeric(text: str) -> bool:
    """Tell a decorated number, which does not make its column one of words."""
    return _NUMBER.fullmatch(text.strip()) is not None
