"""Evaluations from a script, without a folder.

result = evaluate(["mlp", "cnn"], {"mine": learned}, baselines=["adamw"], steps=200, seeds=20)
print(result.table())
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lo_framework.eval.report.transfer import TransferReport
from lo_framework.eval.running.learned_files import Source
from lo_framework.eval.running.progress import Progress
from lo_framework.eval.studies import result as studies
from lo_framework.eval.studies.request import TransferRequest
from lo_framework.eval.studies.transfer import TransferEvaluation
from lo_framework.optimizees import make_tasks
from lo_framework.optimizees.task import Task
from lo_framework.spec import build_config


@dataclass(frozen=True, kw_only=True)
class Result(studies.Result):
    """Every number of an evaluation, and its tables as text."""

    def table(self) -> str:
        """The tables that `eval transfer` prints."""
        return TransferReport(self).plain()


def evaluate(
    tasks: str | Sequence[str | Task],
    learned: Source | Mapping[str, Source],
    *,
    baselines: Sequence[str] = ("adamw", "sgdm"),
    progress: Progress | None = None,
    command: Sequence[str] = (),
    **settings: Any,
) -> Result:
    """Run every optimizer on every task; nothing but the measured times depends on ``workers``.

    All optimizers see the same initial parameters and the same batches of a seed. Baselines are
    tuned on each task on other seeds, without test data, and reported at their best setting for
    each metric. A learned optimizer has two rows: as it is, and with its whole update times one
    number that is tuned likewise (``step_scales="none"``: without the second).

    Args:
        tasks: specs, as ``"mlp"``, or tasks.
        learned: one learned optimizer or its file, known by its kind, one by its name
            (``"general"``), or several by their labels.
        baselines: specs, as ``"adamw"`` or ``"sgdm:momentum=0.5"``; an option that is usually tuned
            stays as given.
        command: for the record.
        settings: steps, seeds, workers, ...: the other fields of `TransferRequest`.

    Raises:
        UserError: nothing to do, a label given twice, an unknown baseline, numbers out of range.
    """
    settings = {"learned": "", "baselines": ",".join(baselines), **settings}
    request = build_config(TransferRequest, settings, "evaluate")
    where = (request.datasets, request.data_dir, request.device)
    made: list[Task] = []
    for task in [tasks] if isinstance(tasks, str) else tasks:
        made += make_tasks(task, *where) if isinstance(task, str) else [task]
    evaluation = TransferEvaluation(request, made, learned)
    return Result(**vars(evaluation.run(progress=progress, command=command)))


def load(folder: str | os.PathLike[str]) -> Result:
    """The result that `eval transfer` or `eval compare` left in ``folder``; raises UserError."""
    return Result(**vars(TransferReport.load(folder).result))
