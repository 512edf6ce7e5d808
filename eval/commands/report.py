"""Rebuild the tables and pictures of an earlier evaluation from its numbers; nothing is run again."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lo_framework.eval.studies.result import Result

HELP = "rebuild the tables and pictures of an earlier evaluation from its numbers"
EXAMPLES = """\
examples:
  python -m eval report runs/transfer
      reads runs/transfer/transfer.json, writes transfer.md and curves.png beside it

  python -m eval report runs/sharpness
      reads runs/sharpness/sharpness.json, writes sharpness.html beside it

  python -m eval report runs/compare runs/ablation --join runs/report.md
      eval compare, eval robustness and eval ablation too; several as one page, with ratios over
      the tasks of all
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folders", nargs="+", metavar="DIR", help="the --out folder of an evaluation"
    )
    parser.add_argument(
        "--join", metavar="FILE", help="also write all of them as one Markdown page"
    )


def run(arguments: argparse.Namespace) -> int:
    from lo_framework.eval.report.joined import join

    folders = [Path(folder) for folder in arguments.folders]
    found = {folder: result for folder in folders if (result := _again(folder)) is not None}
    if arguments.join:
        join(folders, found, Path(arguments.join))
        print(f"page     {arguments.join}")
    return 0


def _again(folder: Path) -> Result | None:
    """Made again and printed; gives the result of transfer."""
    from lo_framework.eval.report import ablation, files, robustness, sharpness, transfer
    from lo_framework.spec import UserError

    studies = {module.FILE.name: module for module in (robustness, ablation)}
    kinds = [
        name
        for name in (files.FILE.name, sharpness.FILE.name, *studies)
        if (folder / name).exists()
    ]
    if not kinds:
        names = f"{files.FILE.name} and no {sharpness.FILE.name}, {' or '.join(studies)}"
        raise UserError(
            f"there is no {names} in {str(folder)!r}; expected the --out folder of an evaluation"
        )
    transferred = None
    for name in kinds:
        if name == files.FILE.name:
            transferred = files.load(folder)
            written = files.redraw(transferred, folder)
            print(transfer.plain(transferred))
            print(f"\n{files.listing(written)}")
        elif name in studies:
            study: Any = studies[name]
            again = study.load(folder)
            remade = study.redraw(again, folder)
            print(study.plain(again))
            print(f"\n{study.listing(remade)}")
        else:
            found = sharpness.load(folder)
            pages = sharpness.redraw(found, folder)
            print(sharpness.plain(found))
            print(f"\n{sharpness.listing(pages)}")
    return transferred
