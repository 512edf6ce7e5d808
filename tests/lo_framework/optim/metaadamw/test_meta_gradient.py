"""MetaAdamW's meta-gradient against plain autograd through an explicit look-ahead, and against
finite differences.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lo_framework.objectives.weighting import HUW
from lo_framework.optim import MetaAdamW
from lo_framework.optim.metaadamw.meta_loss import LARGEST_LOG, _gradient_term
from lo_framework.optim.metaadamw.training import trained_names
from tests.lo_framework.optim.metaadamw import math_tools as tools
from tests.lo_framework.optim.metaadamw.reference.meta_loss import Meta
from tests.lo_framework.optim.metaadamw.settings import build

GOALS: dict[str, dict[str, Any]] = {
    "gradient": {"objective": "gradient"},
    "loss_decrease": {"objective": "loss_decrease"},
    "gen_gap": {"objective": "gen_gap"},
    "huw": {"weighting": "huw", "priorities": (2, 5, 1)},
    "sum": {"weighting": "sum"},
    "fixed": {"weighting": "fixed:weights=1x0.3x0.7"},
}
KINDS = (None, "paper", "reference")
SEED = 50


def ready(goal: str, reproduce: str | None, **settings: Any) -> tuple[MetaAdamW, Any, Meta]:
    model, optimizer = tools.ready(reproduce=reproduce, **GOALS[goal], **settings)
    if isinstance(optimizer.meta_objective.weighting, HUW):
        optimizer.meta_objective.weighting.s = torch.tensor([0.3, -0.5, 0.2], dtype=tools.D)
    return optimizer, model, Meta(optimizer, model, *(tools.batch(SEED + i) for i in range(3)))


def check(
    optimizer: MetaAdamW, model: Any, slow: Meta, atol: float = 1e-9, **rules: Any
) -> dict[str, Tensor]:
    """Every tensor that is trained; the others get nothing."""
    tools.with_rules(optimizer, **rules)
    slow.rules = optimizer.variant
    expected = slow.gradient()
    found = tools.meta_gradients(optimizer, model, SEED)
    trained = trained_names(optimizer.network, optimizer.variant)
    assert found.keys() == set(trained)
    for name in trained:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=atol, msg=name)
    return found


@pytest.mark.parametrize("features", ["basic", "norm_basic_plus", "enhanced"])
@pytest.mark.parametrize("reproduce", KINDS)
@pytest.mark.parametrize("goal", GOALS)
def test_the_meta_gradient_equals_autograd_through_the_look_ahead(
    goal: str, reproduce: str | None, features: str
) -> None:
    """Float64, every tensor of the network, with gates. (As published the gap alone trains only
    through penalties.)
    """
    optimizer, model, slow = ready(
        goal, reproduce, features=features, gating=True, network={"width": 16}
    )
    found = check(optimizer, model, slow)
    trains = (
        goal != "gen_gap" or reproduce != "paper"
    )  # there the released gap depends on nothing that is trained
    assert found["head"].any() == trains


def test_the_meta_gradient_of_parameter_groups_with_settings_of_their_own() -> None:
    """Two groups, other learning rates, betas, eps and decays, and parameters of other ages."""
    model = tools.Net()
    groups = [
        {
            "params": list(model.last.named_parameters("last")),
            "lr": 0.02,
            "betas": (0.8, 0.95),
            "eps": 1e-3,
        },
        {
            "params": [
                *model.first.named_parameters("first"),
                *model.norm.named_parameters("norm"),
            ],
            "weight_decay": 0.3,
        },
    ]
    for reproduce in KINDS:
        size = {"width": 12, "heads": 2, "layers": 1}
        optimizer = build(groups, lr=0.05, reproduce=reproduce, network=size, order="exact")  # type: ignore[arg-type]
        tools.train(model, optimizer)
        optimizer.zero_grad()
        tools.loss_fn(model)(tools.batch(9)).backward()
        model.norm.weight.grad = None
        optimizer.step()
        tools.loss_fn(model)(tools.batch(10)).backward()
        tools.shaken(optimizer)
        check(optimizer, model, Meta(optimizer, model, *(tools.batch(SEED + i) for i in range(3))))


@pytest.mark.parametrize(
    "settings",
    [
        {"features": "tokens", "total_steps": 20},
        {"grouping": "tensor"},
        {"alpha_range": 0.4, "beta_range": 1.9},
        {"decay": "scaled"},
        {"total_steps": 20, "v_norms": False},
        {"features": "basic_plus", "time": False},
        {"grouping": {"body": "first|norm", "rest": None}},
    ],
)
@pytest.mark.parametrize("reproduce", KINDS)
def test_the_meta_gradient_with_other_settings(
    reproduce: str | None, settings: dict[str, Any]
) -> None:
    size = {"network": {"width": 20}}
    optimizer, model, slow = ready("huw", reproduce, **size, **settings)
    check(optimizer, model, slow)


@pytest.mark.parametrize("reproduce", [None, "paper"])
@pytest.mark.parametrize("goal", GOALS)
def test_the_meta_gradient_equals_finite_differences(goal: str, reproduce: str | None) -> None:
    """In random directions of all weights at once; what is under [.] stays."""
    if goal == "gen_gap" and reproduce:
        return  # does not depend on the network, as published
    optimizer, model, slow = ready(goal, reproduce)
    own = dict(optimizer.network.named_parameters())
    slow.total()
    generator, h = torch.Generator().manual_seed(0), 1e-5
    along, differences = [], []
    for _ in range(3):
        d = {
            name: torch.randn(p.shape, generator=generator, dtype=tools.D)
            for name, p in own.items()
        }
        ends = []
        for sign in (1, -2, 1):
            with torch.no_grad():
                for name, p in own.items():
                    p.add_(d[name], alpha=sign * h)
            ends.append(float(slow.total()[0].detach()))
        along.append(d)
        differences.append((ends[0] - ends[1]) / (2 * h))
    found = tools.meta_gradients(optimizer, model, SEED)
    for d, difference in zip(along, differences):
        slope = sum(float((d[name] * x).sum()) for name, x in found.items())
        assert slope == pytest.approx(difference, rel=1e-4, abs=1e-8) and abs(slope) > 1e-7


@pytest.mark.parametrize("goal", ["gradient", "huw"])
@pytest.mark.parametrize("reproduce", KINDS)
def test_first_order_is_autograd_with_the_second_gradient_detached(
    goal: str, reproduce: str | None
) -> None:
    """Of the corrected gradient term nothing is left: its weights are constants."""
    optimizer, model, slow = ready(goal, reproduce, order="first")
    slow.second_order = False
    found = check(optimizer, model, slow)
    assert found["head"].any() == (goal == "huw" or reproduce is not None)


@pytest.mark.parametrize("goal", ["gradient", "huw", "sum"])
@pytest.mark.parametrize("reproduce", KINDS)
def test_a_difference_of_gradients_is_close_to_the_exact_product(
    goal: str, reproduce: str | None
) -> None:
    optimizer, model, slow = ready(goal, reproduce, order="difference")
    expected = slow.gradient()
    found = tools.meta_gradients(optimizer, model, SEED)
    whole = torch.cat([expected[name].reshape(-1) for name in found])
    error = torch.cat([x.reshape(-1) for x in found.values()]) - whole
    assert error.norm() < 1e-3 * whole.norm() and whole.any()
    plain, peer, _ = ready(goal, reproduce, order="first")
    other = torch.cat([x.reshape(-1) for x in tools.meta_gradients(plain, peer, SEED).values()])
    assert (
        error.norm() < 0.1 * (other - whole).norm()
    )  # what the product adds is more than its error


@pytest.mark.parametrize("order", ["difference", "first"])
@pytest.mark.parametrize("goal", ["loss_decrease", "gen_gap"])
def test_losses_need_no_second_order(goal: str, order: str) -> None:
    """All orders are exact for them; ``[L(theta; Bval)]`` comes from the slope of its logarithm."""
    optimizer, model, slow = ready(goal, None, order=order)
    check(optimizer, model, slow)


def decrease(order: str, lr: float, sign: float = 1.0) -> float:
    """The term's value; at equal states, since the rate changes only before the meta step."""
    model, optimizer = tools.ready(objective="loss_decrease", order=order)
    optimizer.param_groups[0]["lr"] = lr
    loss, batches = tools.loss_fn(model), (tools.batch(SEED + i) for i in range(3))
    return optimizer.meta_step(lambda data: sign * loss(data), *batches)["loss_decrease"]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_loss_before_the_step_is_known_to_first_order(sign: float) -> None:
    """Its error is a quarter at half the step, whatever the loss's sign."""
    errors = [
        decrease("difference", lr, sign) - decrease("exact", lr, sign) for lr in (0.01, 0.005)
    ]
    assert errors[0] != 0 and errors[1] == pytest.approx(errors[0] / 4, rel=0.1)


@pytest.mark.parametrize("end", [-0.05, -0.001, 0.001, 0.05])
def test_the_loss_before_a_step_that_takes_it_over_zero(end: float) -> None:
    """Or near it: its logarithm says nothing there."""
    model, optimizer = tools.ready(objective="loss_decrease", order="exact")
    loss, batches = tools.loss_fn(model), [tools.batch(SEED + i) for i in range(3)]
    before = float(loss(batches[2]).detach())
    after = optimizer.meta_step(loss, *batches)["loss_decrease"] * before
    found = []
    for order in ("exact", "difference"):
        model, optimizer = tools.ready(objective="loss_decrease", order=order)
        loss = tools.loss_fn(model)
        found.append(
            optimizer.meta_step(lambda x, f=loss: f(x) - after + end, *batches)["loss_decrease"]
        )
    assert found[0] == pytest.approx(end / abs(before - after + end), rel=1e-6)
    assert found[1] == pytest.approx(found[0], rel=0.2)


def test_a_group_without_gradient_in_the_first_batch_counts_for_nothing() -> None:
    """As of a head that this batch has no labels for: its flatness cannot be relative to it, its
    direction is none.
    """
    first, second = (
        [torch.zeros(2), torch.tensor([3.0, 0.0])],
        [torch.ones(2), torch.tensor([0.0, 3.0])],
    )
    second = [x.requires_grad_() for x in second]
    value = _gradient_term(first, second, [0, 1], torch.full((2, 2), 0.5), published=False)
    assert value.item() == pytest.approx(((0.0 + 0.5) + (0.5 + 0.5)) / 2)
    slopes = torch.autograd.grad(value, second)
    assert not slopes[0].any() and bool(torch.isfinite(slopes[1]).all())


def test_the_loss_before_a_step_that_ruins_it_is_positive_and_finite() -> None:
    assert 0 < decrease("difference", 1e4) <= 1.001 * math.exp(LARGEST_LOG)


@pytest.mark.parametrize("reproduce", KINDS)
def test_meta_step_gives_the_values_of_the_terms(reproduce: str | None) -> None:
    optimizer, model, slow = ready("huw", reproduce)
    values, weights = (
        slow.total()[1].tolist(),
        torch.exp(-torch.tensor([0.3, -0.5, 0.2], dtype=tools.D)) / 2,
    )
    told = optimizer.meta_step(tools.loss_fn(model), *(tools.batch(SEED + i) for i in range(3)))
    for name, value, weight in zip(
        ("gradient", "loss_decrease", "gen_gap"), values, weights.tolist()
    ):
        assert told[name] == pytest.approx(value, rel=1e-10)
        assert told[f"weight/{name}"] == pytest.approx(weight, rel=1e-10)
