"""What is replayed has the bits of what is computed plainly."""

from __future__ import annotations

import math

import pytest
import torch

from lo_framework.eval.sharpness import replayed as module
from lo_framework.eval.sharpness.ball import Ball
from lo_framework.eval.sharpness.surface import Surface
from lo_framework.optimizees import make_tasks
from tests.eval.sharpness.problems import function_surface, generator, trained


def looked_at(surface: Surface, count: int) -> tuple[torch.Tensor, ...]:
    noise = torch.randn(2, count, surface.size, generator=generator(7)).to(surface.params)
    points, v = surface.params + 0.1 * noise[0], noise[1]
    dual = Ball.of(surface).dual
    return (
        surface.losses(points),
        *surface.gradients(points),
        *surface.hvps(points, v),
        *surface.hvps(points, dual),
    )


def record_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WORTH_RECORDING", 0)
    monkeypatch.setattr(module, "SHORT", math.inf)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "spec", ["mlp", "mlp-relu:hidden=8x8,norm=layer", "mlp:residual=1", "transformer"]
)
def test_recordings_have_the_bits_of_plain_calls(spec, dtype, count, monkeypatch):
    task = make_tasks(spec, "digits", None, "cpu")[0]
    surface = trained(task, steps=3, lr=0.1, rows=70, dtype=dtype)
    plain = looked_at(surface, count)
    problem = module.replayed(task, surface.layout)
    assert problem.together and not problem.replays
    record_at_once(monkeypatch)
    again = looked_at(surface, count)
    assert len(problem.replays) == 3
    for a, b in zip(plain, again, strict=True):
        assert torch.equal(a, b)


def test_recordings_belong_to_no_point_and_no_sample(monkeypatch):
    record_at_once(monkeypatch)
    task = make_tasks("mlp:hidden=6", "digits", None, "cpu")[0]
    one, other = (trained(task, steps=2 + seed, rows=70, seed=seed) for seed in (0, 1))
    recorded = looked_at(one, 2), looked_at(other, 2)
    monkeypatch.setattr(module, "WORTH_RECORDING", 100)
    for surface, results in zip((one, other), recorded):
        for a, b in zip(looked_at(surface, 2), results, strict=True):
            assert torch.equal(a, b)


def test_calls_that_take_long_are_not_recorded(monkeypatch):
    monkeypatch.setattr(module, "WORTH_RECORDING", 1)
    monkeypatch.setattr(module, "SHORT", 0.0)
    task = make_tasks("mlp:hidden=6", "digits", None, "cpu")[0]
    surface = trained(task, steps=2, rows=70)
    for _ in range(3):
        looked_at(surface, 2)
    assert not module.replayed(task, surface.layout).replays


def test_a_loss_without_curvature_is_replayed_too(monkeypatch):
    record_at_once(monkeypatch)
    surface = function_surface(lambda w: w.sum(), torch.zeros(3))
    points = torch.randn(4, 3, generator=generator(0)).to(surface.params)
    grads, products = surface.hvps(points, points)
    assert torch.equal(grads, torch.ones_like(points))
    assert torch.equal(products, torch.zeros_like(points))


def test_what_cannot_be_recorded_is_computed_plainly(monkeypatch):
    def loss(w):
        total = torch.zeros_like(w)
        total[0] += w[0].sin()
        total[1:] += w[1:].square()
        return total.sum()

    surface = function_surface(loss, torch.ones(3))
    plain = looked_at(surface, 3)
    record_at_once(monkeypatch)
    for a, b in zip(plain, looked_at(surface, 3), strict=True):
        assert torch.equal(a, b)


def test_a_loss_that_looks_at_numbers_is_computed_plainly(monkeypatch):
    surface = function_surface(lambda w: w.square().sum() * float(w.detach()[0]), torch.ones(3))
    plain = surface.gradient(surface.params)
    record_at_once(monkeypatch)
    for a, b in zip(plain, surface.gradient(surface.params), strict=True):
        assert torch.equal(a, b)


def test_convolutions_on_a_cpu_are_not_recorded(monkeypatch):
    record_at_once(monkeypatch)
    task = make_tasks("cnn:channels=4", "digits", None, "cpu")[0]
    surface = trained(task, rows=20)
    looked_at(surface, 2)
    assert not module.replayed(task, surface.layout).replays
