"""Learned optimizers against tuned baselines on the same seeds.

All optimizers see the same initial parameters and the same batches of a seed. Baselines are tuned
on each task on other seeds, without test data (`eval.running.tuning`), and reported at their best
setting for each metric.
"""

from __future__ import annotations

from lo_framework.eval.running.pool import Arm as Plan
from lo_framework.eval.studies.arms import run_settings
from lo_framework.eval.studies.evaluation import Drive, Evaluation, specs_of
from lo_framework.eval.studies.request import TransferRequest
from lo_framework.eval.studies.result import Arm, Result


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
