"""The batch-last formulations against torch's own: values, first and second derivatives, odd sizes,
ties, vmap.
"""

import pytest
import torch
from torch.func import grad, vjp, vmap
from torch.nn import functional as F

from lo_framework.optimizees.models.conv import conv3x3, gather_matrix, pool2


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def last(x):
    """[B, C, H, W] as [C, H, W, B]."""
    return x.permute(1, 2, 3, 0)


def first(x):
    """[C, H, W, B] as [B, C, H, W]."""
    return x.permute(3, 0, 1, 2)


def assert_same_to_second_order(ours, reference, *inputs):
    """Values, the vector-Jacobian product, and the gradient of its squared norm."""
    want, back = vjp(reference, *inputs)
    cotangent = draw(*want.shape, seed=99)

    def second(f):
        def norm(*args):
            return sum((g**2).sum() for g in vjp(f, *args)[1](cotangent)) + f(*args).pow(3).sum()

        return grad(norm, argnums=tuple(range(len(inputs))))(*inputs)

    torch.testing.assert_close(ours(*inputs), want)
    torch.testing.assert_close(vjp(ours, *inputs)[1](cotangent), back(cotangent))
    torch.testing.assert_close(second(ours), second(reference))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [(1, 1), (2, 2), (5, 4), (8, 8), (7, 7), (9, 11)])
def test_conv(side, stride):
    gather = gather_matrix(*side, stride)
    assert (gather is None) == (side == (9, 11))
    assert_same_to_second_order(
        lambda x, w: first(conv3x3(last(x), w, stride, gather)),
        lambda x, w: F.conv2d(x, w, padding=1, stride=stride),
        draw(3, 2, *side),
        draw(5, 2, 3, 3, seed=1),
    )


@pytest.mark.parametrize(("kind", "reference"), [("max", F.max_pool2d), ("avg", F.avg_pool2d)])
@pytest.mark.parametrize("side", [(2, 2), (8, 8), (5, 7)])
def test_pool(kind, reference, side):
    for x in (draw(3, 4, *side), draw(3, 4, *side).round()):  # rounded numbers are full of ties
        assert_same_to_second_order(
            lambda v: first(pool2(last(v), kind)), lambda v: reference(v, 2), x
        )


def test_vmapped_block_equals_a_loop_over_torch():
    x, w = draw(4, 6, 2, 8, 8), draw(4, 5, 2, 3, 3, seed=1)
    gather = gather_matrix(8, 8, 1)

    def ours(x, w):
        return first(pool2(conv3x3(last(x), w, 1, gather), "max")).pow(3).sum()

    def reference(x, w):
        return F.max_pool2d(F.conv2d(x, w, padding=1), 2).pow(3).sum()

    def norm_of_grad(f):
        return lambda x, w: sum((g**2).sum() for g in grad(f, argnums=(0, 1))(x, w))

    for transform in (
        lambda f: f,
        lambda f: grad(f, argnums=(0, 1)),
        lambda f: grad(norm_of_grad(f), argnums=(0, 1)),
    ):
        got = vmap(transform(ours))(x, w)
        want = [transform(reference)(x[k], w[k]) for k in range(4)]
        if isinstance(got, tuple):
            torch.testing.assert_close(got, tuple(torch.stack(parts) for parts in zip(*want)))
        else:
            torch.testing.assert_close(got, torch.stack(want))
