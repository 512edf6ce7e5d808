"""With both ranges 0, and at the fresh start of its head, MetaAdamW is torch's AdamW, on every path
of the update.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lo_framework.optim import MetaAdamW
from lo_framework.optim.fused import one_minus_power
from lo_framework.optim.metaadamw import adam_step
from tests.lo_framework.optim.metaadamw import tools
from tests.lo_framework.optim.metaadamw.settings import build
from tests.lo_framework.optim.metaadamw.tools import D, theta
from tests.lo_framework.optim.tools import SHAPES, flat, give_grads, parameters

STILL: dict[str, Any] = {"alpha_range": 0.0, "beta_range": 0.0, "network": tools.SMALL}


def pairs(params: list[nn.Parameter]) -> list[tuple[str, nn.Parameter]]:
    return list(zip(SHAPES, params))


def one_group(params: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": pairs(params), "lr": 2e-3, "weight_decay": 0.1}]


def three_groups(params: list[nn.Parameter]) -> list[dict[str, Any]]:
    """Each with other settings; one without decay, one without momentum."""
    named = pairs(params)
    return [
        {"params": named[:3], "lr": 3e-3, "betas": (0.8, 0.99), "eps": 1e-4, "weight_decay": 0.3},
        {"params": named[3:6], "weight_decay": 0.0},
        {"params": named[6:], "lr": 1e-3, "betas": (0.0, 0.5)},
    ]


def tensor_lr(params: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": pairs(params), "lr": torch.tensor(2e-3, dtype=D)}]


def distance(
    one: MetaAdamW | torch.optim.Optimizer, two: torch.optim.Optimizer, dtype: torch.dtype
) -> float:
    """The largest over 60 steps, of parameters that now and then have no gradient."""
    found = []
    for t in range(60):
        skip = [] if t % 5 else [1, 4]
        for optimizer in (one, two):
            give_grads(params_of(optimizer), t, skip)
            optimizer.step()
        found.append((flat(params_of(one)) - flat(params_of(two))).abs().max())
    moved = flat(params_of(one)) - flat(parameters(dtype=dtype))
    assert moved.abs().median() > 1e-3 and moved.all()
    return float(torch.stack(found).max())


def params_of(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "written out"])
@pytest.mark.parametrize("groups", [one_group, three_groups, tensor_lr], ids=lambda f: f.__name__)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-7), (D, 1e-12)], ids=str)
def test_without_ranges_it_equals_adamw_for_60_steps(
    dtype: torch.dtype,
    tolerance: float,
    groups: Callable[..., Any],
    fused: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(adam_step, "HAS_FUSED", fused)
    one = build(groups(parameters(dtype=dtype)), **STILL)
    numbers = [
        group | {"lr": float(group.get("lr", 1e-3))} for group in groups(parameters(dtype=dtype))
    ]
    two = torch.optim.AdamW(numbers, foreach=False)
    assert theta(one).any() and one.network.head.any()
    assert distance(one, two, dtype) <= tolerance


@pytest.mark.parametrize("grouping", ["fine_grained", "original", "tensor"])
@pytest.mark.parametrize(
    "features", ["basic", "norm_basic", "basic_plus", "norm_basic_plus", "enhanced", "tokens"]
)
def test_whatever_features_and_groups_are(features: str, grouping: str) -> None:
    options: dict[str, Any] = {
        "features": features,
        "grouping": grouping,
        "total_steps": 60,
        "gating": True,
    }
    one = build(three_groups(parameters()), **STILL, **options)
    two = torch.optim.AdamW(three_groups(parameters()), foreach=False)
    assert distance(one, two, torch.float32) <= 1e-7


@pytest.mark.parametrize("attend_every", [1, 7])
def test_a_fresh_head_is_adamw_until_the_first_meta_step(attend_every: int) -> None:
    one, two = tools.network(), tools.network()
    meta = build(one.named_parameters(), 0.02, attend_every=attend_every)
    plain = torch.optim.AdamW(two.parameters(), 0.02)
    for t in range(10):
        tools.step(meta, one, t)
        tools.step(plain, two, t)
    torch.testing.assert_close(tools.weights(one), tools.weights(two), rtol=0, atol=1e-12)
    assert set(meta.factors().values()) == {(1.0, 1.0)}
    tools.meta(meta, one)
    tools.step(meta, one, 10)
    tools.step(plain, two, 10)
    assert len(set(meta.factors().values())) > 1
    assert not torch.allclose(tools.weights(one), tools.weights(two), rtol=0, atol=1e-12)


@pytest.mark.parametrize("decay", ["decoupled", "scaled"])
def test_fused_and_written_out_paths_are_equal(decay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With factors of all sizes, which torch's AdamW cannot check."""
    found = []
    for fused in (True, False):
        monkeypatch.setattr(adam_step, "HAS_FUSED", fused)
        params = parameters(dtype=D)
        optimizer = build(
            three_groups(params), network={"head_scale": 3.0}, decay=decay, grouping="tensor"
        )
        for t in range(10):
            give_grads(params, t, [] if t % 4 else [0])
            optimizer.step()
        assert max(a for a, _ in optimizer.factors().values()) > 1.1 and optimizer.updates == 10
        found.append(flat(params))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-13)


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "written out"])
@pytest.mark.parametrize("dtype", [torch.float32, D], ids=str)
def test_rates_that_stay_on_the_device_are_the_same_numbers(
    dtype: torch.dtype, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on an accelerator, where nothing reads a factor back."""
    monkeypatch.setattr(adam_step, "HAS_FUSED", fused)
    found = []
    for on_device in (False, True):
        params = parameters(dtype=dtype)
        states = [{name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")} for p in params]
        for t in range(1, 6):
            give_grads(params, t)
            corrections = [one_minus_power(beta, t) for beta in (0.9, 0.99)]
            rate, shrink = (torch.tensor(x, dtype=dtype) if on_device else x for x in (0.02, 0.003))
            numbers = adam_step.Numbers(rate, shrink, 0.9, 0.99, 1e-8, *corrections)
            with torch.no_grad():
                adam_step.update(
                    params, [p.grad for p in params if p.grad is not None], states, numbers
                )
        found.append(flat(params))
    assert not torch.equal(found[0], flat(parameters(dtype=dtype)))
    torch.testing.assert_close(
        found[0], found[1], rtol=0, atol=2e-7 if dtype == torch.float32 else 1e-15
    )


def test_the_fused_path_is_taken_where_it_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    fused = adam_step._fused

    def counted(params: list[Tensor], *rest: Any) -> None:
        seen.append(len(params))
        fused(params, *rest)

    monkeypatch.setattr(adam_step, "_fused", counted)
    params = parameters()
    give_grads(params, 0)
    build(pairs(params), grouping="original").step()
    assert seen == [len(params)]


def test_a_rate_of_zero_moves_nothing_but_the_moments() -> None:
    params, others = parameters(), parameters()
    one, two = build(params, 0.0), torch.optim.AdamW(others, 0.0)
    for optimizer, mine in ((one, params), (two, others)):
        give_grads(mine, 0)
        optimizer.step()
    assert torch.equal(flat(params), flat(parameters()))
    for p, q in zip(params, others):
        torch.testing.assert_close(one.state[p]["exp_avg_sq"], two.state[q]["exp_avg_sq"])


def test_attend_every_keeps_factors_between() -> None:
    params = parameters()
    optimizer = build(pairs(params), 0.02, network=tools.SMALL, attend_every=3)
    seen = []
    for t in range(7):
        give_grads(params, t)
        optimizer.step()
        seen.append(optimizer.factors())
    fresh = [k == 0 or seen[k] != seen[k - 1] for k in range(7)]
    assert fresh == [True, False, False, True, False, False, True]


def test_attend_every_looks_again_when_other_tensors_have_gradients() -> None:
    params = parameters()
    optimizer = build(pairs(params), 0.02, network=tools.SMALL, attend_every=100, grouping="tensor")
    for t, skip in enumerate([[], [], [2], [2], []]):
        give_grads(params, t, skip)
        optimizer.step()
        assert len(optimizer.factors()) == len(params) - len(skip)


def test_parameters_of_two_dtypes_share_a_group() -> None:
    """One token and one age, and yet two loops: the fused one takes tensors of one dtype."""
    params = parameters()
    for p in params[::2]:
        p.data = p.data.double()
    one = build(
        [{"params": pairs(params), "lr": 0.02, "weight_decay": 0.1}], grouping="original", **STILL
    )
    others = parameters()
    for p in others[::2]:
        p.data = p.data.double()
    two = torch.optim.AdamW(others, 0.02, weight_decay=0.1, foreach=False)
    for t in range(20):
        for optimizer, mine in ((one, params), (two, others)):
            give_grads(mine, t)
            optimizer.step()
    for p, q in zip(params, others):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-7)
    sets = one.table.plan(tuple(range(len(params)))).sets
    assert [{params[i].dtype for i in each.places} for each in sets] == [{D}, {torch.float32}]
