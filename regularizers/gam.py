"""``gam``: gradient norm aware minimisation (Zhang et al. 2023, arXiv 2303.03108).

    exact:        R(w) = L(w) + alpha rho ||grad L(w_adv)||,  w_adv = w + rho q / ||q||,
                  q(w) = H g / ||g||
                  G = g + alpha rho q(w_adv), with w_adv - w a constant
    accelerated:  g1 at w + rho' g0/||g0||,  h0 = g1 - g0 (about rho' q),
                  g2 at w2 = w + rho h0/||h0||,
                  g3 at w2 + rho' g2/||g2||,  h+ = A g1 + (1-A) g3,  h- = B g0 + (1-B) g2,
                  G = h+ - gamma (h- without its part along h+)

Accelerated is the paper's Algorithm 2: first-order gradients only, a field without a scalar, and
alpha plays no part. Pitfall: the released code computes ``h- = g0 + |1-B| g2`` instead
(``variant=reference``); the two agree at B = 1 only, and at B = 0.5 their orthogonal parts can even
point in opposite directions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

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
from lo_framework.schema import Checked, Fraction, NotNegative, Positive


@dataclass(frozen=True, kw_only=True)
class GAMConfig(Checked):
    """Exact: ``alpha``, weight of the gradient norm, and ``rho``, radius within which it is
    maximised.

    Accelerated (``exact=0``): ``rho`` again, ``rho_prime`` of the finite difference, ``beta_1``
    (A), ``beta_0`` (B), ``gamma`` and ``variant``. A, B and gamma are published for CIFAR-10
    ResNets; they have no scale. The radii are published as .2 and .03 for nets of millions of
    weights; here they are about a quarter, on a par with SAM's .05.
    """

    alpha: Positive = 0.1
    rho: Positive = 0.05
    exact: bool = True
    rho_prime: Positive = 0.01
    beta_1: Fraction = 0.1
    beta_0: Fraction = 0.1
    gamma: NotNegative = 0.05
    variant: Literal["paper", "reference"] = "paper"


@register_regularizer
class GAM(Regularizer):
    name = "gam"
    Config = GAMConfig
    RANGES: ClassVar = {
        "alpha": (0.01, 1.0),
        "rho": (0.01, 0.5),
        "rho_prime": (0.005, 0.05),
        "beta_1": (0.1, 0.6),
        "beta_0": (0.1, 0.6),
        "gamma": (0.01, 0.1),
    }

    def __init__(self, config: GAMConfig) -> None:
        super().__init__(config)
        self.has_value = self.needs_hvp = config.exact
        self.without_hvp = "use exact=False"

    @property
    def cost(self) -> Cost:
        return Cost(2, 2) if self.config.exact else Cost(4)

    def correction(self, landscape: Landscape, here: Point, state: State) -> Correction:
        field, rise = (self._exact if self.config.exact else self._accelerated)(landscape, here)
        return Correction(field, rise, state)

    def value(self, landscape: Landscape, params: Params, *, attached: bool = False) -> Tensor:
        if not self.config.exact:
            return super().value(landscape, params)
        start = params if attached else frozen(params)
        step = self._ascent(landscape, start, landscape.gradient(start)[1])
        _, steepest = landscape.gradient(vectors.add(params, step))
        return landscape.loss(params) + self.config.alpha * self.config.rho * vectors.norm(steepest)

    def _ascent(self, landscape: Landscape, params: Params, grad: Params) -> Params:
        """To where the gradient norm is largest within rho, to first order."""
        q = landscape.hvp(params, vectors.unit(grad))
        return vectors.scaled(vectors.unit(q), self.config.rho)

    def _exact(self, landscape: Landscape, here: Point) -> tuple[Params, Tensor | None]:
        weight = self.config.alpha * self.config.rho
        there = vectors.add(here.params, self._ascent(landscape, here.params, here.grad))
        _, grad = landscape.gradient(there)
        slope = landscape.hvp(there, vectors.unit(grad))
        return vectors.scaled(slope, weight), weight * vectors.norm(grad)

    def _accelerated(self, landscape: Landscape, here: Point) -> tuple[Params, Tensor | None]:
        c, g0 = self.config, here.grad

        def ahead(params: Params, direction: Params, radius: float) -> tuple[Params, Params]:
            there = vectors.add(params, vectors.unit(direction), radius)
            return there, landscape.gradient(there)[1]

        _, g1 = ahead(here.params, g0, c.rho_prime)
        there, g2 = ahead(here.params, vectors.sub(g1, g0), c.rho)
        _, g3 = ahead(there, g2, c.rho_prime)
        plus = vectors.add(vectors.scaled(g1, c.beta_1), g3, 1 - c.beta_1)
        b = c.beta_0 if c.variant == "paper" else 1.0
        minus = vectors.add(vectors.scaled(g0, b), g2, 1 - c.beta_0)
        return vectors.sub(vectors.add(plus, vectors.without(minus, plus), -c.gamma), g0), None
