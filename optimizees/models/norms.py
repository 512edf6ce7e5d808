"""Batch, group and layer normalisation as plain functions: statistics are values, never updated in
place.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

EPS, MOMENTUM = 1e-5, 0.1
GROUPS = 8

Moments = tuple[Tensor, Tensor]


def batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float = EPS
) -> tuple[Tensor, Moments]:
    """Normalise `x` [N, C, ...] per channel by the batch's own moments; also returns them (mean,
    biased var), each [C].

    Source: Ioffe & Szegedy 2015, algorithm 1. The moments carry no gradient: they are for running
    statistics only.
    """
    # torch's kernel returns the moments it used; computing them beside it takes as long as the rest
    # together.
    y, mean, inverse = torch.native_batch_norm(x, weight, bias, None, None, True, MOMENTUM, eps)
    return y, (mean.detach(), (inverse.detach() ** -2 - eps).clamp(min=0))


def normalise(
    x: Tensor, moments: Moments, weight: Tensor | None, bias: Tensor | None, eps: float = EPS
) -> Tensor:
    """``(x - mean) / sqrt(var + eps) * weight + bias`` for `x` [N, C, ...] with given (running)
    moments.
    """
    mean, var = moments
    scale = torch.rsqrt(var + eps)
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    channels = (-1, *(1,) * (x.dim() - 2))
    return x * scale.reshape(channels) + shift.reshape(channels)


def moved(running: Moments, moments: Moments, count: int, momentum: float = MOMENTUM) -> Moments:
    """The running mean and variance after a batch of `count` numbers per channel with biased
    `moments`.

    The running variance is the unbiased one, as nn.BatchNorm's.
    """
    mean, var = moments[0], moments[1] * (count / max(count - 1, 1))
    return running[0] + momentum * (mean - running[0]), running[1] + momentum * (var - running[1])


def group_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Normalise `x` [C, H, W, B] per row over up to GROUPS groups of channels (Wu & He 2018)."""
    channels, _, _, rows = x.shape
    groups = x.reshape(math.gcd(GROUPS, channels), -1, rows)  # [G, C / G * H * W, B]
    centred = groups - groups.mean(1, keepdim=True)
    inverse = torch.rsqrt(
        (centred * centred).mean(1) + EPS
    )  # [G, B]; var_mean takes twice as long here
    scale = (weight.reshape(len(groups), -1, 1) * inverse[:, None]).reshape(channels, 1, 1, rows)
    return centred.reshape(x.shape) * scale + bias[:, None, None, None]


def hat(x: Tensor) -> Tensor:
    """LayerNorm (Ba et al. 2016) of `x` [..., D] without gain and bias."""
    return F.layer_norm(x, x.shape[-1:])
