"""Explicit regularizers as torch optimizers: groups, hooks, schedulers, and the page about them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, OneCycleLR

from lo_framework.optim import (
    SAM,
    LookSAM,
)
from tests.lo_framework.optim.sam import tools

DOCUMENT = Path(__file__).resolve().parents[4] / "docs" / "explicit.md"


def test_groups_hooks_and_defaults_are_those_of_the_base() -> None:
    model = tools.network()
    base = torch.optim.SGD(model[0].parameters(), lr=0.1)
    optimizer = LookSAM(base, k=2)
    tools.train(optimizer, model, [0])
    before, held = tools.weights(model), optimizer.state_dict()["regularizer"]["state"]
    optimizer.add_param_group({"params": model[2].parameters(), "lr": 0.0})
    assert optimizer.param_groups is base.param_groups and optimizer.state is base.state
    assert optimizer.defaults["lr"] == 0.1 and "sam" in repr(optimizer) and "SGD" in repr(optimizer)
    tools.train(optimizer, model, [1])  # reuses a direction that the new group does not have yet
    now = optimizer.state_dict()["regularizer"]["state"]
    assert torch.equal(now["g_v/0"], held["g_v/0"]) and not now["g_v/2"].any()
    base.param_groups[1]["lr"] = 0.1
    tools.train(optimizer, model, [2])
    assert (tools.weights(model) != before).all()
    seen = []
    optimizer.register_state_dict_post_hook(lambda o, state: seen.append(o))
    optimizer.register_step_post_hook(lambda o, args, kwargs: seen.append(o))
    optimizer.state_dict()
    tools.train(optimizer, model, [3])
    assert seen == [base, optimizer]


@pytest.mark.parametrize("on_base", [True, False])
@pytest.mark.parametrize(
    "make", [lambda o: CosineAnnealingLR(o, 6), lambda o: OneCycleLR(o, 0.3, total_steps=6)]
)
def test_schedulers_on_wrapper_or_base(make: Callable[[Any], Any], on_base: bool) -> None:
    models, seen = [tools.network(), tools.network()], list[list[float]]()
    for model, here in zip(models, (on_base, True)):
        optimizer = SAM(torch.optim.AdamW(model.parameters(), lr=0.1))
        scheduler = make(optimizer.base if here else optimizer)
        seen.append([])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for t in range(5):
                tools.train(optimizer, model, [t])
                scheduler.step()
                seen[-1].append(optimizer.param_groups[0]["lr"])
    assert seen[0] == seen[1] and len(set(seen[0])) == 5
    assert torch.equal(tools.weights(models[0]), tools.weights(models[1]))


@pytest.mark.parametrize("face", tools.FACES)
def test_parameters_without_gradient_take_no_part(face: tools.Face) -> None:
    """Frozen, unused, and used in some steps only: the others move as if these were not there."""
    model, alone = tools.network(), tools.network()
    unused, empty, sometimes = (
        nn.Parameter(torch.ones(3)),
        nn.Parameter(torch.ones(0, 2)),
        nn.Parameter(torch.ones(2)),
    )
    for m in (model, alone):
        m[0].bias.requires_grad_(False)
    everything = [unused, empty, *model.parameters(), sometimes]
    optimizer = face(torch.optim.SGD(everything, lr=0.1, weight_decay=0.1))
    reference = face(
        torch.optim.SGD(
            [p for p in alone.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1
        )
    )

    def extended(loss: tools.LossFn, use: bool) -> Tensor:
        return loss() + (sometimes.exp().sum() if use else 0.0)

    for t in range(7):
        use, loss = t in (2, 3), tools.loss_fn(model, t)
        optimizer.step(tools.closure_of(optimizer, partial(extended, loss, use)))
        if not use:
            tools.train(reference, alone, [t])
        elif t == 3:
            assert not torch.equal(sometimes, torch.ones(2))
            break
        if t == 1:
            torch.testing.assert_close(
                tools.weights(model), tools.weights(alone), rtol=0, atol=1e-12
            )
            assert torch.equal(sometimes, torch.ones(2)) and sometimes.grad is None
    left = sometimes.detach().clone()
    tools.train(optimizer, model, range(4, 9))
    assert (
        torch.equal(sometimes, left) and torch.equal(unused, torch.ones(3)) and unused.grad is None
    )
    assert torch.equal(model.get_parameter("0.bias"), tools.network().get_parameter("0.bias"))
    optimizer.step(lambda: optimizer.zero_grad() or 1.0)  # type: ignore[func-returns-value]


def test_code_in_the_document_runs() -> None:
    blocks = [part.split("```")[0] for part in DOCUMENT.read_text().split("```python\n")[1:]]
    assert blocks
    torch.manual_seed(0)
    x, y = tools.batch(0, torch.float32)
    names: dict[str, Any] = {
        "x": x,
        "y": y,
        "loader": [(x, y)] * 4,
        "loss_fn": nn.functional.cross_entropy,
    }
    names["model"] = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    for block in blocks:
        before = tools.weights(names["model"])
        exec(compile(block, str(DOCUMENT), "exec"), names)
        assert not torch.equal(tools.weights(names["model"]), before)
