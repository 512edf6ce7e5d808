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

import torch

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
    restored,
    stored,
)
from lo_framework.schema import Checked, Positive, Share


@dataclass(frozen=True, kw_only=True)
class FSAMConfig(Checked):
    """``rho``: radius. ``sigma``: share of the average that is taken out. ``lam``: decay of the
    average. ``average``: the one before or after this step's gradient has entered.
    """

    rho: Positive = 0.05
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
        step = next(iter(params.values())).new_zeros((), dtype=torch.int64)
        return {
            "step": step,
            **stored("m", {name: torch.zeros_like(x) for name, x in params.items()}),
        }

    def correction(self, landscape: Landscape, here: Point, state: State) -> Correction:
        c, first = self.config, state["step"] == 0
        old = restored("m", state)
        new = vectors.add(vectors.scaled(old, c.lam), here.grad, 1 - c.lam)
        new = {name: torch.where(first, here.grad[name], x) for name, x in new.items()}
        noise = vectors.add(here.grad, new if c.average == "new" else old, -c.sigma)
        noise = {name: torch.where(first, here.grad[name], x) for name, x in noise.items()}
        _, grad = landscape.gradient(vectors.add(here.params, vectors.unit(noise), c.rho))
        return Correction(
            vectors.sub(grad, here.grad), None, {"step": state["step"] + 1, **stored("m", new)}
        )
