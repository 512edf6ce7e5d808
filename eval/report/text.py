"""Names for the format that they are written in: whatever a task or an optimizer is called shows as
text and does nothing else.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from urllib.parse import quote

from lo_framework.errors import visible

# What would begin a code span, a link or an image, a reference, a tag or an entity. A backslash
# before punctuation first, or it would undo the one that is put before the next character.
_ACTIVE = re.compile(r"\\(?=[!-/:-@\[-`{-~])|`|\](?=[(\[:])|<(?=[A-Za-z/!?])|&(?=#?\w+;)")
_LONGEST = 80  # characters of a name in the name of a file


def markdown(text: object) -> str:
    """Return one line of Markdown that shows ``text`` as it is."""
    entities = {"<": "&lt;", "&": "&amp;"}
    return _ACTIVE.sub(lambda match: entities.get(match[0], "\\" + match[0]), visible(text))


def code(text: str) -> str:
    """Return a code span of Markdown, whatever backquotes ``text`` holds."""
    shown = visible(text)
    if "`" not in shown:
        return f"`{shown}`"
    fence = "`" * (1 + max(map(len, re.findall("`+", shown))))
    return f"{fence} {shown} {fence}"


def picture(words: str, address: str) -> str:
    """Return an image of Markdown; ``address``: a path from the page's folder."""
    return f"![{markdown(re.sub(r'[][]', ' ', words))}]({quoted(address)})"


def quoted(address: str) -> str:
    """Return a path as a link has it; bytes that are no UTF-8 too."""
    return quote(address.encode("utf-8", "surrogateescape"))


def bullets(lines: Iterable[object]) -> str:
    """Return a list of Markdown."""
    return "\n".join(f"- {markdown(line)}" for line in lines)


def table_of_values(
    headers: Sequence[object], rows: Iterable[Sequence[object]], digits: int = 6
) -> str:
    """Return CSV text. Floats have ``digits``, None is empty, and no text is a formula."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    for row in (headers, *rows):
        writer.writerow([_field(value, digits) for value in row])
    return out.getvalue()


def _field(value: object, digits: int) -> object:
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    if not isinstance(value, str):
        return value
    # Spreadsheets run what begins like a formula.
    return "'" * value.startswith(("=", "+", "-", "@")) + visible(value)


def file_names(start: str, names: Sequence[str]) -> dict[str, str]:
    """Name a PNG file for each of ``names``, as ``curves-mlp-digits.png``; no two are equal."""
    slugs = {name: re.sub("[^A-Za-z0-9.]+", "-", name) for name in names}
    for name, slug in slugs.items():
        if len(slug) > _LONGEST or [*slugs.values()].count(slug) > 1:
            mark = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]
            slugs[name] = f"{slug[:_LONGEST]}-{mark}"
    return {name: f"{start}-{slug}.png" for name, slug in slugs.items()}
