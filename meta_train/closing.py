"""The closing table of a run: what it saved against tuned AdamW, on seeds that nothing was trained
or chosen on.
"""

from __future__ import annotations

import hashlib
import sys
from contextlib import closing, suppress

from lo_framework.eval.api import evaluate
from lo_framework.eval.report.base import MARKS, prepare
from lo_framework.eval.report.transfer import TransferReport
from lo_framework.eval.running.progress import Progress
from lo_framework.files.atomic import atomic_write_text
from lo_framework.meta_train.incumbent import Incumbent
from lo_framework.meta_train.run import MetaTraining
from lo_framework.spec import UserError

SEEDS = 20
MARK = "evaluated"  # names the optimizer file that the table is about


def closing_report(run: MetaTraining, best: Incumbent) -> str:
    """Evaluate ``best`` on the run's own families as they are named; the files go to
    ``evaluation/`` there.

    What has been evaluated already is only told again: to resume a finished run costs nothing.
    """
    folder, optimizer = run.out / "evaluation", run.out / "optimizer.safetensors"
    mark, report = folder / MARK, None
    key = f"{hashlib.sha256(optimizer.read_bytes()).hexdigest()} {SEEDS} seeds\n"
    if mark.exists() and mark.read_text() == key:
        with suppress(UserError):  # it is not whole
            report = TransferReport.load(folder)
    if report is None:
        with closing(Progress(title="evaluation")) as progress:
            result = evaluate(
                run.tasks,
                {best.kind: optimizer},
                baselines=("adamw",),
                steps=run.config.named_steps,
                seeds=SEEDS,
                workers=run.program.workers,
                data_dir=run.program.data_dir,
                plugins=run.program.plugins,
                command=["python", "-m", "meta_train", *sys.argv[1:]],
                progress=progress,
            )
        report = TransferReport(result)
        report.save(prepare(folder))
        atomic_write_text(mark, key)  # last: a killed evaluation is done again
    written = [path for path in sorted(folder.iterdir()) if path.suffix in MARKS]
    return f"{report.plain()}\n{report.listing(written)}"
