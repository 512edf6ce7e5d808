"""What is measured of one optimizer on one problem, and how it compares with tuned AdamW.

Losses are means of the last ten training batches. AdamW's steps are its first step at or below its
last such value; a speed-up is those steps over the steps that an optimizer takes to that loss on
the same seed, and 0 where it never gets there. Problems are compared by medians over seeds, all of
them by the interquartile mean over problems.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from lo_framework.eval.baselines import Setting
from lo_framework.eval.running.cells import Measured
from lo_framework.eval.running.envelope import Flags, Measured as Number, Metrics, OnTask
from lo_framework.eval.running.protocol import BY_KEY, Metric
from lo_framework.eval.statistics import Array, Estimate, iqm, median, stratified_bootstrap
from lo_framework.eval.targets import smoothed, steps_to_target

WIDTH = 10  # batches of one loss
LAST = Metric(key="last_loss", title="last loss", chosen_by="last_loss")
CHOSEN = (LAST, BY_KEY["test_loss"])  # what baselines have a best setting for
EARLY = 0.1  # part of a run, but at least `WIDTH` steps of it

# ratio -> that of an optimizer that never learns
WORST = {"speed_up": 0.0, "final": np.inf, "test": np.inf, "early": np.inf, "spike": np.inf}


@dataclass(frozen=True, kw_only=True)
class Scored(OnTask):
    """One optimizer on one problem; ``task`` is the problem's name.

    Attributes:
        settings: metric -> the setting of a baseline that is best for it.
        metrics: ``[S]`` each: last_loss, test_loss, first_loss, peak_loss (the worst of the first
            tenth), steps (to AdamW's last loss; nan: never).
        diverged: ``[S]`` bool.
    """

    settings: dict[str, Setting] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=dict)
    diverged: Flags = field(default_factory=lambda: np.zeros(0, dtype=bool))
    seconds_per_step: Number = float("nan")

    def first(self, seeds: int) -> Scored:
        """The first ``seeds`` of all."""
        metrics = {name: x[:seeds] for name, x in self.metrics.items()}
        return replace(self, metrics=metrics, diverged=self.diverged[:seeds])


def scored(arm: Scored, runs: dict[str, Measured], target: Array | None) -> Scored:
    """``arm`` with what ``runs`` (by the metric that they are best for, one setting each) gave.

    Args:
        target: ``[S]`` losses to reach; None: its own last ones.
    """
    run = runs[LAST.key]
    curves = run.curves[0].astype(np.float64)
    steps = curves.shape[-1]
    width = min(WIDTH, steps)
    means = smoothed(curves, width)
    last = means[:, -1]
    ends = range(width, steps + 1)
    goals = last if target is None else target
    diverged = run.diverged[0]
    reached = [
        None if lost else steps_to_target(line, float(goal), ends)
        for line, goal, lost in zip(means, goals, diverged, strict=True)
    ]
    early = np.maximum.accumulate(curves, axis=1)[:, early_steps(steps) - 1]
    return replace(
        arm,
        metrics={
            "last_loss": last,
            "test_loss": runs["test_loss"].metrics["test_loss"][0],
            "first_loss": curves[:, 0],
            "peak_loss": np.where(np.isfinite(early), early, np.inf),
            "steps": np.array([np.nan if step is None else step for step in reached], np.float64),
        },
        diverged=diverged,
        seconds_per_step=run.seconds_per_step,
    )


def early_steps(steps: int) -> int:
    """How many steps of a run are its first ones."""
    return min(steps, max(WIDTH, round(EARLY * steps)))


def ratios(arm: Scored, adamw: Scored) -> dict[str, Array]:
    """``[S]`` each: speed_up; final and test loss over AdamW's; the worst early loss over the first
    one (early), and over the larger of the first one and AdamW's worst (spike).
    """
    if arm.failure:
        return {name: np.full(len(adamw.diverged), worst) for name, worst in WORST.items()}
    own, its = arm.metrics, adamw.metrics
    pairs = {
        "speed_up": (its["steps"], own["steps"]),
        "final": (own["last_loss"], its["last_loss"]),
        "test": (own["test_loss"], its["test_loss"]),
        "early": (own["peak_loss"], own["first_loss"]),
        "spike": (own["peak_loss"], np.maximum(own["first_loss"], its["peak_loss"])),
    }
    found = {}
    for name, (above, below) in pairs.items():
        with np.errstate(divide="ignore", invalid="ignore"):
            x = np.where(above == below, 1.0, above / below)
        found[name] = np.where(np.isnan(x), WORST[name], x)
    return found


def over_problems(values: Sequence[Array]) -> Estimate:
    """The interquartile mean over problems of the medians over seeds; seeds are resampled within
    each problem.
    """
    return stratified_bootstrap(np.stack(values), partial(_iqm_of_medians, problems=len(values)))


def _iqm_of_medians(flat: Array, problems: int) -> Array:
    return iqm(median(flat.reshape(*flat.shape[:-1], problems, -1)))
