"""Plain tables for the terminal and in Markdown: ``Table(*headers)``, ``add(*cells)``,
``print(table)``.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from lo_framework.errors import visible
from lo_framework.eval.report.text import markdown

GAP = "  "
LONGEST = 400  # characters of a cell
# Decorated numbers do not make their column one of words:
# 1.2x, 95%, 0.87*, -, 0.41 ±0.02, 0.4 [0.3, 0.5], 12 (2 of 5 never), 2 of 5 diverged.
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
            words or (isinstance(value, str) and not _NUMBER.fullmatch(value.strip()))
            for words, value in zip(self._words, cells, strict=True)
        ]
        self._rows.append([cell(value) for value in cells])

    def failed(self, name: str) -> None:
        """Append the row of an optimizer that has no numbers."""
        self.add(name, "FAILED", *[""] * (len(self.headers) - 2))

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
        lines = [self.title, ""] if self.title else []
        lines += self._aligned([self.headers, None, *self.rows], GAP, "-")
        lines += ["", *self.notes] if self.notes else []
        return "\n".join(text.rstrip() for text in lines)

    def markdown(self) -> str:
        """Return a Markdown table, its source aligned too; rules become nothing."""
        headers, *body = (
            [markdown(text).replace("|", "\\|") for text in row]
            for row in (self.headers, *self.rows)
            if row is not None
        )
        lines = [f"**{markdown(self.title)}**", ""] if self.title else []
        aligned = self._aligned([headers, None, *body], " | ", ":", 3)
        lines += [f"| {line} |" for line in aligned]
        for note in self.notes:
            lines += ["", markdown(note)]
        return "\n".join(lines)

    @property
    def rows(self) -> list[list[str] | None]:
        """Return the cells of each row; None is a rule between two."""
        return self._rows[:-1] if self._rows and self._rows[-1] is None else self._rows

    def _aligned(
        self, rows: Sequence[list[str] | None], gap: str, end: str, least: int = 1
    ) -> list[str]:
        """Pad the cells of each column to the widest one; None becomes a rule, which closes columns
        of numbers with ``end``.
        """
        widths = [max(least, *map(width, column)) for column in zip(*filter(None, rows))]
        lines = []
        for row in rows:
            padded = []
            for i, (w, words) in enumerate(zip(widths, self._words, strict=True)):
                text = row[i] if row else "-" * (w - 1) + ("-" if words else end)
                blank = " " * (w - width(text))
                padded.append(text + blank if words else blank + text)
            lines.append(gap.join(padded))
        return lines
