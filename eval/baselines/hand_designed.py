"""AdamW and SGD with momentum in the learned optimizers' contract: one vmapped runner serves all.

theta holds the tuned settings as 0-d tensors: a grid of settings is a batch of thetas under vmap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lo_framework.eval.baselines.registry import (
    TunedConfig,
    TunedOptimizer,
    lr_grid,
    register_baseline,
)
from lo_framework.layout import Layout
from lo_framework.learned import adamw_rule
from lo_framework.learned.base import State
from lo_framework.spec import UserError


def scheduled_lr(log_lr: Tensor, cosine: Tensor, progress: Tensor) -> Tensor:
    """Constant (``cosine`` 0) or annealed to zero over the episode (1):
    CosineAnnealingLR(T_max=num_steps).
    """
    return log_lr.exp() * (1.0 - cosine + cosine * 0.5 * (1.0 + torch.cos(math.pi * progress)))


class Baseline(TunedOptimizer):
    """A vmapped baseline: one setting for all tensors, no statistics."""

    def init_state(self, layout: Layout, params: Tensor) -> State:
        # At least float32: bfloat16 cannot count past 256.
        step = torch.zeros(
            (), dtype=torch.promote_types(params.dtype, torch.float32), device=params.device
        )
        return {"step": step, **{name: torch.zeros_like(params) for name in self.per_param}}

    def condition(
        self, layout: Layout, stats: Tensor, state: State, loss: Tensor | None, progress: Tensor
    ) -> tuple[Tensor, Tensor, State]:
        lr = scheduled_lr(self.log_lr, self.cosine, progress)
        step = state["step"] + 1
        return (
            stats,
            self.shared(lr, step),
            {"step": step},
        )  # no channels: stats is empty and stays so

    def shared(self, lr: Tensor, step: Tensor) -> Tensor:
        """The values ``[D]`` that `update` needs at update number ``step`` (from 1)."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class AdamWConfig(TunedConfig):
    """torch.optim.AdamW's settings and defaults."""

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 1e-2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0.0 <= self.beta1 < 1.0 and 0.0 <= self.beta2 < 1.0):
            raise UserError(f"betas must be in [0, 1), got {self.beta1} and {self.beta2}")


@register_baseline("adamw", lr_grid([0.001, 0.003, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2]))
class AdamW(Baseline):
    """Loshchilov & Hutter 2019, "Decoupled weight decay regularization", algorithm 2, with torch's
    conventions.
    """

    kind = "adamw"
    Config = AdamWConfig
    per_param = ("m", "v")
    config: AdamWConfig

    def shared(self, lr: Tensor, step: Tensor) -> Tensor:
        c = self.config
        correction1, correction2 = _one_minus_power(c.beta1, step), _one_minus_power(c.beta2, step)
        constant = torch.ones_like(lr)
        return adamw_rule.stack(
            adamw_rule.AdamWChannels(
                step_size=lr / correction1,
                decay=lr * c.weight_decay,
                keep1=constant * (1.0 - c.beta1),
                keep2=constant * (1.0 - c.beta2),
                unbias2=1.0 / correction2,
                eps=constant * c.eps,
            )
        )

    def update(
        self, channels: Tensor, shared: Tensor, params: Tensor, grads: Tensor, state: State
    ) -> tuple[Tensor, State]:
        c = adamw_rule.unstack(shared)
        m, v = adamw_rule.moments(c, grads, state["m"], state["v"])
        return params * (1.0 - c.decay) - c.step_size * m * adamw_rule.inverse_rms(c, v), {
            "m": m,
            "v": v,
        }


@dataclass(frozen=True, kw_only=True)
class SGDMConfig(TunedConfig):
    """torch.optim.SGD's settings, with the momentum that everybody uses."""

    lr: float = 1e-1
    momentum: float = 0.9
    weight_decay: float = 0.0


@register_baseline("sgdm", lr_grid([0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0]))
class SGDM(Baseline):
    """SGD with heavy-ball momentum as torch has it: no dampening, the learning rate outside the
    momentum buffer.
    """

    kind = "sgdm"
    Config = SGDMConfig
    per_param = ("momentum",)
    config: SGDMConfig

    def shared(self, lr: Tensor, step: Tensor) -> Tensor:
        return lr[None]

    def update(
        self, channels: Tensor, shared: Tensor, params: Tensor, grads: Tensor, state: State
    ) -> tuple[Tensor, State]:
        momentum = self.config.momentum * state["momentum"] + (
            grads + self.config.weight_decay * params
        )
        return params - shared[0] * momentum, {"momentum": momentum}


def _one_minus_power(beta: float, step: Tensor) -> Tensor:
    """1 - beta ** step without cancellation: in float32, 1 - .999 is wrong in the fifth digit."""
    return -torch.expm1(step * math.log(beta)) if beta > 0 else torch.ones_like(step)
