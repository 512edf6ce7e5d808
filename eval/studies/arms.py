"""One optimizer on one task: tuned if it is a baseline, then run on the reported seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lo_framework.eval.baselines import Setting, TorchBaseline, make_thetas, setting_label
from lo_framework.eval.running.cells import Failure, Measured, plan_cells
from lo_framework.eval.running.pool import Arm as Plan
from lo_framework.eval.running.protocol import METRICS
from lo_framework.eval.running.tuning import Grid, Tuning, tune
from lo_framework.eval.studies.result import Arm, Runs
from lo_framework.learned.base import LearnedOptimizer

SPLITS = ("train", "test")


def run_settings(
    arm: Arm,
    spec: str,
    optimizer: LearnedOptimizer,
    settings: Sequence[Setting],
    seeds: Sequence[int],
    steps: int,
) -> Plan[Arm]:
    """``arm`` with its runs at ``settings``, each in a cell of its own, so that costs compare.

    Args:
        spec: the name that cells have for ``optimizer``.
    """
    thetas = make_thetas(optimizer, settings)
    outcomes = yield [
        plan_cells(arm.task, spec, [theta], seeds, steps, SPLITS)[0] for theta in thetas
    ]
    for outcome in outcomes:
        if isinstance(outcome, Failure):
            return replace(arm, chosen={}, failure=outcome.reason)
    runs = tuple(runs_of(x, setting) for x, setting in zip(outcomes, settings, strict=True))
    return replace(
        arm,
        runs=runs,
        chosen=arm.chosen or {m.key: 0 for m in METRICS if m.key in runs[0].metrics},
        gradients_per_step=gradients_per_step(optimizer),
        parameters=outcomes[-1].parameters,
        state_floats=outcomes[-1].state_floats,
    )


def tuned_arm(
    task: str,
    label: str,
    optimizer: LearnedOptimizer,
    grid: Grid,
    chosen_on: Sequence[int],
    seeds: Sequence[int],
    steps: int,
) -> Plan[Arm]:
    """The arm of a baseline: tuned, then run at every setting that is best by some metric."""
    arm = Arm(task=task, optimizer=label, learned=False)
    tuned = yield from tune(task, label, optimizer, grid, chosen_on, steps)
    if isinstance(tuned, Failure):
        return replace(arm, failure=f"tuning: {tuned.reason}")
    distinct = sorted(set(tuned.chosen.values()))
    arm = replace(
        arm,
        chosen={key: distinct.index(i) for key, i in tuned.chosen.items()},
        tuned=tuning_record(tuned),
        notes=tuned.notes,
    )
    settings = [tuned.settings[i] for i in distinct]
    arm = yield from run_settings(arm, label, optimizer, settings, seeds, steps)
    measured = arm.runs[0].metrics if arm.runs else {}
    return replace(arm, chosen={key: i for key, i in arm.chosen.items() if key in measured})


def runs_of(outcome: Measured, setting: Setting) -> Runs:
    """The runs of a cell that has one setting."""
    metrics = {name: values[0] for name, values in (outcome.metrics | outcome.extra).items()}
    return Runs(
        setting=setting,
        metrics=metrics,
        curves=outcome.curves[0].astype(np.float32),
        diverged=outcome.diverged[0],
        seconds_per_step=outcome.seconds_per_step,
    )


def tuning_record(tuned: Tuning) -> tuple[dict, ...]:
    """Every setting that was tried, with its scores, as it stands in files."""
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
