"""A learned optimizer whose whole update is multiplied by one number, which is tuned as baselines
are: it tells how much of a poor result is a matter of step size alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lo_framework.layout import Layout
from lo_framework.learned.base import LearnedOptimizer, State, Theta
from lo_framework.regularizers.base import Regularizer

SUFFIX = " (step tuned)"
PREFIX = "learned."


class Scaled(LearnedOptimizer):
    """``params + scale (updated - params)``, as ``lr`` of the face does; a scale of 1 changes no
    bit. theta is that of ``learned``, with `PREFIX` before its names, and ``log_scale``.
    """

    def __init__(self, learned: LearnedOptimizer) -> None:
        super().__init__()
        self.learned = learned
        self.log_scale = nn.Parameter(torch.zeros(()))

    @property
    def config(self) -> Any:
        return self.learned.config

    def init_state(self, layout: Layout, params: Tensor) -> State:
        return self.learned.init_state(layout, params)

    def forward(self, layout: Layout, params: Tensor, *rest: Any) -> tuple[Tensor, State]:
        updated, state = self.learned(layout, params, *rest)
        return torch.lerp(params, updated, self.log_scale.exp().to(params.dtype)), state

    def explicit(self, theta: Theta) -> Regularizer | None:
        own = {name.removeprefix(PREFIX): x for name, x in theta.items() if name != "log_scale"}
        return self.learned.explicit(own)
