"""SAM, ASAM, GSAM and the gradient norm penalty against plain autograd in the papers' notation."""

from __future__ import annotations

import pytest
import torch

from lo_framework.absorb.absorption import make_regularizer
from lo_framework.regularizers.gsam import GSAM, GSAMConfig
from lo_framework.regularizers.sam import SAM, SAMConfig
from tests.regularizers.reg_tools import (
    Vectors,
    assert_close,
    at,
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

PARAMS, BATCH = mlp(3)
LANDSCAPE, LOSS, W = landscape_of(BATCH), plain_loss(PARAMS, BATCH), list(PARAMS.values())
G = grad(LOSS, W)
RHO = 0.3


def test_sam() -> None:
    g_p = grad(LOSS, plus(W, normalized(G), RHO))
    made = correct(make_regularizer(f"sam:rho={RHO}"), LANDSCAPE, PARAMS)
    assert_close(plus(G, list(made.field.values())), g_p)
    assert made.rise is not None
    torch.testing.assert_close(
        made.rise, LOSS(plus(W, normalized(G), RHO)) - LOSS(W), rtol=1e-11, atol=0
    )


def test_sam_with_a_radius_that_is_a_tensor() -> None:
    rho = torch.tensor(RHO, dtype=torch.float64)
    assert_close(
        field(SAM(SAMConfig(), rho), LANDSCAPE, PARAMS),
        field(SAM(SAMConfig(rho=RHO)), LANDSCAPE, PARAMS),
    )
    here = at(LANDSCAPE, PARAMS)
    slope = torch.func.grad(lambda r: SAM(SAMConfig(), r).correction(LANDSCAPE, here, {}).rise)(rho)
    torch.testing.assert_close(slope, inner(grad(LOSS, plus(W, normalized(G), RHO)), normalized(G)))


def test_attached_sam_is_one_hessian_product_away() -> None:
    """(I + rho / ||g|| H (I - u u^T)) g_p."""
    u = normalized(G)
    g_p = grad(LOSS, plus(W, u, RHO))
    across = plus(g_p, u, -inner(g_p, u))
    expected = plus(g_p, hessian_times(LOSS, W, across), RHO / length(G))
    sam = make_regularizer(f"sam:rho={RHO}")
    attached = torch.func.grad(lambda p: sam.value(LANDSCAPE, p, attached=True))(PARAMS)
    assert_close(attached, dict(zip(PARAMS, expected)))
    assert length(plus(expected, g_p, -1.0)) > 1e-3 * length(g_p)


def asam_step(eta: float) -> tuple[Vectors, Vectors]:
    """T and e = rho T^2 g / ||T g||."""
    t = [x.abs() + eta for x in W]
    t_g = [a * b for a, b in zip(t, G)]
    return t, [RHO * a * b / length(t_g) for a, b in zip(t, t_g)]


@pytest.mark.parametrize("eta", [0.0, 0.01, 0.5])
def test_asam(eta: float) -> None:
    _, e = asam_step(eta)
    asam = make_regularizer(f"asam:rho={RHO},eta={eta}")
    assert_close(field(asam, LANDSCAPE, PARAMS), grad(LOSS, plus(W, e)))


def test_asam_takes_the_best_step_of_its_neighbourhood() -> None:
    asam = make_regularizer(f"asam:rho={RHO},eta=0")
    e = asam.perturbation(PARAMS, at(LANDSCAPE, PARAMS).grad)  # type: ignore[attr-defined]
    e = torch.cat([x.flatten() for x in e.values()])
    w, g = (torch.cat([x.flatten() for x in xs]) for xs in (W, G))
    torch.testing.assert_close((e / w.abs()).norm(), torch.tensor(RHO, dtype=torch.float64))

    z = torch.randn(20_000, len(w), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    feasible = RHO * w.abs() * z / z.norm(dim=1, keepdim=True)
    assert (feasible @ g).max() < e @ g
    jax = RHO * w.abs() * g / g.norm()  # feasible as well
    assert (jax / w.abs()).norm() <= RHO * (1 + 1e-12) and jax @ g < e @ g


def test_asam_does_not_see_the_scale_of_the_layers() -> None:
    """Without eta, the same loss in other units of the parameters gives the same step in those
    units.
    """
    asam = make_regularizer("asam:rho=0.1,eta=0")
    matrix = torch.tensor([[2.0, 0.3], [0.3, 1.0]], dtype=torch.float64)
    w = torch.tensor([1.0, -0.7], dtype=torch.float64)
    small = correct(asam, landscape_of((matrix,), quadratic_loss), {"w": w})
    scale = torch.tensor([10.0, 0.1], dtype=torch.float64)
    stretched = matrix / scale[:, None] / scale
    large = correct(asam, landscape_of((stretched,), quadratic_loss), {"w": w * scale})
    torch.testing.assert_close(large.field["w"] * scale, small.field["w"])
    torch.testing.assert_close(large.rise, small.rise)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 1.0])
def test_gsam(alpha: float) -> None:
    g_p = grad(LOSS, plus(W, normalized(G), RHO))
    g_perp = plus(G, g_p, -inner(G, g_p) / inner(g_p, g_p))
    gsam = make_regularizer(f"gsam:rho={RHO},alpha={alpha}")
    assert_close(field(gsam, LANDSCAPE, PARAMS), plus(g_p, g_perp, -alpha))


def test_gsam_without_alpha_is_sam() -> None:
    gsam = correct(make_regularizer(f"gsam:rho={RHO},alpha=0"), LANDSCAPE, PARAMS)
    sam = correct(make_regularizer(f"sam:rho={RHO}"), LANDSCAPE, PARAMS)
    assert all(torch.equal(gsam.field[name], sam.field[name]) for name in PARAMS)


def test_the_orthogonal_part_lowers_the_gap_and_keeps_the_perturbed_loss() -> None:
    sam, gsam = (
        list(correct(make_regularizer(s), LANDSCAPE, PARAMS).field.values())
        for s in ("sam", "gsam:alpha=1")
    )
    g_perp = plus(sam, gsam, -1.0)
    g_p = plus(G, sam)
    assert abs(inner(g_perp, g_p)) < 1e-14
    torch.testing.assert_close(inner(g_perp, sam), -inner(g_perp, g_perp))

    e, h = [0.05 * x for x in normalized(G)], 1e-3
    perturbed = [LOSS(plus(plus(W, e), g_perp, step)) for step in (h, -h)]
    plain = [LOSS(plus(W, g_perp, step)) for step in (h, -h)]
    assert abs(perturbed[0] - perturbed[1]) / (2 * h) < 1e-8
    gap = (perturbed[0] - plain[0] - (perturbed[1] - plain[1])) / (2 * h)
    torch.testing.assert_close(gap, -inner(g_perp, g_perp), rtol=1e-4, atol=0)


def test_gsam_splits_meta_gradients_unless_told_otherwise() -> None:
    split = GSAM(GSAMConfig(rho=0.2, alpha=0.3)).meta_split()
    assert (
        split is not None
        and isinstance(split[0], SAM)
        and (split[0].config.rho, split[1]) == (0.2, 0.3)
    )
    assert GSAM(GSAMConfig(space="params")).meta_split() is None
    explicit = [
        correct(GSAM(GSAMConfig(space=s)), LANDSCAPE, PARAMS).field for s in ("meta", "params")
    ]
    assert all(torch.equal(explicit[0][name], explicit[1][name]) for name in PARAMS)


def test_even_sam() -> None:
    u = normalized(G)
    both = plus(grad(LOSS, plus(W, u, RHO)), grad(LOSS, plus(W, u, -RHO)))
    made = field(make_regularizer(f"even_sam:rho={RHO}"), LANDSCAPE, PARAMS)
    assert_close(made, [0.5 * x for x in both])


@pytest.mark.parametrize("eta", [0.0, 0.3])
def test_even_asam(eta: float) -> None:
    _, e = asam_step(eta)
    both = plus(grad(LOSS, plus(W, e)), grad(LOSS, plus(W, e, -1.0)))
    regularizer = make_regularizer(f"even_asam:rho={RHO},eta={eta}")
    assert_close(field(regularizer, LANDSCAPE, PARAMS), [0.5 * x for x in both])


def test_even_sam_sees_the_curvature_along_the_gradient_and_not_the_slope() -> None:
    """R - L - rho^2 u'Hu / 2 is of fourth order; SAM's gap is rho ||g|| first of all."""
    u = normalized(G)
    curvature, errors = inner(u, hessian_times(LOSS, W, u)), []
    for rho in (0.1, 0.05):
        made = correct(make_regularizer(f"even_sam:rho={rho}"), LANDSCAPE, PARAMS)
        assert made.rise is not None
        errors.append(abs(made.rise - 0.5 * rho**2 * curvature))
    assert errors[0] / errors[1] == pytest.approx(16, rel=0.1)
    sam = correct(make_regularizer("sam:rho=0.05"), LANDSCAPE, PARAMS)
    assert sam.rise is not None
    torch.testing.assert_close(sam.rise, 0.05 * length(G) + made.rise, rtol=0.02, atol=0)


def test_gradient_norm() -> None:
    lam, r = 0.06, 0.2
    expected = plus([(1 - lam / r) * x for x in G], grad(LOSS, plus(W, normalized(G), r)), lam / r)
    assert_close(
        field(make_regularizer(f"gradient_norm:lam={lam},r={r}"), LANDSCAPE, PARAMS), expected
    )


def test_gradient_norm_with_a_share_of_one_is_sam() -> None:
    penalty = correct(make_regularizer("gradient_norm:lam=0.2,r=0.2"), LANDSCAPE, PARAMS)
    sam = correct(make_regularizer("sam:rho=0.2"), LANDSCAPE, PARAMS)
    assert all(torch.equal(penalty.field[name], sam.field[name]) for name in PARAMS)


def test_gradient_norm_tends_to_the_penalty() -> None:
    """R - L - lam ||g|| halves with r, and so does G - (g + lam H u)."""
    true_field = plus(G, hessian_times(LOSS, W, normalized(G)), 0.01)
    errors = []
    for r in (0.02, 0.01):
        made = correct(make_regularizer(f"gradient_norm:lam=0.01,r={r}"), LANDSCAPE, PARAMS)
        assert made.rise is not None
        off = length(plus(plus(G, list(made.field.values())), true_field, -1.0))
        errors.append((abs(made.rise - 0.01 * length(G)), off))
    for wide, narrow in zip(*errors):
        assert wide / narrow == pytest.approx(2, rel=0.05)
