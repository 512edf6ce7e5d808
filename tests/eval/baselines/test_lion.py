"""Lion is the paper's algorithm 2, alone and as a vmapped grid."""

from __future__ import annotations

import math

import pytest
import torch
from torch.func import vmap

from lo_framework.eval.baselines import grid_of, make_baseline
from lo_framework.layout import Layout
from lo_framework.spec import UserError
from tests.eval.baselines.stepping import STEPS, by_baseline, problem

LAYOUT = Layout.of({"weight": (5, 3), "bias": (5,)})


@pytest.mark.parametrize("cosine", [0.0, 1.0])
def test_equals_the_formula(cosine: float) -> None:
    start, grads = problem(LAYOUT)
    lr, decay, beta1, beta2 = 0.01, 0.1, 0.9, 0.99
    theta, m = start.clone(), torch.zeros_like(start)
    for t, g in enumerate(grads):
        eta = lr * (0.5 * (1 + math.cos(math.pi * t / STEPS)) if cosine else 1.0)
        c = beta1 * m + (1 - beta1) * g
        theta = theta - eta * (torch.sign(c) + decay * theta)
        m = beta2 * m + (1 - beta2) * g
    got = by_baseline("lion", LAYOUT, {"lr": lr, "cosine": cosine}, start, grads)
    torch.testing.assert_close(got, theta, rtol=0, atol=1e-7)  # theta holds float32 settings


def test_has_as_many_settings_as_adamw_and_options() -> None:
    assert len(grid_of("lion")) == len(grid_of("adamw"))
    assert make_baseline("lion:beta2=0.98").config.beta2 == 0.98
    with pytest.raises(UserError, match=r"betas must be in \[0, 1\)"):
        make_baseline("lion:beta1=1")


def test_settings_under_vmap_equal_each_alone() -> None:
    start, grads = problem(LAYOUT, torch.float32)

    def run(shift: torch.Tensor) -> torch.Tensor:
        return by_baseline("lion", LAYOUT, {"lr": 0.01}, start + shift, grads[:5])

    together = vmap(run)(torch.tensor([0.0, 0.1]))
    torch.testing.assert_close(together[1], run(torch.tensor(0.1)), rtol=0, atol=1e-6)
