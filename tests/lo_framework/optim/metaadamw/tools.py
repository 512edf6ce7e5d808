"""What the tests of MetaAdamW as a torch optimizer share: a small classifier, its batches, and
steps on them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lo_framework.errors import UserError
from lo_framework.optim import MetaAdamW
from lo_framework.optim.metaadamw.meta_loss import LossFn
from tests.lo_framework.optim.metaadamw.settings import build
from tests.lo_framework.optim.metaoptimize.tools import (
    snapshot as snapshot,
    through_a_file as through_a_file,
)
from tests.lo_framework.optim.tools import generator

D = torch.float64
SMALL = {
    "width": 8,
    "heads": 2,
    "layers": 1,
    "head_scale": 0.3,
}  # a head that is not zero: factors are not 1
Batch = tuple[Tensor, Tensor]


def network(dtype: torch.dtype = D, seed: int = 0) -> nn.Sequential:
    """Three layers: groups of weights and of biases in all thirds of the depth."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    return started(model, dtype, seed)


def noisy_network(dtype: torch.dtype = D) -> nn.Sequential:
    """With all that a forward pass touches beside parameters: generators, running statistics and
    their counter.
    """
    model = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Dropout(0.4), nn.Linear(6, 3)
    )
    return started(model, dtype, 0)


def started(model: nn.Sequential, dtype: torch.dtype, seed: int) -> nn.Sequential:
    g = generator(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.5 * torch.randn(p.shape, generator=g, dtype=D))
    return model.to(dtype)


def batch(t: int, dtype: torch.dtype = D, rows: int = 12) -> Batch:
    g = generator(100 + t)
    return torch.randn(rows, 4, generator=g, dtype=D).to(dtype), torch.randint(
        3, (rows,), generator=g
    )


def loss_of(model: nn.Module) -> LossFn:
    return lambda pair: nn.functional.cross_entropy(model(pair[0]), pair[1])


def make(params: Any, lr: float | None = 0.02, **options: Any) -> MetaAdamW:
    """Off its start by a random head, and eager to learn."""
    options = {"network": SMALL, "meta_lr": 0.02, **options}
    return build(params, lr, **options)


def step(optimizer: torch.optim.Optimizer, model: nn.Module, t: int) -> None:
    optimizer.zero_grad()
    loss_of(model)(batch(t, next(model.parameters()).dtype)).backward()
    optimizer.step()


def run(
    optimizer: torch.optim.Optimizer, model: nn.Module, steps: Sequence[int], meta_every: int = 0
) -> None:
    """Steps on the batches of those numbers, with a meta step after every ``meta_every``."""
    for t in steps:
        step(optimizer, model, t)
        if meta_every and (t + 1) % meta_every == 0:
            assert isinstance(optimizer, MetaAdamW)
            meta(optimizer, model, t)


def meta(optimizer: MetaAdamW, model: nn.Module, t: int = 0) -> dict[str, float]:
    batches = [batch(1000 + 3 * t + i, next(model.parameters()).dtype) for i in range(3)]
    return optimizer.meta_step(loss_of(model), *batches)


def weights(model: nn.Module) -> Tensor:
    return flat(model.parameters())


def flat(tensors: Any) -> Tensor:
    return torch.cat([x.detach().reshape(-1).clone() for x in tensors])


def theta(optimizer: MetaAdamW) -> Tensor:
    """All numbers of the network."""
    return flat(optimizer.network.theta().values())


def rejected(optimizer: MetaAdamW, model: nn.Module, call: Callable[[], Any], words: str) -> None:
    """``call`` is refused in one line and changes nothing."""
    before, state, noise = weights(model), snapshot(optimizer), torch.get_rng_state()
    with pytest.raises(UserError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value) and snapshot(optimizer) == state
    assert torch.equal(weights(model), before) and torch.equal(torch.get_rng_state(), noise)
