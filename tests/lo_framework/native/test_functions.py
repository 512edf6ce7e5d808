"""What kernels call: exp, log, tanh and sigmoid over all of float32; products of matrices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lo_framework.native import toolchain
from lo_framework.native.columns import columnwise, plain
from lo_framework.native.program import PROGRAMS, Program

pytestmark = [
    pytest.mark.skipif(bool(toolchain.reason()), reason=toolchain.reason()),
    pytest.mark.usefixtures("vectors"),
]

FUNCTIONS = {"exp": 3e-7, "log": 3e-7, "tanh": 4e-7, "sigmoid": 4e-7, "sqrt": 1e-7, "rsqrt": 3e-7}


def applied(name: str, x: Tensor) -> Tensor:
    def function(shared: object, channels: object, columns: list[Tensor]) -> tuple[list, list]:
        return [getattr(torch, name)(columns[0])], []

    program = Program(f"test {name}", function, (), 0, ((),))
    (made,), _ = columnwise(PROGRAMS[program.key], [], torch.zeros(0, 1), [x], [len(x)])
    return made


@pytest.mark.parametrize("name", FUNCTIONS)
def test_within_a_few_roundings(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    exponents = torch.rand(20_000, generator=generator) * 80 - 40
    size = torch.exp2(exponents)
    x = size if name in ("log", "sqrt", "rsqrt") else torch.cat([size, -size])
    x = (
        torch.cat([x, torch.linspace(-100, 100, 9_999)])
        if name in ("exp", "tanh", "sigmoid")
        else x
    )
    wanted = getattr(torch, name)(x.double())
    found = applied(name, x).double()
    kept = wanted.abs() > 1e-37  # below, numbers have fewer digits
    inside = kept & (wanted.abs() < 3e38)
    error = ((found - wanted) / wanted)[inside].abs().max()
    assert error < FUNCTIONS[name]
    if name == "exp":
        torch.testing.assert_close(found[~kept], wanted[~kept], rtol=0, atol=1e-37)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_ends_of_the_line(name: str) -> None:
    x = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, -1.0, 1e-40, 200.0, -200.0])
    wanted, found = getattr(torch, name)(x), applied(name, x)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-37, equal_nan=True)


@pytest.mark.parametrize("n", [1, 15, 16, 17, 63, 64, 65, 200])
def test_nothing_is_written_beside_a_row(n: int) -> None:
    def function(shared: object, channels: object, columns: list[Tensor]) -> tuple[list, list]:
        return [columns[0] + 1.0], [columns[0][None]]

    program = Program("test beside", function, (), 0, ((),))
    x = torch.arange(n, dtype=torch.float32)
    (made,), (mean,) = columnwise(PROGRAMS[program.key], [], torch.zeros(0, 1), [x], [n])
    assert torch.equal(made, x + 1)
    torch.testing.assert_close(mean[0, 0], x.mean())


@pytest.mark.parametrize(("out", "width"), [(8, 6), (7, 5), (3, 1)])
def test_products_and_their_derivatives(out: int, width: int) -> None:
    """Of whole tiles of rows and of what is left, over tensors that end anywhere in a block."""
    sizes, generator = [70, 1, 129], torch.Generator().manual_seed(0)

    def function(
        shared: list[Tensor], channels: Tensor, columns: list[Tensor]
    ) -> tuple[list, list]:
        y = shared[0] @ columns[0]
        return [y], [y * y]

    program = Program(f"test {out} x {width}", function, ((out, width),), 0, ((width,),))
    w = torch.randn(out, width, generator=generator)
    x = torch.randn(width, sum(sizes), generator=generator)
    results = []
    for double in (False, True):
        given = [t.double() if double else t for t in (w, x)]
        given = [t.clone().requires_grad_() for t in given]
        way = plain if double else columnwise
        what = program.function if double else PROGRAMS[program.key]
        (y,), (means,) = way(what, given[:1], given[0].new_zeros(0, 3), given[1:], sizes)
        grads = torch.autograd.grad(torch.sin(y).sum() + means.square().sum(), given)
        results.append([y, means, *grads])
    for found, wanted in zip(*results):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
