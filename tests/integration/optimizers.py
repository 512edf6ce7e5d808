"""The optimizers that are tried in every loop, as a person would make them of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from lo_framework.optim import SAM, Learned, MetaAdamW, MetaOptimize
from tests.integration.loops import STEPS


def two_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Those with decay and those without, as in transformers."""
    params = [*model.parameters()]
    return [
        {"params": [p for p in params if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in params if p.dim() < 2], "weight_decay": 0.0},
    ]


OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "Learned": lambda m: Learned(m, "general", num_steps=STEPS),
    "Learned, two groups": lambda m: Learned(two_groups(m), "general", num_steps=STEPS, model=m),
    "MetaAdamW": lambda m: MetaAdamW(m, lr=1e-2, total_steps=STEPS),
    "MetaOptimize": lambda m: MetaOptimize(m, alpha0=1e-3, blocks="tensor"),
    "SAM": lambda m: SAM(torch.optim.AdamW(m.parameters(), lr=1e-2), rho=0.05),
}
# Loops that give an optimizer no closure: there SAM makes its step in two halves (docs/use).
NO_CLOSURE = ("transformers Trainer", "accelerate", "Lightning, manual", "DDP")
