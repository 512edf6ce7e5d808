"""``sam``: sharpness-aware minimisation (Foret et al. 2021, arXiv 2010.01412).

    R(w) = L(w + rho u),  u = g / ||g||,  G = grad L at w + rho u

with ``u`` a constant; ``value(attached=True)`` differentiates through it as well.
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
    frozen,
    register_regularizer,
)
from lo_framework.schema import Checked, Positive


@dataclass(frozen=True, kw_only=True)
class SAMConfig(Checked):
    """``rho``: radius of the neighbourhood, l2 over all parameters."""

    rho: Positive = 0.05


class WithRadius(Regularizer):
    """A regularizer with a radius, ``rho``: a tensor where it is a meta-parameter."""

    Config = SAMConfig

    def __init__(self, config: SAMConfig, rho: Tensor | None = None) -> None:
        super().__init__(config)
        self.rho: Tensor | float = config.rho if rho is None else rho


@register_regularizer
class SAM(WithRadius):
    name = "sam"
    RANGES: ClassVar = {"rho": (0.01, 0.5)}
    cost = Cost(2)
    has_value = True

    def perturbation(self, params: Params, grad: Params) -> Params:
        return vectors.scaled(vectors.unit(grad), self.rho)

    def correction(self, landscape: Landscape, here: Point, state: State) -> Correction:
        step = self.perturbation(here.params, here.grad)
        loss, grad = landscape.gradient(vectors.add(here.params, step))
        return Correction(vectors.sub(grad, here.grad), loss - here.loss, state)

    def value(self, landscape: Landscape, params: Params, *, attached: bool = False) -> Tensor:
        return landscape.loss(vectors.add(params, self.step_from(landscape, params, attached)))

    def step_from(self, landscape: Landscape, params: Params, attached: bool) -> Params:
        """The perturbation at ``params``; a constant of them unless ``attached``."""
        _, grad = landscape.gradient(params)
        # Not the step is frozen but what it is made of: rho may be a tensor to differentiate in.
        return self.perturbation(*(x if attached else frozen(x) for x in (params, grad)))
