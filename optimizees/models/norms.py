"""Batch and group normalisation with the statistics as values that go in and come out."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

EPS, MOMENTUM = 1e-5, 0.1
GROUPS = 8


def batch_norm(
    x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, var: Tensor, *, training: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Normalise `x` [B, C, H, W] per channel, as nn.BatchNorm2d; returns the output and the new running mean and var.

    Training normalises by the batch's biased variance and moves the running one by the unbiased, by MOMENTUM;
    evaluation uses the running values and returns them unchanged. Source: Ioffe & Szegedy 2015, algorithms 1 and 2.
    """
    new_mean, new_var = mean, var
    if training:
        var, mean = torch.var_mean(x, (0, 2, 3), correction=0)
        count = x.shape[0] * x.shape[2] * x.shape[3]
        new_mean = new_mean + MOMENTUM * (mean.detach() - new_mean)
        new_var = new_var + MOMENTUM * (var.detach() * (count / max(count - 1, 1)) - new_var)
    scale = weight * torch.rsqrt(var + EPS)
    shift = bias - mean * scale
    return x * scale[:, None, None] + shift[:, None, None], new_mean, new_var


def group_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Normalise `x` [B, C, H, W] per row over up to GROUPS groups of channels (Wu & He 2018)."""
    return F.group_norm(x, math.gcd(GROUPS, x.shape[1]), weight, bias, EPS)
