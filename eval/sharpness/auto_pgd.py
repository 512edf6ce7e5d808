"""Projected gradient ascent in a `Ball`, from several starts at once.

The ascent is normalised gradient ascent with the step schedule of Auto-PGD (Croce & Hein 2020,
arXiv 2003.01690): a restart whose last steps rose in fewer than 75% of the cases, or whose best has
not moved since the last check, goes on from its best point with half the step. It begins with steps
of twice the radius, as Andriushchenko et al. 2023 (arXiv 2302.07011) do. The customary 2.5 r / K
turns by at most 2.5 radians in all, whatever K: on a quadratic whose second eigenvalue is half the
first that leaves 30% of the second direction, steps of 2 r leave (2/3)^K.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from lo_framework.eval.sharpness.ball import Ball

# Points [K, N] to values [K] and slopes [K, N].
Evaluate = Callable[[Tensor], tuple[Tensor, Tensor]]


def ascend(
    evaluate: Evaluate, ball: Ball, z: Tensor, radius: float, steps: int, step: float = 2.0
) -> tuple[Tensor, Tensor]:
    """Auto-PGD without momentum from each row of ``z [K, N]``: the best values ``[K]`` and where,
    ``[K, N]``.

    Args:
        evaluate: z ``[K, N]`` to values ``[K]`` and slopes in the parameters ``[K, N]``.
        step: length of the first steps over the radius.

    Raises:
        FloatingPointError: a value or a slope is not finite.
    """
    eta = torch.full((len(z),), step * radius).to(z)
    best_value, best_z, best_slope = torch.full_like(eta, -math.inf), z, z
    last_value, best_at_check = best_value, best_value
    rises, since, halved = torch.zeros_like(eta), 0, torch.zeros_like(eta, dtype=torch.bool)
    checks = _checkpoints(steps)
    for k in range(steps + 1):
        value, slope = evaluate(z)
        if not (torch.isfinite(value).all() and torch.isfinite(slope).all()):
            raise FloatingPointError(f"the loss is not finite within the radius {radius:.4g}")
        better = value > best_value
        best_value = torch.where(better, value, best_value)
        best_z = torch.where(better[:, None], z, best_z)
        best_slope = torch.where(better[:, None], slope, best_slope)
        rises, since, last_value = rises + (value > last_value), since + 1, value
        if k in checks:
            halve = (rises < 0.75 * since) | (~halved & (best_value <= best_at_check))
            eta = torch.where(halve, eta / 2, eta)
            z = torch.where(halve[:, None], best_z, z)
            slope = torch.where(halve[:, None], best_slope, slope)
            last_value = torch.where(halve, best_value, last_value)
            best_at_check, halved, rises, since = best_value, halve, torch.zeros_like(rises), 0
        z = ball.project(z + eta[:, None] * ball.direction(slope), radius)
    return best_value, best_z


def _checkpoints(steps: int) -> set[int]:
    """When Auto-PGD looks at its progress: after 22% of the steps, then at intervals that shrink to
    6%.
    """
    before, now = 0.0, 0.22
    found = set()
    while now < 1:
        found.add(math.ceil(now * steps))
        before, now = now, now + max(now - before - 0.03, 0.06)
    return found - {0, steps}
