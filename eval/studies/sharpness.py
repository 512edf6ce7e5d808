"""Train every optimizer on every task and measure where it ends: the function behind `eval
sharpness`.

    result = evaluate(tasks, learned, baselines=("adamw",), settings=Settings(steps=200), seeds=5)

Baselines are tuned as in `eval transfer`, on other seeds and without test data, and run at their
best setting for the final loss. First all runs of all optimizers are trained; then, as the losses
to be matched are known, they are trained again, bit for bit, and measured on the way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from lo_framework.eval.baselines import make_baseline, make_thetas, setting_label
from lo_framework.eval.running import protocol
from lo_framework.eval.running.cells import Failure
from lo_framework.eval.running.pool import Arm as Steps
from lo_framework.eval.running.pool import Store, Workshop, drive
from lo_framework.eval.running.progress import Progress
from lo_framework.eval.running.provenance import provenance
from lo_framework.eval.running.tuning import Grid, make_grid, tune
from lo_framework.eval.sharpness.cells import MeasureCell, TrainCell
from lo_framework.eval.sharpness.matched import matched_step, worst_final
from lo_framework.eval.sharpness.measuring import work_of
from lo_framework.eval.sharpness.result import Arm, Result, SeedRun
from lo_framework.eval.sharpness.settings import Settings
from lo_framework.eval.statistics import Array
from lo_framework.eval.studies.transfer import check, gradients_per_step, make_recipe, tuning_record
from lo_framework.learned.base import LearnedOptimizer
from lo_framework.optional import require
from lo_framework.protocols import Task

CHOSEN_BY = "final_loss"


def evaluate(
    tasks: Sequence[Task],
    learned: Mapping[str, LearnedOptimizer],
    *,
    settings: Settings,
    baselines: Sequence[str] = ("adamw",),
    seeds: int = 5,
    tuning_seeds: int = 3,
    grid_size: int | None = None,
    seed_offset: int = 0,
    workers: int = 1,
    data_dir: str | None = None,
    plugins: Sequence[str] = (),
    files: Mapping[str, str] | None = None,
    command: Sequence[str] = (),
    progress: Progress | None = None,
    store: Store | None = None,
) -> Result:
    """Nothing but measured times depends on ``workers``, and nothing but the time it takes on
    ``store``.

    Args:
        learned: learned optimizers by label.
        store: where finished cells are kept and found again.
        The rest is as in `eval.studies.transfer.evaluate`.

    Raises:
        UserError: nothing to do, a label given twice, an unknown baseline, numbers out of range.
    """
    for package in ("scipy", "curvlinops"):  # at the start, not after the training of all runs
        require(package)
    grids = {label: make_grid(label, grid_size) for label in baselines}
    made = {label: make_baseline(label) for label in baselines}
    optimizers = {**learned, **made}
    check(tasks, [*learned, *baselines], settings.steps, workers)
    chosen_on, reported_on = (
        protocol.tuning_seeds(tuning_seeds, seed_offset),
        protocol.report_seeds(seeds, seed_offset),
    )
    workshop = Workshop(tasks={task.name: task for task in tasks}, optimizers=dict(optimizers))
    if workers > 1:
        workshop.recipe = make_recipe(tasks, learned, made, data_dir, tuple(plugins))
    options: dict[str, Any] = dict(workers=workers, progress=progress, store=store)

    training: dict[str, Steps[_Trained]] = {}
    for task in tasks:
        for label, optimizer in optimizers.items():
            arm = Arm(task=task.name, optimizer=label, learned=label in learned)
            arm = replace(arm, gradients_per_step=gradients_per_step(optimizer))
            tuning = (grids[label], chosen_on) if label in grids else None
            training[f"{task.name} {label}"] = _train(arm, optimizer, tuning, reported_on, settings)
    if progress is not None:
        progress.begin(_work(len(tasks), grids, len(learned), seeds, tuning_seeds, settings))
    trained = drive(training, workshop, **options)

    _match(trained)
    measuring: dict[str, Steps[SeedRun]] = {}
    for name, one in trained.items():
        for i, run in enumerate(one.arm.runs):
            measuring[f"{name} {run.seed}"] = _measure(one, run, settings, pictures=i == 0)
    measured = drive(measuring, workshop, **options)
    arms = []
    for name, one in trained.items():
        runs = tuple(measured[f"{name} {run.seed}"] for run in one.arm.runs)
        arms.append(replace(one.arm, runs=runs))
    return Result(
        tasks=tuple(task.name for task in tasks),
        learned=tuple(learned),
        baselines=tuple(baselines),
        arms=tuple(arms),
        settings={**asdict(settings), "radii": list(settings.radii), "level": _level(settings)},
        seeds=reported_on,
        tuning_seeds=chosen_on,
        files=dict(files or {}),
        provenance=provenance(command),
    )


@dataclass
class _Trained:
    """An arm between the two rounds, and the theta that all its runs have."""

    arm: Arm
    theta: dict[str, Array]


def _train(
    arm: Arm,
    optimizer: LearnedOptimizer,
    tuning: tuple[Grid, Sequence[int]] | None,
    seeds: Sequence[int],
    settings: Settings,
) -> Steps[_Trained]:
    """Tune a baseline; then train every seed."""
    theta = optimizer.theta()
    if tuning is not None:
        tuned = yield from tune(arm.task, arm.optimizer, optimizer, *tuning, settings.steps)
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
    kwargs = dict(task=arm.task, optimizer=arm.optimizer, theta=values, settings=settings)
    outcomes = yield [TrainCell(seed=seed, **kwargs) for seed in seeds]  # type: ignore[arg-type]
    runs = []
    for seed, outcome in zip(seeds, outcomes, strict=True):
        if isinstance(outcome, Failure):
            runs.append(SeedRun(seed=seed, failure=f"training: {outcome.reason}"))
        else:
            runs.append(SeedRun(seed=seed, train=outcome.data))
    return _Trained(replace(arm, runs=tuple(runs)), values)


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


def _measure(one: _Trained, run: SeedRun, settings: Settings, *, pictures: bool) -> Steps[SeedRun]:
    """Measure a run at its last step and at the matched one, which may be the same."""
    if not run.train or run.diverged:
        return run
    at = tuple(sorted({settings.steps} | ({run.step} if run.step is not None else set())))
    kwargs = dict(
        task=one.arm.task,
        optimizer=one.arm.optimizer,
        theta=one.theta,
        seed=run.seed,
        settings=settings,
    )
    (outcome,) = yield [MeasureCell(at=at, pictures=pictures, **kwargs)]  # type: ignore[arg-type]
    if isinstance(outcome, Failure):
        return replace(run, failure=outcome.reason)
    points = outcome.data["points"]
    matched = None if run.step is None else points[str(run.step)]
    return replace(run, equal=points[str(settings.steps)], matched=matched)


def _work(
    tasks: int,
    grids: Mapping[str, Grid],
    learned: int,
    seeds: int,
    tuning_seeds: int,
    settings: Settings,
) -> int:
    """A guess, as grids may be extended and steps may coincide."""
    tuning = sum(len(grid.settings) for grid in grids.values()) * tuning_seeds * settings.steps
    pictures = work_of(settings, True) - work_of(settings, False)
    each = seeds * (2 * settings.steps + 2 * work_of(settings, False)) + 2 * pictures
    return tasks * (tuning + (learned + len(grids)) * each)


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
