"""Learned optimizers against tuned baselines on the same seeds.

All optimizers see the same initial parameters and the same batches of a seed. Baselines are tuned
on each task on other seeds, without test data (`eval.running.tuning`), and reported at their best
setting for each metric. So is a multiple of the step of each learned optimizer, in a row beside
the one of the optimizer as it is.
"""

from __future__ import annotations

from lo_framework.eval.studies.evaluation import Drive, Evaluation, specs_of
from lo_framework.eval.studies.request import TransferRequest
from lo_framework.eval.studies.result import Arm, Result


class TransferEvaluation(Evaluation[TransferRequest, Result]):
    """Every learned optimizer, its step tuned or not, and every tuned baseline, on every task."""

    def prepare(self) -> None:
        self.compared = self.add_scaled(self.request.step_scales)
        self.baselines = specs_of(self.request.baselines)
        self.add_baselines(self.baselines)
        self.labels = [*self.compared, *self.baselines]
        runs = self.tuning_runs + (2 * len(self.grids) + len(self.learned)) * self.request.seeds
        self.work = runs * self.request.steps

    def compute(self, drive: Drive[Arm]) -> Result:
        arms = drive(self.each(self.labels, self.best_arm))
        return Result(
            tasks=self.names,
            learned=tuple(self.compared),
            baselines=tuple(self.baselines),
            arms=tuple(arms.values()),
            steps=self.request.steps,
            tuning_seeds=self.chosen_on,
            report_seeds=self.reported,
            files=self.files,
        )
