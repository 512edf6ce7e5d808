"""Maxima against known and brute-force answers, and the inequalities that hold by construction."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from lo_framework.eval.sharpness.ascent import (
    QUICK,
    Effort,
    _checkpoints,
    doubling_radius,
    neighbourhoods,
)
from lo_framework.eval.sharpness.ball import Ball, relative_radii
from lo_framework.eval.sharpness.surface import Surface
from lo_framework.optimizees import make_tasks
from tests.eval.sharpness.problems import (
    F64,
    function_surface,
    generator,
    quadratic,
    small_task,
    trained,
)

HARD = Effort(steps=100, norm_steps=100, random_starts=2)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-3), (F64, 1e-6)])
def test_quadratic_minimum(dtype, tolerance):
    top, radii = 3.0, [0.01, 0.3, 2.0]
    a = quadratic([top, 1.5, 1.0, 0.2, 0.0, -0.5])
    surface = function_surface(lambda x: 0.25 + x @ a.to(x) @ x / 2, torch.zeros(6), dtype)
    for r, found in zip(radii, neighbourhoods(surface, radii, effort=HARD)):
        # float32 knows a gap only to the rounding of the loss
        rounding = 2 * torch.finfo(dtype).eps * 0.25
        assert found.gap == pytest.approx(top * r * r / 2, rel=tolerance, abs=rounding)
        assert found.first_order == pytest.approx(top * r * r, rel=tolerance)
        assert found.linear_part == 0 and found.curvature_part == found.gap
        assert float(found.worst.norm()) == pytest.approx(r, rel=1e-5)


def trust_region_maximum(g: torch.Tensor, h: torch.Tensor, r: float) -> float:
    """max g.d + d.H d / 2 over ||d|| <= r, for H with a positive eigenvalue, from its secular
    equation.
    """
    values, vectors = torch.linalg.eigh(h)
    rotated = vectors.T @ g
    low, high = float(values[-1]), float(values[-1] + g.norm() / r + 1)
    for _ in range(200):
        mu = (low + high) / 2
        low, high = (mu, high) if float((rotated / (mu - values)).norm()) > r else (low, mu)
    d = vectors @ (rotated / (high - values))
    return float(g @ d + d @ h @ d / 2)


def test_off_the_minimum_it_is_the_trust_region_solution():
    h = quadratic([3.0, 1.5, 1.0, 0.2, 0.0, -2.0])
    g = 0.3 * torch.randn(6, generator=generator(2), dtype=F64)
    surface = function_surface(lambda x: 1 + g @ x + x @ h @ x / 2, torch.zeros(6))
    for found in neighbourhoods(surface, [0.01, 0.1, 1.0, 5.0], effort=HARD):
        assert found.gap == pytest.approx(trust_region_maximum(g, h, found.radius), rel=1e-6)
        assert found.linear_part == pytest.approx(found.radius * float(g.norm()))
        assert found.one_step_gap <= found.gap <= found.first_order


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_inequalities_on_a_trained_network(norm, adaptive, dtype):
    surface = trained(small_task("relu"), dtype=dtype)
    ball = Ball.of(surface, norm, adaptive=adaptive)
    radii = relative_radii(surface, [1e-4, 0.003, 0.03, 0.1, 0.3], ball)
    found = neighbourhoods(surface, radii[::-1], ball, QUICK)
    assert [x.radius for x in found] == radii
    gaps = [x.gap for x in found]
    assert gaps[0] > 0 and gaps == sorted(gaps)
    norms = [x.max_gradient_norm for x in found]
    assert norms == sorted(norms)
    for x in found:
        assert x.one_step_gap <= x.gap + 1e-7 and x.gap <= x.first_order
        assert float(surface.loss(surface.params + x.worst)) == pytest.approx(x.max_loss, rel=1e-5)
        z = x.worst / ball.scale.clamp(min=1e-30)
        assert float(ball.length(z[None])) <= x.radius * (1 + 1e-5)


def test_the_gap_stays_below_the_first_order_flatness_without_any_ascent():
    """The points between alone must see to it: a steep wall that begins halfway."""
    surface = function_surface(lambda x: torch.sigmoid(400 * (x[0] - 0.513)), torch.zeros(1))
    effort = Effort(steps=20, norm_steps=0, random_starts=1)
    (found,) = neighbourhoods(surface, [1.0], effort=effort)
    assert found.gap == pytest.approx(1.0) and found.first_order >= found.gap


def test_one_step_is_enough_at_a_small_radius():
    task = make_tasks("mlp", "digits", None, "cpu")[0]
    surface = trained(task, steps=100, rows=300)
    small, large = neighbourhoods(surface, [0.01, 2.0], effort=QUICK, norms=False)
    assert small.one_step_gap == pytest.approx(small.gap, rel=1e-2)
    assert small.gap == pytest.approx(small.linear_part, rel=0.1)
    assert large.gap > 1.5 * large.one_step_gap and large.curvature_part > 0.5 * large.gap
    assert math.isnan(small.first_order)


def test_linf_finds_the_corner():
    a = quadratic([3.0, 1.5, 1.0, 0.2, 0.1]).abs()
    g = torch.rand(5, generator=generator(4), dtype=F64)
    surface = function_surface(lambda x: g @ x + x @ a @ x / 2, torch.zeros(5))
    ball = Ball.of(surface, "linf")
    (found,) = neighbourhoods(surface, [0.7], ball, QUICK)
    corners = torch.tensor(list(itertools.product([-0.7, 0.7], repeat=5)), dtype=F64)
    best = corners[surface.losses(corners).argmax()]
    torch.testing.assert_close(
        best, torch.full((5,), 0.7, dtype=F64)
    )  # positive entries: the all-positive corner
    torch.testing.assert_close(found.worst, best)
    assert found.linear_part == pytest.approx(0.7 * float(g.sum()))


def test_adaptive_sharpness_ignores_a_rescaling_that_changes_no_function():
    surface = trained(small_task("relu"))
    weights = surface.layout.unflatten(surface.params)
    factors = {
        "layers.0.weight": 4.0,
        "layers.0.bias": 4.0,
        "layers.1.weight": 0.25,
        "layers.1.bias": 1.0,
    }
    moved = surface.layout.flatten({name: factors[name] * w for name, w in weights.items()})
    other = Surface(surface.task, surface.layout, moved, {}, surface.data, dtype=F64)
    assert float(other.loss_here) == pytest.approx(float(surface.loss_here), rel=1e-12)
    for norm in ("l2", "linf"):
        both = [
            neighbourhoods(
                s, [0.5 if norm == "l2" else 0.05], Ball.of(s, norm, adaptive=True), QUICK
            )[0]
            for s in (surface, other)
        ]
        assert both[0].gap == pytest.approx(both[1].gap, rel=1e-8)
        assert both[0].first_order == pytest.approx(both[1].first_order, rel=1e-8)
    plain = [neighbourhoods(s, [0.5], effort=QUICK, norms=False)[0].gap for s in (surface, other)]
    assert abs(plain[0] / plain[1] - 1) > 0.1


def test_doubling_radius():
    a = quadratic([3.0, 1.5, 1.0, 0.2])
    surface = function_surface(lambda x: 0.7 + x @ a @ x / 2, torch.zeros(4))
    expected = math.sqrt(2 * 0.7 / 3.0)
    assert expected <= doubling_radius(surface, effort=HARD, bisections=8) <= 1.01 * expected
    # Whatever the first guess: a tangent that promises a far larger radius than a wall allows.
    walled = function_surface(lambda x: 1 + 1e-6 * x[0] + 1e6 * x[0] ** 4, torch.zeros(2))
    assert doubling_radius(walled, bisections=8) == pytest.approx(1e-6**0.25, rel=0.01)
    flat = function_surface(lambda x: 2 + torch.tanh(x[0]), torch.ones(2))
    assert doubling_radius(flat) == math.inf
    assert math.isnan(doubling_radius(function_surface(lambda x: (x * x).sum(), torch.zeros(2))))


def test_relative_radii_reach_the_origin_at_one():
    surface = function_surface(lambda x: x.sum(), torch.tensor([3.0, 0.0, -4.0]))
    assert relative_radii(surface, [0.1, 1]) == pytest.approx([0.5, 5.0])
    reach = {
        (n, a): Ball.of(surface, n, adaptive=a).reach(surface.params)
        for n in ("l2", "linf")
        for a in (0, 1)
    }
    assert list(reach.values()) == pytest.approx([5, math.sqrt(2), 4, 1])


def test_a_loss_that_overflows_is_one_clear_line():
    surface = function_surface(lambda x: torch.log(1 - x[0]) + x[0] * 3, torch.zeros(1))
    with pytest.raises(FloatingPointError, match="not finite within the radius 2"):
        neighbourhoods(surface, [2.0], effort=QUICK)


def test_checkpoints_are_those_of_auto_pgd():
    assert sorted(_checkpoints(20)) == [5, 9, 12, 15, 16, 18, 19]


def test_it_is_deterministic_and_leaves_the_generator_alone():
    surface = trained(small_task())
    before = torch.get_rng_state()
    one, two = (neighbourhoods(surface, [0.1, 0.5], effort=QUICK)[1] for _ in range(2))
    assert torch.equal(one.worst, two.worst) and one.first_order == two.first_order
    assert torch.equal(before, torch.get_rng_state())


def small_net(parameters: int, seed: int) -> Surface:
    """One hidden unit, ``b tanh(a x (+ c))``, after some gradient descent on squared errors."""
    g = generator(seed)
    x = torch.randn(30, generator=g, dtype=F64)
    y = 1.7 * torch.tanh(1.3 * x) + 0.1 * torch.randn(30, generator=g, dtype=F64)

    def loss(p: torch.Tensor) -> torch.Tensor:
        inner = p[0] * x + (p[2] if parameters == 3 else 0.0)
        return ((p[1] * torch.tanh(inner) - y) ** 2).mean()

    p = torch.randn(parameters, generator=g, dtype=F64)
    for _ in range(100):
        p = p - 0.05 * torch.func.grad(loss)(p)
    return function_surface(loss, p)


@pytest.mark.parametrize("parameters, points", [(2, 101), (3, 31)])
@pytest.mark.parametrize("adaptive", [True, False])
def test_a_large_cube_holds_no_higher_point_on_a_grid(parameters, points, adaptive):
    """The gradient at the centre shows to one corner; the highest may be another, or none."""
    for seed in range(3):
        surface = small_net(parameters, seed)
        ball = Ball.of(surface, "linf", adaptive=adaptive)
        line = torch.linspace(-1, 1, points, dtype=F64)
        grid = torch.cartesian_prod(*[line] * parameters)
        for found in neighbourhoods(surface, [0.5, 1.0, 2.0], ball, QUICK, norms=False):
            losses = surface.losses(surface.params + found.radius * ball.scale * grid)
            assert found.max_loss >= (1 - 1e-3) * float(losses.max()), (seed, found.radius)
