"""The surface is the task's own loss, its derivatives are exact in passes of any size, and bad
input says so.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from lo_framework.eval.sharpness import replayed, surface as module
from lo_framework.eval.sharpness.surface import Surface
from lo_framework.native import conv as kernel, toolchain
from lo_framework.optimizees import make_tasks
from lo_framework.spec import UserError
from tests.eval.sharpness.problems import F64, function_surface, generator, small_task, trained


def points(surface: Surface, count: int) -> torch.Tensor:
    noise = torch.randn(count, surface.size, generator=generator(7), dtype=F64)
    return surface.params + 0.1 * noise.to(surface.params)


@pytest.mark.parametrize("spec", ["mlp:hidden=6", "cnn:channels=4", "cnn:channels=4,norm=batch"])
def test_loss_is_the_tasks_and_derivatives_are_autograds(spec):
    task = make_tasks(spec, "digits", None, "cpu")[0]
    surface = trained(task, steps=3, lr=0.1, rows=70)
    some = points(surface, 3)

    def loss(flat):
        return task.metrics(surface.layout.unflatten(flat), surface.buffers, surface.data)["loss"]

    v = torch.randn(3, surface.size, generator=generator(1), dtype=F64)
    losses, grads = surface.gradients(some)
    torch.testing.assert_close(losses, torch.stack([loss(p) for p in some]))
    torch.testing.assert_close(surface.losses(some), losses)
    torch.testing.assert_close(grads, torch.stack([torch.func.grad(loss)(p) for p in some]))
    exact = torch.stack(
        [torch.func.vjp(torch.func.grad(loss), p)[1](w)[0] for p, w in zip(some, v)]
    )
    again, products = surface.hvps(some, v)
    torch.testing.assert_close(again, grads)
    torch.testing.assert_close(products, exact)
    along = surface.curvature_along(some[0], v[0])
    torch.testing.assert_close(along, v[0] @ exact[0] / (v[0] @ v[0]))


@pytest.mark.skipif(bool(toolchain.reason()), reason=toolchain.reason())
@pytest.mark.parametrize("spec", ["cnn:channels=4x6", "cnn:channels=4,pool=avg,norm=batch"])
def test_convolutions_go_through_the_kernel_and_are_the_plain_ones(spec, monkeypatch):
    task = make_tasks(spec, "digits", None, "cpu")[0]
    surface = trained(task, steps=3, lr=0.1, rows=70, dtype=torch.float32)
    some = points(surface, 3)
    v = torch.randn(3, surface.size, generator=generator(1))
    calls, run = [], kernel.conv3x3
    monkeypatch.setattr(kernel, "conv3x3", lambda *a, **k: calls.append(1) or run(*a, **k))
    with_kernel = (surface.losses(some), *surface.gradients(some), *surface.hvps(some, v))
    assert calls
    monkeypatch.setattr(replayed, "usual_kernels", nullcontext)
    calls.clear()
    plain = (surface.losses(some), *surface.gradients(some), *surface.hvps(some, v))
    assert not calls
    for a, b in zip(with_kernel, plain):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max()))


@pytest.mark.parametrize("numbers", [8 * 17, 8 * 100, 8 * 200])
def test_passes_of_any_size_give_the_same(numbers, monkeypatch):
    surface = trained(small_task())
    some = points(surface, 5)
    v = torch.randn(5, surface.size, generator=generator(1), dtype=F64)
    whole = (
        surface.losses(some),
        *surface.gradients(some),
        *surface.hvps(some, v),
        *surface.hvps(some, torch.sin),
    )
    monkeypatch.setattr(module, "PASS_NUMBERS", numbers)  # 17 rows: the last pass is smaller
    parts = (
        surface.losses(some),
        *surface.gradients(some),
        *surface.hvps(some, v),
        *surface.hvps(some, torch.sin),
    )
    for a, b in zip(whole, parts):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_the_sample_is_fixed_and_minibatches_add_up_to_it():
    task = small_task()
    surface, same, other = (trained(task, rows=50, seed=seed) for seed in (1, 1, 2))
    assert surface.rows == 50 and torch.equal(surface.data[1], same.data[1])
    assert not torch.equal(surface.data[0], other.data[0])
    everything = trained(task, rows=1000)
    assert everything.rows == 100 and torch.equal(everything.data[1], task.full("train")[1])
    parts = list(surface.batches(16))
    assert [part.rows for _, part in parts] == [16, 16, 16, 2]
    assert sum(share for share, _ in parts) == pytest.approx(1)
    total = sum(share * part.gradient_here for share, part in parts)
    torch.testing.assert_close(total, surface.gradient_here)


def test_evaluations_are_counted_in_passes_over_the_sample():
    surface = trained(small_task())
    assert (surface.used.losses, surface.used.gradients, surface.used.hvps) == (0, 1, 0)
    surface.losses(points(surface, 3))
    surface.hvp(surface.params, surface.params)
    for _, part in surface.batches(30):
        part.loss(part.params)
    used = (surface.used.losses, surface.used.gradients, surface.used.hvps)
    assert used == pytest.approx((4, 2, 1))  # a gradient at each minibatch's own point


def test_float64_computes_in_float64():
    task = make_tasks("mlp:hidden=4", "digits", None, "cpu")[0]
    double, single = trained(task, rows=40), trained(task, rows=40, dtype=torch.float32)
    assert double.loss_here.dtype == F64 and double.gradient_here.dtype == F64
    assert 0 < abs(float(double.loss_here) - float(single.loss_here)) < 1e-6


def test_a_linear_loss_has_no_curvature():
    surface = function_surface(lambda x: x.sum(), torch.ones(3))
    grad, product = surface.hvp(surface.params, torch.ones(3, dtype=F64))
    assert grad.tolist() == [1, 1, 1] and product.tolist() == [0, 0, 0]


def test_bad_input_says_so():
    with pytest.raises(UserError, match="depends on no parameter"):
        function_surface(lambda x: torch.ones((), dtype=F64), torch.ones(3))
    with pytest.raises(FloatingPointError, match="not finite"):
        function_surface(lambda x: (x * torch.inf).sum(), torch.ones(3))
    with pytest.raises(UserError, match="at least one row"):
        trained(small_task(), steps=0, rows=0)
    with pytest.raises(UserError, match="float64"):
        function_surface(lambda x: (x[None] @ torch.ones(3, 1)).sum(), torch.ones(3))
