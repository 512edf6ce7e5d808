"""A result for people: its folder of numbers, tables and pictures, and its text for a terminal.

report = TransferReport(result)
written = report.save("runs/transfer")      # transfer.json, then all that is made from it
print(report.plain(), report.listing(written))
TransferReport.load("runs/transfer").redraw("runs/transfer")
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from lo_framework.errors import visible
from lo_framework.eval.report.page import Page, Part, Section, Term, render
from lo_framework.eval.report.table import Table
from lo_framework.eval.report.text import bullets, code, markdown
from lo_framework.eval.running.envelope import Envelope
from lo_framework.files.atomic import atomic_write_bytes, reason
from lo_framework.optional import require
from lo_framework.spec import UserError

R = TypeVar("R")
Self = TypeVar("Self", bound="Report[Any]")
# numbers near the ends of what floats hold overflow in means and ratios, and show as infinite
QUIET = np.errstate(all="ignore")
MARKS = {".json": "numbers", ".csv": "rows", ".md": "tables", ".png": "picture", ".html": "page"}


class Report(Generic[R]):
    """One study's result, shown. A subclass says what the tables, the notes and the files are.

    Attributes:
        file: the JSON file of the study.
        title: of the Markdown report and of the page.
        loud: texts of cells that stand out on the page.
    """

    file: ClassVar[Envelope[Any]]
    title: ClassVar[str]
    loud: ClassVar[tuple[str, ...]] = ()

    def __init__(self, result: R) -> None:
        self.result = result

    def derived(self) -> dict[str, Any]:
        """Return what follows from the result, which its JSON file has for other programs."""
        return {}

    def heading(self) -> list[str]:
        """Say what was run, in lines."""
        raise NotImplementedError

    def tables(self) -> list[Table]:
        """Return every table, in order."""
        raise NotImplementedError

    def words(self) -> list[Term]:
        """Explain every word and symbol of the tables that is not plain."""
        return []

    def notes(self) -> list[str]:
        """Say how to read the tables, in lines."""
        return [str(term) for term in self.words()]

    def summary(self) -> list[str]:
        """Say what came out, in lines for a terminal."""
        return []

    def findings(self) -> list[str]:
        """Say what came out, in sentences for the page."""
        return self.summary()

    def cautions(self) -> list[str]:
        """Say what the numbers cannot tell, as so few seeds."""
        return []

    def sections(self) -> list[Section]:
        """Return the tables and the pictures of the page."""
        return [Section("Results", self.tables())]

    def details(self) -> list[Part]:
        """Return what else there is to say of where the numbers come from; it is folded."""
        return []

    def failures(self) -> list[str]:
        """Name everything that could not be computed, one line each."""
        failed = self.result.failures  # type: ignore[attr-defined]
        return [f"{arm.task}, {arm.optimizer}: {arm.failure}" for arm in failed]

    def worked(self) -> bool:
        """Say whether anything could be computed."""
        raise NotImplementedError

    def files(self) -> Iterator[tuple[str, str | bytes]]:
        """Name and make every file but the numbers."""
        raise NotImplementedError

    @classmethod
    def load(cls: type[Self], folder: str | os.PathLike[str]) -> Self:
        """Read the report whose numbers are in ``folder``. Raises UserError."""
        return cls(cls.file.load(folder))

    @QUIET
    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write the numbers first, then what is made from them; returns the files."""
        numbers = self.file.write(self.result, self.derived())
        return [_write(folder, self.file.name, numbers), *self.redraw(folder)]

    @QUIET
    def redraw(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write everything but the numbers; returns the files."""
        contents = [*self.files()]  # all of them, or nothing is written
        return [_write(folder, name, content) for name, content in contents]

    def listing(self, written: Sequence[Path]) -> str:
        """Say where everything is, one line per file."""
        return "\n".join(f"{MARKS.get(path.suffix, ''):9}{visible(path)}" for path in written)

    @QUIET
    def plain(self) -> str:
        """Return everything for a terminal."""
        tables = [table.plain() for table in self.tables()]
        last = [_lines(self.notes()), _lines(self._failed()), _lines(self.summary())]
        return "\n\n".join(filter(None, [_lines(self.heading()), *tables, *last]))

    def markdown(self) -> str:
        """Return everything as one Markdown document, with where it comes from."""
        first, notes = self.heading(), self.notes()
        parts = [f"# {self.title}", bullets(first) if len(first) > 1 else markdown(first[0])]
        parts += [bullets(self.summary()), *self.body(), "\n".join(map(markdown, self._failed()))]
        parts += ["## How to read this", bullets(notes)] if notes else []
        return "\n\n".join(filter(None, [*parts, *self._origin()])) + "\n"

    def html(self) -> str:
        """Return everything as one self-contained page."""
        lead, *rest = self.heading()
        told = _facts(self.result)
        return render(
            Page(
                title=self.title,
                lead=lead,
                summary=self.findings(),
                cautions=self.cautions(),
                failures=self.failures(),
                command=told.pop("command", ""),
                origin=[*rest, *(f"{key}: {text}" for key, text in told.items())],
                details=self.details(),
                words=self.words(),
                sections=self.sections(),
                loud=self.loud,
            )
        )

    def body(self) -> list[str]:
        """Return the middle of the Markdown document."""
        return [table.markdown() for table in self.tables()]

    def _failed(self) -> list[str]:
        lines = self.failures()
        return ["FAILED", *(f"  {line}" for line in lines)] if lines else []

    def _origin(self) -> list[str]:
        """Return a title and a list: command, time, versions, platform, commit."""
        lines = [
            f"- {markdown(key)}: {code(text) if key == 'command' else markdown(text)}"
            for key, text in _facts(self.result).items()
        ]
        return ["## Where this comes from", "\n".join(lines)] if lines else []


def prepare(folder: str | os.PathLike[str]) -> Path:
    """Make a folder that can be written, before hours are spent on what goes into it.

    Raises:
        UserError: it cannot be made or written, or pictures and pages cannot be drawn.
    """
    require("matplotlib")
    require("jinja2")
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--out {str(path)!r}: {reason(error)}; expected a folder that can be written"
        ) from None
    if not os.access(path, os.W_OK):
        raise UserError(f"--out {str(path)!r} cannot be written")
    return path


def _write(folder: str | os.PathLike[str], name: str, content: str | bytes) -> Path:
    path = Path(folder) / name
    data = content.encode("utf-8") if isinstance(content, str) else content
    # A link that someone put there is replaced, and what it points to stays as it is.
    atomic_write_bytes(path, data, follow=False)
    return path


def _lines(lines: Sequence[str]) -> str:
    return "\n".join(map(visible, lines))


def _facts(result: Any) -> dict[str, str]:
    """Return where a result comes from, as far as it says so."""
    facts = {}
    for key, value in result.provenance.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {x}" for name, x in value.items() if x)
        elif isinstance(value, list):
            value = shlex.join(map(str, value))
        if value:
            facts[key] = str(value)
    return facts
