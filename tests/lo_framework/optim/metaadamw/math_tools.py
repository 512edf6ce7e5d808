"""What the tests of MetaAdamW's mathematics share: a small net, its losses, and optimizers some
steps on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lo_framework.optim import MetaAdamW
from tests.lo_framework.optim.metaadamw.settings import build

D = torch.float64
Batch = tuple[Tensor, Tensor]


class Net(nn.Module):
    """Two layers and a normalisation: five groups."""

    def __init__(self, dropout: float = 0.0, seed: int = 0) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)
        self.drop = nn.Dropout(dropout)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(0.7 * torch.randn(p.shape, generator=generator))
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.drop(self.norm(self.first(x)))))


def batch(seed: int) -> Batch:
    g = torch.Generator().manual_seed(100 + seed)
    return torch.randn(6, 3, generator=g, dtype=D), torch.randint(2, (6,), generator=g)


def loss_fn(model: nn.Module) -> Callable[[Batch], Tensor]:
    return lambda data: nn.functional.cross_entropy(model(data[0]), data[1])


def make(model: nn.Module, **settings: Any) -> MetaAdamW:
    small: dict[str, Any] = {"width": 8, "heads": 2, "layers": 2, "hidden_units": 6}
    if settings.get("reproduce"):
        small["width"] = 12
    small |= settings.pop("attention", {})
    given = {"lr": 0.05, "weight_decay": 0.1, "order": "exact", "network": small, **settings}
    return build(model.named_parameters(), **given)


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3, first: int = 0
) -> None:
    for t in range(first, first + steps):
        optimizer.zero_grad()
        loss_fn(model)(batch(t)).backward()
        optimizer.step()


def shaken(optimizer: MetaAdamW, size: float = 0.3, seed: int = 3) -> MetaAdamW:
    """With weights that were trained somewhere: no layer is zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in optimizer.network.parameters():
            p.add_(size * torch.randn(p.shape, generator=generator).to(p))
    return optimizer


def with_rules(optimizer: MetaAdamW, **changed: Any) -> MetaAdamW:
    """Some differences otherwise than in the optimizer's kind."""
    rules = replace(optimizer.variant, **changed)
    optimizer.variant = optimizer._rule.variant = optimizer._trainer.variant = rules
    return optimizer


def meta_gradients(
    optimizer: MetaAdamW, model: nn.Module, seed: int = 50, **rules: Any
) -> dict[str, Tensor]:
    """What one meta step puts on every tensor of the network, before any clipping."""
    with_rules(optimizer, clip=0.0, **rules)
    optimizer.meta_step(loss_fn(model), batch(seed), batch(seed + 1), batch(seed + 2))
    return grads_of(optimizer)


def grads_of(optimizer: MetaAdamW) -> dict[str, Tensor]:
    return {
        name: p.grad.clone()
        for name, p in optimizer.network.named_parameters()
        if p.grad is not None
    }


def ready(
    model: nn.Module | None = None, steps: int = 3, **settings: Any
) -> tuple[nn.Module, MetaAdamW]:
    """A model and its optimizer some steps on, the optimizer's network shaken, one gradient
    waiting.
    """
    model = Net() if model is None else model
    optimizer = make(model, **settings)
    train(model, optimizer, steps)
    return model, shaken(optimizer)
