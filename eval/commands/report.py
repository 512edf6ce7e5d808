"""The command ``eval report``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lo_framework.errors import visible
from lo_framework.eval.commands.frame import COMMANDS
from lo_framework.plugin import load_plugins

EXAMPLES = """\
examples:
  lo-eval report runs/transfer
      reads runs/transfer/transfer.json, writes transfer.html, transfer.md and curves.png beside
      it

  lo-eval report runs/sharpness
      reads runs/sharpness/sharpness.json, writes sharpness.html beside it

  lo-eval report runs/compare runs/ablation --join runs/report.md
      eval compare, eval robustness and eval ablation too; several as one page, with ratios over
      the tasks of all
"""


@dataclass(frozen=True, kw_only=True)
class ReportRequest:
    """Which folders are shown again."""

    folders: tuple[str, ...] = field(metadata={"positional": True, "metavar": "DIR"})
    """the --out folder of an evaluation"""
    join: str | None = field(default=None, metadata={"metavar": "FILE"})
    """also write all of them as one Markdown page"""
    plugins: tuple[str, ...] = field(default=(), metadata={"option": "plugin", "metavar": "FILE"})
    """file or module with evaluations of your own"""


@COMMANDS.register("report", config=ReportRequest, examples=EXAMPLES)
def report(request: ReportRequest, words: Sequence[str]) -> int:
    """Rebuild the tables and pictures of an earlier evaluation from its numbers.

    Nothing is run again.
    """
    from lo_framework.eval.report.joined import join, redraw

    load_plugins(request.plugins)
    loads = [entry.facts["load"] for entry in COMMANDS.values() if "load" in entry.facts]
    kinds = list(dict.fromkeys(load()[1] for load in loads))
    redrawn = []
    for folder in request.folders:
        for one in redraw(Path(folder), kinds):
            print(one.text)
            print(f"\n{one.report.listing(one.files)}")
            redrawn.append(one)
    if request.join:
        join(redrawn, Path(request.join))
        print(f"page     {visible(request.join)}")
    return 0
