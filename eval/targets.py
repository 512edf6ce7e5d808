"""Steps to a target loss over runs of which some never come there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lo_framework.eval.statistics import Array, median, outcomes


@dataclass(frozen=True, kw_only=True)
class StepsToTarget:
    """Steps to a target over the seeds; ``median`` counts censored runs as later than all others
    (inf: most were).
    """

    median: float
    reached: int
    censored: int

    def __str__(self) -> str:
        median = f"{self.median:.10g}" if math.isfinite(self.median) else "never"
        return (
            f"{median} ({self.censored} of {self.reached + self.censored} never)"
            if self.censored
            else median
        )


def steps_to_target(
    curve: ArrayLike, target: float, steps: Sequence[int] | None = None
) -> int | None:
    """First step at which ``curve [points]`` is at most ``target``; None if it never is (censored).

    ``steps [points]``: the step of each point, where the curve was not taken at every step.
    """
    y = np.asarray(curve, dtype=np.float64)
    if steps is not None and len(steps) != y.size:
        raise ValueError(f"{y.size} points but {len(steps)} steps")
    hits = np.flatnonzero(y <= target)  # a nan is no hit
    if hits.size == 0:
        return None
    first = int(hits[0])
    return first if steps is None else int(steps[first])


def summarize_steps(reached: Sequence[int | None]) -> StepsToTarget:
    """Counts and the median of `steps_to_target` over runs of one length, censored ones too."""
    values, censored = outcomes([math.nan if step is None else step for step in reached])
    return StepsToTarget(
        median=float(median(values)), reached=values.size - censored, censored=censored
    )


def smoothed(curves: Array, width: int) -> Array:
    """Means of ``width`` values in a row: ``[S, T]`` to ``[S, T - width + 1]``; infinite from a
    divergence on.
    """
    x = np.asarray(curves, dtype=np.float64)
    x = np.where(np.maximum.accumulate(~np.isfinite(x), axis=1), np.inf, x)
    return np.lib.stride_tricks.sliding_window_view(x, width, axis=1).mean(axis=-1)
