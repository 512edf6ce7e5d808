"""Muon is torch's on hidden layers, and AdamW is torch's on the rest."""

from __future__ import annotations

import pytest
import torch
from torch.func import vmap

from lo_framework.eval.baselines import grid_of, make_baseline, make_thetas
from lo_framework.eval.baselines.muon import is_hidden, matched
from lo_framework.inner.rollout import rollout
from lo_framework.layout import Layout
from lo_framework.optimizees import make_tasks
from lo_framework.spec import UserError
from tests.eval.baselines.stepping import by_baseline, by_torch, problem

# An embedding, then layers: first, hidden (wide), hidden (a tall convolution), last.
LAYOUT = Layout.of(
    {
        "embed.weight": (3, 5),
        "a.weight": (6, 5),
        "a.bias": (6,),
        "b.weight": (4, 6),
        "b.bias": (4,),
        "c.weight": (9, 2, 2, 1),
        "c.gain": (9,),
        "c.shift": (9,),
        "d.weight": (3, 9),
        "d.bias": (3,),
    }
)


def reference(start, grads, lr: float, cosine: bool) -> torch.Tensor:
    params, hidden, rest = {}, [], []
    for slot, x in zip(LAYOUT.slots, LAYOUT.unflatten(start).values(), strict=True):
        by_muon = slot.name in ("b.weight", "c.weight")
        shape = (slot.shape[0], -1) if by_muon else slot.shape
        params[slot.name] = torch.nn.Parameter(x.reshape(shape).clone())
        (hidden if by_muon else rest).append(params[slot.name])
    muon = torch.optim.Muon(hidden, lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(rest, lr=lr, foreach=False)
    return by_torch([muon, adamw], params, LAYOUT, grads, cosine)


@pytest.mark.parametrize("cosine", [False, True])
def test_equals_torch(cosine: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    start, grads = problem(LAYOUT)
    got = by_baseline("muon", LAYOUT, {"lr": 0.02, "cosine": float(cosine)}, start, grads)
    rounded = reference(start, grads, 0.02, cosine)
    # bfloat16 has three digits, of which the iterations lose one.
    moved = (rounded - start).norm()
    assert (got - rounded).norm() < 0.02 * moved
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.clone)
    exact = reference(start, grads, 0.02, cosine)
    torch.testing.assert_close(got, exact, rtol=0, atol=1e-7)  # theta holds float32 settings


def test_the_hidden_layers() -> None:
    assert [slot.name for slot in LAYOUT.slots if is_hidden(slot)] == ["b.weight", "c.weight"]
    assert grid_of("muon") == grid_of("adamw")


@pytest.mark.parametrize("shape", [(40, 40), (10, 60), (60, 10)])
def test_directions_are_of_one_size(shape: tuple[int, int]) -> None:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    u = matched(x * 1e-3, 5)
    assert 0.12 < u.square().mean().sqrt() < 0.26
    values = torch.linalg.svdvals(u) / (0.2 * max(shape) ** 0.5)
    assert values.min() > 0.3 and values.max() < 1.3
    assert torch.isfinite(matched(torch.zeros(shape), 5)).all()
    stacked = torch.stack([x, 2 * x + 1])
    torch.testing.assert_close(
        vmap(lambda y: matched(y, 5))(stacked)[1], matched(stacked[1], 5), rtol=1e-4, atol=1e-4
    )


def test_without_hidden_layers_it_is_adamw() -> None:
    (task,), runs = make_tasks("mlp:hidden=4,batch=8"), []
    for name in ("muon", "adamw"):
        baseline = make_baseline(name)
        thetas = make_thetas(baseline, [{"lr": 0.01}, {"lr": 0.03, "cosine": 1.0}])
        runs.append(rollout(task, baseline, thetas, [3], 4, engine="eager"))
    torch.testing.assert_close(runs[0].params, runs[1].params, rtol=0, atol=0)


def test_a_grid_on_a_net_with_hidden_layers() -> None:
    (task,), baseline = make_tasks("cnn:channels=2x3x2,batch=8"), make_baseline("muon")
    thetas = make_thetas(baseline, [{"lr": 0.01}, {"lr": 0.03}])
    both = rollout(task, baseline, thetas, [3, 4], 4)
    alone = rollout(task, baseline, thetas[1:], [4], 4)
    torch.testing.assert_close(both.train[1, 1], alone.train[0, 0], rtol=1e-4, atol=1e-5)
    assert bool(both.alive.all())


def test_settings_that_cannot_be() -> None:
    with pytest.raises(UserError, match="ns_steps in 1 to 99"):
        make_baseline("muon:ns_steps=0")
