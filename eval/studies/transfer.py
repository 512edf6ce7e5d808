"""Learned optimizers against tuned baselines on the same seeds.

    result = evaluate(["mlp", "cnn"], {"mine": learned}, baselines=["adamw"], steps=200, seeds=20)
    print(result.table())

All optimizers see the same initial parameters and the same batches of a seed. Baselines are tuned
on each task on other seeds, without test data (`eval.running.tuning`), and reported at their best
setting for each metric.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lo_framework.eval.running.learned_files import Source
from lo_framework.eval.running.pool import Arm as Plan
from lo_framework.eval.running.progress import Progress
from lo_framework.eval.studies.arms import run_settings
from lo_framework.eval.studies.evaluation import Drive, Evaluation, specs_of
from lo_framework.eval.studies.request import TransferRequest
from lo_framework.eval.studies.result import Arm, Result
from lo_framework.optimizees import make_tasks
from lo_framework.protocols import Task
from lo_framework.spec import build_config


class TransferEvaluation(Evaluation[TransferRequest, Result]):
    """Every learned optimizer and every tuned baseline, on every task."""

    def prepare(self) -> None:
        self.baselines = specs_of(self.request.baselines)
        self.add_baselines(self.baselines)
        self.labels = [*self.learned, *self.baselines]
        runs = self.tuning_runs + (2 * len(self.grids) + len(self.learned)) * self.request.seeds
        self.work = runs * self.request.steps

    def compute(self, drive: Drive[Arm]) -> Result:
        steps = self.request.steps
        plans: dict[str, Plan[Arm]] = {}
        for task in self.tasks:
            for label, optimizer in self.learned.items():
                arm = Arm(task=task.name, optimizer=label, learned=True)
                plans[f"{task.name} {label}"] = run_settings(
                    arm, label, optimizer, [{}], self.reported, steps
                )
            for label in self.baselines:
                plans[f"{task.name} {label}"] = self.tuned_arm(task.name, label)
        return Result(
            tasks=tuple(task.name for task in self.tasks),
            learned=tuple(self.learned),
            baselines=tuple(self.baselines),
            arms=tuple(drive(plans).values()),
            steps=steps,
            tuning_seeds=self.chosen_on,
            report_seeds=self.reported,
            files=self.files,
        )


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

    Args:
        tasks: specs, as ``"mlp"``, or tasks.
        learned: one learned optimizer or its file, known by its kind, or several by their labels.
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
    return evaluation.run(progress=progress, command=command)
