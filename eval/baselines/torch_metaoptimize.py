"""The class `lo_framework.optim.MetaOptimize` itself as a baseline:
``"torch-metaoptimize:blocks=node,trace=2x2"``.

What the vmapped ``metaoptimize`` has no room for: blocks of rows and of single weights, exact
traces, diagnostics.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lo_framework.eval.baselines.metaoptimize import TorchMetaOptimizeConfig
from lo_framework.eval.baselines.registry import grid_of, register_baseline
from lo_framework.eval.baselines.torch_runs import TorchBaseline
from lo_framework.learned.base import Theta
from lo_framework.optim import MetaOptimize
from lo_framework.optim.metaoptimize.diagnostics import KINDS, WINDOW
from lo_framework.protocols import Task


@register_baseline("torch-metaoptimize", grid_of("metaoptimize"))
class TorchMetaOptimize(TorchBaseline):
    """Counts: what `MetaOptimize.diagnostics` says, and ``alpha``, the geometric mean of the final
    step sizes.
    """

    kind = "torch-metaoptimize"
    Config = TorchMetaOptimizeConfig
    config: TorchMetaOptimizeConfig
    silenced = "MetaOptimize: "

    def __init__(self, config: TorchMetaOptimizeConfig) -> None:
        super().__init__(config)
        self.log_meta_lr = nn.Parameter(torch.tensor(math.log(config.meta_lr)))

    def build(
        self,
        theta: Theta,
        named_params: list[tuple[str, nn.Parameter]],
        task: Task,
        steps: int,
        seed: int,
    ) -> torch.optim.Optimizer:
        c, own = self.config, self.values(theta)
        return MetaOptimize(named_params, own["lr"], own["meta_lr"], c)

    def take_step(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        if self.config.trace == "hessian-free":
            super().take_step(optimizer, loss)
        else:
            optimizer.step(lambda: loss)  # type: ignore[arg-type, return-value]

    def counts(self, optimizer: torch.optim.Optimizer) -> dict[str, float]:
        assert isinstance(optimizer, MetaOptimize)
        report, sizes = optimizer.diagnostics(), optimizer.step_sizes().values()
        logs = torch.cat([x.double().log().flatten() for x in sizes])
        found = {name: float(report[name]) for name in (*KINDS, "skipped", "meta_steps")}
        windows = float(
            logs.numel() * (report["meta_steps"] // WINDOW)
        )  # what the first three are counted in
        return {
            **found,
            "block_windows": windows,
            "blocks": float(logs.numel()),
            "alpha": float(logs.mean().exp()),
        }

    def state_numel(self, optimizer: torch.optim.Optimizer) -> int:
        own = optimizer.state_dict()["metaoptimize"]
        shared = [*own["meta"].values(), *(own["tangents"] or {}).values()]
        return super().state_numel(optimizer) + sum(x.numel() for x in shared)
