"""Defects D20 to D30 of the released MetaAdamW, of its robustness and its cost: a test each that
fails on the old behaviour, in depth elsewhere in this folder. D1 to D19 are in
``test_defects``.

* D27: a wrapper of the weighting that took terms by their type, of which there were duplicates.
  Here terms have an order and no type (`objectives.terms.TERMS`); there is nothing to take by a
  wrong key.
* D29, D30: cost is measured by ``benchmarks/optimizer_step.py``; here what costs, host waits and
  losses, is counted.
"""

from __future__ import annotations

import io
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lo_framework.errors import UserError
from lo_framework.optim import MetaAdamW
from tests.lo_framework.optim.metaadamw import math_tools as tools
from tests.lo_framework.optim.metaadamw.settings import build


@pytest.mark.parametrize("order", ["decay last", "backwards"])
def test_d20_parameters_are_known_by_themselves_not_by_their_place(order: str) -> None:
    """Groups in another order than the model's parameters give the same meta-gradient; so do frozen
    ones between.
    """
    results = []
    for reorder in (False, True):
        model = tools.Net()
        named = [(name, p) for name, p in model.named_parameters()]
        model.norm.bias.requires_grad_(False)
        if reorder and order == "backwards":
            named.reverse()
        vectors, weights = (
            [x for x in named if (x[1].dim() < 2) is vector] for vector in (True, False)
        )
        groups: list[dict[str, Any]] = [
            {"params": weights},
            {"params": vectors, "weight_decay": 0.0},
        ]
        if reorder and order == "decay last":
            groups.reverse()
        # a difference of gradients would magnify the rounding of sums in another order
        optimizer = build(
            groups,
            lr=0.05,
            weight_decay=0.1,
            grouping=lambda name, _: name.rpartition(".")[0],
            order="exact",
        )
        tools.train(model, optimizer)
        tools.shaken(optimizer)
        results.append(tools.meta_gradients(optimizer, model))
    for name, g in results[0].items():
        torch.testing.assert_close(results[1][name], g, rtol=1e-8, atol=1e-12)


def test_d21_parameters_without_a_gradient_and_groups_added_late_do_no_harm() -> None:
    """And a meta step before the first step says so."""
    model = tools.Net()
    model.unused = nn.Parameter(torch.ones(2, dtype=tools.D))
    optimizer = tools.make(model)
    with pytest.raises(UserError, match="make a step first"):
        optimizer.meta_step(tools.loss_fn(model), *(tools.batch(i) for i in range(3)))
    tools.train(model, optimizer)
    assert tools.meta_gradients(optimizer, model)["head"].any()
    more = nn.Linear(2, 2).double()
    optimizer.add_param_group({"params": list(more.named_parameters("more"))})
    both = nn.Sequential(model, more)
    tools.train(both, optimizer)
    assert tools.meta_gradients(optimizer, both)["head"].any()
    assert torch.equal(model.unused.detach(), torch.ones(2, dtype=tools.D))


def test_d22_a_checkpoint_has_all_and_loads_anywhere() -> None:
    """With uncertainty weights, embeddings and gates, into an optimizer that has stepped; the
    file's dict stays.
    """
    settings: dict[str, Any] = {"features": "enhanced", "gating": True, "priorities": (1, 3, 5)}
    model, optimizer = tools.ready(**settings)
    optimizer.meta_step(tools.loss_fn(model), *(tools.batch(i) for i in range(3)))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    words = repr(state)
    peer = tools.Net()
    peer.load_state_dict(model.state_dict())
    other = tools.make(peer, **settings)
    for p in peer.parameters():
        p.grad = torch.ones_like(p)
    other.step()
    peer.load_state_dict(model.state_dict())
    other.load_state_dict(state)
    assert repr(state) == words
    for name, x in optimizer.network.theta().items():
        assert torch.equal(other.network.theta()[name], x), name
    for each, net in ((optimizer, model), (other, peer)):
        tools.train(net, each, 2, first=7)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), peer.parameters()))


@pytest.mark.parametrize("objective", ["gradient", "loss_decrease", "gen_gap", "combined"])
def test_d23_gradients_that_are_being_accumulated_stay(objective: str) -> None:
    model, optimizer = tools.ready(objective=objective)
    before = [(p.grad, p.grad.clone()) for p in model.parameters() if p.grad is not None]
    optimizer.meta_step(tools.loss_fn(model), *(tools.batch(i) for i in range(3)))
    assert all(p.grad is g and torch.equal(g, x) for p, (g, x) in zip(model.parameters(), before))


@pytest.mark.parametrize("objective", ["loss_decrease", "gen_gap", "gradient", "combined"])
def test_d24_models_that_cannot_be_differentiated_twice(objective: str) -> None:
    """Losses never need it; the gradient term does not with the difference of gradients. Attention
    with dropout 0.
    """

    class Attend(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix, self.last = nn.Linear(3, 12), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.mix(x)[None].chunk(3, -1)
            return self.last(nn.functional.scaled_dot_product_attention(q, k, v)[0])

    model = Attend().double()
    orders = ["difference", "first"] + ["exact"] * (objective in ("loss_decrease", "gen_gap"))
    for order in orders:
        optimizer = tools.make(model, objective=objective, order=order)
        tools.train(model, optimizer)
        tools.meta_gradients(optimizer, model)


def test_d24_gradients_laid_out_channels_last() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(16, 2)).to(
        memory_format=torch.channels_last
    )
    x = torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(0)).to(
        memory_format=torch.channels_last
    )

    def loss(batch: Tensor) -> Tensor:
        return model(batch).square().mean()

    optimizer = tools.make(model)
    loss(x).backward()
    optimizer.step()
    assert optimizer.meta_step(loss, x, 2 * x, 3 * x)["loss_decrease"] > 0


def test_d25_a_width_too_small_is_refused_and_empty_groups_keep_their_place() -> None:
    model = tools.Net()
    with pytest.raises(UserError, match="a width of at least 6 features"):
        tools.make(model, reproduce="paper", network={"width": 4, "heads": 2})
    groups: list[dict[str, Any]] = [
        {"params": []},
        {"params": list(model.first.parameters()), "lr": 0.0},
        {"params": [*model.norm.parameters(), *model.last.parameters()]},
    ]
    optimizer = build(groups, lr=0.1, grouping="original")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    tools.train(model, optimizer, 2)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == name.startswith("first"), name
    assert len(optimizer.factors()) == 2


def test_d26_schedulers_and_the_kind_of_step_in_the_state() -> None:
    """No counter of its own that a scheduler could take for its; ``step`` is a tensor before and
    after loading.
    """
    model = tools.Net()
    optimizer = tools.make(model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for t in range(3):
            tools.train(model, optimizer, 1, first=t)
            scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.05 / 8
    optimizer.load_state_dict(optimizer.state_dict())
    for state in optimizer.state.values():
        assert isinstance(state["step"], Tensor) and float(state["step"]) == 3


def test_d28_no_random_numbers_are_drawn() -> None:
    """Runs of equal seeds see the same shuffles and dropout as AdamW's, from the constructor on,
    with meta steps.
    """
    seen = []
    for adamw in (True, False):
        torch.manual_seed(0)
        model = tools.Net(dropout=0.5)
        optimizer: torch.optim.Optimizer = (
            torch.optim.AdamW(model.parameters())
            if adamw
            else tools.make(model, features="enhanced", gating=True)
        )
        draws = []
        for t in range(4):
            order = torch.randperm(6)
            x, y = tools.batch(t)
            masked = model.drop(torch.ones(20))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[order]), y[order]).backward()
            optimizer.step()
            if isinstance(optimizer, MetaAdamW):
                optimizer.meta_step(tools.loss_fn(model), *(tools.batch(10 + i) for i in range(3)))
            draws += [order, masked, torch.rand(2)]
        seen.append(draws)
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


class Waits(TorchDispatchMode):
    """Counts operations that bring a number to the host."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.name() in ("aten::_local_scalar_dense", "aten::is_nonzero", "aten::item")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("features", ["basic_plus", "enhanced"])
def test_d29_a_step_waits_for_no_tensors_number(features: str) -> None:
    """Four to five waits a tensor before; and the network may look at every k-th step only."""
    counts = []
    for num in (4, 40):
        params = {f"layers.{i}.weight": nn.Parameter(torch.ones(2, 2)) for i in range(num)}
        optimizer = build(params.items(), features=features)
        for p in params.values():
            p.grad = torch.ones_like(p)
        optimizer.step()
        with Waits() as waits:
            optimizer.step()
        counts.append(waits.count)
    assert counts[0] == counts[1] <= 2
    model = tools.Net()
    optimizer = tools.make(model, attend_every=3)
    seen = 0

    def count(*_: Any) -> None:
        nonlocal seen
        seen += 1

    tools.train(model, optimizer, 1)
    real = optimizer._rule.encoder
    optimizer._rule.encoder = lambda tokens: (count(), real(tokens))[1]  # type: ignore[assignment, func-returns-value]
    tools.train(model, optimizer, 6)
    assert seen == 2


@pytest.mark.parametrize(
    ("objective", "order", "losses"),
    [
        ("combined", "exact", 4),
        ("combined", "first", 3),
        ("combined", "difference", 4),
        ("gradient", "exact", 2),
        ("loss_decrease", "exact", 3),
        ("loss_decrease", "difference", 2),
        ("gen_gap", "exact", 3),
    ],
)
def test_d30_a_meta_step_evaluates_no_loss_twice(objective: str, order: str, losses: int) -> None:
    """Six before, for the combined one."""
    model, optimizer = tools.ready(objective=objective, order=order)
    seen = []

    def loss(data: Any) -> Tensor:
        seen.append(data)
        return tools.loss_fn(model)(data)

    valid = None if objective == "gradient" else tools.batch(3)
    optimizer.meta_step(loss, tools.batch(1), tools.batch(2), valid)
    assert len(seen) == losses
