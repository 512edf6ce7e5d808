"""MetaAdamW and the ``attention`` learned optimizer are one network: each steps with the other's
weights.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lo_framework.errors import UserError
from lo_framework.learned import load_optimizer, make_learned, save_optimizer
from lo_framework.learned.attention import Attention
from lo_framework.learned.hyper_adamw import HyperAdamW
from lo_framework.optim import Learned
from tests.lo_framework.optim.metaadamw import tools
from tests.lo_framework.optim.metaadamw.settings import build
from tests.lo_framework.optim.tools import SHAPES, flat, generator, give_grads, parameters

STEPS = 12
HYPER = {name for name, _ in HyperAdamW(HyperAdamW.Config()).named_parameters()}


def trained(spec: str, default: Any = (0.0,) * 5, seed: int = 5) -> Attention:
    """As meta-training leaves it: the network off its start, and AdamW's settings where they may
    learn.
    """
    learned = make_learned(spec)
    assert isinstance(learned, Attention)
    g = generator(seed)
    with torch.no_grad():
        for name, p in learned.named_parameters():
            if name not in HYPER:
                p.add_(0.1 * torch.randn(p.shape, generator=g))
        learned.default.copy_(torch.tensor(default))
    return learned


def file_of(learned: Attention, folder: Path) -> Path:
    path = folder / "optimizer.safetensors"
    save_optimizer(
        path, learned.theta(), kind="attention", config=asdict(learned.config), summary={}
    )
    return path


def after(optimizer: torch.optim.Optimizer, steps: int = STEPS) -> Tensor:
    """Parameters of all kinds after so many steps on the same gradients."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for t in range(steps):
        give_grads(params, t, [] if t % 5 else [2])
        optimizer.step()
    return flat(params)


def named(dtype: torch.dtype = torch.float32) -> list[tuple[str, torch.nn.Parameter]]:
    return list(zip(SHAPES, parameters(dtype=dtype)))


SPECS = [
    "attention:head=bounded,lr=0.02,learn=factors",
    "attention:head=bounded,features=basic,grouping=fine_grained,lr=0.02",
    "attention:head=bounded,features=basic_plus,v_norms=true,width=8,heads=2,layers=2,alpha_range=1.9,lr=0.02",
    "attention:head=bounded,features=norm_basic,grouping=fine_grained,time=false,beta_range=0.4,weight_decay=0.3",
    "attention:head=bounded,features=enhanced,grouping=fine_grained,gating=true,lr=0.02,weight_decay=0.1",
    "attention:head=bounded,features=basic,encoder=published,scale=raw,width=8,grouping=tensor,lr=0.01",
]


@pytest.mark.parametrize(
    "default", [(0.0,) * 5, (0.07, 0.0, 0.0, 0.0, 0.0), (0.07, 0.02, -0.03, 0.1, 0.2)], ids=str
)
@pytest.mark.parametrize("spec", SPECS)
def test_a_meta_trained_network_steps_alike_in_both(
    spec: str, default: tuple[float, ...], tmp_path: Path
) -> None:
    """From memory or a file, with learned settings too, where ``learn=factors`` moves the rate
    alone.
    """
    learned = trained(spec, default)
    expected = after(Learned(named(), learned, num_steps=STEPS))
    assert (expected - flat(parameters())).abs().min() > 1e-5
    for source in (learned, file_of(learned, tmp_path), str(file_of(learned, tmp_path))):
        optimizer = build(named(), network=source, total_steps=STEPS)
        torch.testing.assert_close(after(optimizer), expected, rtol=1e-6, atol=1e-6)
        alphas = [alpha for alpha, _ in optimizer.factors().values()]
        assert max(alphas) - min(alphas) > 1e-3
    # The learned optimizer's settings are the face's, unless others are asked for.
    assert optimizer.param_groups[0]["lr"] == pytest.approx(
        learned.config.lr * math.exp(10 * default[0])
    )
    other = build(named(), 0.5, (0.5, 0.6), network=learned, total_steps=STEPS)
    assert other.param_groups[0]["lr"] == 0.5 and other.param_groups[0]["betas"] == (0.5, 0.6)


def test_the_factors_themselves_are_those_of_the_learned_rule() -> None:
    """In float64 to its precision: the float32 runs above have no small systematic difference."""
    learned = trained(SPECS[1], (0.05, 0.01, 0.0, 0.0, 0.0))
    expected = after(Learned(named(tools.D), learned, num_steps=STEPS))
    found = after(build(named(tools.D), network=learned, total_steps=STEPS))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("features", ["basic", "basic_plus", "enhanced", "tokens"])
@pytest.mark.parametrize("grouping", ["fine_grained", "tensor"])
def test_a_network_trained_online_is_given_away(
    grouping: str, features: str, tmp_path: Path
) -> None:
    """With the settings in force, through a file, and taken over again by another MetaAdamW."""
    model = tools.network(torch.float32)
    optimizer = tools.make(
        model.named_parameters(),
        0.03,
        betas=(0.8, 0.95),
        eps=1e-6,
        weight_decay=0.2,
        features=features,
        grouping=grouping,
        total_steps=STEPS,
    )
    tools.run(optimizer, model, range(4), meta_every=2)
    optimizer.param_groups[0]["lr"] = 0.02
    given = optimizer.learned()
    path = file_of(given, tmp_path)
    assert {name: x.tolist() for name, x in load_optimizer(path).tensors.items()} == {
        name: x.tolist() for name, x in given.theta().items()
    }
    for name, x in optimizer.network.theta().items():
        assert name in HYPER or torch.equal(given.theta()[name], x)
    # A fresh MetaAdamW with this network is what the optimizer itself would be on another model.
    fresh = tools.make(
        named(),
        0.02,
        betas=(0.8, 0.95),
        eps=1e-6,
        weight_decay=0.2,
        features=features,
        grouping=grouping,
        total_steps=STEPS,
    )
    fresh.network.load_theta(optimizer.network.theta())
    expected = after(fresh)
    for source in (given, path):
        torch.testing.assert_close(
            after(Learned(named(), source, num_steps=STEPS)), expected, rtol=1e-6, atol=1e-6
        )
        again = build(named(), network=source, total_steps=STEPS)
        torch.testing.assert_close(after(again), expected, rtol=1e-6, atol=1e-6)
        assert (
            again.network.config.grouping == grouping and again.network.config.features == features
        )


def test_a_network_that_was_taken_over_learns_on_and_is_a_copy() -> None:
    learned = trained(SPECS[1])
    before = tools.flat(learned.parameters())
    model = tools.network(torch.float32)
    optimizer = build(model.named_parameters(), network=learned, total_steps=STEPS)
    start = tools.theta(optimizer)
    tools.run(optimizer, model, range(4), meta_every=2)
    assert torch.equal(tools.flat(learned.parameters()), before) and not torch.equal(
        tools.theta(optimizer), start
    )
    given = optimizer.learned()
    kept = tools.flat(given.parameters())
    tools.meta(optimizer, model)
    assert torch.equal(tools.flat(given.parameters()), kept)


def test_frozen_weights_of_a_file_can_be_trained_online() -> None:
    learned = trained(SPECS[1]).requires_grad_(False)
    model = tools.network(torch.float32)
    optimizer = build(model.named_parameters(), network=learned, total_steps=STEPS)
    start = tools.theta(optimizer)
    tools.run(optimizer, model, range(4), meta_every=2)
    assert not torch.equal(tools.theta(optimizer), start)


def test_groups_and_features_of_the_network_hold() -> None:
    optimizer = build(named(), network=trained(SPECS[0]), total_steps=STEPS)
    assert optimizer.network.spec.version == "tokens"
    after(optimizer, 1)
    assert list(optimizer.factors()) == [n for i, n in enumerate(SHAPES) if i != 2]


@pytest.mark.parametrize("part", ["schedule", "by_role"])
def test_learned_schedules_and_roles_are_refused(part: str, tmp_path: Path) -> None:
    learned = trained(SPECS[1])
    with torch.no_grad():
        learned.get_parameter(part).view(-1)[3] = 0.1
    for source in (learned, file_of(learned, tmp_path)):
        with pytest.raises(
            UserError, match=r"learned schedules or values for roles.*learn=factors"
        ) as caught:
            build(named(), network=source, total_steps=STEPS)
        assert "\n" not in str(caught.value)
    after(Learned(named(), learned, num_steps=STEPS), 2)
