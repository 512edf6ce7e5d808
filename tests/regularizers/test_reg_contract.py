"""What every regularizer must keep: purity, vmap, no_grad, values that match corrections, costs,
finite at zero.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lo_framework.absorb.absorption import FunctionalLandscape, make_regularizer
from lo_framework.regularizers import REGULARIZERS, NoValue, Point, Regularizer
from tests.regularizers.reg_tools import (
    NOISE,
    Params,
    assert_close,
    at,
    correct,
    landscape_of,
    mlp,
    mlp_loss,
    quadratic_loss,
)

VARIANTS = [
    "gsam:space=params",
    "gam:exact=0",
    "gam:exact=0,variant=reference",
    "fsam:average=old",
    "hessian_trace:form=exact,probes=2",
    "sam+weight_decay+label_noise:classes=3",
    "looksam+fsam+gsam:space=params",
]
SHIPPED = sorted(
    name
    for name, entry in REGULARIZERS.items()
    if entry.build.__module__.startswith("lo_framework.regularizers.")
)
ALL = [*(name if name != "label_noise" else "label_noise:classes=3" for name in SHIPPED), *VARIANTS]
WITH_VALUE = [spec for spec in ALL if make_regularizer(spec).has_value]


def tasks(count: int = 3) -> tuple[Params, tuple[Tensor, ...], Tensor]:
    """Parameters, batches and noise of several tasks, stacked."""
    made = [mlp(seed) for seed in range(count)]
    params = {name: torch.stack([p[name] for p, _ in made]) for name in made[0][0]}
    return (
        params,
        tuple(torch.stack(part) for part in zip(*(b for _, b in made))),
        NOISE + torch.arange(count),
    )


def one(stacked: Params, k: int) -> Params:
    return {name: x[k] for name, x in stacked.items()}


def test_all_that_the_room_promises_is_there() -> None:
    sams = "asam even_asam even_sam fsam gam gradient_norm gsam"
    promised = f"{sams} hessian_trace label_noise looksam s2sam sam weight_decay"
    assert promised.split() == SHIPPED


@pytest.mark.parametrize("spec", WITH_VALUE)
def test_gradient_of_value_is_the_field(spec: str) -> None:
    regularizer, (params, batch) = make_regularizer(spec), mlp()
    landscape = landscape_of(batch)
    here = at(landscape, params)
    made = regularizer.correction(landscape, here, regularizer.init_state(params))
    expected = {name: here.grad[name] + made.field[name] for name in params}

    functional, value = torch.func.grad_and_value(lambda p: regularizer.value(landscape, p))(params)
    assert_close(functional, expected)
    assert made.rise is not None
    torch.testing.assert_close(value, here.loss + made.rise, rtol=1e-12, atol=1e-12)

    leaves = {name: x.clone().requires_grad_() for name, x in params.items()}
    plain = torch.autograd.grad(regularizer.value(landscape, leaves), list(leaves.values()))
    assert_close(list(plain), list(expected.values()))


@pytest.mark.parametrize("spec", WITH_VALUE)
def test_attached_value_has_its_true_gradient(spec: str) -> None:
    regularizer, (params, batch) = make_regularizer(spec), mlp(1)
    landscape = landscape_of(batch)

    def value(p: Params) -> Tensor:
        return regularizer.value(landscape, p, attached=True)

    functional = torch.func.grad(value)(params)
    leaves = {name: x.clone().requires_grad_() for name, x in params.items()}
    assert_close(
        list(torch.autograd.grad(value(leaves), list(leaves.values()))), list(functional.values())
    )

    generator = torch.Generator().manual_seed(2)
    direction = {
        name: torch.randn(x.shape, generator=generator, dtype=x.dtype) for name, x in params.items()
    }
    ahead, behind = (
        {name: x + h * direction[name] for name, x in params.items()} for h in (1e-5, -1e-5)
    )
    slope = (value(ahead) - value(behind)) / 2e-5
    torch.testing.assert_close(
        slope, sum((functional[n] * direction[n]).sum() for n in params), rtol=1e-6, atol=1e-8
    )
    assert torch.equal(value(params).detach(), regularizer.value(landscape, params).detach())


@pytest.mark.parametrize("spec", [spec for spec in ALL if spec not in WITH_VALUE])
def test_a_field_without_a_scalar_says_so(spec: str) -> None:
    regularizer, (params, batch) = make_regularizer(spec), mlp()
    assert correct(regularizer, landscape_of(batch), params).rise is None
    with pytest.raises(NoValue, match="is a field without a scalar value"):
        regularizer.value(landscape_of(batch), params)


def walk(
    regularizer: Regularizer, params: Params, batch: tuple[Tensor, ...], noise: Tensor
) -> tuple[Params, Params]:
    """Three steps of descent with corrections: where it ends, and the state there."""
    state = regularizer.init_state(params)
    for step in range(3):
        landscape = landscape_of((batch[0].roll(step, -2), batch[1]), noise=noise + step)
        here = at(landscape, params)
        made = regularizer.correction(landscape, here, state)
        params = {
            name: x - 0.1 * (here.grad[name] + made.field[name]) for name, x in params.items()
        }
        state = made.state
    return params, state


@pytest.mark.parametrize("spec", ALL)
def test_vmapped_over_tasks_equals_a_loop(spec: str) -> None:
    regularizer, (params, batch, noise) = make_regularizer(spec), tasks()
    ends, states = torch.func.vmap(lambda p, b, n: walk(regularizer, p, b, n))(params, batch, noise)
    for k in range(len(noise)):
        end, state = walk(regularizer, one(params, k), tuple(x[k] for x in batch), noise[k])
        assert_close(one(ends, k), end, 1e-12)
        assert states.keys() == state.keys()
        for name, x in state.items():
            torch.testing.assert_close(states[name][k], x, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("spec", WITH_VALUE)
def test_vmapped_gradient_of_value_equals_a_loop(spec: str) -> None:
    regularizer, (params, batch, noise) = make_regularizer(spec), tasks(2)

    def slope(p: Params, b: tuple[Tensor, ...], n: Tensor) -> Params:
        return torch.func.grad(lambda q: regularizer.value(landscape_of(b, noise=n), q))(p)

    together = torch.func.vmap(slope)(params, batch, noise)
    for k in range(2):
        assert_close(
            one(together, k), slope(one(params, k), tuple(x[k] for x in batch), noise[k]), 1e-12
        )


@pytest.mark.parametrize("spec", ALL)
def test_pure_and_the_same_under_no_grad(spec: str) -> None:
    regularizer, (params, batch) = make_regularizer(spec), mlp()
    noise = NOISE.clone()
    landscape = landscape_of(batch, noise=noise)
    here = at(landscape, params)
    state = regularizer.correction(landscape, here, regularizer.init_state(params)).state
    given = [*params.values(), *here.grad.values(), here.loss, *state.values(), *batch, noise]
    before, generator = [x.clone() for x in given], torch.get_rng_state()

    first = regularizer.correction(landscape, here, state)
    with torch.no_grad():
        second = regularizer.correction(landscape, here, state)
        if regularizer.has_value:
            assert not regularizer.value(landscape, params).requires_grad
    if regularizer.has_value:
        regularizer.value(landscape, params, attached=True)

    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(a, b) for a, b in zip(given, before))
    assert all(torch.equal(first.field[name], second.field[name]) for name in params)
    assert not any(x.requires_grad for x in [*first.field.values(), *first.state.values()])


@pytest.mark.parametrize("spec", ALL)
def test_shapes_and_types(spec: str) -> None:
    regularizer, (params, batch) = make_regularizer(spec), mlp(dtype=torch.float32)
    state = regularizer.init_state(params)
    made = regularizer.correction(landscape_of(batch), at(landscape_of(batch), params), state)
    assert {n: (x.shape, x.dtype) for n, x in made.field.items()} == {
        n: (x.shape, x.dtype) for n, x in params.items()
    }
    assert [(n, x.shape, x.dtype) for n, x in made.state.items()] == [
        (n, x.shape, x.dtype) for n, x in state.items()
    ]
    assert made.rise is None or (made.rise.shape == () and made.rise.dtype == torch.float32)
    assert (made.rise is not None) == regularizer.has_value


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("spec", ALL)
def test_finite_where_the_gradient_is_zero(spec: str, dtype: torch.dtype) -> None:
    regularizer, (params, batch) = make_regularizer(spec), mlp(dtype=dtype)
    flat = landscape_of(batch, lambda p, b, n: 0.0 * mlp_loss(p, b, n))
    for start in (params, {name: torch.zeros_like(x) for name, x in params.items()}):
        made = correct(regularizer, flat, start)
        later = regularizer.correction(flat, at(flat, start), made.state)
        results = [*made.field.values(), *later.field.values(), *later.state.values()]
        if regularizer.has_value:
            for attached in (False, True):
                results += torch.func.grad(
                    lambda p, a=attached: regularizer.value(flat, p, attached=a)
                )(start).values()
        assert all(x.isfinite().all() for x in results)


@pytest.mark.parametrize("spec", [spec for spec in ALL if "label_noise" not in spec])
def test_finite_in_a_minimum(spec: str) -> None:
    regularizer = make_regularizer(spec)
    bowl = landscape_of((torch.eye(6, dtype=torch.float64),), quadratic_loss)
    made = correct(regularizer, bowl, {"w": torch.zeros(6, dtype=torch.float64)})
    assert made.field["w"].isfinite().all()


class Counting(FunctionalLandscape):
    """Counts the evaluations that a correction asks for."""

    def __init__(self, inner: FunctionalLandscape) -> None:
        super().__init__(inner.loss_fn, inner.batch, inner.noise)
        self.gradients = self.hvps = 0

    def gradient(self, params: Params) -> tuple[Tensor, Params]:
        self.gradients += 1
        return super().gradient(params)

    def hvp(self, params: Params, direction: Params) -> Params:
        self.hvps += 1
        return super().hvp(params, direction)


def counted(regularizer: Regularizer, call: Callable[[Counting, Point], object]) -> tuple[int, int]:
    params, batch = mlp()
    landscape = Counting(landscape_of(batch))
    call(landscape, at(landscape_of(batch), params))
    return landscape.gradients, landscape.hvps


# label_noise evaluates another landscape; hessian_trace differentiates gradients; looksam here
# never skips.
@pytest.mark.parametrize(
    "spec", [s for s in ALL if not any(n in s for n in ("label", "trace", "looksam"))]
)
def test_cost_is_what_a_correction_evaluates(spec: str) -> None:
    regularizer = make_regularizer(spec)
    state = regularizer.init_state(mlp()[0])
    gradients, hvps = counted(
        regularizer, lambda landscape, here: regularizer.correction(landscape, here, state)
    )
    plain = not regularizer.is_ahead  # which does without the plain gradient
    assert regularizer.cost == (plain + gradients, hvps)
    assert regularizer.needs_hvp == (hvps > 0)


def test_cost_of_those_that_are_not_counted_like_this() -> None:
    assert make_regularizer("looksam:k=4").cost == (1.25, 0)
    assert make_regularizer("label_noise").cost == (2, 0)
    assert make_regularizer("hessian_trace:probes=3").cost == (1, 6)
    assert make_regularizer("sam+weight_decay+gam").cost == (3, 2)
    assert make_regularizer("sam+s2sam+looksam").cost == (4, 0)
    assert make_regularizer("s2sam").unrolled_cost == make_regularizer("looksam").unrolled_cost
    assert make_regularizer("gam").cost.total == 8
