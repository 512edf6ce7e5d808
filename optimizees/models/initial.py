"""The initialisers that models share."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def lecun_normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Normal with std 1 / sqrt(fan in), fan in = all dimensions but the first (LeCun et al. 1998,
    section 4.6).
    """
    return torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))


def uniform(shape: tuple[int, ...], fan_in: int, generator: torch.Generator) -> Tensor:
    """Uniform on +-1 / sqrt(fan in), as nn.Linear and nn.Conv2d draw weights and biases."""
    return (torch.rand(shape, generator=generator) * 2 - 1) / math.sqrt(fan_in)
