"""Quantiles of Student's t from numpy alone."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np


@lru_cache(maxsize=256)
def student_t_quantile(probability: float, df: int) -> float:
    """Quantile of Student's t for a whole number of degrees of freedom: bisection of its exact finite series.

    Source: Abramowitz & Stegun 26.7.3-4, with t = sqrt(df) tan(angle).
    """
    if not 0.0 < probability < 1.0 or df < 1:
        raise ValueError(f"need 0 < probability < 1 and df >= 1, got {probability} and {df}")
    if probability < 0.5:
        return -student_t_quantile(1.0 - probability, df)
    odd = df % 2
    j = np.arange(1 + odd, df - 2 + odd, 2)  # ratios of successive terms: (1/2) (3/4) ... or (2/3) (4/5) ...
    coefficients = np.concatenate([[1.0], np.cumprod(j / (j + 1.0))]) if df > 1 else np.zeros(1)

    def between(angle: float) -> float:  # P(|T| < t)
        cosine = math.cos(angle)
        series = float(np.sum(coefficients * cosine ** (2 * np.arange(coefficients.size) + odd)))
        inner = math.sin(angle) * series
        return 2.0 / math.pi * (angle + inner) if odd else inner

    low, high = 0.0, math.pi / 2
    for _ in range(80):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if between(middle) < 2.0 * probability - 1.0 else (low, middle)
    return math.sqrt(df) * math.tan(low)
