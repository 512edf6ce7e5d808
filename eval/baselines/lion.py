"""Lion (Chen et al. 2023, "Symbolic discovery of optimization algorithms"): the sign of an
interpolated momentum, with decoupled decay.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from lo_framework.eval.baselines.hand_designed import Baseline
from lo_framework.eval.baselines.registry import TunedConfig, lr_grid, register_baseline
from lo_framework.learned.base import State
from lo_framework.optim.metaoptimize.rules import BASES, Numbers

RULE = BASES["lion"]


@dataclass(frozen=True, kw_only=True)
class LionConfig(TunedConfig):
    """The paper's settings. Every weight moves by the whole learning rate, so that rates are a
    tenth of AdamW's and the decay is ten times as large.
    """

    lr: float = 1e-4
    beta1: float = RULE.betas[0]
    beta2: float = RULE.betas[1]
    weight_decay: float = 1e-1

    def __post_init__(self) -> None:
        super().__post_init__()
        RULE.checked_betas((self.beta1, self.beta2), "betas")


@register_baseline("lion", lr_grid([0.0001, 0.0003, 0.001, 0.002, 0.003, 0.005, 0.01, 0.02]))
class Lion(Baseline):
    """Algorithm 2 of the paper."""

    kind = "lion"
    Config = LionConfig
    per_param = RULE.state
    config: LionConfig

    def shared(self, lr: Tensor, step: Tensor) -> Tensor:
        return lr[None]

    def update(
        self, channels: Tensor, shared: Tensor, params: Tensor, grads: Tensor, state: State
    ) -> tuple[Tensor, State]:
        c = self.config
        # Lion does not count its steps.
        u, new = RULE.direction(grads, state, Numbers((c.beta1, c.beta2), RULE.eps, step=1))
        return params * (1.0 - shared[0] * c.weight_decay) - shared[0] * u, new
