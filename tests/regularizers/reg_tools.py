"""A small classifier and a quadratic in float64, as landscapes and in plain autograd over lists of
tensors.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lo_framework.absorb.absorption import FunctionalLandscape, LossFn
from lo_framework.regularizers import Correction, Point, Regularizer

Params = dict[str, Tensor]
Vectors = list[Tensor]
NOISE = torch.tensor(1234567890123)


def mlp_loss(params: Params, batch: tuple[Tensor, ...], noise: Tensor) -> Tensor:
    """4 inputs, 5 tanh units, 3 classes: 43 parameters."""
    x, y = batch
    hidden = torch.tanh(x @ params["1.weight"].T + params["1.bias"])
    return cross_entropy(hidden @ params["2.weight"].T + params["2.bias"], y)


def quadratic_loss(params: Params, batch: tuple[Tensor, ...], noise: Tensor) -> Tensor:
    """w^T H w / 2 with H = batch[0]."""
    w = params["w"]
    return 0.5 * w @ batch[0] @ w


def mlp(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Params, tuple[Tensor, Tensor]]:
    """Parameters and a batch of 16."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"1.weight": (5, 4), "1.bias": (5,), "2.weight": (3, 5), "2.bias": (3,)}
    params = {
        name: torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()
    }
    x = torch.randn(16, 4, generator=generator, dtype=dtype)
    return params, (x, torch.randint(3, (16,), generator=generator))


def landscape_of(
    batch: tuple[Tensor, ...], loss_fn: LossFn = mlp_loss, noise: Tensor = NOISE
) -> FunctionalLandscape:
    return FunctionalLandscape(loss_fn, batch, noise)


def at(landscape: FunctionalLandscape, params: Params) -> Point:
    return Point(params, *landscape.gradient(params))


def correct(regularizer: Regularizer, landscape: FunctionalLandscape, params: Params) -> Correction:
    """The first correction at ``params``."""
    return regularizer.correction(landscape, at(landscape, params), regularizer.init_state(params))


def field(regularizer: Regularizer, landscape: FunctionalLandscape, params: Params) -> Vectors:
    """G there."""
    here = at(landscape, params)
    made = regularizer.correction(landscape, here, regularizer.init_state(params))
    return [here.grad[name] + made.field[name] for name in params]


def plain_loss(
    params: Params, batch: tuple[Tensor, ...], loss_fn: LossFn = mlp_loss
) -> Callable[[Vectors], Tensor]:
    """The same loss as a function of a list."""
    return lambda w: loss_fn(dict(zip(params, w)), batch, NOISE)


def grad(f: Callable[[Vectors], Tensor], w: Vectors) -> Vectors:
    """Plain reverse-mode gradient of f at w."""
    w = [x.detach().requires_grad_() for x in w]
    return list(torch.autograd.grad(f(w), w))


def hessian_times(f: Callable[[Vectors], Tensor], w: Vectors, v: Vectors) -> Vectors:
    """H v by differentiating <grad f, v>."""
    w = [x.detach().requires_grad_() for x in w]
    slope = torch.autograd.grad(f(w), w, create_graph=True)
    return list(torch.autograd.grad(inner(slope, v), w))


def inner(a: Vectors | tuple[Tensor, ...], b: Vectors) -> Tensor:
    return sum(((x * y).sum() for x, y in zip(a, b)), start=torch.zeros((), dtype=a[0].dtype))


def length(a: Vectors) -> Tensor:
    return inner(a, a).sqrt()


def plus(a: Vectors, b: Vectors, scale: Tensor | float = 1.0) -> Vectors:
    return [x + scale * y for x, y in zip(a, b)]


def normalized(a: Vectors) -> Vectors:
    return [x / length(a) for x in a]


def assert_close(a: Vectors | Params, b: Vectors | Params, tolerance: float = 1e-11) -> None:
    """Equal to ``tolerance`` of the length of b."""
    first, second = (list(v.values()) if isinstance(v, dict) else v for v in (a, b))
    off = length(plus(first, second, -1.0))
    assert off <= tolerance * max(float(length(second)), 1e-3), (
        f"off by {off:g} of {length(second):g}"
    )
