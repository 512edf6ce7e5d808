"""Rebuild the tables and curves of an earlier evaluation from its numbers; nothing is run again."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "rebuild the tables and curves of an earlier evaluation from its numbers"
EXAMPLES = """\
example:
  python -m eval report runs/transfer
      reads runs/transfer/transfer.json, writes transfer.md and curves.png beside it
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="the --out folder of an evaluation")


def run(arguments: argparse.Namespace) -> int:
    from eval.report import files, transfer

    result = files.load(arguments.folder)
    written = files.redraw(result, Path(arguments.folder))
    print(transfer.plain(result))
    print(f"\n{files.listing(written)}")
    return 0
