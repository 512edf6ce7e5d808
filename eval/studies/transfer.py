"""Learned optimizers against tuned baselines on the same seeds: the function behind `eval
transfer`.

    result = evaluate(tasks, learned, theta, baselines=("adamw",), steps=200, seeds=20)
    print(TransferReport(result).plain())

All optimizers see the same initial parameters and the same batches of a seed. Baselines are tuned
on each task on other seeds, without test data (`eval.running.tuning`), and reported at their best setting
for each metric.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from lo_framework.eval.baselines import make_baseline, make_thetas, setting_label
from lo_framework.eval.baselines.torch_runs import TorchBaseline
from lo_framework.eval.running import protocol
from lo_framework.eval.running.cells import Failure, Measured, plan_cells
from lo_framework.eval.running.pool import Arm as Plan
from lo_framework.eval.running.pool import Recipe, Workshop, drive
from lo_framework.eval.running.progress import Progress
from lo_framework.eval.running.protocol import METRICS
from lo_framework.eval.running.provenance import provenance
from lo_framework.eval.running.tuning import Grid, Tuning, make_grid, tune
from lo_framework.eval.studies.result import Arm, Result, Runs
from lo_framework.learned import LEARNED
from lo_framework.learned.base import LearnedOptimizer, Theta
from lo_framework.optimizees.registry import TASKS
from lo_framework.protocols import Task
from lo_framework.spec import UserError, parse_spec

SPLITS = ("train", "test")


def evaluate(
    tasks: Sequence[Task],
    learned: LearnedOptimizer | Mapping[str, LearnedOptimizer],
    thetas: Theta | Mapping[str, Theta] | None = None,
    *,
    baselines: Sequence[str] = ("adamw", "sgdm"),
    steps: int = 200,
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
) -> Result:
    """Run every optimizer on every task; nothing but the measured times depends on ``workers``.

    Args:
        learned: one learned optimizer, known by its kind, or several by their labels.
        thetas: its meta-parameters (or by label) where they are not the optimizer's own.
        baselines: specs, as ``"adamw"`` or ``"sgdm:momentum=0.5"``; an option that is usually tuned
            stays as given.
        steps: updates of an episode; the learned optimizer is told progress in these.
        seeds, tuning_seeds: how many seeds are reported, and how many choose the baselines'
            settings.
        grid_size: learning rates tried per schedule; default: the baseline's own grid.
        seed_offset: shifts all seeds, to repeat the evaluation on others.
        workers: processes. More than one need tasks and kinds that specs (and ``plugins``) can
            build again.
        data_dir, plugins: what those processes need for that.
        files, command: for the record.

    Raises:
        UserError: nothing to do, a label given twice, an unknown baseline, numbers out of range.
    """
    optimizers, own_thetas = _learned(learned, thetas)
    grids = {label: make_grid(label, grid_size) for label in baselines}
    made = {label: make_baseline(label) for label in baselines}
    check(tasks, [*optimizers, *baselines], steps, workers)
    chosen_on, reported_on = (
        protocol.tuning_seeds(tuning_seeds, seed_offset),
        protocol.report_seeds(seeds, seed_offset),
    )

    plans: dict[str, Plan[Arm]] = {}
    for task in tasks:
        for label, optimizer in optimizers.items():
            plans[f"{task.name} {label}"] = _learned_arm(
                task, label, optimizer, own_thetas[label], reported_on, steps
            )
        for label, baseline in made.items():
            arm = baseline_arm(task, label, baseline, grids[label], chosen_on, reported_on, steps)
            plans[f"{task.name} {label}"] = arm
    workshop = Workshop(
        tasks={task.name: task for task in tasks}, optimizers={**optimizers, **made}
    )
    if workers > 1:
        workshop.recipe = make_recipe(tasks, optimizers, made, data_dir, tuple(plugins))
    if progress is not None:
        runs = (
            sum(len(grid.settings) * tuning_seeds + 2 * seeds for grid in grids.values())
            + len(optimizers) * seeds
        )
        progress.begin(len(tasks) * runs * steps)
    arms = drive(plans, workshop, workers=workers, progress=progress)
    return Result(
        tasks=tuple(task.name for task in tasks),
        learned=tuple(optimizers),
        baselines=tuple(baselines),
        arms=tuple(arms.values()),
        steps=steps,
        tuning_seeds=chosen_on,
        report_seeds=reported_on,
        files=dict(files or {}),
        provenance=provenance(command),
    )


def _learned(
    learned: LearnedOptimizer | Mapping[str, LearnedOptimizer],
    thetas: Theta | Mapping[str, Theta] | None,
) -> tuple[dict[str, LearnedOptimizer], dict[str, Theta]]:
    """Optimizers and thetas by label."""
    if isinstance(learned, LearnedOptimizer):
        given = {} if thetas is None else {learned.kind: thetas}
        learned = {learned.kind: learned}
    else:
        given = dict(thetas or {})  # type: ignore[arg-type]
    if unknown := set(given) - set(learned):
        raise UserError(
            f"thetas for {', '.join(sorted(unknown))}, which are no learned optimizers here"
        )
    chosen = {
        label: {**optimizer.theta(), **given.get(label, {})} for label, optimizer in learned.items()
    }
    return dict(learned), chosen  # type: ignore[return-value]


def check(tasks: Sequence[Task], labels: Sequence[str], steps: int, workers: int) -> None:
    if not tasks or not labels:
        raise UserError("nothing to evaluate: expected at least one task and one optimizer")
    for what, names in (("task", [task.name for task in tasks]), ("optimizer", list(labels))):
        if twice := {name for name in names if names.count(name) > 1}:
            raise UserError(f"{what} {sorted(twice)[0]!r} is given twice")
    for name, value in (("steps", steps), ("workers", workers)):
        if value < 1:
            raise UserError(f"{name}: expected at least 1, got {value}")


def make_recipe(
    tasks: Sequence[Task],
    optimizers: Mapping[str, LearnedOptimizer],
    baselines: Mapping[str, LearnedOptimizer],
    data_dir: str | None,
    plugins: tuple[str, ...],
) -> Recipe:
    """Fails here, in one line, rather than in every cell."""
    for task in tasks:
        if parse_spec(task.name.partition("/")[0])[0] not in TASKS:
            raise UserError(
                f"more than one worker needs tasks by spec, and {task.name!r} is none; use workers=1"
            )
    for label, optimizer in optimizers.items():
        if optimizer.kind not in LEARNED:
            raise UserError(
                f"more than one worker needs registered kinds, and {label!r} is of none; use workers=1"
            )
    known = {label: ("learned", o.kind, asdict(o.config)) for label, o in optimizers.items()}
    known |= {label: ("baseline", label, {}) for label in baselines}
    device = str(tasks[0].device)
    return Recipe(optimizers=known, data_dir=data_dir, device=device, plugins=plugins)


def _learned_arm(
    task: Task,
    label: str,
    optimizer: LearnedOptimizer,
    theta: Theta,
    seeds: Sequence[int],
    steps: int,
) -> Plan[Arm]:
    (outcome,) = yield plan_cells(task.name, label, [theta], seeds, steps, SPLITS)
    if isinstance(outcome, Failure):
        return Arm(task=task.name, optimizer=label, learned=True, failure=outcome.reason)
    runs = runs_of(outcome, 0, {})
    return Arm(
        task=task.name,
        optimizer=label,
        learned=True,
        runs=(runs,),
        chosen={metric.key: 0 for metric in METRICS if metric.key in runs.metrics},
        gradients_per_step=gradients_per_step(optimizer),
        parameters=outcome.parameters,
        state_floats=outcome.state_floats,
    )


def baseline_arm(
    task: Task,
    label: str,
    optimizer: LearnedOptimizer,
    grid: Grid,
    chosen_on: Sequence[int],
    seeds: Sequence[int],
    steps: int,
) -> Plan[Arm]:
    """Tune, then run every setting that is best by some metric once, in a cell of its own (so that
    costs compare).
    """
    tuned = yield from tune(task.name, label, optimizer, grid, chosen_on, steps)
    if isinstance(tuned, Failure):
        return Arm(
            task=task.name, optimizer=label, learned=False, failure=f"tuning: {tuned.reason}"
        )
    distinct = sorted(set(tuned.chosen.values()))
    thetas = make_thetas(optimizer, [tuned.settings[i] for i in distinct])
    cells = [
        cell
        for theta in thetas
        for cell in plan_cells(task.name, label, [theta], seeds, steps, SPLITS)
    ]
    outcomes = yield cells
    runs: list[Runs] = []
    parameters, state = 0, 0.0
    for index, outcome in zip(distinct, outcomes, strict=True):
        if isinstance(outcome, Failure):
            return Arm(task=task.name, optimizer=label, learned=False, failure=outcome.reason)
        runs.append(runs_of(outcome, 0, tuned.settings[index]))
        parameters, state = outcome.parameters, outcome.state_floats
    return Arm(
        task=task.name,
        optimizer=label,
        learned=False,
        runs=tuple(runs),
        chosen={
            key: distinct.index(i) for key, i in tuned.chosen.items() if key in runs[0].metrics
        },
        tuned=tuning_record(tuned),
        notes=tuned.notes,
        gradients_per_step=gradients_per_step(optimizer),
        parameters=parameters,
        state_floats=state,
    )


def runs_of(outcome: Measured, index: int, setting: dict[str, float]) -> Runs:
    metrics = {name: values[index] for name, values in (outcome.metrics | outcome.extra).items()}
    return Runs(
        setting=setting,
        metrics=metrics,
        curves=outcome.curves[index].astype(np.float32),
        diverged=outcome.diverged[index],
        seconds_per_step=outcome.seconds_per_step,
    )


def tuning_record(tuned: Tuning) -> tuple[dict, ...]:
    return tuple(
        {
            "setting": setting,
            "label": setting_label(setting),
            "best_for": [key for key, chosen in tuned.chosen.items() if chosen == i],
            "scores": {name: values[i].tolist() for name, values in tuned.scores.items()},
        }
        for i, setting in enumerate(tuned.settings)
    )


def gradients_per_step(optimizer: LearnedOptimizer) -> float:
    """Gradient evaluations per update: one, or what its explicit regularizer takes (SAM: two)."""
    if isinstance(optimizer, TorchBaseline):
        return optimizer.gradients
    explicit = optimizer.explicit(optimizer.theta())
    return 1.0 if explicit is None else explicit.cost.total
