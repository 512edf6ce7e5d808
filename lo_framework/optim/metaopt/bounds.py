"""Bounds of the log step sizes, and the cap on how far one meta step moves them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from lo_framework.optim.metaopt.bases import Base
from lo_framework.spec import UserError

MAX_CHANGE = math.log(2.0)  # a meta step at most halves or doubles a step size


class Limits(NamedTuple):
    """``low <= beta <= high``, and no meta step changes it by more than ``max_change``; None: no
    limit.
    """

    low: float | None
    high: float | None
    max_change: float | None

    def bounded(self, old: Tensor, new: Tensor) -> Tensor:
        """``new``, or the nearest value within the limits."""
        if self.max_change is not None:
            new = old + (new - old).clamp(-self.max_change, self.max_change)
        return new if self.low is None and self.high is None else new.clamp(self.low, self.high)


def limits_of(
    base: Base, alpha0: float, beta_bounds: str | Sequence[float] | None, max_change: float | None
) -> Limits:
    """The limits that ``beta_bounds`` asks for: "auto", (low, high) of the log step size, or None.

    Raises:
        UserError: they are not bounds, or ``alpha0`` is not positive or not within them.
    """
    if not (alpha0 > 0 and math.isfinite(alpha0)):
        raise UserError(f"alpha0 is a step size: it must be positive, got {alpha0}")
    if max_change is not None and not max_change > 0:
        raise UserError(f"max_change must be positive, or None for no cap, got {max_change}")
    if beta_bounds is None:
        return Limits(None, None, max_change)
    if isinstance(beta_bounds, str):
        if beta_bounds != "auto":
            raise UserError(
                f'beta_bounds must be "auto", (low, high) of the log step size, or None; got "{beta_bounds}"'
            )
        low, high = math.log(base.low), math.log(base.high)
    else:
        if len(beta_bounds) != 2:
            raise UserError(
                f"beta_bounds must be (low, high) of the log step size, got {tuple(beta_bounds)}"
            )
        low, high = (float(x) for x in beta_bounds)
        if not low < high:
            raise UserError(
                f"beta_bounds must be (low, high) with low < high, got ({low:g}, {high:g})"
            )
    slack = 1e-9 * max(
        1.0, abs(low), abs(high)
    )  # the logarithm of a bound given as a step size rounds
    if not low - slack <= math.log(alpha0) <= high + slack:
        raise UserError(
            f"alpha0={alpha0:g} is outside the bounds {math.exp(low):.3g} to {math.exp(high):.3g} of the step size: "
            "choose another alpha0, or set beta_bounds=(low, high) of its logarithm"
        )
    return Limits(low, high, max_change)
