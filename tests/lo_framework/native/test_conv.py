"""The convolution kernel is torch's, to second derivatives; its table of neighbours both ways."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import vmap
from torch.nn import functional as F

from lo_framework.native import toolchain
from lo_framework.native.active import kernels
from lo_framework.optimizees.models.conv import conv3x3, gather_matrix, largest3x3

pytestmark = [
    pytest.mark.skipif(bool(toolchain.reason()), reason=toolchain.reason()),
    pytest.mark.usefixtures("vectors"),
]

K = 2
# channels in, height, width, channels out, rows, stride
CASES = [
    (1, 8, 8, 16, 64, 1),
    (3, 5, 7, 6, 37, 2),
    (4, 4, 4, 4, 70, 1),
    (5, 2, 3, 1, 1, 1),
    (2, 16, 16, 3, 16, 2),
]


def torchs(x: Tensor, w: Tensor, stride: int) -> Tensor:
    """torch's own, of [C, H, W, B]."""
    return F.conv2d(x.permute(3, 0, 1, 2), w, stride=stride, padding=1).permute(1, 2, 3, 0)


@pytest.mark.parametrize("case", CASES)
def test_convolution_and_its_derivatives(case: tuple[int, ...]) -> None:
    channels, height, width, out, rows, stride = case
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    x, w = drawn(K, channels, height, width, rows), drawn(K, out, channels, 3, 3)
    gather = gather_matrix(height, width, stride)
    results = []
    for double in (False, True):
        inputs = [t.double() if double else t for t in (x, w)]
        inputs = [t.clone().requires_grad_() for t in inputs]
        with kernels(not double):
            apply = (
                (lambda a, b: torchs(a, b, stride))
                if double
                else (lambda a, b: conv3x3(a, b, stride, gather))
            )
            y = vmap(apply)(*inputs)
            first = torch.autograd.grad(y, inputs, torch.sin(y), create_graph=True)
            second = torch.autograd.grad(sum(t.square().sum() for t in first), inputs)
        results.append((y, *first, *second))
    for found, wanted in zip(*results):
        scale = float(wanted.detach().abs().max())
        torch.testing.assert_close(found.double(), wanted, rtol=2e-5, atol=2e-5 * scale)


def test_weights_that_tasks_share() -> None:
    x, w = torch.randn(K, 2, 4, 4, 16), torch.randn(3, 2, 3, 3)
    with kernels(True):
        found = vmap(lambda a: conv3x3(a, w, 1, None))(x)
    wanted = torch.stack([torchs(a, w, 1) for a in x])
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_maximum_of_a_convolution_and_its_derivatives(case: tuple[int, ...]) -> None:
    channels, height, width, out, rows, stride = case
    if (height - 1) // stride < 1:
        return
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(K, channels, height, width, rows, generator=generator)
    w = torch.randn(K, out, channels, 3, 3, generator=generator)
    gather = gather_matrix(height, width, stride)
    results = []
    for native in (False, True):
        inputs = [t.clone().requires_grad_() for t in (x, w)]
        with kernels(native):
            y = vmap(lambda a, b: largest3x3(a, b, stride, gather))(*inputs)
            first = torch.autograd.grad(y, inputs, torch.sin(y), create_graph=True)
            second = torch.autograd.grad(sum(t.square().sum() for t in first), inputs)
        results.append((y, *first, *second))
    for plain, found in zip(*results):
        scale = float(plain.detach().abs().max())
        torch.testing.assert_close(found, plain, rtol=2e-5, atol=2e-5 * scale)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of its forward mode
@pytest.mark.parametrize("largest", [False, True])
def test_forward_mode_over_reverse_is_reverse_over_reverse(largest: bool) -> None:
    """A baseline of somebody's own, which evaluations run with kernels, may take it."""
    generator = torch.Generator().manual_seed(2)
    x, w, dx, dw = (
        torch.randn(shape, generator=generator)
        for shape in ((2, 6, 6, 20), (3, 2, 3, 3), (2, 6, 6, 20), (3, 2, 3, 3))
    )
    apply = largest3x3 if largest else conv3x3

    def gradients(*inputs: Tensor) -> tuple[Tensor, ...]:
        y = apply(*inputs, 1, None)
        return torch.autograd.grad(torch.sin(y).sum(), inputs, create_graph=True)

    with kernels(True), forward_ad.dual_level():
        duals = [forward_ad.make_dual(t.clone().requires_grad_(), d) for t, d in ((x, dx), (w, dw))]
        found = [forward_ad.unpack_dual(t).tangent for t in gradients(*duals)]
    with kernels(False):
        plain = [t.clone().requires_grad_() for t in (x, w)]
        along = sum((g * d).sum() for g, d in zip(gradients(*plain), (dx, dw)))
        wanted = torch.autograd.grad(along, plain)
    for a, b in zip(found, wanted):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_the_largest_is_chosen_as_torch_does() -> None:
    """The first of equal ones, and NaN before all."""
    x = torch.zeros(1, 1, 4, 4, 70)
    x[..., 1, 1, 3] = math.nan
    w = torch.zeros(1, 2, 1, 3, 3)
    w[..., 1, 1] = 1.0
    results = []
    for native in (False, True):
        a = x.clone().requires_grad_()
        with kernels(native):
            y = vmap(lambda a, b: largest3x3(a, b, 1, None))(a, w)
            results.append((y, torch.autograd.grad(y, a, torch.ones_like(y))[0]))
    for plain, found in zip(*results):
        torch.testing.assert_close(found, plain, equal_nan=True)
