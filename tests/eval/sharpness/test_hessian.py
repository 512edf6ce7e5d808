"""Spectra against exact matrices, in passes of uneven size."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lo_framework.eval.sharpness import surface as surface_module
from lo_framework.eval.sharpness.hessian import (
    Matrix,
    ggn_operator,
    hessian_operator,
    quadrature,
    spectral_density,
    top_eigenvalues,
    trace,
)
from lo_framework.optimizees import make_tasks
from tests.eval.sharpness.problems import F64, function_surface, quadratic, small_task, trained

SINGLE_AND_DOUBLE = pytest.mark.parametrize(
    "dtype, tolerance", [(torch.float32, 1e-4), (F64, 1e-8)]
)


@pytest.fixture(autouse=True)
def uneven_passes(monkeypatch):
    monkeypatch.setattr(surface_module, "PASS_NUMBERS", 8 * 60)  # 100 rows: 60 and 40


def exact(surface):
    """The Hessian and the GGN by torch.func, of the whole sample at once, float64."""
    x, y = (t.to(F64) if t.is_floating_point() else t for t in surface.data)

    def logits(flat):
        return surface.task.model.apply(surface.layout.unflatten(flat), {}, x)[0]

    flat = surface.params.to(F64)
    hessian = torch.func.jacrev(torch.func.jacrev(lambda p: F.cross_entropy(logits(p), y)))(flat)
    jacobian = torch.func.jacrev(logits)(flat)  # [B, C, N]
    p = logits(flat).softmax(-1)
    inner = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    return hessian.numpy(), torch.einsum(
        "bcn,bcd,bdm->nm", jacobian, inner, jacobian
    ).numpy() / len(y)


@SINGLE_AND_DOUBLE
def test_hessian_and_ggn_are_exact(dtype, tolerance):
    surface = trained(small_task(hidden=(16,)), steps=30, dtype=dtype)
    assert surface.size == 195 and len(list(surface.passes())) == 2
    for operator, matrix in zip((hessian_operator(surface), ggn_operator(surface)), exact(surface)):
        ours = operator.dense()
        scale = np.abs(matrix).max()
        np.testing.assert_allclose(ours, matrix, rtol=0, atol=tolerance * scale)
        values, vectors = np.linalg.eigh(matrix)
        top = top_eigenvalues(operator, 3, tol=1e-10)
        np.testing.assert_allclose(top.values, values[:-4:-1], rtol=tolerance)
        assert (top.residuals < 10 * tolerance * values[-1]).all()
        overlap = np.abs(top.vectors.numpy() @ vectors[:, :-4:-1])
        np.testing.assert_allclose(overlap, np.eye(3), atol=100 * tolerance)
        estimate = trace(operator, probes=60)
        assert 0 < abs(estimate.value - np.trace(matrix)) < 4 * estimate.stderr


def test_ggn_is_positive_semidefinite_and_the_hessian_is_not():
    surface = trained(small_task(), steps=30)
    hessian, ggn = exact(surface)
    assert np.linalg.eigvalsh(ggn)[0] > -1e-12 > -1e-6 > np.linalg.eigvalsh(hessian)[0]
    assert np.linalg.eigvalsh(ggn_operator(surface).dense())[0] > -1e-12


def test_probes_of_signs_see_a_diagonal_exactly():
    values = torch.arange(-30.0, 70.0, dtype=F64)
    found = trace(Matrix(size=100, product=lambda v: values * v), probes=7)
    assert (found.value, found.stderr, found.n) == (float(values.sum()), 0.0, 7)


@pytest.mark.parametrize("kinds", [range(100), [3, 1, -2], [0]])
def test_quadrature_is_exact_for_polynomials(kinds):
    """Also where the matrix has fewer eigenvalues than there are steps: some are found again, or
    the iteration ends.
    """
    values = torch.tensor([*kinds], dtype=F64).repeat(100)[:100] / 50
    a = Matrix(size=100, product=lambda v: values * v)
    nodes, weights = quadrature(a, 6, torch.Generator().manual_seed(1))
    v = torch.randn(100, generator=torch.Generator().manual_seed(1), dtype=F64)
    square = v**2 / (v @ v)
    for degree in range(12):
        torch.testing.assert_close(weights @ nodes**degree, square @ values**degree)


def test_ggn_is_not_available_without_logits():
    quadratic_task = make_tasks("quadratic", "digits", None, "cpu")[0]
    surface = trained(quadratic_task, steps=0)
    assert ggn_operator(surface) is None
    assert top_eigenvalues(hessian_operator(surface), 2).values[0] == pytest.approx(1.0)


def test_density_integrates_to_one_and_has_the_spectrums_moments():
    surface = trained(small_task(hidden=(16,)), steps=30)
    values = np.linalg.eigvalsh(exact(surface)[0])
    found = spectral_density(hessian_operator(surface), probes=6, steps=60)
    assert found.integral == pytest.approx(1, abs=0.01)
    step = found.grid[1] - found.grid[0]
    mean = (found.grid * found.density).sum() * step
    assert mean == pytest.approx(values.mean(), abs=0.15 * values.std())
    near_zero = found.density[np.abs(found.grid) < 0.1 * values[-1]].sum() * step
    assert near_zero == pytest.approx((np.abs(values) < 0.1 * values[-1]).mean(), abs=0.1)
    assert found.grid[0] < values[0] and found.grid[-1] > values[-1]


def test_density_of_few_dimensions():
    a = quadratic([3.0, 1.0, 0.5, -1.0, 0.1, 0.2])
    surface = function_surface(lambda x: x @ a @ x / 2, torch.zeros(6))
    found = spectral_density(hessian_operator(surface), probes=3)
    assert found.integral == pytest.approx(1, abs=0.05)


def test_more_eigenvalues_than_dimensions_and_one_dimension():
    a = quadratic([3.0, 1.0, 0.5])
    surface = function_surface(lambda x: x @ a @ x / 2, torch.zeros(3))
    assert top_eigenvalues(hessian_operator(surface), 5).values == pytest.approx([3.0, 1.0, 0.5])
    line = hessian_operator(function_surface(lambda x: x[0] ** 2, torch.zeros(1)))
    assert top_eigenvalues(line).values == pytest.approx([2.0])
    assert (trace(line).value, trace(line).stderr) == (2.0, 0.0)
    with pytest.raises(FloatingPointError, match="all eigenvalues are one"):
        spectral_density(line)


def test_a_product_that_is_not_finite():
    surface = function_surface(lambda x: (x**1.5).sum(), torch.ones(100))
    operator = hessian_operator(surface, torch.zeros(100, dtype=F64))
    for estimate in (top_eigenvalues, lambda o: trace(o, 5), spectral_density):
        with pytest.raises(FloatingPointError, match="Hessian product is not finite"):
            estimate(operator)


def test_it_is_deterministic_and_leaves_the_generator_alone():
    operator = hessian_operator(trained(small_task(), steps=5))
    before = torch.get_rng_state()
    one, two = (
        (
            top_eigenvalues(operator, 2),
            trace(operator, 5),
            spectral_density(operator, probes=2, steps=20),
        )
        for _ in "ab"
    )
    assert (one[0].values == two[0].values).all() and one[1] == two[1]
    assert (one[2].density == two[2].density).all()
    assert torch.equal(before, torch.get_rng_state())
