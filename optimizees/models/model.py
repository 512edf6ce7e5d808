"""The contract of a functional model, and the initialisers that models share."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from lo_framework.optimizees.task import Buffers, Params


class Model(Protocol):
    """A network as two pure functions. Names and shapes of parameters are those of the like-built
    nn.Module.
    """

    def init(self, generator: torch.Generator) -> tuple[Params, Buffers]:
        """Fresh parameters and buffers, float32 on the CPU, drawn in a fixed order."""
        ...

    def to(self, device: torch.device | str) -> Model:
        """This model for parameters on `device`; constants that it holds are moved."""
        ...

    def apply(
        self, params: Params, buffers: Buffers, x: Tensor, *, training: bool
    ) -> tuple[Tensor, Buffers]:
        """Logits [B, C] for `x` [B, channels, height, width], and the new buffers."""
        ...


def lecun_normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Normal with std 1 / sqrt(fan in), fan in = all dimensions but the first (LeCun et al. 1998,
    section 4.6).
    """
    return torch.randn(shape, generator=generator) / math.sqrt(math.prod(shape[1:]))


def uniform(shape: tuple[int, ...], fan_in: int, generator: torch.Generator) -> Tensor:
    """Uniform on +-1 / sqrt(fan in): what nn.Linear and nn.Conv2d draw for weights and for biases."""
    return (torch.rand(shape, generator=generator) * 2 - 1) / math.sqrt(fan_in)
