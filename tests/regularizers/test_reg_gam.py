"""GAM, exact and accelerated, against plain autograd in the paper's notation."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from lo_framework.absorb.absorption import FunctionalLandscape, make_regularizer
from tests.regularizers.reg_tools import (
    Params,
    Vectors,
    assert_close,
    correct,
    field,
    grad,
    hessian_times,
    inner,
    landscape_of,
    length,
    mlp,
    normalized,
    plain_loss,
    plus,
    quadratic_loss,
)

PARAMS, BATCH = mlp(4)
LANDSCAPE, LOSS, W = landscape_of(BATCH), plain_loss(PARAMS, BATCH), list(PARAMS.values())


def q(w: Vectors) -> Vectors:
    """grad ||grad f|| = H g / ||g||."""
    return hessian_times(LOSS, w, normalized(grad(LOSS, w)))


def test_exact() -> None:
    alpha, rho = 0.4, 0.2
    w_adv = plus(W, normalized(q(W)), rho)
    made = correct(make_regularizer(f"gam:alpha={alpha},rho={rho}"), LANDSCAPE, PARAMS)
    assert_close(list(made.field.values()), [alpha * rho * x for x in q(w_adv)])
    torch.testing.assert_close(made.rise, alpha * rho * length(grad(LOSS, w_adv)))


def test_exact_on_a_quadratic_sees_the_top_eigenvalue() -> None:
    """In a minimum the largest gradient norm within rho is lambda rho, so R1 = lambda rho^2.
    Started on the top eigenvector at a small distance, the ascent goes the right way.
    """
    matrix = torch.diag(torch.tensor([3.0, 1.0, 0.5], dtype=torch.float64))
    w = torch.tensor([1e-9, 0.0, 0.0], dtype=torch.float64)
    made = correct(
        make_regularizer("gam:alpha=1,rho=0.1"), landscape_of((matrix,), quadratic_loss), {"w": w}
    )
    torch.testing.assert_close(
        made.rise, torch.tensor(3.0 * 0.1**2, dtype=torch.float64), rtol=1e-6, atol=0
    )


def algorithm_2(
    a: float, b: float, gamma: float, rho: float, rho_prime: float, reference: bool
) -> Vectors:
    g0 = grad(LOSS, W)
    g1 = grad(LOSS, plus(W, normalized(g0), rho_prime))
    h0 = plus(g1, g0, -1.0)
    w2 = plus(W, normalized(h0), rho)
    g2 = grad(LOSS, w2)
    g3 = grad(LOSS, plus(w2, normalized(g2), rho_prime))
    h_plus = plus([a * x for x in g1], g3, 1 - a)
    h_minus = plus(g0 if reference else [b * x for x in g0], g2, abs(1 - b))
    h_perp = plus(h_minus, h_plus, -inner(h_minus, h_plus) / inner(h_plus, h_plus))
    return plus(h_plus, h_perp, -gamma)


def spec(a: float, b: float, gamma: float, variant: str = "paper", rho_prime: float = 0.03) -> str:
    return (
        f"gam:exact=0,rho=0.2,rho_prime={rho_prime},beta_1={a},beta_0={b},gamma={gamma},"
        f"variant={variant}"
    )


@pytest.mark.parametrize("variant", ["paper", "reference"])
@pytest.mark.parametrize(
    "a, b, gamma", [(0.1, 0.1, 0.05), (0.6, 0.5, 0.03), (0.3, 1.0, 0.5), (1.0, 0.0, 1.0)]
)
def test_accelerated(a: float, b: float, gamma: float, variant: str) -> None:
    made = field(make_regularizer(spec(a, b, gamma, variant)), LANDSCAPE, PARAMS)
    assert_close(made, algorithm_2(a, b, gamma, 0.2, 0.03, variant == "reference"))


def test_variants_agree_where_b_is_one_and_only_there() -> None:
    def fields(b: float) -> list[Params]:
        return [
            correct(make_regularizer(spec(0.3, b, 0.5, v)), LANDSCAPE, PARAMS).field
            for v in ("paper", "reference")
        ]

    paper, reference = fields(1.0)
    assert all(torch.equal(paper[name], reference[name]) for name in PARAMS)
    paper, reference = fields(0.5)
    assert not all(torch.allclose(paper[name], reference[name], rtol=1e-3) for name in PARAMS)


def test_accelerated_contains_sam() -> None:
    sam = correct(make_regularizer("sam:rho=0.03"), LANDSCAPE, PARAMS).field
    assert_close(
        correct(make_regularizer(spec(1.0, 0.3, 0.0)), LANDSCAPE, PARAMS).field, sam, 1e-12
    )


class Recording(FunctionalLandscape):
    """Keeps the gradients that it gave."""

    def __init__(self, inner: FunctionalLandscape) -> None:
        super().__init__(inner.loss_fn, inner.batch, inner.noise)
        self.given: list[Params] = []

    def gradient(self, params: Params) -> tuple[Tensor, Params]:
        loss, slope = super().gradient(params)
        self.given.append(slope)
        return loss, slope


def test_finite_difference_of_the_acceleration_is_of_first_order() -> None:
    """h0 / rho' -> H g / ||g||, with an error proportional to rho'."""
    errors = []
    for rho_prime in (0.04, 0.02, 0.01, 0.005):
        landscape = Recording(LANDSCAPE)
        correct(make_regularizer(spec(0.5, 0.5, 0.1, rho_prime=rho_prime)), landscape, PARAMS)
        g0, g1 = (list(slope.values()) for slope in landscape.given[:2])
        h0 = [x / rho_prime for x in plus(g1, g0, -1.0)]
        errors.append(float(length(plus(h0, q(W), -1.0)) / length(q(W))))
    assert errors[0] < 0.2
    for wide, narrow in pairwise(errors):
        assert wide / narrow == pytest.approx(2, rel=0.1)


def test_values_and_hessians_belong_to_the_exact_form() -> None:
    exact, fast = make_regularizer("gam"), make_regularizer("gam:exact=0")
    assert (exact.has_value, exact.needs_hvp, exact.cost) == (True, True, (2, 2))
    assert (fast.has_value, fast.needs_hvp, fast.cost) == (False, False, (4, 0))
