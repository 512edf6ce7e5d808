"""``gradient_norm``: penalty on the gradient norm (Zhao et al. 2022, arXiv 2202.03599).

    R(w) = (1 - a) L(w) + a L(w + r u),  a = lam / r,  G = (1 - a) g + a grad L at w + r u

with ``u = g / ||g||`` a constant: the finite-difference form, ``R = L + lam ||g|| + O(lam r)``. a =
1 is SAM with rho = r; a > 1 extrapolates. The released code mixes the *normalised* g by default,
unlike the formula.
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
from lo_framework.regularizers.sam import SAM, SAMConfig
from lo_framework.schema import Checked, Positive


@dataclass(frozen=True, kw_only=True)
class GradientNormConfig(Checked):
    """``lam``: weight of the norm. ``r``: length of the finite difference."""

    lam: Positive = 0.04
    r: Positive = 0.05


@register_regularizer
class GradientNorm(Regularizer):
    name = "gradient_norm"
    Config = GradientNormConfig
    RANGES: ClassVar = {"lam": (0.005, 0.05), "r": (0.05, 0.5)}
    cost = Cost(2)
    has_value = True

    def __init__(self, config: GradientNormConfig) -> None:
        super().__init__(config)
        self.sam, self.share = SAM(SAMConfig(rho=config.r)), config.lam / config.r

    def correction(self, landscape: Landscape, here: Point, state: State) -> Correction:
        field, rise, _ = self.sam.correction(landscape, here, state)
        rise = None if rise is None else self.share * rise
        return Correction(vectors.scaled(field, self.share), rise, state)

    def value(self, landscape: Landscape, params: Params, *, attached: bool = False) -> Tensor:
        perturbed = self.sam.value(landscape, params, attached=attached)
        return (1 - self.share) * landscape.loss(params) + self.share * perturbed
