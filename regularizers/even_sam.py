"""``even_sam``: the part of SAM that the slope has nothing to do with; ``even_asam``: that of ASAM.

    R(w) = (L(w + rho u) + L(w - rho u)) / 2,  u = g / ||g||
    G = (grad L at w + rho u  +  grad L at w - rho u) / 2

with ``u`` a constant. ``R - L`` is the even part of the loss along u, rho^2 u'Hu / 2 up to terms of
fourth order, where SAM's is rho ||g|| + rho^2 u'Hu / 2: whoever pays for SAM's gap far from a
minimum pays for the slope, and so for slow training; here that cancels. ASAM's steps in place of
``rho u`` are in units of the weights, so that larger weights win nothing. No paper's: ours.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from lo_framework.regularizers import vectors
from lo_framework.regularizers.asam import ASAM
from lo_framework.regularizers.base import (
    Correction,
    Cost,
    Landscape,
    Params,
    Point,
    State,
    register_regularizer,
)
from lo_framework.regularizers.sam import SAM


@register_regularizer
class EvenSAM(SAM):
    name = "even_sam"
    RANGES: ClassVar = {"rho": (0.05, 1.0)}
    cost = Cost(3)

    def correction(self, landscape: Landscape, here: Point, state: State) -> Correction:
        step = self.perturbation(here.params, here.grad)
        loss, grad = landscape.gradient(vectors.add(here.params, step))
        back_loss, back = landscape.gradient(vectors.sub(here.params, step))
        mean = vectors.scaled(vectors.add(grad, back), 0.5)
        return Correction(vectors.sub(mean, here.grad), 0.5 * (loss + back_loss) - here.loss, state)

    def value(self, landscape: Landscape, params: Params, *, attached: bool = False) -> Tensor:
        step = self.step_from(landscape, params, attached)
        ahead, back = (landscape.loss(f(params, step)) for f in (vectors.add, vectors.sub))
        return 0.5 * (ahead + back)


@register_regularizer
class EvenASAM(EvenSAM, ASAM):
    name = "even_asam"
    RANGES: ClassVar = {"rho": (0.1, 2.0), "eta": (0.001, 0.1)}
