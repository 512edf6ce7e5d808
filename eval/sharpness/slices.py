"""Pictures of the loss: its values along lines and planes through a point.

Directions are random with filter normalisation (Li et al. 2018, arXiv 1712.09913), which makes
pictures of different networks comparable, or top eigenvectors of the Hessian: a random plane hides
the few sharp directions there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lo_framework.eval.sharpness.surface import Surface
from lo_framework.eval.statistics import Array
from lo_framework.layout import Layout
from lo_framework.spec import UserError

_AT_ONCE = 64  # points made at a time: [64, N] numbers
_XI = 1e-10


@dataclass(frozen=True, kw_only=True, eq=False)
class Slice:
    """A slice: ``losses`` at ``params + x * first (+ y * second)``; not finite where they overflow.

    ``x [X]`` and, for a plane, ``y [Y]``; ``losses`` is ``[X]`` or ``[Y, X]``.
    """

    x: Array
    y: Array | None
    losses: Array


def filter_normalised(layout: Layout, params: Tensor, seed: int) -> Tensor:
    """Return a random direction ``[N]``: Gaussian, each filter rescaled to the norm of the same
    filter of ``params [N]``.

    A filter is a row of a matrix or an output channel of a convolution, that is an index of the
    first axis. Tensors of one dimension or none (biases, norms) stay zero, as in the paper's code.

    Raises:
        UserError: there are no other tensors.
    """
    generator = torch.Generator().manual_seed(seed)
    weights, parts = layout.unflatten(params), {}
    for slot in layout.slots:
        weight = weights[slot.name]
        if len(slot.shape) < 2:
            parts[slot.name] = torch.zeros_like(weight)
            continue
        noise = torch.randn(slot.shape[0], slot.numel // slot.shape[0], generator=generator).to(
            weight
        )
        size = weight.reshape(slot.shape[0], -1).norm(dim=1, keepdim=True)
        parts[slot.name] = (noise * (size / (noise.norm(dim=1, keepdim=True) + _XI))).reshape(
            slot.shape
        )
    if not any(len(slot.shape) >= 2 for slot in layout.slots):
        raise UserError("filter normalisation: there are no matrices or filters, only vectors")
    return layout.flatten(parts)


def random_plane(layout: Layout, params: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Return two such directions; random ones in many dimensions are nearly orthogonal."""
    first, second = (filter_normalised(layout, params, 2 * seed + i) for i in range(2))
    return first, second


def loss_line(surface: Surface, direction: Tensor, x: Array) -> Slice:
    """Take losses along ``direction [N]``, in its own length: scale an eigenvector (length 1) by
    the radius that matters.
    """
    d = direction.to(surface.params)
    return Slice(x=x, y=None, losses=_losses(surface, d[None], np.asarray(x)[:, None]))


def loss_plane(
    surface: Surface, first: Tensor, second: Tensor, x: Array, y: Array | None = None
) -> Slice:
    """Take losses on the plane of two directions ``[N]``; ``y`` like ``x`` by default."""
    y = x if y is None else y
    basis = torch.stack([first, second]).to(surface.params)
    grid = np.stack(np.meshgrid(x, y), axis=-1)  # [Y, X, 2]
    losses = _losses(surface, basis, grid.reshape(-1, 2))
    return Slice(x=x, y=y, losses=losses.reshape(len(y), len(x)))


def _losses(surface: Surface, basis: Tensor, at: Array) -> Array:
    """Losses ``[P]`` at ``params + at [P, D] @ basis [D, N]``."""
    steps = torch.from_numpy(np.ascontiguousarray(at)).to(surface.params)
    parts = [surface.losses(surface.params + some @ basis) for some in steps.split(_AT_ONCE)]
    return torch.cat(parts).double().cpu().numpy()
