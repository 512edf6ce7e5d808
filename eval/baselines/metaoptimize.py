"""MetaOptimize as a baseline, its rules taken from ``lo_framework.optim.metaopt``:
``"metaoptimize:base=lion"``.

Hessian-free traces, with one step size for all tensors or one for each. ``lr`` is the step size at
the start; a cosine schedule multiplies what the meta rule makes of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lo_framework.eval.baselines.hand_designed import Baseline, scheduled_lr
from lo_framework.eval.baselines.registry import Setting, register_baseline
from lo_framework.layout import Layout
from lo_framework.learned.base import State
from lo_framework.optim.metaopt import bases, metas
from lo_framework.optim.metaopt.bounds import MAX_CHANGE, limits_of
from lo_framework.spec import UserError


@dataclass(frozen=True, kw_only=True)
class MetaOptimizeConfig:
    """What `lo_framework.optim.MetaOptimize` calls alpha0 is ``lr`` here, as in all baselines."""

    lr: float = 1e-3
    cosine: bool = False
    meta_lr: float = 1e-2
    base: Literal["sgd", "sgdm", "rmsprop", "adamw", "lion"] = "adamw"
    meta: Literal["fixed", "sgd", "rmsprop", "adam", "lion"] = "lion"
    blocks: Literal["scalar", "tensor"] = "scalar"
    gamma: float = 1.0
    meta_every: int = 1
    weight_decay: float = 1e-2

    def __post_init__(self) -> None:
        limits_of(bases.find_base(self.base), self.lr, "auto", MAX_CHANGE)
        if not self.meta_lr > 0:
            raise UserError(f"meta_lr must be positive, got {self.meta_lr}")
        if not 0.0 <= self.gamma <= 1.0:
            raise UserError(f"gamma must be in [0, 1], got {self.gamma}")
        if self.meta_every < 1:
            raise UserError(f"meta_every must be at least 1, got {self.meta_every}")


# As many settings as AdamW's grid has.
GRID: tuple[Setting, ...] = tuple(
    {"lr": lr, "meta_lr": meta_lr, "cosine": cosine}
    for cosine in (0.0, 1.0)
    for lr in (1e-3, 3e-3, 1e-2, 3e-2)
    for meta_lr in (3e-3, 3e-2)
)


@register_baseline("metaoptimize", GRID)
class MetaOptimizeBaseline(Baseline):
    """Statistics are the meta-gradients. The state holds how far log step sizes have moved, not
    where they are, because theta says where they began.
    """

    kind = "metaoptimize"
    Config = MetaOptimizeConfig
    config: MetaOptimizeConfig

    def __init__(self, config: MetaOptimizeConfig) -> None:
        super().__init__(config)  # type: ignore[arg-type]
        self.log_meta_lr = nn.Parameter(torch.tensor(math.log(config.meta_lr)))
        self.base, self.meta = bases.find_base(config.base), metas.find_meta(config.meta)
        self.limits = limits_of(self.base, config.lr, "auto", MAX_CHANGE)
        self.per_param = (*self.base.state, "h")  # type: ignore[misc]

    def init_state(self, layout: Layout, params: Tensor) -> State:
        state = super().init_state(layout, params)
        zero = torch.zeros_like(state["step"])
        start = zero if self.config.blocks == "scalar" else zero.repeat(layout.num)
        return {**state, **{f"meta_{name}": x for name, x in metas.fresh(self.meta, start).items()}}

    def measure(self, params: Tensor, grads: Tensor, state: State) -> Tensor:
        return (state["h"] * grads)[None]

    def stats(self, layout: Layout, params: Tensor, grads: Tensor, state: State) -> Tensor:
        return layout.mean(self.measure(params, grads, state))

    def condition(
        self, layout: Layout, stats: Tensor, state: State, loss: Tensor | None, progress: Tensor
    ) -> tuple[Tensor, Tensor, State]:
        step = state["step"] + 1
        z = stats[0] * torch.tensor(layout.sizes, dtype=stats.dtype, device=stats.device)
        if self.config.blocks == "scalar":
            z = z.sum()
        own = {
            name.removeprefix("meta_"): x for name, x in state.items() if name.startswith("meta_")
        }
        start = self.log_lr + own["beta"]
        beta = self.limits.bounded(start, start)  # tuning may extend its grid beyond the bounds
        due = (step % self.config.meta_every == 0).expand(z.shape)
        new, _ = metas.meta_step(
            self.meta,
            {**own, "beta": beta},
            z,
            self.log_meta_lr.exp(),
            self.meta.betas,
            self.limits,
            due,
        )
        reduced = {**new, "beta": new["beta"] - self.log_lr}
        alphas = scheduled_lr(beta, self.cosine, progress).expand(layout.num)
        return (
            alphas[None],
            step[None],
            {"step": step, **{f"meta_{name}": x for name, x in reduced.items()}},
        )

    def update(
        self, channels: Tensor, shared: Tensor, params: Tensor, grads: Tensor, state: State
    ) -> tuple[Tensor, State]:
        c, own = self.config, {name: state[name] for name in self.base.state}
        u, new = self.base.direction(grads, own, self.base.betas, self.base.eps, shared[0])
        new_params, h = bases.hessian_free(
            params, u, state["h"], channels[0], c.weight_decay, c.gamma
        )
        return new_params, {**new, "h": h}
