"""Where runs of different optimizers are equally far: at equal training loss, and at equal path
length.

At small radii the sharpness of a point mostly measures how far training has come. So every run is
also measured at its first step whose loss on the full training split is at most that of the worst
arm's last step, on the same seed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from lo_framework.eval.statistics import Array
from lo_framework.eval.targets import steps_to_target


def worst_final(finals: Mapping[str, float | None]) -> float | None:
    """Return the target of one seed: the largest finite last loss over the arms; None if all runs
    diverged.

    A run that diverged sets no target, or every other run would match it before its first step.
    """
    finite = [x for x in finals.values() if x is not None and math.isfinite(x)]
    return max(finite, default=None)


def matched_step(
    steps: Sequence[int], losses: Sequence[float | None], target: float | None
) -> int | None:
    """Return the first of ``steps`` whose loss is at most ``target``; None: censored, it never is
    (or there is no target).
    """
    if target is None or not len(steps):
        return None
    return steps_to_target([math.nan if x is None else x for x in losses], target, steps)


def shared_levels(keys: Sequence[ArrayLike], *, falling: bool, count: int = 12) -> Array:
    """Return levels that every run gets to, evenly spaced from the latest start to the earliest
    end; empty if there are none.

    Losses are spaced by their logarithm: late training is where optimizers differ.
    """
    runs = [np.asarray(key, dtype=np.float64) for key in keys]
    runs = [run[np.isfinite(run)] for run in runs]
    if not runs or any(run.size == 0 for run in runs):
        return np.empty(0)
    if falling:
        high, low = min(run[0] for run in runs), max(run.min() for run in runs)
        return np.geomspace(high, low, count) if high > low > 0 else np.empty(0)
    low, high = max(run[0] for run in runs), min(run.max() for run in runs)
    return np.linspace(low, high, count) if high > low else np.empty(0)


def at_equal(xs: ArrayLike, curves: ArrayLike, levels: ArrayLike, *, falling: bool) -> Array:
    """Read ``curves [K, T]`` where ``xs [K, T]`` first reach each of ``levels [L]``: ``[K, L]``.

    Between two steps linearly; nan where a run never gets there (censored). ``falling``: xs is a
    loss, and reaching is being at most the level; else a path
    length. Points at which xs or the curve is not finite are left out.
    """
    x, y = (np.array(rows, dtype=np.float64, ndmin=2) for rows in (xs, curves))
    wanted = np.array(levels, dtype=np.float64, ndmin=1)
    if x.shape != y.shape:
        raise ValueError(f"xs and curves need one shape, got {list(x.shape)} and {list(y.shape)}")
    found = np.full((len(x), wanted.size), np.nan)
    sign = -1.0 if falling else 1.0
    for k in range(len(x)):
        keep = np.isfinite(x[k]) & np.isfinite(y[k])
        a, b = sign * x[k][keep], y[k][keep]
        for j, level in enumerate(sign * wanted):
            hits = np.flatnonzero(a >= level)
            if hits.size == 0:
                continue
            i = int(hits[0])
            found[k, j] = b[i] if i == 0 else np.interp(level, a[i - 1 : i + 1], b[i - 1 : i + 1])
    return found
