"""Rebuild the tables and pictures of an earlier evaluation from its numbers, without any run."""

from __future__ import annotations

import argparse
from pathlib import Path

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
    from lo_framework.eval.report.joined import join, redraw
    from lo_framework.eval.report.text import visible

    redrawn = []
    for folder in arguments.folders:
        for one in redraw(Path(folder)):
            print(one.report.plain())
            print(f"\n{one.report.listing(one.files)}")
            redrawn.append(one)
    if arguments.join:
        join(redrawn, Path(arguments.join))
        print(f"page     {visible(arguments.join)}")
    return 0
