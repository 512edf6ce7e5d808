"""``mlp``: a fully connected classifier. ``mlp-relu``: the same with ReLU."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lo_framework.optimizees.models.initial import lecun_normal, linear
from lo_framework.optimizees.registry import register_model
from lo_framework.optimizees.task import Buffers, Model, Params, Rows
from lo_framework.schema import Checked, Width

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "relu": F.relu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
}


@dataclass(frozen=True, kw_only=True)
class MLPConfig(Checked):
    """Options of ``mlp``.

    Attributes:
        hidden: widths of the hidden layers ("64x64"); "none" is multinomial logistic regression.
        act: what follows each hidden layer.
        batch: rows of one batch.
    """

    hidden: tuple[Width, ...] = (32,)
    act: Literal["sigmoid", "relu", "tanh", "gelu"] = "sigmoid"
    batch: Rows = 64


@dataclass(frozen=True, kw_only=True)
class MLPReluConfig(MLPConfig):
    """Options of ``mlp-relu``: those of ``mlp`` with another default."""

    act: Literal["sigmoid", "relu", "tanh", "gelu"] = "relu"


@register_model("mlp-relu", config=MLPReluConfig)
@register_model("mlp", config=MLPConfig)
class MLP(Model):
    """in -> hidden -> ... -> C. Parameters: "layers.0.weight" [out, in], "layers.0.bias", ..."""

    def __init__(self, config: MLPConfig, shape: tuple[int, ...], classes: int) -> None:
        self.widths = (math.prod(shape), *config.hidden, classes)
        self.act = ACTIVATIONS[config.act]

    def init(self, generator: torch.Generator) -> tuple[Params, Buffers]:
        """LeCun-normal weights, zero biases; no buffers."""
        params: Params = {}
        for i, (fan_in, fan_out) in enumerate(zip(self.widths[:-1], self.widths[1:], strict=True)):
            params[f"layers.{i}.weight"] = lecun_normal((fan_out, fan_in), generator)
            params[f"layers.{i}.bias"] = torch.zeros(fan_out)
        return params, {}

    def apply(
        self, params: Params, buffers: Buffers, x: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, Buffers]:
        """Logits [B, C] for images `x` of any shape [B, ...] with as many numbers as there are
        inputs.
        """
        x = x.flatten(1)
        for i in range(len(self.widths) - 1):
            x = linear(self.act(x) if i else x, params, f"layers.{i}")
        return x, buffers
