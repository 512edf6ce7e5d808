"""What MetaAdamW tells about itself: factors, logs, when a meta step is due, and which were left
out.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lo_framework.objectives.weighting import HUW
from tests.lo_framework.optim.metaadamw import tools
from tests.lo_framework.optim.metaadamw.settings import build
from tests.lo_framework.optim.metaadamw.tools import theta, weights


class Writer:
    """As TensorBoard's."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[float, int]] = {}

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        assert tag not in self.seen
        self.seen[tag] = value, step


@pytest.mark.parametrize(
    "grouping", ["fine_grained", "original", "tensor", {"first": "0", "rest": None}], ids=str
)
def test_factors_are_those_of_the_last_step(grouping: Any) -> None:
    """Read off the update itself: without decay, a first step is lr alpha in size."""
    model = tools.network()
    optimizer = tools.make(model.named_parameters(), grouping=grouping, weight_decay=0.0, eps=0.0)
    assert optimizer.factors() == {}
    before = weights(model)
    tools.step(optimizer, model, 0)
    factors, moved = optimizer.factors(), (weights(model) - before).abs() / 0.02
    expected = {
        "fine_grained": [
            f"linear {d} {k}" for d in ("early", "middle", "late") for k in ("weights", "vectors")
        ],
        "original": ["group 0"],
        "tensor": [n for n, _ in model.named_parameters()],
    }.get(grouping if isinstance(grouping, str) else "", ["first", "rest"])
    assert list(factors) == expected
    for found in moved.unique():
        assert min(abs(float(found) - alpha) for alpha, _ in factors.values()) < 1e-9
    for alpha, beta in factors.values():
        assert 0.5 < alpha < 1.5 and 0.5 < beta < 1.5 and alpha != 1.0 != beta


def test_log_writes_both_factors_of_every_group() -> None:
    model, writer = tools.network(), Writer()
    optimizer = tools.make(model.named_parameters(), grouping="tensor")
    optimizer.log(writer, 0)
    assert writer.seen == {"metaadamw/skipped": (0, 0)}
    writer.seen.clear()
    tools.step(optimizer, model, 0)
    optimizer.log(writer, 7, prefix="x")
    assert len(writer.seen) == 13
    for label, (alpha, beta) in optimizer.factors().items():
        assert writer.seen[f"x/alpha/{label}"] == (alpha, 7) and writer.seen[f"x/beta/{label}"] == (
            beta,
            7,
        )


def test_a_meta_step_is_due_after_every_so_many_steps() -> None:
    model = tools.network()
    optimizer = tools.make(model.named_parameters(), meta_every=3)
    due = [optimizer.meta_due]
    for t in range(7):
        tools.step(optimizer, model, t)
        due.append(optimizer.meta_due)
    assert due == [False, False, False, True, False, False, True, False]


def test_a_resumed_optimizer_knows_when_a_meta_step_is_due() -> None:
    model = tools.network()
    one, two = (tools.make(model.named_parameters(), meta_every=3) for _ in range(2))
    tools.run(one, model, range(3))
    two.load_state_dict(one.state_dict())
    assert two.meta_due and two.updates == 3


def test_a_meta_step_tells_terms_and_weights() -> None:
    model = tools.network()
    optimizer = tools.make(model.named_parameters(), priorities=(2, 5, 1))
    tools.run(optimizer, model, range(2))
    found = tools.meta(optimizer, model)
    names = ["gradient", "loss_decrease", "gen_gap"]
    assert list(found) == names + [f"weight/{name}" for name in names]
    assert [found[f"weight/{name}"] for name in names] == [0.5] * 3 and all(
        found[name] > 0 for name in names
    )
    assert isinstance(optimizer.meta_objective.weighting, HUW)
    s = -0.05 / 2 * (torch.tensor([2.0, 5.0, 1.0]) - torch.tensor([found[name] for name in names]))
    torch.testing.assert_close(
        optimizer.meta_objective.weighting.s, s.double(), rtol=1e-5, atol=1e-7
    )
    again = tools.meta(optimizer, model, 1)
    assert again["weight/loss_decrease"] == pytest.approx(0.5 * math.exp(-float(s[1])), rel=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", range(4))
def test_a_meta_gradient_that_is_not_finite_is_left_out(where: int, bad: float) -> None:
    """In the first, second or third batch's loss, or after the step alone; the network stays as it
    was, training goes on, and it is counted.
    """
    model = tools.network()
    optimizer = tools.make(model.named_parameters())
    tools.run(optimizer, model, range(3), meta_every=2)
    before, moments, calls = (
        theta(optimizer),
        tools.through_a_file(optimizer._trainer.optimizer.state_dict()),
        list[int](),
    )
    assert isinstance(optimizer.meta_objective.weighting, HUW)

    def loss(batch: int) -> Tensor:
        calls.append(batch)
        value = tools.loss_of(model)(tools.batch(batch))
        broken = batch == where or (where == 3 and len(calls) > 3)
        return value * bad if broken else value

    old = weights(model)
    optimizer.meta_step(loss, 0, 1, 2)
    assert (
        optimizer.skipped == 1
        and torch.equal(theta(optimizer), before)
        and torch.equal(weights(model), old)
    )
    after = optimizer._trainer.optimizer.state_dict()["state"]
    assert all(
        torch.equal(after[i][k], x) for i, s in moments["state"].items() for k, x in s.items()
    )
    assert optimizer.meta_objective.weighting.s.isfinite().all()
    tools.run(optimizer, model, range(3, 6), meta_every=2)
    assert (
        optimizer.skipped == 1
        and not torch.equal(theta(optimizer), before)
        and weights(model).isfinite().all()
    )
    other = tools.make(model.named_parameters())
    other.load_state_dict(tools.through_a_file(optimizer.state_dict()))
    assert other.skipped == 1


def test_training_lowers_the_loss_with_meta_steps() -> None:
    model = tools.network()
    optimizer = build(model.named_parameters(), 0.02, meta_every=2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = tools.loss_of(model)(tools.batch(0))
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if optimizer.meta_due:
            optimizer.meta_step(tools.loss_of(model), *(tools.batch(t) for t in range(3)))
    assert losses[-1] < 0.7 * losses[0] and optimizer.skipped == 0
