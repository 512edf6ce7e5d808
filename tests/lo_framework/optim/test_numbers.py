"""Options that are no number, or none that can be, are refused in one line that names the group,
the option, what was given and what would be right; nothing changes.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from lo_framework.learned import make_learned
from lo_framework.optim import SAM, Learned, MetaAdamW, MetaOptimize
from lo_framework.spec import UserError


class Odd(NamedTuple):
    option: str
    value: Any
    words: str


TWO = torch.ones(2)
NUMBERS = ("a", None, math.nan, math.inf, -1.0, TWO, torch.tensor(math.nan), [0.1], 1j)
BETAS = ("a", (0.9,), (0.9, "x"), (0.9, math.nan), (0.9, 1.5), TWO, (TWO, 0.9), 0.9)
ODD = [
    Odd(name, value, f"{name} .*must be .*at least 0 and finite, not")
    for name in ("lr", "weight_decay", "eps")
    for value in NUMBERS
] + [Odd("betas", value, "betas") for value in BETAS]
CLASSES = {
    "learned": lambda groups, **options: Learned(groups, make_learned("scaled"), **options),
    "metaadamw": MetaAdamW,
    "metaoptimize": MetaOptimize,
}
CASES = [
    (name, odd)
    for name in CLASSES
    for odd in ODD
    if name != "learned" or odd.option in ("lr", "weight_decay")
]


def one() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(3, 2))]


def step(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    optimizer.step()


@pytest.mark.parametrize(("name", "odd"), CASES)
def test_in_a_group(name: str, odd: Odd) -> None:
    make, given = CLASSES[name], {odd.option: odd.value}
    with pytest.raises(UserError, match=rf"^parameter group 1: .*{odd.words}") as caught:
        make([{"params": one()}, {"params": one(), **given}])
    assert "\n" not in str(caught.value)
    optimizer = make(one())
    step(optimizer)
    before, group = repr(optimizer.state_dict()), {"params": one(), **given}
    kept = dict(group)
    with pytest.raises(UserError, match=rf"^parameter group 1: .*{odd.words}"):
        optimizer.add_param_group(group)
    assert repr(optimizer.state_dict()) == before and group.items() == kept.items()
    step(optimizer)


@pytest.mark.parametrize(("name", "odd"), CASES)
def test_as_an_argument(name: str, odd: Odd) -> None:
    if (name, odd.option) == ("metaoptimize", "lr"):  # which has none
        return
    if odd.value is None and (name, odd.option) in (
        *(("metaadamw", option) for option in ("lr", "weight_decay", "eps")),
        ("metaoptimize", "eps"),
    ):
        CLASSES[name](one(), **{odd.option: None})  # the usual value
        return
    with pytest.raises(UserError, match=odd.words) as caught:
        CLASSES[name](one(), **{odd.option: odd.value})
    assert "\n" not in str(caught.value) and "group" not in str(caught.value)


@pytest.mark.parametrize("rho", ["x", -1.0, math.nan, math.inf, TWO, None])
def test_a_radius(rho: Any) -> None:
    with pytest.raises(UserError, match="rho"):
        SAM(torch.optim.AdamW(one()), rho=rho)


def test_through_sam() -> None:
    optimizer = SAM(MetaAdamW(one()))
    with pytest.raises(UserError, match="^parameter group 1: lr must be one number"):
        optimizer.add_param_group({"params": one(), "lr": "a"})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("name", CLASSES)
def test_in_a_saved_group(name: str) -> None:
    optimizer = CLASSES[name](one())
    before = optimizer.param_groups[0]["lr"]
    state = optimizer.state_dict()
    state["param_groups"][0]["lr"] = "a"
    with pytest.raises(UserError, match="^parameter group 0 of this state: lr"):
        optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == before


def test_numbers_of_all_kinds_are_numbers() -> None:
    for lr in (1, 0.5, np.float32(0.5), np.array(0.5), torch.tensor(0.5), torch.tensor([1])):
        assert Learned(one(), make_learned("scaled"), lr=lr).param_groups[0]["lr"] is lr


@pytest.mark.parametrize("alpha0", ["a", None, math.nan, TWO, [0.1], 1j])
def test_a_step_size(alpha0: Any) -> None:
    with pytest.raises(UserError, match="alpha0 is a step size: it must be positive"):
        MetaOptimize(one(), alpha0=alpha0)


@pytest.mark.parametrize("guard", ["a", None, 3, TWO])
def test_a_guard_is_none_the_usual_one_or_its_settings(guard: Any) -> None:
    with pytest.raises(UserError, match="guard must be True, False or a GuardConfig"):
        Learned(one(), make_learned("scaled"), guard=guard)


@pytest.mark.parametrize("chunk", ["a", 0, 1.5, math.nan])
def test_a_chunk(chunk: Any) -> None:
    with pytest.raises(UserError, match="chunk must be a whole number of at least 1"):
        Learned(one(), make_learned("scaled"), chunk=chunk)
