"""MetaOptimize as a baseline: ``"metaoptimize:base=lion"``, ``"metaoptimize:trace=2x2"``.

``lr`` is the step size at the start; a cosine schedule multiplies what the meta rule makes of it.
Hessian-free traces with one step size for all tensors, or one per tensor, are vmapped.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from lo_framework.eval.baselines.hand_designed import Baseline, scheduled_lr
from lo_framework.eval.baselines.registry import BASELINES, Setting, TunedConfig
from lo_framework.eval.baselines.torch_runs import Run, TorchBaseline
from lo_framework.layout import Layout
from lo_framework.learned.base import Clock, LearnedOptimizer, State
from lo_framework.optim import MetaOptimize, MetaOptimizeConfig
from lo_framework.optim.metaoptimize.diagnostics import KINDS, WINDOW
from lo_framework.optim.metaoptimize.rules import Numbers, fresh, hessian_free, meta_step
from lo_framework.spec import UserError


@dataclass(frozen=True, kw_only=True)
class _Start(TunedConfig):
    """``lr`` is what `lo_framework.optim.MetaOptimize` calls alpha0, as in all baselines."""

    meta_lr: float = 1e-2


@dataclass(frozen=True, kw_only=True)
class MetaOptimizeBaselineConfig(MetaOptimizeConfig, _Start):
    """All settings of the class, with the weight decay of the other baselines."""

    blocks: Literal["scalar", "tensor", "node", "weight"] = "scalar"
    weight_decay: float = 1e-2
    diagnostics: bool = False
    """Count what `MetaOptimize.diagnostics` says of every run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.limits(self.lr)
        if not self.meta_lr > 0:
            raise UserError(f"meta_lr must be positive, got {self.meta_lr}")


@dataclass(frozen=True, kw_only=True)
class DiagnosedConfig(MetaOptimizeBaselineConfig):
    """Settings under the name that files have for runs of the class."""

    diagnostics: bool = True


# As many settings as AdamW's grid has.
GRID: tuple[Setting, ...] = tuple(
    {"lr": lr, "meta_lr": meta_lr, "cosine": cosine}
    for cosine in (0.0, 1.0)
    for lr in (1e-3, 3e-3, 1e-2, 3e-2)
    for meta_lr in (3e-3, 3e-2)
)


@BASELINES.register("metaoptimize", config=MetaOptimizeBaselineConfig, grid=GRID)
@BASELINES.register("torch-metaoptimize", config=DiagnosedConfig, grid=GRID)
def metaoptimize(config: MetaOptimizeBaselineConfig) -> LearnedOptimizer:
    """The vmapped form, or the class itself for what that form has not: blocks of rows and of
    single weights, exact traces, diagnostics.
    """
    alike = config.blocks in ("scalar", "tensor") and config.trace == "hessian-free"
    return (VmappedMetaOptimize if alike and not config.diagnostics else TorchMetaOptimize)(config)


class VmappedMetaOptimize(Baseline):
    """Statistics are the meta-gradients. The state holds how far log step sizes have moved, not
    where they are, because theta says where they began.
    """

    kind = "metaoptimize"
    further = ("meta_lr",)
    config: MetaOptimizeBaselineConfig
    log_meta_lr: nn.Parameter

    def __init__(self, config: MetaOptimizeBaselineConfig) -> None:
        super().__init__(config)
        self.base, self.meta = config.base_rule, config.meta_rule
        self.betas = self.base.checked_betas(config.betas, "betas")
        self.meta_betas = self.meta.checked_betas(config.meta_betas, "meta_betas")
        self.eps = self.base.eps if config.eps is None else config.eps
        self.limits = config.limits(config.lr)
        self.per_param = (*self.base.state, "h")  # type: ignore[misc]

    def init_state(self, layout: Layout, params: Tensor) -> State:
        state = super().init_state(layout, params)
        zero = torch.zeros_like(state["step"])
        start = zero if self.config.blocks == "scalar" else zero.repeat(layout.num)
        return {**state, **{f"meta_{name}": x for name, x in fresh(self.meta, start).items()}}

    def measure(self, params: Tensor, grads: Tensor, state: State) -> Tensor:
        return (state["h"] * grads)[None]

    def condition(
        self, layout: Layout, stats: Tensor, state: State, loss: Tensor | None, clock: Clock
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
        new, _ = meta_step(
            self.meta,
            {**own, "beta": beta},
            z,
            self.log_meta_lr.exp(),
            self.meta_betas,
            self.limits,
            due,
        )
        reduced = {**new, "beta": new["beta"] - self.log_lr}
        alphas = scheduled_lr(beta, self.cosine, clock.progress).expand(layout.num)
        return (
            alphas[None],
            step[None],
            {"step": step, **{f"meta_{name}": x for name, x in reduced.items()}},
        )

    def update(
        self, channels: Tensor, shared: Tensor, params: Tensor, grads: Tensor, state: State
    ) -> tuple[Tensor, State]:
        c, own = self.config, {name: state[name] for name in self.base.state}
        u, new = self.base.direction(grads, own, Numbers(self.betas, self.eps, shared[0]))
        new_params, h = hessian_free(params, u, state["h"], channels[0], c.weight_decay, c.gamma)
        return new_params, {**new, "h": h}


class TorchMetaOptimize(TorchBaseline):
    """Counts: what `MetaOptimize.diagnostics` says, and ``alpha``, the geometric mean of the final
    step sizes.
    """

    kind = "metaoptimize"
    further = ("meta_lr",)
    config: MetaOptimizeBaselineConfig
    silenced = "MetaOptimize: "

    def build(self, run: Run, settings: Setting) -> torch.optim.Optimizer:
        return MetaOptimize(run.params.items(), settings["lr"], settings["meta_lr"], self.config)

    def take_step(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        if self.config.trace == "hessian-free":
            super().take_step(optimizer, loss)
        else:
            optimizer.step(lambda: loss)  # type: ignore[arg-type, return-value]

    def counts(self, optimizer: torch.optim.Optimizer) -> dict[str, float]:
        assert isinstance(optimizer, MetaOptimize)
        report, sizes = optimizer.diagnostics(), optimizer.step_sizes().values()
        logs = torch.cat([x.double().log().flatten() for x in sizes])
        counts = {name: float(report[name]) for name in (*KINDS, "skipped", "meta_steps")}
        # What the first three are counted in.
        windows = float(logs.numel() * (report["meta_steps"] // WINDOW))
        return {
            **counts,
            "block_windows": windows,
            "blocks": float(logs.numel()),
            "alpha": float(logs.mean().exp()),
        }

    def state_numel(self, optimizer: torch.optim.Optimizer) -> int:
        own = optimizer.state_dict()["metaoptimize"]
        shared = [*own["meta"].values(), *(own["tangents"] or {}).values()]
        return super().state_numel(optimizer) + sum(x.numel() for x in shared)
