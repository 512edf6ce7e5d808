"""``hessian_trace``: Hutchinson's estimate of the trace of the Hessian as a penalty.

    R(w) = L(w) + (mu / m) sum_i c_i(w),  E c_i = tr H,  v_i of random signs
    difference:  c_i = <v_i, grad L(w + t v_i) - grad L(w - t v_i)> / (2 t)
    exact:       c_i = v_i^T H v_i

The gradient of the exact form takes third derivatives, which not every operation has; the
difference needs second ones and is off by O(t^2). Pitfalls: the perturbation is t per parameter, so
its length t sqrt(N) grows with the model; a trace of an indefinite Hessian can be driven to minus
infinity, so keep mu small.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar, Literal

import torch
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
from lo_framework.schema import Checked, Positive, Range

_STREAM = 2 << 20  # streams are shared by all who draw from one noise seed: a block of our own


@dataclass(frozen=True, kw_only=True)
class HessianTraceConfig(Checked):
    """``mu``: weight of the trace. ``probes``: random vectors per step. ``t``: half-width of the
    finite difference.
    """

    mu: Positive = 0.001
    probes: Annotated[int, Range(low=1, high=1000)] = 1
    t: Positive = 0.001
    form: Literal["difference", "exact"] = "difference"


@register_regularizer
class HessianTrace(Regularizer):
    name = "hessian_trace"
    Config = HessianTraceConfig
    RANGES: ClassVar = {"mu": (1e-5, 0.01), "probes": (1, 10), "t": (1e-4, 0.01)}
    has_value = needs_hvp = stochastic = True

    @property
    def cost(self) -> Cost:
        """Per probe: two gradients differentiated, or one Hessian-vector product differentiated
        (about the same).
        """
        return Cost(1, 2 * self.config.probes)

    def correction(self, landscape: Landscape, here: Point, state: State) -> Correction:
        penalty = torch.func.grad_and_value(partial(self._penalty, landscape))
        return Correction(*penalty(here.params), state)

    def value(self, landscape: Landscape, params: Params, *, attached: bool = False) -> Tensor:
        return landscape.loss(params) + self._penalty(landscape, params)

    def _penalty(self, landscape: Landscape, params: Params) -> Tensor:
        probes = [self._curvature(landscape, params, v) for v in self._signs(landscape, params)]
        return self.config.mu * torch.stack(probes).mean()

    def _curvature(self, landscape: Landscape, params: Params, v: Params) -> Tensor:
        if self.config.form == "exact":
            return vectors.dot(v, landscape.hvp(params, v))
        t = self.config.t
        _, above = landscape.gradient(vectors.add(params, v, t))
        _, below = landscape.gradient(vectors.add(params, v, -t))
        return vectors.dot(v, vectors.sub(above, below)) / (2 * t)

    def _signs(self, landscape: Landscape, params: Params) -> Iterator[Params]:
        sizes = [x.numel() for x in params.values()]
        for probe in range(self.config.probes):
            pieces = landscape.uniform((sum(sizes),), _STREAM + probe).split(sizes)
            yield {
                name: torch.where(piece < 0.5, -1.0, 1.0).to(x.dtype).reshape(x.shape)
                for (name, x), piece in zip(params.items(), pieces)
            }
