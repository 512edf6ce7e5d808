"""A small problem that the tests of explicit regularizers share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lo_framework.optim import ASAM, FSAM, GAM, GSAM, S2SAM, SAM, LookSAM, Regularized
from tests.lo_framework.optim.tools import generator

LossFn = Callable[[], Tensor]
Face = Callable[..., Regularized]
FACES: list[Face] = [SAM, ASAM, GSAM, GAM, LookSAM, FSAM, S2SAM]


def network(dtype: torch.dtype = torch.float64, seed: int = 0) -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).to(dtype)
    g = generator(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=g, dtype=torch.float64))
    return model


def batch(t: int, dtype: torch.dtype = torch.float64, rows: int = 12) -> tuple[Tensor, Tensor]:
    g = generator(100 + t)
    return torch.randn(rows, 4, generator=g, dtype=torch.float64).to(dtype), torch.randint(
        3, (rows,), generator=g
    )


def loss_fn(model: nn.Module, t: int) -> LossFn:
    dtype = next(model.parameters()).dtype
    x, y = batch(t, dtype)
    return lambda: nn.functional.cross_entropy(model(x), y)


def closure_of(
    optimizer: torch.optim.Optimizer, loss: LossFn, calls: list[int] | None = None
) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        if calls is not None:
            calls.append(1)
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    return closure


def train(
    optimizer: Any, model: nn.Module, steps: Sequence[int], calls: list[int] | None = None
) -> list[float]:
    return [
        float(optimizer.step(closure_of(optimizer, loss_fn(model, t), calls)).detach())
        for t in steps
    ]


def weights(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1).clone() for p in model.parameters()])


BASES: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgdm": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "adamw": lambda params: torch.optim.AdamW(params, lr=0.02),
}
