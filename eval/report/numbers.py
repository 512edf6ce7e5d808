"""How single numbers look in the tables."""

from __future__ import annotations

import math

from lo_framework.eval.running.protocol import Metric
from lo_framework.eval.statistics import Array, Estimate, mean_interval
from lo_framework.eval.studies.result import Arm


def reached(arm: Arm, metric: Metric) -> str | None:
    """Return ``0.4123 ±0.0071`` or ``95.8% ±0.6``: mean over seeds, and half the width of its 95%
    interval.
    """
    values = arm.values(metric.key)
    if values is None:
        return None
    return plus_minus(mean_interval(values, diverged_as=metric.diverged_as), metric.percent)


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


def mean_or_diverged(values: Array, diverged: Array, metric: Metric) -> str:
    """Return `plus_minus` over seeds, or how many of their runs diverged if any did."""
    if bad := int(diverged.sum()):
        return f"{bad} of {diverged.size} diverged"
    return plus_minus(mean_interval(values, diverged_as=metric.diverged_as), metric.percent)


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
