"""``s2sam``: SAM with one gradient a step, taken along the gradient of the step before (single-step
SAM, Ji et al. 2024, "A single-step, sharpness-aware minimization is all you need to achieve
efficient and accurate sparse training", NeurIPS).

    G_t = grad L_t at w_t + rho G_{t-1} / ||G_{t-1}||,  G_0 = grad L_0 at w_0

The direction is of another batch than the gradient, so what is particular to a batch is not
followed up; what stays is the part that batches have in common, which is where the loss is curved.
"""

from __future__ import annotations

from typing import ClassVar

from lo_framework.regularizers import vectors
from lo_framework.regularizers.base import (
    Correction,
    Cost,
    Landscape,
    Params,
    Point,
    State,
    register_regularizer,
    restored,
    stored,
)
from lo_framework.regularizers.sam import WithRadius


@register_regularizer
class S2SAM(WithRadius):
    """The only gradient of a step is taken `ahead` of the weights."""

    name = "s2sam"
    RANGES: ClassVar = {"rho": (0.01, 1.0)}
    cost = Cost(1)
    is_ahead = True

    def init_state(self, params: Params) -> State:
        return stored("before", {name: x.new_zeros(x.shape) for name, x in params.items()})

    def ahead(self, state: State) -> Params:
        return vectors.scaled(vectors.unit(restored("before", state)), self.rho)

    def after(self, grad: Params, state: State) -> State:
        return stored("before", grad)

    def correction(self, landscape: Landscape, here: Point, state: State) -> Correction:
        _, grad = landscape.gradient(vectors.add(here.params, self.ahead(state)))
        return Correction(vectors.sub(grad, here.grad), None, self.after(grad, state))
