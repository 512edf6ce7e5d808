"""``cnn``: a small convolutional classifier, one conv - norm - ReLU - pool block per entry of `channels`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from optimizees.models.model import uniform
from optimizees.models.norms import batch_moments, group_norm, moved, normalise
from optimizees.models.pooling import avg_pool2, max_pool2
from optimizees.spec import UserError
from optimizees.task import Buffers, Params


@dataclass(frozen=True, kw_only=True)
class CNNConfig:
    """Options of ``cnn``.

    Attributes:
        channels: output channels of each block ("16x32").
        norm: what normalises a block's feature maps, if anything.
        pool: how a block halves height and width; "stride" is a stride of 2 in the convolution.
        batch: rows of one batch.
    """

    channels: tuple[int, ...] = (16, 32)
    norm: Literal["none", "batch", "group"] = "none"
    pool: Literal["max", "avg", "stride"] = "max"
    batch: int = 64

    def __post_init__(self) -> None:
        if not self.channels or min((*self.channels, self.batch)) < 1:
            raise ValueError("channels needs at least one entry; channels and batch must be at least 1")


class CNN:
    """Blocks of 3x3 convolution (padding 1), norm, ReLU and 2x2 pooling, then a linear head on the flattened maps.

    Parameters: "convs.0.weight" [out, in, 3, 3], "convs.0.bias", ..., "norms.0.weight", "norms.0.bias", ...,
    "head.weight" [C, features], "head.bias". Buffers with ``norm=batch``: "norms.0.running_mean" and "running_var".
    """

    def __init__(self, config: CNNConfig, shape: tuple[int, int, int], classes: int) -> None:
        self.config = config
        self.classes = classes
        self.widths = (shape[0], *config.channels)
        height, width = shape[1:]
        for _ in config.channels:
            if min(height, width) < 2:
                deep = "x".join(map(str, config.channels))
                raise UserError(f"cnn: channels={deep} halves a {shape[1]}x{shape[2]} image below one pixel")
            up = config.pool == "stride"
            height, width = (height + up) // 2, (width + up) // 2
        self.features = config.channels[-1] * height * width

    def init(self, generator: torch.Generator) -> tuple[Params, Buffers]:
        """Weights and biases uniform on +-1 / sqrt(fan in), as torch's own layers; norms start as the identity."""
        params: Params = {}
        buffers: Buffers = {}
        for i, (fan_in, out) in enumerate(zip(self.widths[:-1], self.widths[1:], strict=True)):
            params[f"convs.{i}.weight"] = uniform((out, fan_in, 3, 3), 9 * fan_in, generator)
            params[f"convs.{i}.bias"] = uniform((out,), 9 * fan_in, generator)
            if self.config.norm != "none":
                params[f"norms.{i}.weight"] = torch.ones(out)
                params[f"norms.{i}.bias"] = torch.zeros(out)
            if self.config.norm == "batch":
                buffers[f"norms.{i}.running_mean"] = torch.zeros(out)
                buffers[f"norms.{i}.running_var"] = torch.ones(out)
        params["head.weight"] = uniform((self.classes, self.features), self.features, generator)
        params["head.bias"] = uniform((self.classes,), self.features, generator)
        return params, buffers

    def apply(self, params: Params, buffers: Buffers, x: Tensor, *, training: bool) -> tuple[Tensor, Buffers]:
        """Logits [B, C] for `x` [B, channels, height, width], and the buffers moved by this batch."""
        stride = 2 if self.config.pool == "stride" else 1
        buffers = dict(buffers)
        for i in range(len(self.config.channels)):
            x = F.conv2d(x, params[f"convs.{i}.weight"], params[f"convs.{i}.bias"], stride=stride, padding=1)
            x = self._norm(i, params, buffers, x, training)
            if self.config.pool == "max":
                x = F.relu(max_pool2(x))  # ReLU is monotone: after the maximum it is the same and a quarter the work
            else:
                x = avg_pool2(F.relu(x)) if self.config.pool == "avg" else F.relu(x)
        return F.linear(x.flatten(1), params["head.weight"], params["head.bias"]), buffers

    def _norm(self, i: int, params: Params, buffers: Buffers, x: Tensor, training: bool) -> Tensor:
        """Block i's normalisation; `buffers` (this call's own dict) is updated."""
        if self.config.norm == "none":
            return x
        weight, bias = params[f"norms.{i}.weight"], params[f"norms.{i}.bias"]
        if self.config.norm == "group":
            return group_norm(x, weight, bias)
        mean, var = f"norms.{i}.running_mean", f"norms.{i}.running_var"
        moments = running = buffers[mean], buffers[var]
        if training:
            moments = batch_moments(x)
            buffers[mean], buffers[var] = moved(running, moments, x.numel() // x.shape[1])
        return normalise(x, *moments, weight, bias)
