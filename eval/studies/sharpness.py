"""Every optimizer trained on every task, and measured where it ends.

Baselines are tuned as in `eval transfer`, on other seeds and without test data, and run at their
best setting for the final loss.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from lo_framework.eval.baselines import make_thetas, setting_label
from lo_framework.eval.running.cells import Failure
from lo_framework.eval.running.pool import Arm as Steps
from lo_framework.eval.running.store import digest
from lo_framework.eval.running.tuning import tune
from lo_framework.eval.sharpness.cells import MeasureCell, TrainCell
from lo_framework.eval.sharpness.matched import matched_step, worst_final
from lo_framework.eval.sharpness.measuring import work_of
from lo_framework.eval.sharpness.probe import check_probe
from lo_framework.eval.sharpness.result import Arm, Result, SeedRun
from lo_framework.eval.sharpness.settings import Settings, check_effort, parse_radii
from lo_framework.eval.statistics import Array
from lo_framework.eval.studies.arms import gradients_per_step, tuning_record
from lo_framework.eval.studies.evaluation import Drive, Evaluation, specs_of
from lo_framework.eval.studies.request import SharpnessRequest
from lo_framework.optional import require
from lo_framework.spec import UserError

CHOSEN_BY = "final_loss"


@dataclass
class _Trained:
    """An arm between the two rounds, and the theta that all its runs have."""

    arm: Arm
    theta: dict[str, Array]


class SharpnessEvaluation(Evaluation[SharpnessRequest, Result]):
    """All runs of all optimizers are trained; then, as the losses to be matched are known, trained
    again, bit for bit, and measured on the way.
    """

    def prepare(self) -> None:
        for package in ("scipy", "curvlinops"):  # at the start, not after the training of all runs
            require(package)
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
        r, settings = self.request, self.settings
        return {
            "steps": r.steps,
            "seeds": r.seeds,
            "radii": [f"{radius:g}" for radius in settings.radii],
            "effort": settings.effort,
            "probe": settings.probe,
            "baselines": r.baselines,
            "tuning-seeds": r.tuning_seeds,
            "grid-size": r.grid_size,
            "seed-offset": r.seed_offset,
            "optimizees": [task.name for task in self.tasks],
            "learned": {
                label: digest(Path(path).read_bytes()) for label, path in self.files.items()
            },
        }

    def compute(self, drive: Drive[Any]) -> Result:
        training: dict[str, Steps[_Trained]] = {}
        for task in self.tasks:
            for label in self.labels:
                training[f"{task.name} {label}"] = self._train(task.name, label)
        trained: dict[str, _Trained] = drive(training)
        _match(trained)
        measuring: dict[str, Steps[SeedRun]] = {}
        for name, one in trained.items():
            for i, run in enumerate(one.arm.runs):
                measuring[f"{name} {run.seed}"] = self._measure(one, run, pictures=i == 0)
        measured: dict[str, SeedRun] = drive(measuring)
        arms = []
        for name, one in trained.items():
            runs = tuple(measured[f"{name} {run.seed}"] for run in one.arm.runs)
            arms.append(replace(one.arm, runs=runs))
        settings = self.settings
        return Result(
            tasks=tuple(task.name for task in self.tasks),
            learned=tuple(self.learned),
            baselines=tuple(self.baselines),
            arms=tuple(arms),
            settings={**asdict(settings), "radii": list(settings.radii), "level": _level(settings)},
            seeds=self.reported,
            tuning_seeds=self.chosen_on,
            files=self.files,
        )

    def _train(self, task: str, label: str) -> Steps[_Trained]:
        """Tune a baseline; then train every seed."""
        optimizer = self.optimizers[label]
        arm = Arm(
            task=task,
            optimizer=label,
            learned=label in self.learned,
            gradients_per_step=gradients_per_step(optimizer),
        )
        theta = optimizer.theta()
        if label in self.grids:
            tuning = (self.grids[label], self.chosen_on, self.settings.steps)
            tuned = yield from tune(task, label, optimizer, *tuning)
            if isinstance(tuned, Failure):
                return _Trained(replace(arm, failure=f"tuning: {tuned.reason}"), {})
            setting = tuned.settings[tuned.chosen[CHOSEN_BY]]
            (theta,) = make_thetas(optimizer, [setting])
            records = tuple(
                {"label": setting_label(s), **_finite(r)}
                for s, r in zip(tuned.settings, tuning_record(tuned))
            )
            arm = replace(arm, setting=setting, tuned=records, notes=tuned.notes)
        values = {name: x.detach().cpu().numpy() for name, x in theta.items()}
        kwargs = dict(task=arm.task, optimizer=arm.optimizer, theta=values, settings=self.settings)
        outcomes = yield [TrainCell(seed=seed, **kwargs) for seed in self.reported]  # type: ignore[arg-type]
        runs = []
        for seed, outcome in zip(self.reported, outcomes, strict=True):
            if isinstance(outcome, Failure):
                runs.append(SeedRun(seed=seed, failure=f"training: {outcome.reason}"))
            else:
                runs.append(SeedRun(seed=seed, train=outcome.data))
        return _Trained(replace(arm, runs=tuple(runs)), values)

    def _measure(self, one: _Trained, run: SeedRun, *, pictures: bool) -> Steps[SeedRun]:
        """Measure a run at its last step and at the matched one, which may be the same."""
        if not run.train or run.diverged:
            return run
        at = tuple(sorted({self.settings.steps} | ({run.step} if run.step is not None else set())))
        kwargs = dict(
            task=one.arm.task,
            optimizer=one.arm.optimizer,
            theta=one.theta,
            seed=run.seed,
            settings=self.settings,
        )
        (outcome,) = yield [MeasureCell(at=at, pictures=pictures, **kwargs)]  # type: ignore[arg-type]
        if isinstance(outcome, Failure):
            return replace(run, failure=outcome.reason)
        points = outcome.data["points"]
        matched = None if run.step is None else points[str(run.step)]
        return replace(run, equal=points[str(self.settings.steps)], matched=matched)


def _match(trained: dict[str, _Trained]) -> None:
    """Give every run the target of its task and seed, and the step at which it gets there."""
    for task in {one.arm.task for one in trained.values()}:
        arms = {name: one for name, one in trained.items() if one.arm.task == task}
        finals: dict[int, dict[str, float | None]] = {}
        for name, one in arms.items():
            for run in one.arm.runs:
                # The watched loss, not the final metric: computed in another way it differs in the
                # last bit, and the worst run would not match itself.
                losses = run.train["watch"]["loss"] if run.train and not run.diverged else [None]
                finals.setdefault(run.seed, {})[name] = losses[-1]
        targets = {seed: worst_final(losses) for seed, losses in finals.items()}
        for one in arms.values():
            one.arm = replace(
                one.arm, runs=tuple(_matched(run, targets[run.seed]) for run in one.arm.runs)
            )


def _matched(run: SeedRun, target: float | None) -> SeedRun:
    watch = run.train.get("watch")
    if not watch or run.diverged:
        return replace(run, target=target)
    return replace(run, target=target, step=matched_step(watch["steps"], watch["loss"], target))


def _level(settings: Settings) -> dict[str, Any]:
    return {
        key: list(x) if isinstance(x, tuple) else x for key, x in asdict(settings.level).items()
    }


def _finite(record: dict[str, Any]) -> dict[str, Any]:
    """Scores of a diverged run are infinite: None in JSON."""
    scores = {
        name: [x if math.isfinite(x) else None for x in row]
        for name, row in record["scores"].items()
    }
    return {**record, "scores": scores}
