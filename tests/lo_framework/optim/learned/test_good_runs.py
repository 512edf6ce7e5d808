"""Runs on the same rows at every step, where the slope after a move says more than the move did."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from lo_framework.optim import Learned
from tests.lo_framework.optim.tools import generator


def train(seed: int, rows: int, hidden: int, steps: int, lr: float) -> Learned:
    """A classifier of labels that mean nothing, as in a first try with random numbers."""
    g = generator(seed)
    x, y = torch.randn(rows, 8, generator=g), torch.randint(3, (rows,), generator=g)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(8, hidden), nn.ReLU(), nn.Linear(hidden, 3))
    optimizer = Learned(model, "general", num_steps=steps, lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("rows", "hidden", "steps"), [(512, 32, 200), (64, 16, 100), (64, 16, 50)])
def test_a_bold_step_is_no_alarm(seed: int, rows: int, hidden: int, steps: int) -> None:
    assert train(seed, rows, hidden, steps, lr=1.0).guard_activations == 0


def test_a_step_ten_times_as_large_is() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert train(0, 64, 16, 100, lr=10.0).guard_activations > 0
