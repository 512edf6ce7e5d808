"""``label_noise``: the loss on randomly wrong targets, which drifts towards flat minima (Blanc et
al. 2020, arXiv 1904.09080).

    R(w) = L(w; x, y'),  G = grad L(w; x, y')
    classes:     y' = y with probability 1 - p, else a class drawn uniformly (y itself with
                 p / classes)
    regression:  y' = y + sigma xi,  xi standard normal

Targets are the last tensor of the batch: integers are classes, floating-point numbers a regression.
Negative classes mark elements that the loss ignores and stay as they are. Pitfall: ``classes`` must
not exceed what the model has, or the loss indexes out of range. A loop of its own would train on y'
at no extra cost; as a correction it costs a second gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, ClassVar

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

_STREAM = 1 << 20  # streams are shared by all who draw from one noise seed: a block of our own


@dataclass(frozen=True, kw_only=True)
class LabelNoiseConfig(Checked):
    """``p``: probability that a class is redrawn, among ``classes``. ``sigma``: noise on regression
    targets.
    """

    p: Annotated[float, Range(low=0, high=1, open_low=True)] = 0.1
    classes: Annotated[int, Range(low=2, high=1 << 24)] = 10
    sigma: Positive = 0.1


@register_regularizer
class LabelNoise(Regularizer):
    name = "label_noise"
    Config = LabelNoiseConfig
    RANGES: ClassVar = {"p": (0.01, 0.4), "sigma": (0.01, 1.0)}
    cost = Cost(2)
    has_value = stochastic = True

    def correction(self, landscape: Landscape, here: Point, state: State) -> Correction:
        loss, grad = self._noisy(landscape).gradient(here.params)
        return Correction(vectors.sub(grad, here.grad), loss - here.loss, state)

    def value(self, landscape: Landscape, params: Params, *, attached: bool = False) -> Tensor:
        return self._noisy(landscape).loss(params)

    def _noisy(self, landscape: Landscape) -> Landscape:
        if len(landscape.batch) < 2:
            raise ValueError(
                "label_noise needs batches of inputs and targets; this task's have no targets of "
                "their own"
            )
        *inputs, y = landscape.batch
        first, second = (landscape.uniform(tuple(y.shape), _STREAM + i) for i in range(2))
        if y.is_floating_point():
            # Box and Muller
            normal = (-2 * torch.log1p(-first)).sqrt() * torch.cos(2 * math.pi * second)
            return landscape.on((*inputs, y + self.config.sigma * normal.to(y.dtype)))
        drawn = (second * self.config.classes).to(y.dtype)
        return landscape.on((*inputs, torch.where((first < self.config.p) & (y >= 0), drawn, y)))
