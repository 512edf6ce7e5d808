"""What is written into a group in the midst of a run: said once where it changes nothing, refused
where it is a number that cannot be.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from lo_framework.spec import UserError
from tests.lo_framework.optim.option_tools import MAKERS, network, step, train, weights


@pytest.mark.parametrize("kind", MAKERS)
def test_what_is_written_into_a_group_later_is_said_once(kind: str) -> None:
    optimizer = MAKERS[kind](network())
    step(optimizer)
    for t in range(3):
        optimizer.param_groups[0]["weigth_decay"] = 0.1
        optimizer.param_groups[0]["lr"] = 1.0 + t
        if t:
            step(optimizer, t)
            continue
        with pytest.warns(UserWarning, match='"weigth_decay".*changes nothing.*weight_decay') as s:
            step(optimizer)
        assert len(s) == 1


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("wrong", [math.nan, math.inf, -0.5, "0.1", None, torch.tensor(-1.0)])
@pytest.mark.parametrize("option", ["lr", "weight_decay"])
def test_a_number_that_cannot_be_stops_the_run_before_it_harms(
    kind: str, wrong: Any, option: str
) -> None:
    model = network()
    optimizer = MAKERS[kind](model)
    (group,) = optimizer.param_groups
    step(optimizer)
    before, good = weights(model), group[option]
    group[option] = wrong
    for _ in range(2):  # it is not let through the second time
        with pytest.raises(UserError, match=rf"parameter group 0: {option} must be") as error:
            step(optimizer, 1)
        assert "\n" not in str(error.value)
        assert torch.equal(weights(model), before)
    group[option] = good
    step(optimizer, 1)
    assert not torch.equal(weights(model), before)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_schedule_may_end_a_rounding_below_zero(kind: str) -> None:
    optimizer = MAKERS[kind](network())
    train(optimizer, LambdaLR(optimizer, lambda t: 1.0 if t < 2 else -1e-17), 4)
    optimizer.param_groups[0]["lr"] = torch.tensor(-1e-17)
    step(optimizer)
