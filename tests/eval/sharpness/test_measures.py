"""Minibatch and average sharpness against their definitions in cases that can be solved."""

from __future__ import annotations

import math

import pytest
import torch

from lo_framework.eval.sharpness.ascent import QUICK, neighbourhoods
from lo_framework.eval.sharpness.ball import Ball
from lo_framework.eval.sharpness.measures import average_sharpness, m_sharpness
from lo_framework.spec import UserError
from tests.eval.sharpness.problems import F64, function_surface, quadratic, small_task, trained


def test_m_sharpness_grows_as_m_shrinks():
    surface = trained(small_task())
    found = [m_sharpness(surface, m, 0.1) for m in (100, 40, 10)]
    values = [x.value for x in found]
    assert values == sorted(values) and values[-1] > 1.1 * values[0]
    assert [x.n for x in found] == [1, 3, 10]
    assert math.isnan(found[0].stderr) and 0 < found[2].stderr < found[2].value
    whole = neighbourhoods(surface, [0.1], effort=QUICK, norms=False)[0].gap
    assert found[0].value == pytest.approx(whole, rel=1e-6)


def test_m_sharpness_weighs_batches_by_their_size():
    surface = trained(small_task())
    gaps = [
        (w, neighbourhoods(b, [0.1], effort=QUICK, norms=False)[0].gap)
        for w, b in surface.batches(60, 3)
    ]
    assert [w for w, _ in gaps] == [0.6, 0.4]
    assert m_sharpness(surface, 60, 0.1, seed=3).value == pytest.approx(
        0.6 * gaps[0][1] + 0.4 * gaps[1][1]
    )


@pytest.mark.parametrize("m", [0, 101])
def test_m_must_fit(m):
    with pytest.raises(UserError, match="between 1 and the 100 rows"):
        m_sharpness(trained(small_task(), steps=0), m, 0.1)


def test_average_sharpness_is_half_the_trace():
    a = quadratic([3.0, 1.5, 1.0, 0.2, -0.5])
    g = torch.ones(5, dtype=F64)
    x = torch.tensor([1.0, -2.0, 0.0, 0.5, 1.0], dtype=F64)
    surface = function_surface(lambda p: 100 * g @ p + (p - x) @ a @ (p - x) / 2, x)
    found = average_sharpness(surface, 0.3, samples=400)
    # the steep gradient cancels within pairs
    assert abs(found.value - 0.09 / 2 * 5.2) < 4 * found.stderr and found.stderr < 0.02
    adaptive = average_sharpness(surface, 0.3, Ball.of(surface, adaptive=True), samples=400)
    assert (
        abs(adaptive.value - 0.09 / 2 * float((x * x * a.diagonal()).sum())) < 4 * adaptive.stderr
    )


def test_the_standard_error_is_that_of_repetitions():
    surface = trained(small_task())
    found = [average_sharpness(surface, 0.1, samples=16, seed=seed) for seed in range(40)]
    spread = float(torch.tensor([x.value for x in found], dtype=F64).std())
    typical = float(torch.tensor([x.stderr for x in found], dtype=F64).mean())
    assert 0.7 < typical / spread < 1.4


def test_average_sharpness_that_overflows():
    surface = function_surface(lambda x: torch.log(1 - x[0]), torch.zeros(1))
    with pytest.raises(FloatingPointError, match="not finite at rho = 3"):
        average_sharpness(surface, 3.0)
