"""Scaling laws of step sizes, and piecewise-linear functions of time.

The step of a direction of known size falls with the fan-in of a layer, with the number of matrices
and with the horizon; the powers are meta-parameters within [0, 2] (Yang et al. 2022, Dey et al.
2025; measured here for plain nets: about .5 and 1.3).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lo_framework.learned.base import Clock, State

FAN, MATRICES, HORIZON = 64.0, 3.0, 200.0  # of the net and run for which a step is meant
POWERS = ("fan-in", "fan-in of the last layer", "fan-in of vectors", "matrices", "horizon")


def log_law(tensors: State, powers: Tensor, clock: Clock) -> Tensor:
    """Log of the step relative to that of the reference, ``[S]``, from `Layout.constants`; an
    unknown horizon is the reference's.
    """
    layer, output = tensors["is_layer"], tensors["is_output"]
    fan = layer * powers[0] + (1.0 - layer) * powers[2]
    fan = output * powers[1] + (1.0 - output) * fan
    known = torch.where(clock.horizon > 0, clock.horizon, HORIZON)
    law = -fan * torch.log(tensors["fans"] / FAN)
    law = law - powers[3] * torch.log(tensors["matrices"] / MATRICES)
    return law - powers[4] * torch.log(known / HORIZON)


def hats(knots: Tensor, at: Tensor) -> Tensor:
    """The weights of the knots in a piecewise-linear function at the point ``at``, constant beyond
    the last one: no branch, vmappable.
    """
    width = knots.diff()
    left, right = torch.cat([width[:1], width]), torch.cat([width, width[-1:]])
    d = at.clamp_max(knots[-1]) - knots
    return torch.where(d < 0, 1 + d / left, 1 - d / right).clamp_min(0)
