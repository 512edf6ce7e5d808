"""The closing table of a run: what it saved against tuned AdamW, on seeds that nothing was trained or chosen on."""

from __future__ import annotations

import sys
from pathlib import Path

from eval.evaluation import evaluate
from eval.progress import Progress
from eval.report import files, transfer
from lo_framework.learned import make_learned
from meta_train.incumbent import Incumbent
from meta_train.run import MetaTraining

SEEDS = 20


def closing_report(run: MetaTraining, best: Incumbent, *, workers: int, seeds: int = SEEDS) -> str:
    """Evaluate ``best`` on the run's own families, over the longest episode; the files go to ``evaluation/`` there."""
    learned = make_learned(best.kind, **best.config)
    learned.load_theta(best.theta)
    folder: Path = run.out / "evaluation"
    progress = Progress(0, title="evaluation")
    try:
        result = evaluate(
            run.tasks,
            learned,
            baselines=("adamw",),
            steps=run.config.episode[1],
            seeds=seeds,
            workers=workers,
            data_dir=run.setup.data_dir,
            plugins=run.setup.plugins,
            files={best.kind: str(run.out / "optimizer.safetensors")},
            command=sys.argv,
            progress=progress,
        )
    finally:
        progress.close()
    written = files.save(result, files.prepare(folder))
    return f"{transfer.plain(result)}\n{files.listing(written)}"
