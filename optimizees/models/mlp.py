"""``mlp``: a fully connected network, plain or residual. ``mlp-relu``: the same with ReLU."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lo_framework.optimizees.models.initial import (
    StartOptions,
    lecun_layer,
    linear,
    norm,
    restarted,
)
from lo_framework.optimizees.models.norms import hat
from lo_framework.optimizees.ranges import Repeating
from lo_framework.optimizees.registry import register_model
from lo_framework.optimizees.task import Buffers, Model, Params, Rows
from lo_framework.schema import Layers, Width

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sigmoid": torch.sigmoid,
    "relu": F.relu,
    "tanh": torch.tanh,
    "gelu": F.gelu,
}
CODE = 8  # inputs for each number of an autoencoder's code


@dataclass(frozen=True, kw_only=True)
class MLPConfig(Repeating, StartOptions):
    """Options of ``mlp``, besides those of `StartOptions`.

    Attributes:
        hidden: widths of the hidden layers ("64x64"); "none" is multinomial logistic regression.
        layers: how often a single width is repeated ("hidden=64,layers=3").
        act: what follows each hidden layer.
        batch: rows of one batch.
        norm: LayerNorm before each activation, or with `residual` at the start of each block and
            before the last layer.
        residual: a block ``x + W2 act(W1 norm(x))`` for each entry of `hidden`, the width inside
            it, between a first layer to the width of the first entry and the last layer.
    """

    REPEATS: ClassVar = ("layers", "hidden")

    hidden: tuple[Width, ...] = (32,)
    layers: Layers | None = None
    act: Literal["sigmoid", "relu", "tanh", "gelu"] = "sigmoid"
    batch: Rows = 64
    norm: Literal["none", "layer"] = "none"
    residual: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.residual and not self.hidden:
            raise ValueError("residual=1 needs at least one entry in hidden, the width of a block")

    def narrowed(self, inputs: int) -> MLPConfig:
        """This network as an autoencoder of `inputs` numbers: its middle hidden layer is narrow, or
        the first entry, through which all goes, if it is residual.
        """
        middle, code = 0 if self.residual else len(self.hidden) // 2, max(2, inputs // CODE)
        widths = [min(w, code) if i == middle else w for i, w in enumerate(self.hidden)]
        return dataclasses.replace(self, hidden=tuple(widths))


@dataclass(frozen=True, kw_only=True)
class MLPReluConfig(MLPConfig):
    """Options of ``mlp-relu``: those of ``mlp`` with another default."""

    act: Literal["sigmoid", "relu", "tanh", "gelu"] = "relu"


VARIED = (
    "hidden=8..128,layers=1..4,norm=none|layer,residual=0|0|0|1,batch=16..256,"
    "init=default|torch,spread=1|2,zero_last=0|0|0|0|1"
)


@register_model("mlp-relu", config=MLPReluConfig, varied=VARIED)
@register_model("mlp", config=MLPConfig, varied=f"{VARIED},act=sigmoid|tanh|relu|gelu")
class MLP(Model):
    """in -> hidden -> ... -> C. Parameters: "layers.0.weight" [out, in], "layers.0.bias", ..., each
    hidden layer's followed by "norms.0.weight" and ".bias" with ``norm=layer``.

    With ``residual``: "stem.weight" [D, in], "stem.bias", then for each block i (after "blocks.i.")
    "norm.weight" and ".bias" [D], "up.weight" [hidden[i], D] and ".bias", "down.weight" and
    ".bias", and last "norm.weight", "norm.bias", "head.weight" [C, D], "head.bias".
    """

    def __init__(self, config: MLPConfig, shape: tuple[int, ...], outputs: int) -> None:
        self.config = config
        self.widths = (math.prod(shape), *config.hidden, outputs)
        self.act = ACTIVATIONS[config.act]

    def init(self, generator: torch.Generator) -> tuple[Params, Buffers]:
        """LeCun-normal weights, zero biases, norms that are the identity; no buffers."""
        params: Params = {}
        for name, shape in self._tensors():
            params |= (
                norm(name, shape[0]) if shape[1:] == () else lecun_layer(name, shape, generator)
            )
        return restarted(params, self.config, generator), {}

    def _tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Names and shapes of weights: matrices of layers, vectors of norms."""
        inputs, *hidden, outputs = self.widths
        normed = self.config.norm == "layer"
        if not self.config.residual:
            for i, (fan_in, fan_out) in enumerate(pairwise(self.widths)):
                yield f"layers.{i}", (fan_out, fan_in)
                if normed and i < len(hidden):
                    yield f"norms.{i}", (fan_out,)
            return
        wide = hidden[0]
        yield "stem", (wide, inputs)
        for i, inside in enumerate(hidden):
            if normed:
                yield f"blocks.{i}.norm", (wide,)
            yield f"blocks.{i}.up", (inside, wide)
            yield f"blocks.{i}.down", (wide, inside)
        if normed:
            yield "norm", (wide,)
        yield "head", (outputs, wide)

    def apply(
        self, params: Params, buffers: Buffers, x: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, Buffers]:
        """Outputs [B, C] for rows `x` of any shape [B, ...] with as many numbers as there are
        inputs.
        """
        x = x.flatten(1)
        if self.config.residual:
            x = linear(x, params, "stem")
            for block in (f"blocks.{i}" for i in range(len(self.config.hidden))):
                inside = linear(self._normed(x, params, f"{block}.norm"), params, f"{block}.up")
                x = x + linear(self.act(inside), params, f"{block}.down")
            return linear(self._normed(x, params, "norm"), params, "head"), buffers
        last = len(self.config.hidden)
        for i in range(last):
            x = self.act(self._normed(linear(x, params, f"layers.{i}"), params, f"norms.{i}"))
        return linear(x, params, f"layers.{last}"), buffers

    def _normed(self, x: Tensor, params: Params, name: str) -> Tensor:
        if self.config.norm == "none":
            return x
        return hat(x) * params[f"{name}.weight"] + params[f"{name}.bias"]
