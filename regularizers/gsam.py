"""``gsam``: surrogate gap guided SAM (Zhuang et al. 2022, arXiv 2203.08065).

    G = g_p - alpha g_perp,  g_perp = g - (<g, g_p> / ||g_p||^2) g_p,  g_p = grad L at w + rho u

It is g that is decomposed, along g_p. Stepping against G descends the perturbed loss, which g_perp
leaves unchanged to first order, and climbs along g_perp, which lowers the surrogate gap (perturbed
minus plain loss) and raises the plain loss. A field without a scalar. alpha = 0 is SAM.

Pitfall: pulled back through an unroll, g_perp turns almost parallel to the rest, and absorbed GSAM
would be merely SAM. ``space=meta`` therefore decomposes the two meta-gradients instead
(`meta_split`). Explicit use, where there is no unroll, is always the field above.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from lo_framework.regularizers import vectors
from lo_framework.regularizers.base import (
    Correction,
    Cost,
    Landscape,
    Point,
    Regularizer,
    State,
    register_regularizer,
)
from lo_framework.regularizers.sam import SAM, SAMConfig
from lo_framework.schema import NotNegative


@dataclass(frozen=True, kw_only=True)
class GSAMConfig(SAMConfig):
    """``rho``: radius. ``alpha``: weight of the orthogonal part. ``space``: of parameters or of
    meta-parameters, where absorbed GSAM decomposes; explicit use ignores it.
    """

    alpha: NotNegative = 0.1
    space: Literal["meta", "params"] = "meta"


@register_regularizer
class GSAM(Regularizer):
    name = "gsam"
    Config = GSAMConfig
    RANGES: ClassVar = {"rho": (0.01, 0.5), "alpha": (0.01, 1.0)}
    cost = Cost(2)

    def __init__(self, config: GSAMConfig) -> None:
        super().__init__(config)
        self.sam = SAM(config)

    def correction(self, landscape: Landscape, here: Point, state: State) -> Correction:
        sharp = self.sam.correction(landscape, here, {}).field  # g_p - g
        orthogonal = vectors.without(here.grad, vectors.add(here.grad, sharp))
        return Correction(vectors.add(sharp, orthogonal, -self.config.alpha), None, state)

    def meta_split(self) -> tuple[Regularizer, float] | None:
        return (self.sam, self.config.alpha) if self.config.space == "meta" else None
