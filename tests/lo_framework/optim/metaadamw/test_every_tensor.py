"""Every tensor of MetaAdamW's network learns: with two or more tokens none has gradient zero."""

from __future__ import annotations

from typing import Any

import pytest

from tests.lo_framework.optim.metaadamw import math_tools as tools

FEATURES = ("basic", "norm_basic", "basic_plus", "norm_basic_plus", "enhanced", "tokens")


def idle(grads: dict[str, Any]) -> set[str]:
    """Names of tensors without any gradient; no gradient at all is not one."""
    assert grads and all(g.isfinite().all() for g in grads.values())
    return {name for name, g in grads.items() if not g.any()}


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("objective", ["gradient", "loss_decrease", "gen_gap", "combined"])
def test_a_zero_head_learns_first_and_all_before_it_from_the_second_time_on(
    objective: str, features: str
) -> None:
    """Without any penalty. At the start nothing but the head has a say, as it should: the optimizer
    is AdamW.
    """
    model = tools.Net()
    optimizer = tools.make(
        model, objective=objective, features=features, gating=True, total_steps=50
    )
    tools.train(model, optimizer)
    first = tools.meta_gradients(optimizer, model, gate_penalty=0.0)
    assert idle(first) == first.keys() - {"head"}
    second = tools.meta_gradients(optimizer, model, 60, gate_penalty=0.0)
    assert not idle(second)


@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("objective", ["gradient", "loss_decrease", "gen_gap", "combined"])
def test_with_a_random_head_all_learn_at_once(objective: str, features: str) -> None:
    model = tools.Net()
    size = {"head_scale": 0.3}
    optimizer = tools.make(
        model, objective=objective, features=features, gating=True, total_steps=50, network=size
    )
    tools.train(model, optimizer)
    assert not idle(tools.meta_gradients(optimizer, model, gate_penalty=0.0))


@pytest.mark.parametrize("features", FEATURES[:5])
@pytest.mark.parametrize("objective", ["gradient", "loss_decrease", "combined"])
def test_all_of_the_papers_network_learns_at_once(objective: str, features: str) -> None:
    model = tools.Net()
    sizes = {"width": 16}
    optimizer = tools.make(
        model,
        objective=objective,
        features=features,
        gating=True,
        reproduce="paper",
        network=sizes,
    )
    tools.train(model, optimizer)
    assert not idle(tools.meta_gradients(optimizer, model, gate_penalty=0.0))


def test_both_factors_learn() -> None:
    """The head's rows of alpha and beta; the other rows of a bounded head are not in use."""
    model = tools.Net()
    optimizer = tools.make(model)
    tools.train(model, optimizer)
    head = tools.meta_gradients(optimizer, model)["head"]
    assert [bool(row.any()) for row in head] == [True, False, False, True, False]


def test_one_token_attends_to_itself_and_leaves_queries_and_keys_idle() -> None:
    """So they are told apart by two tokens or more only."""
    model = tools.Net()
    optimizer = tools.make(model, grouping="original", network={"head_scale": 0.3})
    tools.train(model, optimizer)
    qkv = tools.meta_gradients(optimizer, model)["blocks.0.qkv"]
    assert not qkv[:16].any() and qkv[16:].any()
