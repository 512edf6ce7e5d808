"""What the tests of options share: a small model, steps without a loss, the optimizers by kind."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from lo_framework.optim import Learned, MetaAdamW, MetaOptimize
from tests.lo_framework.optim.tools import generator, moved

Make = Callable[..., torch.optim.Optimizer]


def network(seed: int = 0) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3))
    g = generator(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=g))
    return model


def step(optimizer: torch.optim.Optimizer, t: int = 0) -> None:
    def closure() -> float:
        for group in optimizer.param_groups:
            for i, p in enumerate(group["params"]):
                p.grad = torch.randn(p.shape, generator=generator(100 * t + i))
        return 1.0

    optimizer.step(closure)


def train(optimizer: torch.optim.Optimizer, scheduler: Any, steps: int) -> None:
    for t in range(steps):
        step(optimizer, t)
        scheduler.step()


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1).clone() for p in model.parameters()])


MAKERS: dict[str, Make] = {
    "learned": partial(Learned, optimizer=moved("scaled")),
    "metaadamw": MetaAdamW,
    "metaoptimize": MetaOptimize,
}
