"""MetaAdamW's three terms of a meta-objective (arXiv 2605.04055), corrected; pure, without
knowledge of a task.

For one inner step theta -> theta', with training batches B1, B2 and a held-out batch Bval, and g1,
g2 the gradients at (theta; B1) and (theta'; B2), the paper has, over G groups of parameters ([.]:
no gradient),

    gradient       (1/G) sum_k [ lambda1_k |g2_k|^2 - lambda2_k cos(g1_k, g2_k) ]
    loss_decrease  L(theta'; Bval) - [L(theta; Bval)]
    gen_gap        | L - [L(Bval)] |

The first two are negative wherever they are good, and a weighting that divides a term by its own
size (homoscedastic uncertainty, see `weighting`) has no minimum there. So by default the cosine is
counted from its best value, as ``1 - cos``, which has the same derivative, and the decrease is a
ratio; ``published=True`` gives the paper's forms.
"""

from __future__ import annotations

import torch
from torch import Tensor

TERMS = ("gradient", "loss_decrease", "gen_gap")
TINY_LOSS = 1e-8  # a loss this small is as good as zero
TINY_SQUARE = 1e-20  # of a gradient's norm: below it there is no direction


def gradient_alignment(
    squares: Tensor,
    cosines: Tensor,
    flatness: Tensor | float,
    direction: Tensor | float,
    *,
    published: bool = False,
) -> Tensor:
    """Flatness of the next gradient and its agreement with this one, ``[...]``.

    ``squares``, ``cosines`` ``[..., G]``: ``|g2_k|^2`` and ``cos(g1_k, g2_k)``; ``flatness``,
    ``direction``: lambda1 and lambda2, numbers or ``[..., G]``.
    """
    turn = -cosines if published else 1 - cosines
    return (flatness * squares + direction * turn).mean(-1)


def cosine(dot: Tensor, square1: Tensor, square2: Tensor) -> Tensor:
    """Cosines from inner products and squared norms; 0, with zero derivative, where a vector is
    zero.
    """
    there = (square1 > TINY_SQUARE) & (square2 > TINY_SQUARE)
    one = torch.where(there, square1, 1.0)  # before the root: 0 * inf is not 0
    two = torch.where(there, square2, 1.0)
    return torch.where(there, dot * one.rsqrt() * two.rsqrt(), 0.0)


def loss_decrease(
    after: Tensor, before: Tensor, *, published: bool = False, tiny: float = TINY_LOSS
) -> Tensor:
    """The ratio ``after / [before]`` that a step leaves of a loss: below 1 is better. Published:
    the difference.

    A negative loss has no ratio: it is divided by its size, so that lower stays better.
    """
    before = before.detach()
    return after - before if published else after / before.abs().clamp_min(tiny)


def generalization_gap(train: Tensor, valid: Tensor) -> Tensor:
    """The gap ``|train - [valid]|``. Its derivative is that of ``train`` times its sign, 0 at 0.

    Both belong to the point after the step. (The released code takes both before it, where no
    optimizer can change them.) Where training is ahead of validation the derivative *raises* the
    training loss: it is a term beside others.
    """
    return (train - valid.detach()).abs()
