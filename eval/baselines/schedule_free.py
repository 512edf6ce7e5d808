"""Schedule-Free AdamW by its authors' package: averaged weights in place of a schedule.

Gradients, and so the mean loss, are taken between the average and the last weights; what is
evaluated is the average.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from lo_framework.eval.baselines.hand_designed import AdamWConfig
from lo_framework.eval.baselines.registry import Setting, grid_of, register_baseline
from lo_framework.eval.baselines.torch_runs import Run, TorchBaseline
from lo_framework.optional import require
from lo_framework.spec import UserError

SETTLING = 50  # batches for the statistics of a batch norm at the average, as the authors advise


@dataclass(frozen=True, kw_only=True)
class ScheduleFreeConfig(AdamWConfig):
    """schedulefree.AdamWScheduleFree's settings, with AdamW's decay; ``warmup``: the part of the
    run in which the learning rate rises.
    """

    lr: float = 2.5e-3
    warmup: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0.0 < self.warmup <= 1.0 and self.beta1 > 0):
            raise UserError(
                "schedule-free: warmup must be in (0, 1] and beta1 positive, "
                f"got {self.warmup} and {self.beta1}"
            )


GRID: tuple[Setting, ...] = tuple(
    {"lr": setting["lr"], "warmup": warmup}
    for setting in grid_of("adamw")
    if not setting["cosine"]
    for warmup in (0.01, 0.1)
)


@register_baseline("schedule-free", GRID)
class ScheduleFree(TorchBaseline):
    """Defazio et al. 2024, "The road less scheduled". Tuned over warm-ups, not over schedules."""

    kind = "schedule-free"
    package = "schedulefree"
    Config = ScheduleFreeConfig
    further = ("warmup",)
    config: ScheduleFreeConfig

    def build(self, run: Run, settings: Setting) -> torch.optim.Optimizer:
        require("schedulefree")
        import schedulefree

        c = self.config
        optimizer = schedulefree.AdamWScheduleFree(
            run.params.values(),
            lr=settings["lr"],
            betas=(c.beta1, c.beta2),
            eps=c.eps,
            weight_decay=c.weight_decay,
            warmup_steps=max(1, round(settings["warmup"] * run.steps)),
        )
        optimizer.train()
        return optimizer

    @contextmanager
    def evaluated(self, optimizer: torch.optim.Optimizer, run: Run) -> Iterator[None]:
        trained, buffers = [p.detach().clone() for p in run.params.values()], run.buffers
        optimizer.eval()  # type: ignore[attr-defined]
        run.buffers = run.settled_buffers(SETTLING)
        try:
            yield
        finally:
            optimizer.train()  # type: ignore[attr-defined]
            run.buffers = buffers
            with torch.no_grad():  # the same bits, which there and back again are not
                for p, x in zip(run.params.values(), trained, strict=True):
                    p.copy_(x)
