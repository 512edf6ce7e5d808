"""Slices: what is at their centre, how their directions are scaled."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lo_framework.eval.sharpness.hessian import hessian_operator, top_eigenvalues
from lo_framework.eval.sharpness.slices import (
    filter_normalised,
    loss_line,
    loss_plane,
    random_plane,
)
from lo_framework.optimizees import make_tasks
from lo_framework.spec import UserError
from tests.eval.sharpness.problems import F64, function_surface, small_task, trained


def test_filters_have_the_norms_of_the_weights():
    task = make_tasks("cnn:channels=4,norm=batch", "digits", None, "cpu")[0]
    surface = trained(task, steps=3, lr=0.1, rows=50)
    weights = surface.layout.unflatten(surface.params)
    direction = surface.layout.unflatten(filter_normalised(surface.layout, surface.params, seed=1))
    for name, w in weights.items():
        if w.dim() < 2:
            assert not direction[name].any()
        else:
            torch.testing.assert_close(
                direction[name].flatten(1).norm(dim=1), w.flatten(1).norm(dim=1)
            )
    assert direction["convs.0.weight"].flatten(1).norm(dim=1).shape == (4,)


def test_random_directions_differ_and_repeat():
    surface = trained(small_task())
    first, second = random_plane(surface.layout, surface.params, 0)
    again, _ = random_plane(surface.layout, surface.params, 0)
    other, _ = random_plane(surface.layout, surface.params, 1)
    assert torch.equal(first, again)
    for x in (second, other):
        assert abs(float(first @ x / first.norm() / x.norm())) < 0.5


def test_values_are_losses_and_the_centre_is_the_point():
    surface = trained(small_task())
    first, second = random_plane(surface.layout, surface.params, 0)
    x, y = np.linspace(-1, 1, 5), np.linspace(-0.5, 0.5, 3)
    plane = loss_plane(surface, first, second, x, y)
    assert plane.losses.shape == (3, 5) and x[2] == 0 and y[1] == 0
    assert plane.losses[1, 2] == pytest.approx(float(surface.loss_here), rel=1e-12)
    corner = surface.loss(surface.params + x[4] * first + y[0] * second)
    assert plane.losses[0, 4] == pytest.approx(float(corner), rel=1e-12)
    np.testing.assert_allclose(loss_line(surface, first, x).losses, plane.losses[1], rtol=1e-12)
    assert loss_plane(surface, first, second, x).losses.shape == (5, 5)


def test_along_an_eigenvector_it_bends_by_the_eigenvalue():
    surface = trained(small_task())
    top = top_eigenvalues(hessian_operator(surface), tol=1e-10)
    h = 1e-3
    low, middle, high = loss_line(surface, top.vectors[0], np.array([-h, 0.0, h])).losses
    assert (low - 2 * middle + high) / h**2 == pytest.approx(top.values[0], rel=1e-3)


def test_only_vectors_have_no_filters():
    surface = function_surface(lambda x: (x * x).sum(), torch.ones(3, dtype=F64))
    with pytest.raises(UserError, match="only vectors"):
        filter_normalised(surface.layout, surface.params, 0)
    assert loss_line(surface, torch.ones(3), np.array([0.0, 1.0])).losses == pytest.approx([3, 12])
