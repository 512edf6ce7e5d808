"""Sharpness over minibatches and on average over random perturbations.

Both in a `Ball`, so plain or adaptive. Andriushchenko et al. 2023 (arXiv 2302.07011) compare all of
them: none tracks generalisation by itself, so they are to be read beside the test accuracy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lo_framework.eval.sharpness.ascent import QUICK, Effort, neighbourhoods
from lo_framework.eval.sharpness.ball import Ball
from lo_framework.eval.sharpness.surface import Surface
from lo_framework.spec import UserError

_AT_ONCE = 16  # perturbations drawn at a time: [16, N] numbers


@dataclass(frozen=True, kw_only=True)
class Mean:
    """An estimate with its standard error; ``stderr`` is nan for ``n = 1``."""

    value: float
    stderr: float
    n: int

    @staticmethod
    def of(values: Tensor) -> Mean:
        """Return the mean of independent ``values [n]``."""
        n = len(values)
        spread = float(values.std()) if n > 1 else math.nan
        return Mean(value=float(values.mean()), stderr=spread / math.sqrt(n), n=n)


def m_sharpness(
    surface: Surface,
    m: int,
    rho: float,
    ball: Ball | None = None,
    effort: Effort = QUICK,
    *,
    seed: int = 0,
) -> Mean:
    """Estimate ``S_m(rho) = mean over batches B of m rows of max L_B(w + d) - L_B(w)`` (Foret et
    al. 2021, section 3).

    Weighted by batch size; the standard error is that of the batches. Each batch has a maximiser of
    its own, so smaller m gives larger values: always state m.

    Raises:
        UserError: m is not between 1 and the rows of the sample.
    """
    if not 1 <= m <= surface.rows:
        raise UserError(
            f"m-sharpness: m must be between 1 and the {surface.rows} rows of the sample, not {m}"
        )
    ball = ball or Ball.of(surface)
    pairs = [
        (w, neighbourhoods(b, [rho], ball, effort, norms=False)[0].gap)
        for w, b in surface.batches(m, seed)
    ]
    weights, gaps = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    value = float(weights @ gaps)
    n = len(gaps)
    # The spread of a weighted mean, corrected as that of n independent values; the plain formula
    # for equal weights.
    variance = float((weights**2 * (gaps - value) ** 2).sum()) * n / (n - 1) if n > 1 else math.nan
    return Mean(value=value, stderr=math.sqrt(variance), n=n)


def average_sharpness(
    surface: Surface, rho: float, ball: Ball | None = None, *, samples: int = 64, seed: int = 0
) -> Mean:
    """Estimate ``E L(w + rho c e) - L(w)`` with e standard normal; near w ``rho^2 / 2 sum_i c_i^2
    H_ii``. May be negative.

    From pairs ``+-e``, which cancel the gradient's part, usually most of the noise. ``samples``:
    pairs; each costs two losses. The ball gives c; its norm plays no part.

    Raises:
        FloatingPointError: a loss is not finite.
    """
    scale = rho * (ball or Ball.of(surface)).scale
    generator = torch.Generator().manual_seed(seed)
    rises = []
    for start in range(0, samples, _AT_ONCE):
        noise = torch.randn(
            min(_AT_ONCE, samples - start), surface.size, generator=generator, dtype=torch.float64
        )
        step = scale * noise.to(scale)
        losses = surface.losses(torch.cat([surface.params + step, surface.params - step])).double()
        rises.append(losses.reshape(2, -1).mean(0) - surface.loss_here.double())
    all_rises = torch.cat(rises)
    if not torch.isfinite(all_rises).all():
        raise FloatingPointError(f"average sharpness: the loss is not finite at rho = {rho:.4g}")
    return Mean.of(all_rises)
