"""Orthogonalised directions: the nearest matrix with equal singular values, by Newton-Schulz
iterations (Jordan et al. 2024, Muon).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lo_framework.layout import Layout, Slot
from lo_framework.native.operators import levels, over_vmaps
from lo_framework.roles import LAYERS

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration
LEAST = 8  # on its shorter side, for a matrix of which it is worth it
TINY = 1e-20  # the derivative of its inverse root is finite in float32


STEPS = 5


def newton_schulz(x: Tensor, steps: int = STEPS) -> Tensor:
    """Matrices ``[..., a, b]`` with the singular vectors of ``x`` and singular values near one."""
    tall = x.shape[-2] > x.shape[-1]
    y = x.mT if tall else x
    y = y * torch.rsqrt((y * y).sum((-2, -1), keepdim=True) + TINY)
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        gram = y @ y.mT
        y = a * y + (b * gram + c * (gram @ gram)) @ y
    return y.mT if tall else y


def turned(x: Tensor, share: Tensor) -> Tensor:
    """``x [..., a, b]``, orthogonal as far as ``share [..., 1, 1]`` says, at the root mean square
    that it had: the definition of `_Turned`.
    """
    y = newton_schulz(x)
    y = y * torch.sqrt(_mean(x * x) + TINY) * torch.rsqrt(_mean(y * y) + TINY)
    return x + share * (y - x)


def _mean(x: Tensor) -> Tensor:
    return x.mean((-2, -1), keepdim=True)


class _Turned(torch.autograd.Function):
    """`turned` for ``x [K, a, b]``, a <= b, with its derivative in a third of the operations; of an
    iteration nothing is kept.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, share: Tensor) -> Tensor:
        ctx.save_for_backward(x, share)
        *_, y = _iterates(x)[0]
        size, inverse = torch.sqrt(_mean(x * x) + TINY), torch.rsqrt(_mean(y * y) + TINY)
        return torch.addcmul(x, share, y * (size * inverse) - x)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, share = ctx.saved_tensors
        if torch.is_grad_enabled():  # somebody wants a derivative of this derivative
            given = x.view_as(x), share.view_as(share)  # whatever the one has to do with the other
            wanted = [t for t in given if t.requires_grad]  # a share may be a constant
            made = iter(torch.autograd.grad(turned(*given), wanted, d, create_graph=True))
            dx, dshare = (next(made) if t.requires_grad else None for t in given)
            return dx, dshare
        ys, polynomials, root = _iterates(x)
        y = ys[-1]
        size, inverse = torch.sqrt(_mean(x * x) + TINY), torch.rsqrt(_mean(y * y) + TINY)
        dshare = (d * (y * (size * inverse) - x)).sum((-2, -1), keepdim=True)
        dz = share * d
        inner = _mean(dz * y)
        dx = (1.0 - share) * d + (inner * inverse / size) * x
        dy = size * inverse * (dz - (inner * inverse * inverse) * y)
        a, b, c = COEFFICIENTS
        for y, (gram, polynomial) in zip(ys[-2::-1], polynomials[::-1]):
            outer = dy @ y.mT
            dy = torch.baddbmm(dy, polynomial, dy, beta=a)
            dgram = torch.baddbmm(outer, outer, gram, beta=b, alpha=c)
            dgram = torch.baddbmm(dgram, gram, outer, alpha=c)
            dy = torch.baddbmm(dy, dgram + dgram.mT, y)
        along = (dy * x).sum((-2, -1), keepdim=True)
        return dx + root * (dy - (along * root * root) * x), dshare


def _iterates(x: Tensor) -> tuple[list[Tensor], list[tuple[Tensor, Tensor]], Tensor]:
    """All ``y``, the first included; the Gram matrix and the polynomial of each iteration; and what
    ``x`` is multiplied by at the start.
    """
    a, b, c = COEFFICIENTS
    root = torch.rsqrt((x * x).sum((-2, -1), keepdim=True) + TINY)
    ys, polynomials = [x * root], []
    for _ in range(STEPS):
        gram = ys[-1] @ ys[-1].mT
        polynomials.append((gram, torch.baddbmm(gram, gram, gram, beta=b, alpha=c)))
        ys.append(torch.baddbmm(ys[-1], polynomials[-1][1], ys[-1], beta=a))
    return ys, polynomials, root


def is_wide(slot: Slot, least: int = LEAST) -> bool:
    """Whether the tensor is orthogonalised, a convolution as outputs by the rest: its shorter side
    is at least ``least``.
    """
    if slot.role not in LAYERS:
        return False
    return min(slot.shape[0], slot.numel // slot.shape[0]) >= least


def orthogonalised(layout: Layout, direction: Tensor, share: Tensor, least: int = LEAST) -> Tensor:
    """``direction [N]``, in its matrices (`is_wide`) orthogonal as far as ``share [S]`` says. Each
    tensor has the root mean square that it had.

    A matrix of which only shards lie here is gathered first, by one call between processes (4 bytes
    a number), and every process makes the whole of it and keeps its part.
    """
    plain = set(levels()) - {"vmap"}
    parts = list(direction.split(layout.sizes, dim=-1))
    for i, slot in enumerate(layout.slots):
        if is_wide(slot, least):
            x = layout.gathered(i, parts[i]).reshape(slot.shape[0], -1)
            tall = x.shape[0] > x.shape[1]
            x = x.mT if tall else x
            given = x, share[i].reshape(1, 1)
            y = turned(*given) if plain else over_vmaps(lambda *k: (_Turned.apply(*k),), given)[0]
            parts[i] = layout.kept(i, y.mT if tall else y)
    return torch.cat(parts, dim=-1)
