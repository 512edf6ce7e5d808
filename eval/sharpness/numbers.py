"""Numbers as JSON has them."""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor


def number(value: Tensor | float, digits: int = 17) -> float | None:
    """A JSON number, or None if it is not finite."""
    x = float(value)
    return float(f"{x:.{digits}g}") if math.isfinite(x) else None


def numbers(values: Iterable[Tensor | float], digits: int = 17) -> list[float | None]:
    return [number(x, digits) for x in values]
