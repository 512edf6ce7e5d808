"""Weight decay, the trace of the Hessian and label noise against what they should be in closed
form.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lo_framework.absorb.absorption import make_regularizer
from tests.regularizers.reg_tools import (
    NOISE,
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
    plain_loss,
    plus,
    quadratic_loss,
)

PARAMS, BATCH = mlp(6)
LANDSCAPE, LOSS, W = landscape_of(BATCH), plain_loss(PARAMS, BATCH), list(PARAMS.values())


def test_weight_decay() -> None:
    expected = grad(lambda w: LOSS(w) + 0.03 / 2 * inner(w, w), W)
    assert_close(field(make_regularizer("weight_decay:lam=0.03"), LANDSCAPE, PARAMS), expected)


def cubic_loss(params: Params, batch: tuple[Tensor, ...], noise: Tensor) -> Tensor:
    """Hessian diag(a w), trace <a, w>, whose gradient is a."""
    return (batch[0] * params["w"] ** 3).sum() / 6


@pytest.mark.parametrize("form", ["difference", "exact"])
def test_trace_of_a_cubic(form: str) -> None:
    """Signs make the trace of a diagonal Hessian exact, and the difference is exact for a cubic."""
    a, w = (
        torch.randn(7, generator=torch.Generator().manual_seed(s), dtype=torch.float64)
        for s in (0, 1)
    )
    made = correct(
        make_regularizer(f"hessian_trace:mu=0.3,form={form}"),
        landscape_of((a,), cubic_loss),
        {"w": w},
    )
    torch.testing.assert_close(made.rise, 0.3 * a @ w, rtol=1e-9, atol=0)
    torch.testing.assert_close(made.field["w"], 0.3 * a, rtol=1e-9, atol=0)


def test_trace_forms_differ_by_the_square_of_t() -> None:
    exact = correct(make_regularizer("hessian_trace:mu=1,form=exact"), LANDSCAPE, PARAMS).field
    errors = []
    for t in (0.04, 0.02):
        near = correct(make_regularizer(f"hessian_trace:mu=1,t={t}"), LANDSCAPE, PARAMS).field
        errors.append(length(plus(list(near.values()), list(exact.values()), -1.0)))
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)


def test_trace_is_a_quadratic_form_of_random_signs() -> None:
    """Different ones for every probe."""
    regularizer = make_regularizer("hessian_trace:mu=0.5,probes=3,form=exact")
    signs = list(regularizer._signs(LANDSCAPE, PARAMS))  # type: ignore[attr-defined]
    assert all((x.abs() == 1).all() for v in signs for x in v.values())
    assert len({tuple(torch.cat([x.flatten() for x in v.values()]).tolist()) for v in signs}) == 3

    def slow(w: Vectors) -> Tensor:
        slope = torch.autograd.grad(LOSS(w), w, create_graph=True)
        forms = []
        for v in signs:
            h_v = torch.autograd.grad(inner(slope, list(v.values())), w, create_graph=True)
            forms.append(inner(h_v, list(v.values())))
        return LOSS(w) + 0.5 * torch.stack(forms).mean()

    assert_close(field(regularizer, LANDSCAPE, PARAMS), grad(slow, W))


def test_trace_is_right_on_average() -> None:
    columns = []
    for i, x in enumerate(W):
        for j in range(x.numel()):
            unit = [torch.zeros_like(y) for y in W]
            unit[i].view(-1)[j] = 1
            columns.append(hessian_times(LOSS, W, unit)[i].flatten()[j])
    trace = torch.stack(columns).sum()
    regularizer = make_regularizer("hessian_trace:mu=1,probes=16")
    loss = LOSS(W)
    draws = torch.func.vmap(
        lambda n: regularizer.value(landscape_of(BATCH, noise=n), PARAMS) - loss
    )(torch.arange(64))
    assert abs(draws.mean() - trace) < 4 * draws.std() / 8


def noisy(spec: str, y: Tensor, noise: Tensor = NOISE) -> Tensor:
    """The targets that the loss gets to see."""
    seen = []

    def loss(params: Params, batch: tuple[Tensor, ...], noise: Tensor) -> Tensor:
        seen.append(batch[-1])
        return params["w"].sum()

    make_regularizer(spec).value(
        landscape_of((torch.zeros(()), y), loss, noise), {"w": torch.zeros(1)}
    )
    return seen[-1]


def test_label_noise_on_classes() -> None:
    y = torch.arange(40_000) % 5
    y[::7] = -100  # what cross_entropy ignores
    drawn = noisy("label_noise:p=0.3,classes=5", y)
    assert drawn.dtype == y.dtype and drawn.shape == y.shape
    assert torch.equal(drawn[y < 0], y[y < 0])
    kept, was = drawn[y >= 0], y[y >= 0]
    assert kept.min() == 0 and kept.max() == 4
    assert (kept != was).double().mean() == pytest.approx(0.3 * (1 - 1 / 5), abs=0.01)
    changed = torch.bincount(kept[(kept != was) & (was == 2)], minlength=5)
    assert changed[2] == 0 and changed[[0, 1, 3, 4]].double().std() < 0.15 * changed.double().mean()


def test_label_noise_follows_the_noise_alone() -> None:
    y = torch.arange(1000) % 10
    first, again = (noisy("label_noise", y) for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(first, noisy("label_noise", y, NOISE + 1))


def test_label_noise_on_a_regression() -> None:
    y = torch.linspace(-1, 1, 40_000)
    drawn = noisy("label_noise:sigma=0.2", y)
    off = (drawn - y).double()
    assert drawn.dtype == torch.float32 and drawn.isfinite().all()
    assert off.mean() == pytest.approx(0, abs=0.004) and off.std() == pytest.approx(0.2, abs=0.004)
    assert (off**4).mean() / off.var() ** 2 == pytest.approx(
        3, abs=0.2
    )  # the fourth moment of a normal


def test_label_noise_is_training_on_those_labels() -> None:
    spec = "label_noise:p=0.5,classes=3"
    wrong = noisy(spec, BATCH[1])
    assert not torch.equal(wrong, BATCH[1])
    expected = grad(plain_loss(PARAMS, (BATCH[0], wrong)), W)
    assert_close(field(make_regularizer(spec), LANDSCAPE, PARAMS), expected)


def test_label_noise_needs_targets() -> None:
    alone = landscape_of((torch.eye(2, dtype=torch.float64),), quadratic_loss)
    with pytest.raises(ValueError, match="needs batches of inputs and targets"):
        correct(make_regularizer("label_noise"), alone, {"w": torch.ones(2, dtype=torch.float64)})
