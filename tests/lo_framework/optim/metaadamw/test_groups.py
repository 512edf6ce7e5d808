"""Parameter groups, names, frozen and absent parameters: what a step and a meta step work on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lo_framework.errors import UserError
from lo_framework.roles import model_order
from tests.lo_framework.optim.metaadamw import tools
from tests.lo_framework.optim.metaadamw.settings import build
from tests.lo_framework.optim.metaadamw.tools import D, snapshot, theta, through_a_file, weights
from tests.lo_framework.optim.tools import flat, give_grads, parameters

ORDERS = ["exact", "difference", "first"]


def by_decay(model: nn.Module) -> list[dict[str, Any]]:
    """Weights and biases apart, last layers first: no order that a model has."""
    named = list(model.named_parameters())[::-1]
    return [
        {"params": [(n, p) for n, p in named if p.dim() < 2], "weight_decay": 0.0},
        {"params": [(n, p) for n, p in named if p.dim() > 1], "weight_decay": 0.1},
    ]


def in_order(model: nn.Module) -> list[dict[str, Any]]:
    """The same settings, a group a parameter, in the model's order."""
    named = model.named_parameters()
    return [{"params": [(n, p)], "weight_decay": 0.1 if p.dim() > 1 else 0.0} for n, p in named]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("grouping", ["fine_grained", "tensor"])
def test_the_order_of_groups_does_not_matter(grouping: str, order: str) -> None:
    """D20: meta steps crashed, or swapped tensors of one shape."""
    one, two = tools.network(), tools.network()
    options: dict[str, Any] = {"grouping": grouping, "order": order, "features": "enhanced"}
    ordered, parted = tools.make(in_order(one), **options), tools.make(by_decay(two), **options)
    for optimizer, model in ((ordered, one), (parted, two)):
        tools.run(optimizer, model, range(8), meta_every=2)
    mine, theirs = ordered.factors(), parted.factors()
    assert mine.keys() == theirs.keys() and len(mine) == 6
    for label, pair in mine.items():
        assert pair == pytest.approx(theirs[label], abs=1e-9)
    torch.testing.assert_close(weights(one), weights(two), rtol=0, atol=1e-9)
    torch.testing.assert_close(theta(ordered), theta(parted), rtol=0, atol=1e-7)


MODELS: list[nn.Module] = [
    tools.noisy_network(),
    nn.Transformer(4, 2, 12, 12, 8, batch_first=True),
    nn.LSTM(3, 4, 12),
    nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ModuleDict({"b": nn.Linear(2, 2), "a": nn.Linear(2, 2)}),
    ),
]


@pytest.mark.parametrize("model", MODELS, ids=lambda m: type(m).__name__)
def test_names_are_brought_into_the_models_order(model: nn.Module) -> None:
    named = dict(model.named_parameters())
    names = list(named)
    vectors = {n for n in names if named[n].dim() < 2}
    assert model_order([names], vectors) == names
    decayed, rest = ([n for n in names if (named[n].dim() > 1) == flag] for flag in (True, False))
    for parted in ([decayed, rest], [rest, decayed], [names[::-1]]):
        found = model_order(parted, vectors)
        assert sorted(found) == sorted(names)
        owners = [name.rpartition(".")[0] for name in found]
        runs = [o for i, o in enumerate(owners) if i == 0 or owners[i - 1] != o]
        assert len(runs) == len(set(owners))
        numbers = [[int(word) for word in name.split(".") if word.isdigit()] for name in found]
        for stack in ("encoder", "decoder", ""):
            mine = [x for x, name in zip(numbers, found) if name.startswith(stack) and x]
            assert not stack or mine == sorted(mine)
        pairs = [
            (n, n[:-6] + "bias")
            for n in names
            if n.endswith(".weight") and n[:-6] + "bias" in names
        ]
        assert all(found.index(weight) < found.index(bias) for weight, bias in pairs)


@pytest.mark.parametrize("steps", [0, 3])
def test_an_added_group_leaves_the_state_of_others_alone(steps: int) -> None:
    """D21: after the first step the released code raises. Before it, it is as if they had been
    there from the start.
    """
    model, whole = tools.network(), tools.network()
    named = list(model.named_parameters())
    optimizer = tools.make(named[:4])
    tools.run(optimizer, model, range(steps), meta_every=2)
    before = {n: {k: x.clone() for k, x in optimizer.state[p].items()} for n, p in named}
    learned = theta(optimizer)
    optimizer.add_param_group({"params": named[4:], "lr": 0.01})
    assert all(
        torch.equal(optimizer.state[p][k], x) for n, p in named for k, x in before[n].items()
    )
    assert torch.equal(theta(optimizer), learned) and len(optimizer.table.params) == 6
    old = weights(model)
    tools.run(optimizer, model, range(steps, 6), meta_every=2)
    assert (weights(model) != old).all() and len(optimizer.factors()) == 6
    counts = [float(optimizer.state[p]["step"]) for _, p in named]
    assert counts == [6] * 4 + [6 - steps] * 2
    if not steps:
        pairs = list(whole.named_parameters())
        other = tools.make([{"params": pairs[:4]}, {"params": pairs[4:], "lr": 0.01}])
        tools.run(other, whole, range(6), meta_every=2)
        assert torch.equal(weights(model), weights(whole)) and snapshot(optimizer) == snapshot(
            other
        )


@pytest.mark.parametrize("steps", [0, 3])
def test_a_state_with_an_added_group_resumes(steps: int) -> None:
    model, twin = tools.network(), tools.network()
    named, pairs = list(model.named_parameters()), list(twin.named_parameters())
    one = tools.make(named[:4], attend_every=4)
    tools.run(one, model, range(steps))
    one.add_param_group({"params": named[4:]})
    tools.run(one, model, range(steps, 5), meta_every=2)
    twin.load_state_dict(model.state_dict())
    two = tools.make([{"params": pairs[:4]}, {"params": pairs[4:]}], attend_every=4)
    two.load_state_dict(through_a_file(one.state_dict()))
    for optimizer, net in ((one, model), (two, twin)):
        tools.run(optimizer, net, range(5, 9), meta_every=2)
    assert torch.equal(weights(model), weights(twin)) and snapshot(one) == snapshot(two)


def test_a_group_added_between_looks_of_the_attention() -> None:
    """The old parameters may be in other groups now: factors of before are not theirs."""
    model = tools.network()
    named = list(model.named_parameters())
    optimizer = tools.make(named[:4], attend_every=100)
    tools.run(optimizer, model, range(2))
    assert len(optimizer.factors()) == 4
    model[4].requires_grad_(False)
    optimizer.zero_grad()
    optimizer.add_param_group({"params": named[4:]})
    tools.step(optimizer, model, 2)
    assert any("middle" in label for label in optimizer.factors())


def test_a_refused_group_leaves_no_trace() -> None:
    model = tools.network()
    grouping = {"first": "0", "rest": ["2.weight", "2.bias", "4.weight", "4.bias"]}
    optimizer = tools.make(model.named_parameters(), grouping=grouping)
    tools.run(optimizer, model, range(2))
    before = snapshot(optimizer)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"params": [("more", nn.Parameter(torch.zeros(2, dtype=torch.complex64)))]}, "complex"),
        ({"params": [("more", nn.Parameter(torch.zeros(2)))], "lr": -1.0}, "lr must be at least 0"),
        ({"params": [("more", nn.Parameter(torch.zeros(2)))]}, 'parameter "more" is in no'),
    ]
    for group, words in cases:
        with pytest.raises(UserError, match=words):
            optimizer.add_param_group(group)
        assert snapshot(optimizer) == before and len(optimizer.param_groups) == 1
        assert len(optimizer.table.params) == 6
    tools.run(optimizer, model, range(2, 4), meta_every=2)


@pytest.mark.parametrize("order", ORDERS)
def test_frozen_and_unused_parameters_stand_still(order: str) -> None:
    """D20, D21: they shift nothing, and a meta step does not mind them. The others move as if these
    were not there.
    """
    model, alone = tools.network(), tools.network()
    for m in (model, alone):
        m[2].requires_grad_(False)
    unused, empty = nn.Parameter(torch.ones(3, dtype=D)), nn.Parameter(torch.ones(0, 2, dtype=D))
    everything = [("unused", unused), ("empty", empty), *model.named_parameters()]
    labels: Any = lambda name, p: name  # noqa: E731
    one = tools.make(everything, grouping=labels, order=order)
    moving = [(n, p) for n, p in alone.named_parameters() if p.requires_grad]
    two = tools.make(moving, grouping=labels, order=order)
    for optimizer, net in ((one, model), (two, alone)):
        tools.run(optimizer, net, range(6), meta_every=2)
    torch.testing.assert_close(weights(model), weights(alone), rtol=0, atol=1e-9)
    assert torch.equal(weights(model[2]), weights(tools.network()[2]))
    assert (
        torch.equal(unused, torch.ones(3, dtype=D))
        and unused not in one.state
        and unused.grad is None
    )
    assert list(one.factors()) == [n for n, _ in moving]


@pytest.mark.parametrize("grouping", ["fine_grained", "original"])
@pytest.mark.parametrize("order", ORDERS)
def test_gradients_that_come_and_go(order: str, grouping: str) -> None:
    """Ages differ within one group, and each tensor has the bias correction of its own age, as in
    AdamW.
    """
    model, plain = tools.network(), tools.network()
    still = {"alpha_range": 0.0, "beta_range": 0.0}
    one = tools.make(model.named_parameters(), grouping=grouping, order=order, **still)
    two = torch.optim.AdamW(plain.parameters(), 0.02)
    for t in range(8):
        for m in (model, plain):
            m[2].requires_grad_(t % 3 == 0)
            m[4].bias.requires_grad_(t > 2)
        tools.step(one, model, t)
        tools.step(two, plain, t)
        if t % 2:
            tools.meta(one, model, t)
    torch.testing.assert_close(weights(model), weights(plain), rtol=0, atol=1e-12)
    ages = [float(one.state[p]["step"]) for p in model.parameters()]
    assert ages == [8, 8, 3, 3, 8, 5] == [one.table.ages[i] for i in range(6)]


@pytest.mark.parametrize("order", ORDERS)
def test_batches_of_a_meta_step_that_use_other_parameters(order: str) -> None:
    """Experts: each batch has its own, and one has never been used."""
    experts = nn.ModuleList(tools.network(seed=k) for k in range(3))
    optimizer = tools.make(experts.named_parameters(), order=order)

    def loss(which: tuple[int, int]) -> Tensor:
        return tools.loss_of(experts[which[0]])(tools.batch(which[1]))

    for t, expert in enumerate([0, 1, 0, 1]):
        optimizer.zero_grad()
        loss((expert, t)).backward()
        optimizer.step()
    before = theta(optimizer)
    for pairs in ([(0, 5), (1, 6), (0, 7)], [(1, 5), (1, 6), (2, 7)]):
        found = optimizer.meta_step(loss, *pairs)
        assert torch.tensor(list(found.values())).isfinite().all()
    assert not torch.equal(theta(optimizer), before) and optimizer.skipped == 0
    with pytest.raises(UserError, match="none of the parameters"):
        optimizer.meta_step(loss, (2, 1), (0, 2), (0, 3))


def test_empty_and_scalar_parameters() -> None:
    params = parameters(shapes=[(), (0, 3), (2, 3)])
    optimizer = build(params, network=tools.SMALL)
    for t in range(3):
        give_grads(params, t)
        optimizer.step()
    assert (
        flat(params).isfinite().all()
        and params[1].shape == (0, 3)
        and params[1] not in optimizer.state
    )


def test_a_step_without_any_gradient_does_nothing() -> None:
    params = parameters()
    optimizer = build(params)
    with pytest.warns(UserWarning, match="no parameter has a gradient"):
        optimizer.step()
    assert (
        optimizer.updates == 0
        and torch.equal(flat(params), flat(parameters()))
        and not optimizer.state
    )


@pytest.mark.parametrize("names", ["none", "duplicated", "plain"])
def test_parameters_without_names_of_their_own(names: str) -> None:
    """Shapes and order say what they are for; nothing is swapped."""
    model, twin = tools.network(), tools.network()
    params: Any = list(model.parameters())
    if names == "duplicated":
        params = [{"params": [(f"p{i % 2}", p)]} for i, p in enumerate(params)]
    if names == "plain":
        params = [{"params": p} for p in params]
    one = build(params, 0.02, network=tools.SMALL)
    two = build(twin.named_parameters(), 0.02, network=tools.SMALL)
    for optimizer, net in ((one, model), (two, twin)):
        tools.run(optimizer, net, range(4), meta_every=2)
    assert torch.equal(weights(model), weights(twin)) and one.factors() == two.factors()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_cast_after_the_optimizer_was_built(dtype: torch.dtype) -> None:
    """As one that was cast before: many training loops move the model late."""
    late, early = tools.network(), tools.network()
    one = tools.make(late.named_parameters())
    late.to(dtype)
    early.to(dtype)
    two = tools.make(early.named_parameters())
    for optimizer, net in ((one, late), (two, early)):
        tools.run(optimizer, net, range(4), meta_every=2)
    assert torch.equal(weights(late), weights(early)) and torch.equal(theta(one), theta(two))
    assert {p.dtype for p in one.network.parameters()} == {torch.float32}


def test_a_model_cast_to_float64_late_computes_in_float64() -> None:
    model = tools.network(torch.float32)
    optimizer = tools.make(model.named_parameters())
    model.double()
    tools.run(optimizer, model, range(2))
    assert {p.dtype for p in optimizer.network.parameters()} == {D}
