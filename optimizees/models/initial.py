"""Layers that models share: how their parameters start, under which names, and a linear one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lo_framework.optimizees.task import Params
from lo_framework.schema import Range


@dataclass(frozen=True, kw_only=True)
class StartOptions:
    """Options of a model about how its layers start.

    Attributes:
        init: how weights and biases of layers are drawn: as the model does by default, uniformly
            on +-1 / sqrt(fan in) as torch does, or LeCun-normal with zero biases.
        spread: every weight is then multiplied by a number of its own, log-uniform in
            [1 / spread, spread].
        zero_last: the last layer starts at zero.
    """

    init: Literal["default", "torch", "lecun"] = "default"
    spread: Annotated[float, Range(low=1, high=1e3)] = 1.0
    zero_last: bool = False


def restarted(params: Params, options: StartOptions, generator: torch.Generator) -> Params:
    """`params` as a model draws them by default, with the layers that `options` change."""
    params = dict(params)
    layers = [
        name.removesuffix(".weight")
        for name, x in params.items()
        if x.dim() >= 2 and f"{name.removesuffix('weight')}bias" in params  # not an embedding
    ]
    for name in layers:
        shape = tuple(params[f"{name}.weight"].shape)
        if options.init != "default":
            params |= (layer if options.init == "torch" else lecun_layer)(name, shape, generator)
        if options.spread > 1:
            power = torch.rand((), generator=generator) * 2 - 1
            params[f"{name}.weight"] = params[f"{name}.weight"] * options.spread**power
    if options.zero_last:
        for kind in ("weight", "bias"):
            params[f"{layers[-1]}.{kind}"] = torch.zeros_like(params[f"{layers[-1]}.{kind}"])
    return params


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


def lecun_layer(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Params:
    """Weight of `shape`, LeCun-normal, and zero bias."""
    return {
        f"{name}.weight": lecun_normal(shape, generator),
        f"{name}.bias": torch.zeros(shape[0]),
    }


def norm(name: str, width: int) -> Params:
    """Gain and bias of a normalisation that starts as the identity."""
    return {f"{name}.weight": torch.ones(width), f"{name}.bias": torch.zeros(width)}


def linear(x: Tensor, params: Params, name: str) -> Tensor:
    return F.linear(x, params[f"{name}.weight"], params[f"{name}.bias"])
