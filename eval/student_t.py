"""Quantiles and tails of Student's t from numpy alone."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@lru_cache(maxsize=256)
def student_t_quantile(probability: float, df: int) -> float:
    """Quantile of Student's t for a whole number of degrees of freedom: bisection of its exact
    finite series.
    """
    if not 0.0 < probability < 1.0 or df < 1:
        raise ValueError(f"need 0 < probability < 1 and df >= 1, got {probability} and {df}")
    if probability < 0.5:
        return -student_t_quantile(1.0 - probability, df)
    low, high = 0.0, math.pi / 2
    for _ in range(80):
        middle = 0.5 * (low + high)
        low, high = (
            (middle, high) if _between(middle, df) < 2.0 * probability - 1.0 else (low, middle)
        )
    return math.sqrt(df) * math.tan(low)


def student_t_tails(t: float, df: int) -> float:
    """P(|T| >= t), the two-sided p-value; to about 1e-15 absolute."""
    return min(1.0, max(0.0, 1.0 - _between(math.atan(abs(t) / math.sqrt(df)), df)))


def _between(angle: float, df: int) -> float:
    """P(|T| < t) for t = sqrt(df) tan(angle). Source: Abramowitz & Stegun 26.7.3-4."""
    odd = df % 2
    coefficients = _coefficients(df)
    cosine = math.cos(angle)
    series = float(np.sum(coefficients * cosine ** (2 * np.arange(coefficients.size) + odd)))
    inner = math.sin(angle) * series
    return 2.0 / math.pi * (angle + inner) if odd else inner


@lru_cache(maxsize=256)
def _coefficients(df: int) -> NDArray[np.float64]:
    j = np.arange(
        1 + df % 2, df - 2 + df % 2, 2
    )  # ratios of successive terms: (1/2) (3/4) ... or (2/3) (4/5) ...
    return np.concatenate([[1.0], np.cumprod(j / (j + 1.0))]) if df > 1 else np.zeros(1)
