"""Explicit SAM and its kin as baselines: the vmapped run against the torch optimizer wrapped around
torch's AdamW.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from lo_framework.eval.baselines import grid_of, make_baseline, make_thetas
from lo_framework.eval.baselines.explicit import EXPLICIT
from lo_framework.eval.studies.evaluation import gradients_per_step
from lo_framework.inner.rollout import _INIT, _TRAIN, rollout, seeded
from lo_framework.learned import make_learned
from lo_framework.optim import Regularized
from lo_framework.optimizees import make_tasks
from lo_framework.spec import UserError

STEPS, SEED = 7, 3


@pytest.mark.parametrize("name", EXPLICIT)
def test_equals_the_wrapper_around_torch_adamw(name: str) -> None:
    (task,) = make_tasks("mlp:hidden=5", "digits", None, "cpu")
    baseline = make_baseline(f"{name}:rho=0.2")
    (theta,) = make_thetas(baseline, [{"lr": 0.02, "cosine": 0.0}])
    found = rollout(task, baseline, [theta], [SEED], STEPS, splits=())
    params, buffers = task.init(seeded(SEED, _INIT))
    leaves = {n: nn.Parameter(x.clone()) for n, x in params.items()}
    rule: Any = baseline.explicit({})  # type: ignore[operator]
    optimizer = Regularized(torch.optim.AdamW(leaves.values(), lr=0.02), rule)
    stream = seeded(SEED, _TRAIN)
    for _ in range(STEPS):
        batch = task.batch("train", stream)

        def closure(batch: Any = batch) -> torch.Tensor:
            optimizer.zero_grad()
            loss, _ = task.loss(dict(leaves), buffers, batch, torch.tensor(0))
            loss.backward()
            return loss

        optimizer.step(closure)
    expected = torch.cat([x.detach().flatten() for x in leaves.values()])
    torch.testing.assert_close(found.params[0, 0], expected, rtol=1e-4, atol=2e-5)


def test_costs_and_grids() -> None:
    costs = {name: gradients_per_step(make_baseline(name)) for name in EXPLICIT}
    assert costs == {
        "sam": 2,
        "asam": 2,
        "even_asam": 3,
        "even_sam": 3,
        "gsam": 2,
        "gam": 4,
        "looksam": 1.2,
        "fsam": 2,
        "s2sam": 1,
    }
    assert (
        gradients_per_step(make_baseline("gam:exact=true")) == 8
        and gradients_per_step(make_baseline("adamw")) == 1
    )
    assert gradients_per_step(make_learned("hyper-adamw:sam_rho=0.1")) == 2
    assert gradients_per_step(make_learned("hyper-adamw:sam_rho=0.1,sam_gradients=1")) == 1
    assert all(grid_of(name) == grid_of("adamw") for name in EXPLICIT)


@pytest.mark.parametrize(
    ("spec", "words"), [("sam:rho=0", "rho"), ("gam:rho=-1", "rho"), ("sam:roh=1", "did you mean")]
)
def test_bad_options(spec: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make_baseline(spec)
