"""``fsam``: friendly SAM (Li et al. 2024, arXiv 2403.12350), which perturbs along the batch's own
noise.

    m <- lam m + (1 - lam) g,  d = g - sigma m,  G = grad L at w + rho d / ||d||

m estimates the full-batch gradient; without it, d is what is particular to this batch. The first
step takes d = g and m = g. ``average=old`` subtracts m before it is updated, as the released code
does; with sigma = 1 both give the same direction. A field without a scalar, since m depends on the
steps before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from lo_framework.regularizers import vectors
from lo_framework.regularizers.base import (
    Correction,
    Cost,
    Landscape,
    Params,
    Point,
    Regularizer,
    State,
    fresh,
    register_regularizer,
    restored,
    stored,
)
from lo_framework.regularizers.sam import SAMConfig
from lo_framework.schema import Positive, Share


@dataclass(frozen=True, kw_only=True)
class FSAMConfig(SAMConfig):
    """``rho``: radius. ``sigma``: share of the average that is taken out. ``lam``: decay of the
    average. ``average``: the one before or after this step's gradient has entered.
    """

    sigma: Positive = 1.0
    lam: Share = 0.9
    average: Literal["new", "old"] = "new"


@register_regularizer
class FSAM(Regularizer):
    name = "fsam"
    Config = FSAMConfig
    RANGES: ClassVar = {"rho": (0.01, 0.5), "sigma": (0.5, 1.0), "lam": (0.6, 0.95)}
    cost = Cost(2)

    def init_state(self, params: Params) -> State:
        return fresh("m", params)

    def correction(self, landscape: Landscape, here: Point, state: State) -> Correction:
        c, g, old = self.config, here.grad, restored("m", state)
        first = state["step"] == 0
        m = vectors.where(first, g, vectors.add(vectors.scaled(old, c.lam), g, 1 - c.lam))
        average = m if c.average == "new" else old
        d = vectors.where(first, g, vectors.add(g, average, -c.sigma))
        _, grad = landscape.gradient(vectors.add(here.params, vectors.unit(d), c.rho))
        state = {"step": state["step"] + 1, **stored("m", m)}
        return Correction(vectors.sub(grad, g), None, state)
