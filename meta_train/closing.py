"""The closing table of a run: what it saved against tuned AdamW, on seeds that nothing was trained
or chosen on.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

from lo_framework.eval.api import evaluate
from lo_framework.eval.report.base import prepare
from lo_framework.eval.report.transfer import TransferReport
from lo_framework.eval.running.progress import Progress
from lo_framework.eval.studies.result import Result
from lo_framework.files.atomic import atomic_write_text
from lo_framework.meta_train.incumbent import Incumbent
from lo_framework.meta_train.run import MetaTraining
from lo_framework.spec import UserError

SEEDS = 20
MARK = "evaluated"  # names the optimizer file that the table is about


def closing_report(run: MetaTraining, best: Incumbent, *, workers: int, seeds: int = SEEDS) -> str:
    """Evaluate ``best`` on the run's own families, over the longest episode; the files go to
    ``evaluation/`` there.

    What has been evaluated already is only told again: to resume a finished run costs nothing.
    """
    folder, optimizer = run.out / "evaluation", run.out / "optimizer.safetensors"
    mark, key = (
        folder / MARK,
        f"{hashlib.sha256(optimizer.read_bytes()).hexdigest()} {seeds} seeds\n",
    )
    report = _told(folder) if mark.exists() and mark.read_text() == key else None
    if report is None:
        report = TransferReport(_evaluated(run, best, workers, seeds))
        report.save(prepare(folder))
        atomic_write_text(mark, key)  # last: a killed evaluation is done again
    written = [path for path in sorted(folder.iterdir()) if path.suffix in (".json", ".md", ".png")]
    return f"{report.plain()}\n{report.listing(written)}"


def _told(folder: Path) -> TransferReport | None:
    """Return the report that lies in ``folder``, if it is whole."""
    try:
        return TransferReport.load(folder)
    except UserError:
        return None


def _evaluated(run: MetaTraining, best: Incumbent, workers: int, seeds: int) -> Result:
    progress = Progress(title="evaluation")
    try:
        return evaluate(
            run.tasks,
            {best.kind: run.out / "optimizer.safetensors"},
            baselines=("adamw",),
            steps=run.config.episode[1],
            seeds=seeds,
            workers=workers,
            data_dir=run.setup.data_dir,
            plugins=run.setup.plugins,
            command=["python", "-m", "meta_train", *sys.argv[1:]],
            progress=progress,
        )
    finally:
        progress.close()
