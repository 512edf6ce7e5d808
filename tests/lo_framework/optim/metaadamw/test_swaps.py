"""What people do to an optimizer from outside: parameters and state replaced or removed, gradients
that overflow.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from lo_framework.errors import UserError
from tests.lo_framework.optim.metaadamw import tools

Act = Callable[[nn.Sequential, torch.optim.Optimizer], None]


def replace_a_parameter(model: nn.Sequential, optimizer: torch.optim.Optimizer) -> None:
    """As layers that grow do: a new tensor, the old one's state."""
    old, new = model[2].weight, nn.Parameter(model[2].weight.detach() + 0.1)
    params = optimizer.param_groups[0]["params"]
    params[next(i for i, p in enumerate(params) if p is old)] = new
    optimizer.state[new] = optimizer.state.pop(old)
    model[2].weight = new


def remove_a_parameter(model: nn.Sequential, optimizer: torch.optim.Optimizer) -> None:
    group = optimizer.param_groups[0]
    group["params"] = [p for p in group["params"] if p is not model[0].bias]
    optimizer.state.pop(model[0].bias, None)  # torch's own state_dict wants that


def clear_the_state(model: nn.Sequential, optimizer: torch.optim.Optimizer) -> None:
    optimizer.state.clear()


def pop_a_state(model: nn.Sequential, optimizer: torch.optim.Optimizer) -> None:
    del optimizer.state[model[4].weight]


@pytest.mark.parametrize(
    "act", [replace_a_parameter, remove_a_parameter, clear_the_state, pop_a_state]
)
def test_it_goes_on_as_adamw_does(act: Act) -> None:
    """Without ranges; also after a meta step between, which must not stumble either."""
    ours, theirs = tools.network(), tools.network()
    one = tools.make(ours.named_parameters(), alpha_range=0.0, beta_range=0.0)
    two = torch.optim.AdamW(theirs.named_parameters(), lr=0.02)
    for model, optimizer in ((ours, one), (theirs, two)):
        tools.run(optimizer, model, range(3))
        act(model, optimizer)
    if act is not clear_the_state:
        tools.meta(one, ours)
    for model, optimizer in ((ours, one), (theirs, two)):
        tools.run(optimizer, model, range(3, 6))
    torch.testing.assert_close(tools.weights(ours), tools.weights(theirs), rtol=0, atol=1e-12)


def test_others_keep_their_names_and_groups_when_one_is_removed() -> None:
    model = tools.network()
    optimizer = tools.make(model.named_parameters(), grouping={"head": "4", "rest": None})
    tools.run(optimizer, model, range(2))
    remove_a_parameter(model, optimizer)
    tools.run(optimizer, model, range(2, 3))
    state = optimizer.state_dict()
    other = tools.network()
    fresh = tools.make(other.named_parameters(), grouping={"head": "4", "rest": None})
    remove_a_parameter(other, fresh)
    fresh.load_state_dict(state)
    assert fresh.table.ages == [3] * 5
    rest = [label for _, _, label in optimizer.table.groups]
    assert rest == ["rest"] * 3 + ["head"] * 2


def test_names_after_one_has_gone_and_others_have_come() -> None:
    """By place the newcomer would get the name of another."""
    model, more = tools.network(), nn.Linear(2, 2, dtype=tools.D)
    optimizer = tools.make(model.named_parameters(), grouping=lambda name, p: name.split(".")[0])
    tools.run(optimizer, model, range(2))
    remove_a_parameter(model, optimizer)
    optimizer.param_groups[0]["params"].append(more.weight)
    tools.run(optimizer, model, range(2, 3))
    assert [label for _, _, label in optimizer.table.groups] == [
        "0",
        "2",
        "2",
        "4",
        "4",
        "parameter5",
    ]
    optimizer.add_param_group({"params": [("more.bias", more.bias)]})
    assert [label for _, _, label in optimizer.table.groups][-2:] == ["parameter5", "more"]


def test_a_group_that_is_empty_all_at_once_changes_nothing() -> None:
    model = tools.network()
    optimizer = tools.make(model.named_parameters(), grouping={"first": "^0", "rest": None})
    tools.run(optimizer, model, range(2))
    group, before = optimizer.param_groups[0], tools.weights(model)
    kept = group["params"]
    group["params"] = kept[2:]
    for _ in range(2):
        with pytest.raises(UserError, match='"first": "\\^0" matches no parameter'):
            tools.step(optimizer, model, 2)
    assert torch.equal(tools.weights(model), before)
    group["params"] = kept
    tools.step(optimizer, model, 2)


def test_a_meta_step_after_the_state_was_taken_away() -> None:
    model = tools.network()
    optimizer = tools.make(model.named_parameters())
    tools.run(optimizer, model, range(2))
    optimizer.state.clear()
    with pytest.raises(UserError, match="none of the parameters that have moved"):
        tools.meta(optimizer, model)


@pytest.mark.parametrize("value", [1e20, math.inf, math.nan])
@pytest.mark.parametrize("size", [0.0, 1.0])
def test_a_gradient_that_overflows_harms_its_own_tensor_alone(size: float, value: float) -> None:
    model = tools.network(torch.float32)
    optimizer = tools.make(model.named_parameters(), alpha_range=size, beta_range=size)
    tools.run(optimizer, model, range(2))
    tools.loss_of(model)(tools.batch(3, torch.float32)).backward()
    sick = model[2].weight
    assert sick.grad is not None
    sick.grad[0, 0] = value
    optimizer.step()
    if math.isfinite(value):
        tools.run(optimizer, model, range(4, 6))
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters() if p is not sick)
    assert bool(torch.isfinite(sick).all()) == math.isfinite(value)
