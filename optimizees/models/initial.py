"""Layers that models share: how their parameters start, under which names, and a linear one."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from lo_framework.optimizees.task import Params


def lecun_normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Normal with std 1 / sqrt(fan in), fan in = all dimensions but the first (LeCun et al. 1998,
    section 4.6).
    """
    return torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))


def uniform(shape: tuple[int, ...], fan_in: int, generator: torch.Generator) -> Tensor:
    """Uniform on +-1 / sqrt(fan in), as nn.Linear and nn.Conv2d draw weights and biases."""
    return (torch.rand(shape, generator=generator) * 2 - 1) / math.sqrt(fan_in)


def layer(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Params:
    """Weight of `shape` and bias of a linear layer or a convolution, as torch draws them."""
    fan_in = math.prod(shape[1:])
    return {
        f"{name}.weight": uniform(shape, fan_in, generator),
        f"{name}.bias": uniform(shape[:1], fan_in, generator),
    }


def norm(name: str, width: int) -> Params:
    """Gain and bias of a normalisation that starts as the identity."""
    return {f"{name}.weight": torch.ones(width), f"{name}.bias": torch.zeros(width)}


def linear(x: Tensor, params: Params, name: str) -> Tensor:
    return F.linear(x, params[f"{name}.weight"], params[f"{name}.bias"])
