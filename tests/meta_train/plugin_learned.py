"""A user's plugin: a learned optimizer whose start comes from torch's global generator, as any
nn.Linear's does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lo_framework.layout import Layout
from lo_framework.learned import LearnedOptimizer, register_learned
from lo_framework.learned.base import Clock, State


@dataclass(frozen=True, kw_only=True)
class SlopeConfig:
    lr: float = 0.1


@register_learned
class Slope(LearnedOptimizer):
    """p <- p - lr exp(w . (progress, 1)) g with w a linear layer."""

    kind = "slope"
    Config = SlopeConfig
    config: SlopeConfig

    def __init__(self, config: SlopeConfig) -> None:
        super().__init__()
        self.config = config
        self.head = nn.Linear(1, 1)

    def init_state(self, layout: Layout, params: Tensor) -> State:
        return {"step": params.new_zeros(())}

    def measure(self, params: Tensor, grads: Tensor, state: State) -> Tensor:
        return grads.new_zeros(0, grads.shape[-1])

    def stats(self, layout: Layout, params: Tensor, grads: Tensor, state: State) -> Tensor:
        return grads.new_zeros(0, layout.num)

    def condition(
        self, layout: Layout, stats: Tensor, state: State, loss: Tensor | None, clock: Clock
    ) -> tuple[Tensor, Tensor, State]:
        return stats, self.head(clock.progress[None]), {"step": state["step"] + 1}

    def update(
        self, channels: Tensor, shared: Tensor, params: Tensor, grads: Tensor, state: State
    ) -> tuple[Tensor, State]:
        return params - self.config.lr * torch.exp(shared[0]) * grads, {}
