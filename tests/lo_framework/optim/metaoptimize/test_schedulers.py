"""Schedulers that cycle momentum find it, or a person is told that there is none."""

from __future__ import annotations

from typing import Any

import pytest
from torch.optim.lr_scheduler import CyclicLR, OneCycleLR

from lo_framework.optim.metaoptimize.rules import BASES
from tests.lo_framework.optim.metaoptimize import tools

SCHEDULERS = {
    "one cycle": lambda o: OneCycleLR(o, max_lr=1.0, total_steps=100),
    "cyclic": lambda o: CyclicLR(o, 0.1, 1.0, base_momentum=0.5, max_momentum=0.7),
}


@pytest.mark.parametrize("schedule", SCHEDULERS.values(), ids=SCHEDULERS.keys())
@pytest.mark.parametrize("base", BASES)
def test_schedulers_cycle_momentum_alone(base: str, schedule: Any) -> None:
    """Bases without momentum say so; rmsprop's decay of the second moment is none."""
    params = tools.parameters()
    optimizer = tools.make(params, base)
    before = optimizer.param_groups[0].get("betas")
    schedule(optimizer)
    if base in ("sgd", "rmsprop"):
        with pytest.warns(UserWarning, match='"momentum" in a parameter group changes nothing'):
            tools.run(optimizer, params, range(1))
        assert before is None and optimizer.param_groups[0]["decays"] == BASES[base].betas
    else:
        after = optimizer.param_groups[0]["betas"]
        assert after[0] != before[0] and after[1:] == before[1:]
        assert "decays" not in optimizer.param_groups[0]
    tools.run(optimizer, params, range(2))


def test_groups_and_older_files_give_rmsprop_its_decay_as_betas() -> None:
    params = tools.parameters()
    groups = [{"params": params[:2]}, {"params": params[2:], "betas": (0.5,)}]
    optimizer = tools.make(groups, "rmsprop", betas=(0.9,))
    assert [group["decays"] for group in optimizer.param_groups] == [(0.9,), (0.5,)]
    tools.run(optimizer, params, range(2))
    state = optimizer.state_dict()
    for group in state["param_groups"]:
        group["betas"] = group.pop("decays")
    other = tools.make([{"params": params[:2]}, {"params": params[2:]}], "rmsprop")
    other.load_state_dict(state)
    assert [group["decays"] for group in other.param_groups] == [(0.9,), (0.5,)]
    assert all("betas" not in group for group in other.param_groups)
