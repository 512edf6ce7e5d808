"""AdamW and SGD with momentum in the learned optimizers' contract: one vmapped runner serves all.

theta holds the tuned settings as 0-d tensors: a grid of settings is a batch of thetas under vmap.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lo_framework.eval.baselines.registry import (
    BASELINES,
    TunedConfig,
    TunedOptimizer,
    lr_grid,
    register_baseline,
)
from lo_framework.layout import Layout
from lo_framework.learned import adamw_rule
from lo_framework.learned.base import Clock, State
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
        self, layout: Layout, stats: Tensor, state: State, loss: Tensor | None, clock: Clock
    ) -> tuple[Tensor, Tensor, State]:
        lr = scheduled_lr(self.log_lr, self.cosine, clock.progress)
        step = state["step"] + 1
        return self.channels(layout, stats), self.shared(lr, step), {"step": step}

    def channels(self, layout: Layout, stats: Tensor) -> Tensor:
        """Per-tensor values ``[C, S]`` that `update` needs: none, as ``stats`` is empty."""
        return stats

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


@dataclass(frozen=True, kw_only=True)
class LawConfig(AdamWConfig):
    """AdamW's settings; ``law``: not tuned, but at the rates of `LawAdamW`."""

    law: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.law and (self.lr, self.cosine) != (TunedConfig.lr, TunedConfig.cosine):
            raise UserError("law=true gives the learning rate and its schedule: leave them out")


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
        c = self.adamw_channels(channels, shared)
        m, v = adamw_rule.moments(c, grads, state["m"], state["v"])
        return params * (1.0 - c.decay) - c.step_size * m * adamw_rule.inverse_rms(c, v), {
            "m": m,
            "v": v,
        }

    def adamw_channels(self, channels: Tensor, shared: Tensor) -> adamw_rule.AdamWChannels:
        """The numbers of AdamW's step: the same for all parameters."""
        return adamw_rule.unstack(shared)


class LawAdamW(AdamW):
    """AdamW untuned: the learning rate of each tensor follows its layer's fan-in and the number of
    matrices of the net, as the best ones of plain nets do, with a cosine schedule.
    """

    untuned = True
    RATE = 0.03  # at this width and number of matrices
    WIDTH, MATRICES = 64.0, 3.0

    def __init__(self, config: LawConfig) -> None:
        super().__init__(config)
        self.load_theta({"log_lr": torch.tensor(math.log(self.RATE)), "cosine": torch.tensor(1.0)})

    def channels(self, layout: Layout, stats: Tensor) -> Tensor:
        deeper = (layout.matrices / self.MATRICES) ** -1.3
        return (deeper * (self.WIDTH / layout.fans) ** 0.55)[None].to(stats.dtype)

    def adamw_channels(self, channels: Tensor, shared: Tensor) -> adamw_rule.AdamWChannels:
        c = super().adamw_channels(channels, shared)
        return c._replace(step_size=c.step_size * channels[0], decay=c.decay * channels[0])


@BASELINES.register(
    "adamw", config=LawConfig, grid=lr_grid([0.001, 0.003, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2])
)
def adamw(config: LawConfig) -> AdamW:
    """AdamW, tuned or by the law."""
    return (LawAdamW if config.law else AdamW)(config)


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
