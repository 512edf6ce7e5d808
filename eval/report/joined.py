"""Reports made again from their folders, and several of them as one Markdown page: ratios over the
tasks of all, then their texts in order with their pictures.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lo_framework.eval.report.base import Report
from lo_framework.eval.report.ratios import ratios
from lo_framework.eval.report.text import markdown, picture, quoted
from lo_framework.eval.report.transfer import TransferReport
from lo_framework.files.atomic import atomic_write_text
from lo_framework.spec import UserError


class Redrawn(NamedTuple):
    """One report and the files that were made from it."""

    folder: Path
    report: Report[Any]
    files: list[Path]


def redraw(folder: Path, reports: Sequence[type[Report[Any]]]) -> Iterator[Redrawn]:
    """Make every report of the kinds ``reports`` in ``folder`` again.

    Raises:
        UserError: there is none, or it is damaged.
    """
    kinds = [kind for kind in reports if os.path.lexists(folder / kind.file.name)]
    if not kinds:
        first, *rest = (kind.file.name for kind in reports)
        raise UserError(
            f"there is no {first} and no {' or '.join(rest)} in {str(folder)!r}; "
            "expected the --out folder of an evaluation"
        )
    for kind in kinds:
        report = kind.load(folder)
        yield Redrawn(folder, report, report.redraw(folder))


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
