"""Reports made again from their folders, and several of them as one Markdown page: ratios over the
tasks of all, then their texts in order with their pictures.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lo_framework.errors import describe, shown
from lo_framework.eval.report.base import Report
from lo_framework.eval.report.ratios import ratios
from lo_framework.eval.report.text import markdown, picture, quoted
from lo_framework.eval.report.transfer import TransferReport
from lo_framework.files.atomic import atomic_write_text, reason
from lo_framework.spec import UserError


class Redrawn(NamedTuple):
    """One report, the files that were made from it, and its text for a terminal."""

    folder: Path
    report: Report[Any]
    files: list[Path]
    text: str


def redraw(folder: Path, reports: Sequence[type[Report[Any]]]) -> Iterator[Redrawn]:
    """Make every report of the kinds ``reports`` in ``folder`` again.

    Raises:
        UserError: there is none, it is damaged, or its files cannot be written.
    """
    try:
        there = os.listdir(folder)
    except FileNotFoundError:
        there = []
    except (OSError, ValueError) as error:
        words = reason(error) if isinstance(error, OSError) else error
        raise UserError(f"cannot read the folder {shown(str(folder))}: {words}") from None
    kinds = [kind for kind in reports if kind.file.name in there]
    if not kinds:
        first, *rest = (kind.file.name for kind in reports)
        raise UserError(
            f"there is no {first} and no {' or '.join(rest)} in {str(folder)!r}; "
            "expected the --out folder of an evaluation"
        )
    for kind in kinds:
        report = kind.load(folder)
        try:
            text, files = report.plain(), report.redraw(folder)
        except UserError:
            raise
        except Exception as error:  # numbers that no run gives, and that the schema lets through
            place = repr(str(folder / kind.file.name))
            raise UserError(f"{place} cannot be shown: {describe(error)}") from error
        yield Redrawn(folder, report, files, text)


def join(redrawn: Sequence[Redrawn], path: Path) -> None:
    """Write ``path`` from the Markdown and the pictures of all reports.

    Raises:
        UserError: a report has no Markdown file, or the page cannot be written.
    """
    base = {one.folder: os.path.relpath(one.folder, path.parent) for one in redrawn}
    shown = [one for one in redrawn if any(file.suffix == ".md" for file in one.files)]
    if missing := base.keys() - {one.folder for one in shown}:
        raise UserError(f"there is no report (.md) in {str(missing.pop())!r} to join")
    transfers = [one for one in shown if isinstance(one.report, TransferReport)]
    parts = []
    if len(transfers) > 1:
        names = [Path(base[one.folder]).as_posix() for one in transfers]
        together = ratios([one.report.result for one in transfers], names)
        parts = ["\n\n".join(["# Together", *(table.markdown() for table in together)])]
    for one in shown:
        place = Path(base[one.folder]).as_posix()
        text = one.report.markdown().rstrip()
        rest = []
        for file in one.files:
            if file.suffix != ".png":
                continue
            here, there = f"]({quoted(file.name)})", f"]({quoted(f'{place}/{file.name}')})"
            if here in text:
                text = text.replace(here, there)
            else:
                rest.append(picture(file.name, f"{place}/{file.name}"))
        parts.append("\n\n".join([f"*{markdown(place)}*", text, *rest]))
    atomic_write_text(path, "\n\n---\n\n".join(parts) + "\n")
