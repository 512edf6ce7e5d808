"""Kendall's rank correlation: sharpness and accuracy need not be related linearly."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike


def kendall_tau(x: ArrayLike, y: ArrayLike) -> float:
    """Tau-b (ties corrected) over the pairs that are finite in both; nan below two of them, or if
    one is constant.
    """
    a, b = np.asarray(x, dtype=np.float64).ravel(), np.asarray(y, dtype=np.float64).ravel()
    both = np.isfinite(a) & np.isfinite(b)
    a, b = a[both], b[both]
    first, second = np.triu_indices(a.size, 1)
    rise, climb = np.sign(a[first] - a[second]), np.sign(b[first] - b[second])
    pairs = math.sqrt(float(np.abs(rise).sum()) * float(np.abs(climb).sum()))
    return float((rise * climb).sum()) / pairs if pairs else math.nan
