"""``cnn``: a small convolutional classifier, one conv - norm - ReLU - pool block per entry of
`channels`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lo_framework.optimizees.models.conv import (
    conv3x3,
    gather_matrix,
    largest3x3,
    out_side,
    pool2,
)
from lo_framework.optimizees.models.initial import StartOptions, layer, linear, norm, restarted
from lo_framework.optimizees.models.norms import batch_norm, group_norm, moved, normalise
from lo_framework.optimizees.ranges import Repeating
from lo_framework.optimizees.registry import register_model
from lo_framework.optimizees.task import Buffers, Model, Params, Rows
from lo_framework.schema import Layers, Width
from lo_framework.spec import UserError


@dataclass(frozen=True, kw_only=True)
class CNNConfig(Repeating, StartOptions):
    """Options of ``cnn``, besides those of `StartOptions`.

    Attributes:
        channels: output channels of each block ("16x32").
        blocks: how often a single entry of `channels` is repeated.
        norm: what normalises a block's feature maps, if anything.
        pool: how a block halves height and width; "stride" is a stride of 2 in the convolution.
        head: a linear layer on the flattened maps, or a convolution whose maps, one a class, are
            averaged.
        batch: rows of one batch.
    """

    REPEATS: ClassVar = ("blocks", "channels")

    channels: tuple[Width, ...] = (16, 32)
    blocks: Layers | None = None
    norm: Literal["none", "batch", "group"] = "none"
    pool: Literal["max", "avg", "stride"] = "max"
    batch: Rows = 64
    head: Literal["linear", "conv"] = "linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.channels:
            raise ValueError("channels needs at least one entry")
        if self.norm == "batch" and self.batch < 2:
            raise ValueError("batch normalisation needs batches of at least 2 rows, and batch is 1")


@register_model(
    "cnn",
    config=CNNConfig,
    varied="channels=4..32,blocks=1..3,norm=none|group,pool=max|avg,head=linear|linear|conv,batch=16..256,"
    "init=default|lecun,spread=1|2,zero_last=0|0|0|0|1",
    images=True,
)
class CNN(Model):
    """Blocks of 3x3 convolution (padding 1), norm, ReLU and 2x2 pooling, then a head.

    Parameters: "convs.0.weight" [out, in, 3, 3], "convs.0.bias", ..., "norms.0.weight",
    "norms.0.bias", ..., "head.weight" [C, features] or [C, in, 3, 3], "head.bias". Buffers with
    ``norm=batch``: "norms.0.running_mean" and "running_var".
    """

    def __init__(self, config: CNNConfig, shape: tuple[int, int, int], classes: int) -> None:
        self.config = config
        self.widths = (shape[0], *config.channels)
        self.stride = 2 if config.pool == "stride" else 1
        self.gathers: list[Tensor | None] = []
        height, width = shape[1:]
        for _ in config.channels:
            if min(height, width) < 2:
                deep = "x".join(map(str, config.channels))
                raise UserError(
                    f"cnn: channels={deep} halves a {shape[1]}x{shape[2]} image below one pixel"
                )
            self.gathers.append(gather_matrix(height, width, self.stride))
            height, width = out_side(height, self.stride), out_side(width, self.stride)
            if config.pool != "stride":
                height, width = height // 2, width // 2
        self.head_shape: tuple[int, ...] = (classes, config.channels[-1] * height * width)
        if config.head == "conv":
            self.head_shape = (classes, config.channels[-1], 3, 3)
            self.gathers.append(gather_matrix(height, width, 1))

    def init(self, generator: torch.Generator) -> tuple[Params, Buffers]:
        """Weights and biases uniform on +-1 / sqrt(fan in), as torch's own layers; norms start as
        the identity.
        """
        params: Params = {}
        buffers: Buffers = {}
        for i, (fan_in, out) in enumerate(zip(self.widths[:-1], self.widths[1:], strict=True)):
            params |= layer(f"convs.{i}", (out, fan_in, 3, 3), generator)
            if self.config.norm != "none":
                params |= norm(f"norms.{i}", out)
            if self.config.norm == "batch":
                buffers[f"norms.{i}.running_mean"] = torch.zeros(out)
                buffers[f"norms.{i}.running_var"] = torch.ones(out)
        params |= layer("head", self.head_shape, generator)
        return restarted(params, self.config, generator), buffers

    def to(self, device: torch.device | str) -> CNN:
        other = copy.copy(self)
        other.gathers = [None if g is None else g.to(device) for g in self.gathers]
        return other

    def apply(
        self, params: Params, buffers: Buffers, x: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, Buffers]:
        """Logits [B, C] for `x` [B, channels, height, width], and buffers moved by this batch."""
        buffers = dict(buffers)
        x = x.permute(1, 2, 3, 0)  # batch-last, see conv.py
        blocks = len(self.config.channels)
        for i, gather in enumerate(self.gathers[:blocks]):
            convolved = (x, params[f"convs.{i}.weight"], self.stride, gather)
            if self.config.pool == "max" and self.config.norm == "none":
                # Adding a constant and ReLU are monotone: after the maximum they are the same at a
                # quarter of the work.
                x = F.relu(largest3x3(*convolved) + params[f"convs.{i}.bias"][:, None, None, None])
                continue
            x = conv3x3(*convolved)
            x = self._bias_and_norm(i, params, buffers, x, noise is not None)
            # The maximum comes first, for ReLU has less to do then.
            x = F.relu(pool2(x, "max") if self.config.pool == "max" else x)
            x = pool2(x, "avg") if self.config.pool == "avg" else x
        if self.config.head == "linear":
            return linear(x.flatten(0, 2).t(), params, "head"), buffers
        x = conv3x3(x, params["head.weight"], 1, self.gathers[blocks])
        return x.mean((1, 2)).t() + params["head.bias"], buffers

    def _bias_and_norm(
        self, i: int, params: Params, buffers: Buffers, x: Tensor, training: bool
    ) -> Tensor:
        """Block i's bias and normalisation of `x` [C, H, W, B]; `buffers` (this call's own dict) is
        updated.
        """
        added = params[f"convs.{i}.bias"]
        if self.config.norm == "none":
            return x + added[:, None, None, None]
        weight, bias = params[f"norms.{i}.weight"], params[f"norms.{i}.bias"]
        if self.config.norm == "group":
            return group_norm(x + added[:, None, None, None], weight, bias)
        names = f"norms.{i}.running_mean", f"norms.{i}.running_var"
        flat = x.flatten(1).unsqueeze(0)  # [1, C, H * W * B]
        # Batch normalisation takes the convolution's bias out again, so only the running mean ever
        # sees it.
        if training:
            flat, (mean, var) = batch_norm(flat, weight, bias)
            running = buffers[names[0]], buffers[names[1]]
            buffers[names[0]], buffers[names[1]] = moved(
                running, (mean + added.detach(), var), flat.shape[2]
            )
        else:
            flat = normalise(flat, (buffers[names[0]] - added, buffers[names[1]]), weight, bias)
        return flat.reshape(x.shape)
