"""Orthogonalised directions: the nearest matrix with equal singular values, by Newton-Schulz
iterations (Jordan et al. 2024, Muon).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lo_framework.layout import Layout, Slot
from lo_framework.roles import LAYERS

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration
LEAST = 8  # on its shorter side, for a matrix of which it is worth it
TINY = 1e-20  # the derivative of its inverse root is finite in float32


def newton_schulz(x: Tensor, steps: int = 5) -> Tensor:
    """A matrix ``[a, b]`` with the singular vectors of ``x`` and singular values near one."""
    tall = x.shape[0] > x.shape[1]
    y = x.mT if tall else x
    y = y * torch.rsqrt((y * y).sum() + TINY)
    a, b, c = COEFFICIENTS
    for _ in range(steps):
        gram = y @ y.mT
        y = a * y + (b * gram + c * (gram @ gram)) @ y
    return y.mT if tall else y


def is_wide(slot: Slot) -> bool:
    """Whether the tensor is orthogonalised, a convolution as outputs by the rest."""
    if slot.role not in LAYERS:
        return False
    return min(slot.shape[0], slot.numel // slot.shape[0]) >= LEAST


def orthogonalised(layout: Layout, direction: Tensor, share: Tensor) -> Tensor:
    """``direction [N]``, in its matrices orthogonal as far as ``share [S]`` says. Each tensor has
    the root mean square that it had.
    """
    parts = list(direction.split(layout.sizes, dim=-1))
    for i, slot in enumerate(layout.slots):
        if is_wide(slot):
            x = parts[i]
            y = newton_schulz(x.reshape(slot.shape[0], -1)).reshape(-1)
            y = y * torch.sqrt((x * x).mean() + TINY) * torch.rsqrt((y * y).mean() + TINY)
            parts[i] = x + share[i] * (y - x)
    return torch.cat(parts, dim=-1)
