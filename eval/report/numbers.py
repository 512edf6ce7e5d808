"""How single numbers look in the tables."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from lo_framework.eval.running.protocol import Metric
from lo_framework.eval.statistics import Array, Estimate, least_p, mean_interval, pairs_needed


def mean_of(values: Array, metric: Metric) -> str:
    """Return ``0.4123 ±0.0071`` or ``95.8% ±0.6``: mean over seeds, and half the width of its 95%
    interval.
    """
    return plus_minus(mean_interval(values, diverged_as=metric.diverged_as), metric.percent)


def count_of(flags: NDArray[np.bool_]) -> str:
    """Return ``2 of 5``."""
    return f"{int(flags.sum())} of {flags.size}"


def plus_minus(estimate: Estimate, percent: bool = False) -> str:
    """Return the estimate with half of its interval, to the digits that the interval leaves
    certain.
    """
    scale, sign = (100.0, "%") if percent else (1.0, "")
    value, half = scale * estimate.value, scale * (estimate.high - estimate.low) / 2
    if not math.isfinite(value):
        return "inf"
    if not math.isfinite(half):
        return f"{value:.4g}{sign}"
    if half <= 0:
        return f"{value:.4g}{sign} ±0"
    digits = max(0, 1 - math.floor(math.log10(half)))
    if digits > 5 or abs(value) >= 1e6:
        return f"{value:.3g}{sign} ±{half:.1g}"
    return f"{value:.{digits}f}{sign} ±{half:.{digits}f}"


def mean_or_diverged(values: Array, diverged: NDArray[np.bool_], metric: Metric) -> str:
    """Return `mean_of`, or how many of the runs diverged if any did."""
    return f"{count_of(diverged)} diverged" if diverged.any() else mean_of(values, metric)


def difference(estimate: Estimate, metric: Metric) -> str:
    """Return it in the metric's units, accuracies in points; where divergence leaves no mean, how
    many pairs it touched.
    """
    if not math.isfinite(estimate.value):
        return f"{estimate.diverged} of {estimate.n} diverged"
    scale = 100.0 if metric.percent else 1.0
    scaled = Estimate(
        value=scale * estimate.value,
        low=scale * estimate.low,
        high=scale * estimate.high,
        n=estimate.n,
    )
    return f"{scaled} points" if metric.percent else str(scaled)


def ratio(value: float) -> str | None:
    """Return ``0.94x``; huge and tiny ones in powers of ten."""
    if math.isnan(value):
        return None
    if value in (0.0, math.inf):
        return f"{value:g}"
    return f"{value:.2f}x" if 0.01 <= value < 1000 else f"{value:.1e}x"


def seeds(numbers: tuple[int, ...]) -> str:
    """Return ``5 seeds (20000-20004)``."""
    ends = "-".join(map(str, dict.fromkeys([*numbers[:1], *numbers[-1:]])))
    return f"{len(numbers)} seed{'s' * (len(numbers) != 1)} ({ends})"


def few_seeds(count: int, comparisons: int) -> str:
    """Say so where ``count`` paired seeds cannot be significant whatever they show, alone or as one
    of so many ``comparisons``; empty where they can.
    """
    needed = pairs_needed(comparisons)
    if count >= needed or not comparisons:
        return ""
    alone = pairs_needed(1)
    words = (
        f"{count} seed{'s' * (count != 1)}: a paired test of signs or of permutations gives no "
        f"p-value below {least_p(count):.3g} here, whatever they show. "
    )
    if count < alone:
        words += f"It takes {alone} seeds for one comparison to be significant at 5% by it"
        words += ", and " if comparisons > 1 else "."
    else:
        words += "It takes "
    if comparisons > 1:
        words += f"{needed} for one of the {comparisons} of a task after Holm's correction."
    return words
