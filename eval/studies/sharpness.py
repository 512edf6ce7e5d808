"""Every optimizer trained on every task, and measured where it ends.

Baselines are tuned as in `eval transfer`, on other seeds and without test data, and run at their
best setting for the final loss.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lo_framework.eval.baselines import make_thetas
from lo_framework.eval.running.cells import Failure
from lo_framework.eval.running.envelope import plain
from lo_framework.eval.running.pool import Plan
from lo_framework.eval.running.store import digest
from lo_framework.eval.sharpness.cells import MeasureCell, TrainCell
from lo_framework.eval.sharpness.matched import matched_step, worst_final
from lo_framework.eval.sharpness.measuring import work_of
from lo_framework.eval.sharpness.probe import check_probe
from lo_framework.eval.sharpness.result import Arm, Result, SeedRun
from lo_framework.eval.sharpness.settings import Settings, check_effort, parse_radii
from lo_framework.eval.studies.evaluation import Drive, Evaluation, gradients_per_step, specs_of
from lo_framework.eval.studies.request import SharpnessRequest
from lo_framework.learned.sources import find
from lo_framework.optional import require
from lo_framework.spec import UserError

CHOSEN_BY = {"training": "final_loss", "validation": "test_loss"}  # metrics, see protocol.py
# options that decide the numbers as they are given
PLANNED = (
    *("steps", "seeds", "effort", "probe", "choose_by"),
    *("baselines", "tuning_seeds", "grid_size", "seed_offset"),
)


@dataclass
class _Trained:
    """An arm between the two rounds, and how each of its runs was trained."""

    arm: Arm
    cells: tuple[TrainCell, ...] = ()


class SharpnessEvaluation(Evaluation[SharpnessRequest, Result]):
    """All runs of all optimizers are trained; then, as the losses to be matched are known, trained
    again, bit for bit, and measured on the way.
    """

    def prepare(self) -> None:
        for package in ("scipy", "jinja2"):
            require(package)  # at the start, not after the training of all runs
        r = self.request
        self.settings = Settings(
            steps=r.steps,
            radii=parse_radii(r.radii),
            effort=check_effort(r.effort),
            probe=check_probe(r.probe),
        )
        self.baselines = specs_of(r.baselines)
        self.add_baselines(self.baselines)
        self.labels = [*self.learned, *self.baselines]
        # A guess, as grids may be extended and steps may coincide.
        pictures = work_of(self.settings, True) - work_of(self.settings, False)
        each = r.seeds * 2 * (r.steps + work_of(self.settings, False)) + 2 * pictures
        self.work = self.tuning_runs * r.steps + len(self.labels) * each

    def check(self) -> None:
        super().check()
        for task in self.tasks:
            params, _ = task.init(torch.Generator().manual_seed(0))
            if not any(x.is_floating_point() for x in params.values()):
                raise UserError(
                    f"{task.name}: the model has no parameters that need gradients, "
                    "so nothing to measure"
                )

    def plan(self) -> dict[str, Any]:
        return {
            **{name.replace("_", "-"): getattr(self.request, name) for name in PLANNED},
            "radii": [f"{radius:g}" for radius in self.settings.radii],
            "optimizees": self.names,
            "learned": {
                label: digest(Path(find(path)).read_bytes()) for label, path in self.files.items()
            },
        }

    def compute(self, drive: Drive[Any]) -> Result:
        trained: dict[tuple[str, str], _Trained] = drive(self.each(self.labels, self._train))
        for task in self.names:
            _match([one for one in trained.values() if one.arm.task == task])
        measured: dict[Any, SeedRun] = drive(
            {
                (*key, run.seed): self._measure(run, cell, pictures=run is one.arm.runs[0])
                for key, one in trained.items()
                for run, cell in zip(one.arm.runs, one.cells, strict=True)
            }
        )
        arms = (
            replace(one.arm, runs=tuple(measured[key + (run.seed,)] for run in one.arm.runs))
            for key, one in trained.items()
        )
        settings = {**asdict(self.settings), "level": asdict(self.settings.level)}
        settings["choose_by"] = self.request.choose_by
        return Result(
            tasks=self.names,
            learned=tuple(self.learned),
            baselines=tuple(self.baselines),
            arms=tuple(arms),
            settings=plain(settings),
            seeds=self.reported,
            tuning_seeds=self.chosen_on,
            files=self.files,
        )

    def _train(self, task: str, label: str) -> Plan[_Trained]:
        """Tune a baseline; then train every seed."""
        optimizer = self.optimizers[label]
        cost, theta = gradients_per_step(optimizer), optimizer.theta()
        learned = label in self.learned
        arm = Arm(task=task, optimizer=label, learned=learned, gradients_per_step=cost)
        if label in self.grids:
            tuned = yield from self.tune(task, label)
            if isinstance(tuned, Failure):
                return _Trained(replace(arm, failure=f"tuning: {tuned.reason}"))
            setting = tuned.settings[tuned.chosen[CHOSEN_BY[self.request.choose_by]]]
            (theta,) = make_thetas(optimizer, [setting])
            records = tuple(plain(tuned.records()))  # no scores of a diverged run
            arm = replace(arm, setting=setting, tuned=records, notes=tuned.notes)
        values = {name: x.detach().cpu().numpy() for name, x in theta.items()}
        cells = tuple(
            TrainCell(task=task, optimizer=label, theta=values, seed=seed, settings=self.settings)
            for seed in self.reported
        )
        runs = [
            SeedRun(seed=seed, failure=f"training: {outcome.reason}")
            if isinstance(outcome, Failure)
            else SeedRun(seed=seed, train=outcome.data)
            for seed, outcome in zip(self.reported, (yield [*cells]), strict=True)
        ]
        return _Trained(replace(arm, runs=tuple(runs)), cells)

    def _measure(self, run: SeedRun, trained: TrainCell, *, pictures: bool) -> Plan[SeedRun]:
        """Measure a run at its last step and at the matched one, which may be the same."""
        if not run.finished:
            return run
        at = {self.settings.steps} | ({run.step} if run.step is not None else set())
        (outcome,) = yield [MeasureCell(**vars(trained), at=tuple(sorted(at)), pictures=pictures)]
        if isinstance(outcome, Failure):
            return replace(run, failure=outcome.reason)
        points = outcome.data["points"]
        matched = None if run.step is None else points[str(run.step)]
        return replace(run, equal=points[str(self.settings.steps)], matched=matched)


def _match(arms: list[_Trained]) -> None:
    """Give every run on one task the target of its seed, and the step at which it gets there."""
    finals: dict[int, dict[str, float | None]] = {}
    for one in arms:
        for run in one.arm.runs:
            # The watched loss, not the final metric: computed in another way it differs in the
            # last bit, and the worst run would not match itself.
            last = run.train["watch"]["loss"][-1] if run.finished else None
            finals.setdefault(run.seed, {})[one.arm.optimizer] = last
    for one in arms:
        runs = []
        for run in one.arm.runs:
            target = worst_final(finals[run.seed])
            watch = run.train["watch"] if run.finished else {"steps": [], "loss": []}
            step = matched_step(watch["steps"], watch["loss"], target)
            runs.append(replace(run, target=target, step=step))
        one.arm = replace(one.arm, runs=tuple(runs))
