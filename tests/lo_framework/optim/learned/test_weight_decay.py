"""Weight decay of parameter groups, in proportion to the size of the update."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from lo_framework.optim import Learned
from lo_framework.spec import UserError
from tests.lo_framework.optim.tools import moved, parameters, run


@pytest.mark.parametrize("spec", ["hyper-adamw", "attention-mlp", "scaled"])
def test_weight_decay_is_as_large_as_the_update(spec: str) -> None:
    """p <- p + lr u - weight_decay rms(lr u) p, for the groups that have one."""
    plain, params = parameters(), parameters()
    run(Learned(plain, moved(spec), num_steps=10, lr=0.5), plain, [0])
    groups = [{"params": params[:3], "weight_decay": 0.1}, {"params": params[3:]}]
    start = [p.detach().clone() for p in params]
    run(Learned(groups, moved(spec), num_steps=10, lr=0.5), params, [0])
    for i, (new, old, p) in enumerate(zip(plain, start, params, strict=True)):
        size = (new - old).square().mean().sqrt()
        expected = new - (0.1 * size * old if i < 3 else 0.0)
        torch.testing.assert_close(p.detach(), expected.detach(), rtol=1e-5, atol=1e-7)


def test_a_state_of_before_weight_decay_loads() -> None:
    params = parameters()
    face = Learned(params, moved("attention"), num_steps=10, weight_decay=0.1)
    run(face, params, [0])
    state = copy.deepcopy(face.state_dict())
    assert state["param_groups"][0].pop("weight_decay") == 0.1
    face.load_state_dict(state)
    assert face.param_groups[0]["weight_decay"] == 0.0
    run(face, params, [1])


@pytest.mark.parametrize("bad", [-0.1, math.inf, math.nan])
def test_bad_weight_decay_is_refused(bad: float) -> None:
    with pytest.raises(UserError, match="weight_decay must be at least 0"):
        Learned(parameters(), moved("attention"), num_steps=10, weight_decay=bad)
