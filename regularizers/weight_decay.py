"""``weight_decay``: the L2 penalty.

    R(w) = L(w) + lam/2 ||w||^2,  G = g + lam w

The coupled form: under Adam the penalty's gradient is divided by the gradient's scale like the
rest. Decoupled decay, ``w <- (1 - lr lam) w``, is an option of the base optimizer (AdamW), not a
regularizer. Every tensor decays, biases too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lo_framework.regularizers import vectors
from lo_framework.regularizers.base import (
    Correction,
    Cost,
    Landscape,
    Params,
    Point,
    Regularizer,
    State,
    register_regularizer,
)
from lo_framework.schema import Checked, Positive


@dataclass(frozen=True, kw_only=True)
class WeightDecayConfig(Checked):
    """``lam``: weight of the penalty."""

    lam: Positive = 5e-4


@register_regularizer
class WeightDecay(Regularizer):
    name = "weight_decay"
    Config = WeightDecayConfig
    RANGES: ClassVar = {"lam": (1e-5, 0.01)}
    cost = Cost(1)
    has_value = True

    def correction(self, landscape: Landscape, here: Point, state: State) -> Correction:
        return Correction(
            vectors.scaled(here.params, self.config.lam), self._penalty(here.params), state
        )

    def value(self, landscape: Landscape, params: Params, *, attached: bool = False) -> Tensor:
        return landscape.loss(params) + self._penalty(params)

    def _penalty(self, params: Params) -> Tensor:
        return self.config.lam / 2 * vectors.dot(params, params)
