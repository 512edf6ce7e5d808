"""MetaAdamW's state: resumed to the same bits, network and all that trains it included."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lo_framework.errors import UserError
from lo_framework.objectives.weighting import HUW
from tests.lo_framework.optim.metaadamw import tools
from tests.lo_framework.optim.metaadamw.settings import build
from tests.lo_framework.optim.metaadamw.tools import D, snapshot, theta, through_a_file, weights


def groups(model: nn.Module) -> list[dict[str, Any]]:
    named = list(model.named_parameters())
    return [
        {"params": named[:3], "lr": 0.03, "weight_decay": 0.1},
        {"params": named[3:], "betas": (0.8, 0.99)},
    ]


def numbers(x: Any) -> Iterator[float]:
    """All of a nested state, in order."""
    if isinstance(x, Tensor):
        yield from x.detach().double().reshape(-1).tolist()
    elif isinstance(x, dict):
        for value in x.values():
            yield from numbers(value)
    elif isinstance(x, (list, tuple)):
        for value in x:
            yield from numbers(value)
    elif isinstance(x, (int, float)):
        yield float(x)


OPTIONS: list[dict[str, Any]] = [
    {},
    {"attend_every": 3},
    {"reproduce": "paper"},
    {"reproduce": "reference", "features": "basic_plus"},
    {"features": "enhanced", "gating": True, "weighting": "sum"},
    {"grouping": lambda name, p: p.dim()},
    {"objective": "gradient", "order": "difference", "grouping": "original", "total_steps": 9},
    {"grouping": {"first": "0", "rest": None}, "features": "norm_basic", "decay": "scaled"},
]


@pytest.mark.parametrize("saved_at", [0, 1, 2, 4, 5, 7])
@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: ",".join(o) or "default")
def test_a_resumed_run_has_the_same_bits(options: dict[str, Any], saved_at: int) -> None:
    """Through a file, before the first step, and before and after meta steps (2, 4 and so on); the
    new optimizer was built with another rate and has another head.
    """
    plain = {name: options[name] for name in options if name != "reproduce"}
    sizes = {} if "reproduce" in options else {"network": tools.SMALL}
    whole, parted = tools.network(torch.float32), tools.network(torch.float32)
    one = (
        tools.make(groups(whole), **sizes | options)
        if sizes
        else build(groups(whole), 0.02, **options)
    )
    tools.run(one, whole, range(9), meta_every=2)
    two = (
        tools.make(groups(parted), **sizes | options)
        if sizes
        else build(groups(parted), 0.02, **options)
    )
    tools.run(two, parted, range(saved_at), meta_every=2)
    state = through_a_file(two.state_dict())
    other = (
        {"network": {**tools.SMALL, "seed": 5, "head_scale": 0.0}}
        if sizes
        else {"network": {"seed": 5}}
    )
    three = build(groups(parted), 0.7, **other, **plain, reproduce=options.get("reproduce"))
    three.load_state_dict(state)
    assert (
        list(numbers(three.state_dict())) == list(numbers(state))
        and three.factors() == two.factors()
    )
    tools.run(three, parted, range(saved_at, 9), meta_every=2)
    assert torch.equal(weights(whole), weights(parted)) and weights(whole).isfinite().all()
    assert torch.equal(theta(one), theta(three)) and snapshot(one) == snapshot(three)
    assert one.factors() == three.factors() and one.updates == three.updates == 9


def test_what_trains_the_network_is_saved() -> None:
    """Each part counts: without it the run would go on otherwise."""
    model = tools.network()
    optimizer = tools.make(model.named_parameters())
    tools.run(optimizer, model, range(6), meta_every=2)
    mine = optimizer.state_dict()["metaadamw"]
    moments = mine["meta"]["optimizer"]["state"]
    assert len(moments) == len(optimizer._trainer.params) and all(
        float(s["step"]) == 3 for s in moments.values()
    )
    assert (
        isinstance(optimizer.meta_objective.weighting, HUW)
        and optimizer.meta_objective.weighting.s.all()
    )
    assert torch.equal(mine["weighting"]["s"], optimizer.meta_objective.weighting.s)
    assert mine["updates"] == 6 and set(mine["network"]) == set(optimizer.network.theta())


def test_loading_into_an_optimizer_that_has_stepped() -> None:
    """D22: there the released code never applies the network's weights."""
    model, twin = tools.network(), tools.network()
    one, two = (
        tools.make(model.named_parameters()),
        tools.make(twin.named_parameters(), network=tools.SMALL),
    )
    tools.run(one, model, range(4), meta_every=2)
    tools.run(two, twin, range(20, 27), meta_every=3)
    two.load_state_dict(through_a_file(one.state_dict()))
    assert snapshot(one) == snapshot(two) and torch.equal(theta(one), theta(two))
    twin.load_state_dict(model.state_dict())
    tools.run(one, model, range(4, 8), meta_every=2)
    tools.run(two, twin, range(4, 8), meta_every=2)
    assert torch.equal(weights(model), weights(twin)) and snapshot(one) == snapshot(two)


def test_loading_copies_and_can_be_repeated() -> None:
    """Also what trains the network: torch's own loading shares it. The caller's dict stays whole
    (D22).
    """
    model = tools.network()
    optimizer = tools.make(model.named_parameters())
    tools.run(optimizer, model, range(4), meta_every=2)
    state = through_a_file(optimizer.state_dict())
    before = list(numbers(state))
    for _ in range(2):
        optimizer.load_state_dict(state)
        assert list(numbers(optimizer.state_dict())) == before
        tools.run(optimizer, model, range(4, 8), meta_every=2)
        assert list(numbers(state)) == before and list(numbers(optimizer.state_dict())) != before
    assert set(state) == {"state", "param_groups", "metaadamw"}


def test_two_optimizers_do_not_share_what_was_loaded() -> None:
    model, twin = tools.network(), tools.network()
    one, two = (tools.make(m.named_parameters()) for m in (model, twin))
    tools.run(one, model, range(4), meta_every=2)
    two.load_state_dict(one.state_dict())
    before = snapshot(one)
    tools.run(two, twin, range(4, 8), meta_every=2)
    assert snapshot(one) == before != snapshot(two)


def test_loading_its_own_state_changes_nothing() -> None:
    model = tools.network()
    optimizer = tools.make(model.named_parameters())
    tools.run(optimizer, model, range(3), meta_every=2)
    before = snapshot(optimizer)
    optimizer.load_state_dict(optimizer.state_dict())
    assert snapshot(optimizer) == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_state_of_half_precision_parameters_stays_float32(dtype: torch.dtype) -> None:
    model, twin = tools.network(dtype), tools.network(dtype)
    one, two = (tools.make(m.named_parameters()) for m in (model, twin))
    tools.run(one, model, range(3), meta_every=2)
    two.load_state_dict(through_a_file(one.state_dict()))
    for p, q in zip(model.parameters(), twin.parameters()):
        for name, x in one.state[p].items():
            assert two.state[q][name].dtype == torch.float32 and torch.equal(two.state[q][name], x)


def test_float64_state_stays_float64() -> None:
    model, twin = tools.network(), tools.network()
    one, two = (tools.make(m.named_parameters()) for m in (model, twin))
    tools.run(one, model, range(3), meta_every=2)
    two.load_state_dict(through_a_file(one.state_dict()))
    assert {x.dtype for s in two.state.values() for n, x in s.items() if n != "step"} == {D}
    assert {p.dtype for p in two.network.parameters()} == {D} and torch.equal(
        theta(one), theta(two)
    )


def test_is_copied_and_saved_by_its_state_only() -> None:
    optimizer = tools.make(tools.network().named_parameters())
    for copier in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="copied and saved through state_dict"):
            copier(optimizer)


def test_the_same_parameters_in_another_order_are_refused() -> None:
    """Tensors of one shape would be swapped in silence, as in torch's own optimizers."""
    pairs = [("a", nn.Parameter(torch.ones(2, 2))), ("b", nn.Parameter(torch.ones(2, 2)))]
    one, two = (tools.make(p, grouping="original") for p in (pairs, pairs[::-1]))
    for k, (_, p) in enumerate(pairs):
        p.grad = torch.full((2, 2), 1.0 + k)
    one.step()
    before = snapshot(two)
    with pytest.raises(
        UserError, match="the same parameters in another order: build MetaAdamW as it was saved"
    ):
        two.load_state_dict(one.state_dict())
    assert snapshot(two) == before


def test_a_users_hook_may_bring_parameters_into_order() -> None:
    """As torch's documentation has it: by names."""
    pairs = [("a", nn.Parameter(torch.ones(2, 2))), ("b", nn.Parameter(torch.ones(2, 2)))]
    one, two = (tools.make(p, grouping="original") for p in (pairs, pairs[::-1]))
    for k, (_, p) in enumerate(pairs):
        p.grad = torch.full((2, 2), 1.0 + k)
    one.step()

    def by_name(_: Any, state: dict[str, Any]) -> dict[str, Any]:
        group = {**state["param_groups"][0], "param_names": ["b", "a"]}
        return {
            **state,
            "state": {0: state["state"][1], 1: state["state"][0]},
            "param_groups": [group],
        }

    two.register_load_state_dict_pre_hook(by_name)
    two.load_state_dict(one.state_dict())
    for _, p in pairs:
        assert torch.equal(one.state[p]["exp_avg"], two.state[p]["exp_avg"])


def test_names_of_a_wrapper_do_not_matter() -> None:
    model, twin = tools.network(), nn.ModuleDict({"module": tools.network()})
    one, two = (tools.make(m.named_parameters()) for m in (model, twin))
    tools.run(one, model, range(2))
    two.load_state_dict(one.state_dict())
    assert snapshot(one).count("[") == snapshot(two).count("[") and two.updates == 2


def test_users_hooks_see_the_whole_state() -> None:
    model = tools.network()
    optimizer = tools.make(model.named_parameters())
    tools.run(optimizer, model, range(2))
    seen: list[int] = []

    def before(_: Any, state: dict[str, Any]) -> None:
        seen.append(len(state["state"]))

    optimizer.register_load_state_dict_pre_hook(before)
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append(len(o.state)))
    optimizer.load_state_dict(through_a_file(optimizer.state_dict()))
    assert seen == [6, 6]
