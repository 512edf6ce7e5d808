"""``celo2`` against the slow rule, and what is published of it: sizes, steps, who moves what."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from lo_framework import make_tasks, unroll
from lo_framework.inner.step import Family
from lo_framework.layout import Layout
from lo_framework.learned import load, make_learned, save
from lo_framework.learned.celo2 import Celo2
from lo_framework.learned.mlp import MOMENTUM_39
from lo_framework.roles import LAYERS
from tests.lo_framework.learned import celo2_reference as slow
from tests.lo_framework.small_tasks import clock

SHAPES = {"embed.weight": (9, 4), "0.weight": (12, 8), "0.bias": (12,), "conv": (6, 3, 2, 2)}
LAYOUT = Layout.of(SHAPES)
MATRICES = ("0.weight", "conv")


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def moved(spec: str) -> Any:
    """In float64, decays and all, with every meta-parameter off its start."""
    learned = make_learned(spec).double()
    assert isinstance(learned, Celo2)
    for p in learned.parameters():
        p.data += 0.1 * torch.randn(p.shape, generator=generator(1), dtype=torch.float64)
    learned.keep = 1 - torch.tensor(MOMENTUM_39, dtype=torch.float64)[:, None]
    learned.adamw_keep = 1 - torch.tensor([0.9, 0.95], dtype=torch.float64)
    return learned


def steps_of(spec: str, steps: int = 6, horizon: float = 0.0) -> list[dict[str, Tensor]]:
    """The change of the parameters in each of some steps on given gradients."""
    learned, made = moved(spec), []
    params = torch.randn(LAYOUT.size, generator=generator(2), dtype=torch.float64)
    state = learned.init_state(LAYOUT, params)
    for t in range(steps):
        grads = torch.randn(LAYOUT.size, generator=generator(3 + t), dtype=torch.float64)
        at = clock(t / horizon if horizon else 0.0, horizon)
        with torch.no_grad():
            new, state = learned(LAYOUT, params, grads, state, None, at)
        made.append(LAYOUT.unflatten(new - params))
        params = new
    return made


@pytest.mark.parametrize("size", [1.0, 1e-4, 1e5])
@pytest.mark.parametrize("turn", [True, False])
@pytest.mark.parametrize("name", ["mlp:hidden=12", "cnn:channels=4x6,norm=group"])
def test_it_is_the_slow_rule(name: str, turn: bool, size: float) -> None:
    """On losses of every size: gradients of 1e5 are clipped."""
    (task,) = make_tasks(name)
    learned = moved(f"celo2:orthogonal={turn},schedule=cosine,lr=0.002,weight_decay=0.1")
    layout = Family(task, learned).layout
    params = {n: x.double() for n, x in task.init(generator(5))[0].items()}
    weights = {n: p.detach().numpy() for n, p in learned.named_parameters()}
    rules = {s.name: slow.Celo2(weights, s.shape, s.role in LAYERS, turn) for s in layout.slots}
    roles = {s.role for s in layout.slots}
    assert roles == ({"conv", "matrix", "bias", "norm"} if "cnn" in name else {"matrix", "bias"})
    points = {n: x.numpy().copy() for n, x in params.items()}
    flat, steps = layout.flatten(params), 30
    state = learned.init_state(layout, flat)
    for t in range(8):
        x, *rest = task.batch("train", generator(t))
        given = {n: v.clone().requires_grad_() for n, v in layout.unflatten(flat).items()}
        loss, _ = task.loss(given, {}, (x.double(), *rest), torch.tensor(t))
        grads = dict(zip(given, torch.autograd.grad(size * loss, [*given.values()]), strict=True))
        before = flat
        with torch.no_grad():
            flat, state = learned(
                layout, flat, layout.flatten(grads), state, None, clock(t / steps, float(steps))
            )
        change = layout.unflatten(flat - before)
        for n, rule in rules.items():
            alpha = 0.002 * slow.planned(t, steps)
            want = -alpha * (rule.direction(points[n], grads[n].numpy()) + 0.1 * points[n])
            np.testing.assert_allclose(change[n].numpy(), want, rtol=0, atol=2e-6 * alpha)
            points[n] = points[n] + change[n].numpy()


def test_its_numbers_are_those_that_are_published() -> None:
    learned = make_learned("celo2")
    assert sum(p.numel() for p in learned.parameters()) == 347
    (task,) = make_tasks("mlp:hidden=8")
    slope = torch.func.grad(unroll)(learned.theta(), task, learned, steps=4, seed=0)
    for name, x in slope.items():
        used = x[:1] if name.startswith("last") else x
        assert torch.all(used.abs().sum(-1) > 0), name
    assert all(not slope[name][1:].any() for name in ("last", "last_bias"))  # two outputs are not


@pytest.mark.parametrize("spec", ["celo2", "celo2:orthogonal=false", "celo2:vectors=learned"])
def test_directions_have_unit_size(spec: str) -> None:
    for change in steps_of(f"{spec},lr=0.01" if ":" in spec else "celo2:lr=0.01"):
        sizes = {name: float(x.square().mean().sqrt()) for name, x in change.items()}
        for name in SHAPES if "learned" in spec else MATRICES:
            assert sizes[name] == pytest.approx(0.01, rel=1e-4), name
        for name in MATRICES:
            s = torch.linalg.svdvals(change[name].reshape(SHAPES[name][0], -1))
            assert (float(s.max() / s.min()) < 2.5) == ("orthogonal" not in spec)


def test_vectors_and_embeddings_take_adamws_steps_at_twenty_times_the_rate() -> None:
    found = steps_of("celo2:lr=1e-4,weight_decay=0.2")
    start = LAYOUT.unflatten(torch.randn(LAYOUT.size, generator=generator(2), dtype=torch.float64))
    params = {n: start[n].clone().requires_grad_() for n in ("embed.weight", "0.bias")}
    # Its decay is times its own rate; ours is that of matrices for all.
    adamw = torch.optim.AdamW(params.values(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.01)
    for t, change in enumerate(found):
        drawn = torch.randn(LAYOUT.size, generator=generator(3 + t), dtype=torch.float64)
        grads, before = LAYOUT.unflatten(drawn), {n: p.detach().clone() for n, p in params.items()}
        for name, p in params.items():
            p.grad = grads[name].clone()
        adamw.step()
        for name, p in params.items():
            torch.testing.assert_close(change[name], p.detach() - before[name])


def test_the_step_is_the_users() -> None:
    constant, cosine = make_learned("celo2"), make_learned("celo2:schedule=cosine,lr=0.01")
    assert isinstance(constant, Celo2) and isinstance(cosine, Celo2)
    for t in range(200):
        at = clock(t / 200, 200.0)
        assert float(constant.step_size(at)) == pytest.approx(1e-3)
        want = 0.01 * slow.planned(t, 200)
        assert float(cosine.step_size(at)) == pytest.approx(want, rel=1e-4, abs=1e-9)
    assert float(cosine.step_size(clock(0.0, 0.0))) == pytest.approx(0.01)
    assert float(cosine.step_size(clock(1.0, 200.0))) == pytest.approx(0.0, abs=1e-9)
    short = [float(cosine.step_size(clock(t / 3, 3.0))) for t in range(3)]
    assert short[0] == pytest.approx(0.01) and sorted(short, reverse=True) == short


def test_what_was_learned_goes_on_with_another_step(tmp_path: Path) -> None:
    trained = make_learned("celo2:seed=3,orthogonal=false")
    save(trained, tmp_path / "x")
    loaded = load(tmp_path / "x")
    assert loaded.config == trained.config
    used = make_learned("celo2:lr=3e-4,schedule=cosine")
    used.load_theta(loaded.theta())
    assert all(torch.equal(x, used.theta()[name]) for name, x in trained.theta().items())
