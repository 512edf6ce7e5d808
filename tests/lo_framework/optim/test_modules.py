"""A module in place of a list: roles by its types, and one run whatever the order of groups."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lo_framework.errors import UserError
from lo_framework.layout import Layout
from lo_framework.optim import Learned, MetaAdamW
from lo_framework.optim.base import OptimizerBase
from tests.lo_framework.optim.metaadamw import settings
from tests.lo_framework.optim.tools import moved
from tests.lo_framework.small_models import GPT, LSTM, started

Make = Callable[..., OptimizerBase]


def learned(params: Any, **options: Any) -> Learned:
    return Learned(params, moved("attention-mlp"), num_steps=30, lr=0.3, **options)


def scaled(params: Any, **options: Any) -> Learned:
    return Learned(params, moved("scaled"), num_steps=30, **options)


def meta(params: Any, **options: Any) -> MetaAdamW:
    return settings.build(params, lr=0.01, width=8, heads=2, layers=1, head_scale=0.3, **options)


EACH = pytest.mark.parametrize("make", [learned, scaled, meta])


def layout_of(optimizer: OptimizerBase) -> Layout:
    return optimizer.table.layout if isinstance(optimizer, MetaAdamW) else optimizer._layout  # type: ignore[attr-defined]


def roles_of(optimizer: OptimizerBase) -> list[str]:
    return [slot.role for slot in layout_of(optimizer).slots]


def losses(optimizer: OptimizerBase, model: nn.Module, steps: int = 12) -> list[float]:
    g = torch.Generator().manual_seed(7)
    seen = []
    for _ in range(steps):
        tokens = torch.randint(50, (4, 9), generator=g)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        how = {"loss": loss} if optimizer.takes_loss else {}
        optimizer.step(**how)
        seen.append(float(loss.detach()))
    return seen


def run(make: Make, give: Callable[[nn.Module], tuple[Any, dict[str, Any]]]) -> list[float]:
    model = started(GPT())
    params, options = give(model)
    return losses(make(params, **options), model)


def parted(model: nn.Module, *, named: bool, backwards: bool = False) -> list[dict[str, Any]]:
    """Decay and no decay, the usual way, with or without names; or all of it from the end."""
    pairs = list(model.named_parameters())[:: -1 if backwards else 1]
    groups: list[dict[str, Any]] = [
        {"params": [(n, p) if named else p for n, p in pairs if (p.dim() > 1) == is_matrix]}
        for is_matrix in (not backwards, backwards)
    ]
    return groups


@EACH
def test_the_order_of_groups_does_not_matter(make: Make) -> None:
    """With the module, names or not; with names alone, where numbers tell the direction."""
    expected = run(make, lambda m: (m, {}))
    assert expected[-1] < expected[0]
    ways: list[Callable[[nn.Module], tuple[Any, dict[str, Any]]]] = [
        lambda m: (m.parameters(), {"model": m}),
        lambda m: (list(m.parameters())[::-1], {"model": m}),
        lambda m: (parted(m, named=False), {"model": m}),
        lambda m: (parted(m, named=False, backwards=True), {"model": m}),
        lambda m: (parted(m, named=True), {"model": m}),
    ]
    for way in ways:
        assert run(make, way) == pytest.approx(expected, rel=1e-6)
    by_names = run(make, lambda m: (list(m.named_parameters()), {}))
    assert by_names != pytest.approx(expected, rel=1e-6)  # "a" is no embedding there
    ways = [
        lambda m: (list(m.named_parameters())[::-1], {}),
        lambda m: (parted(m, named=True), {}),
        lambda m: (parted(m, named=True, backwards=True), {}),
    ]
    for way in ways:
        assert run(make, way) == pytest.approx(by_names, rel=1e-6)


@EACH
def test_the_name_of_an_embedding_does_not_matter_to_a_module(make: Make) -> None:
    runs = []
    for name in ("e", "embed"):
        model = started(LSTM(name))
        runs.append(losses(make(model), model))
        assert roles_of(make(model))[0] == "embedding"
    assert runs[0] == runs[1]
    named = started(LSTM("embed"))
    if make is not meta:  # by names its biases are a normalisation's
        assert losses(make(named.named_parameters()), named) != runs[0]


@EACH
def test_a_plain_model_is_the_list_of_its_parameters(make: Make) -> None:
    """Bit for bit: there is nothing that only types can tell."""
    runs = []
    for give in (lambda m: m, lambda m: m.parameters(), lambda m: m.named_parameters()):
        model = started(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)))
        optimizer = make(give(model))
        for t in range(5):
            optimizer.zero_grad()
            x = torch.randn(6, 4, generator=torch.Generator().manual_seed(t))
            loss = model(x).square().mean()
            loss.backward()
            optimizer.step()
        runs.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])


@EACH
def test_tied_parameters_count_once_and_frozen_ones_are_left_out(make: Make) -> None:
    """Where the trained ones lie in the whole model stays known."""
    model = GPT(layers=3)
    model.a.requires_grad_(False)
    model.c[0].requires_grad_(False)
    optimizer = make(model)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert optimizer.param_groups[0]["param_names"] == trained
    layout = layout_of(optimizer)
    assert [slot.name for slot in layout.slots] == trained and layout.matrices == 12
    assert {slot.position for slot in layout.slots if slot.name.startswith("c.1")} == {"hidden"}
    with pytest.raises(UserError, match="needs a parameter that requires a gradient"):
        make(model.requires_grad_(False))


@EACH
def test_a_bare_list_with_an_embedding_warns_once(make: Make) -> None:
    model = started(GPT())
    with pytest.warns(UserWarning, match=r"give the model or model.named_parameters\(\)") as told:
        optimizer = make(model.parameters())
        losses(optimizer, model, 2)
    assert len(told) == 1 and told[0].filename in (__file__, settings.__file__)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for params in (model, model.named_parameters(), nn.Linear(2, 8).parameters()):
            make(params)
        make(model.parameters(), model=model)


@EACH
def test_added_groups_are_named_by_the_module(make: Make) -> None:
    model, whole = started(GPT()), started(GPT())
    params = list(model.parameters())
    optimizer = make([{"params": params[4:]}], model=model)
    losses(optimizer, model, 1)
    optimizer.add_param_group({"params": params[0]})
    optimizer.add_param_group({"params": params[1:4]})
    slots = {slot.name: slot.role for slot in layout_of(optimizer).slots}
    assert slots == {slot.name: slot.role for slot in layout_of(make(whole)).slots}
    losses(optimizer, model, 1)
    with pytest.raises(UserError, match=r"shape \(3,\) that is not the model's"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))]})
    assert len(optimizer.param_groups) == 3


@EACH
def test_states_go_both_ways_and_another_order_is_refused(make: Make) -> None:
    one, two = started(LSTM("embed")), started(LSTM("embed"))
    first = make(one)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nameless = make(two.parameters(), model=None)
    losses(first, one, 3)
    if make is not meta:
        nameless.load_state_dict(first.state_dict())
        make(two).load_state_dict(nameless.state_dict())
    again = make(two)
    two.load_state_dict(one.state_dict())
    again.load_state_dict(first.state_dict())
    assert losses(again, two, 3) == losses(first, one, 3)
    other = make(list(two.parameters())[::-1], model=two)
    with pytest.raises(UserError, match="in another order|another grouping"):
        other.load_state_dict(first.state_dict())


@EACH
@pytest.mark.parametrize(
    "give, line",
    [
        (lambda m: ((m,), {"model": GPT()}), "one module"),
        (lambda m: ((m.parameters(),), {"model": LSTM("e")}), "not the model's"),
        (lambda m: ((nn.Tanh(),), {}), "needs a parameter"),
        (lambda m: ((nn.Sequential(nn.LazyLinear(3)),), {}), "run one batch"),
    ],
)
def test_bad_input(make: Make, give: Any, line: str) -> None:
    args, options = give(GPT())
    with pytest.raises(UserError, match=line):
        make(*args, **options)


def test_the_layout_is_built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model = started(GPT())
    optimizer = learned(model)
    losses(optimizer, model, 1)
    monkeypatch.setattr(Layout, "of", lambda *_: pytest.fail("built again"))
    losses(optimizer, model, 2)
