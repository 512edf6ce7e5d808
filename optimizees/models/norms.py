"""Batch and group normalisation as plain functions: statistics are values, never updated in place."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

EPS, MOMENTUM = 1e-5, 0.1
GROUPS = 8


def batch_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of `x` [B, C, ...] per channel, each [C]."""
    var, mean = torch.var_mean(x, [0, *range(2, x.dim())], correction=0)
    return mean, var


def normalise(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float = EPS
) -> Tensor:
    """``(x - mean) / sqrt(var + eps) * weight + bias`` per channel of `x` [B, C, ...] (Ioffe & Szegedy 2015)."""
    scale = torch.rsqrt(var + eps)
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    channels = (-1, *(1,) * (x.dim() - 2))
    return x * scale.reshape(channels) + shift.reshape(channels)


def moved(
    running: tuple[Tensor, Tensor], moments: tuple[Tensor, Tensor], count: int, momentum: float = MOMENTUM
) -> tuple[Tensor, Tensor]:
    """The running mean and variance after a batch of `count` numbers per channel with biased `moments`.

    The running variance is the unbiased one, as nn.BatchNorm's.
    """
    mean, var = moments[0].detach(), moments[1].detach() * (count / max(count - 1, 1))
    return running[0] + momentum * (mean - running[0]), running[1] + momentum * (var - running[1])


def group_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Normalise `x` [B, C, H, W] per row over up to GROUPS groups of channels (Wu & He 2018)."""
    return F.group_norm(x, math.gcd(GROUPS, x.shape[1]), weight, bias, EPS)
