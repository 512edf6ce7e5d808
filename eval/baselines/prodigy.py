"""Prodigy by its authors' package: Adam that estimates the learning rate, of which ``lr`` is a
multiple; their advice is 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lo_framework.eval.baselines.hand_designed import AdamWConfig
from lo_framework.eval.baselines.registry import Setting, lr_grid, register_baseline
from lo_framework.eval.baselines.torch_runs import Run, TorchBaseline
from lo_framework.optional import require
from lo_framework.spec import UserError


@dataclass(frozen=True, kw_only=True)
class ProdigyConfig(AdamWConfig):
    """prodigyopt.Prodigy's settings, with AdamW's decay; ``d0``: the first estimate, ``growth``: by
    how much it may grow in a step.
    """

    lr: float = 1.0
    d0: float = 1e-6
    d_coef: float = 1.0
    growth: float = float("inf")
    bias_correction: bool = False
    safeguard_warmup: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.d0 > 0 and self.d_coef > 0 and self.growth > 1):
            raise UserError(
                "prodigy: d0 and d_coef must be positive and growth above 1, "
                f"got {self.d0}, {self.d_coef} and {self.growth}"
            )


@register_baseline("prodigy", lr_grid([0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0, 5.0]))
class Prodigy(TorchBaseline):
    """Mishchenko & Defazio 2024, "Prodigy: an expeditiously adaptive parameter-free learner".

    Counts ``d``, the last estimate.
    """

    kind = "prodigy"
    package = "prodigyopt"
    Config = ProdigyConfig
    config: ProdigyConfig

    def build(self, run: Run, settings: Setting) -> torch.optim.Optimizer:
        require("prodigyopt")
        import prodigyopt

        c = self.config
        optimizer: torch.optim.Optimizer = prodigyopt.Prodigy(
            run.params.values(),
            lr=settings["lr"],
            betas=(c.beta1, c.beta2),
            eps=c.eps,
            d0=c.d0,
            d_coef=c.d_coef,
            growth_rate=c.growth,
            use_bias_correction=c.bias_correction,
            safeguard_warmup=c.safeguard_warmup,
        )
        for group in optimizer.param_groups:  # as an argument it is told on the terminal
            group["weight_decay"] = c.weight_decay
        return optimizer

    def counts(self, optimizer: torch.optim.Optimizer) -> dict[str, float]:
        return {"d": float(optimizer.param_groups[0]["d"])}
