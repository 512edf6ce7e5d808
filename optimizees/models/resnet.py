"""``resnet``: a residual network for small images, ResNet-18 of He et al. 2016 at its full size."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lo_framework.optimizees.dropout import keep_mask
from lo_framework.optimizees.models.initial import layer, linear, norm
from lo_framework.optimizees.models.norms import batch_norm, moved, normalise
from lo_framework.optimizees.task import Buffers, Model, Params


class Block(NamedTuple):
    """A residual block: the name before its parameters, its channels in and out, its stride."""

    name: str
    inputs: int
    outputs: int
    stride: int

    @property
    def projects(self) -> bool:
        """Whether its shortcut is a convolution, because the shape changes."""
        return self.stride > 1 or self.inputs != self.outputs


class ResNet(Model):
    """A 3x3 stem of stride 1 without pooling, stages of basic blocks, the mean over pixels, a
    linear head; dropout on the logits.

    A stage has twice the channels of the one before and half of its height and width. Parameters
    and buffers have the names that torchvision's ResNet-18 has: "conv1.weight", "bn1.weight",
    "bn1.bias", "layer1.0.conv1.weight", "layer1.0.bn1.weight", ..., "layer2.0.downsample.0.weight",
    ..., "fc.weight" [C, channels], "fc.bias"; buffers "bn1.running_mean", "bn1.running_var", ....
    """

    def __init__(
        self, *, channels: int, classes: int, width: int, blocks: tuple[int, ...], dropout: float
    ) -> None:
        """
        Args:
            channels: of an image.
            width: channels of the stem and of the first stage.
            blocks: how many each stage has.
            dropout: probability with which a logit is set to zero.
        """
        self.channels, self.width, self.dropout = channels, width, dropout
        self.blocks = list(stages(width, blocks))
        self.head = (classes, self.blocks[-1].outputs)

    def init(self, generator: torch.Generator) -> tuple[Params, Buffers]:
        """As torchvision's: convolutions normal with std sqrt(2 / fan out) (He et al. 2015), norms
        the identity, the head as nn.Linear.
        """
        params: Params = {}
        buffers: Buffers = {}
        for conv, bn, (out, fan_in, side) in self._layers():
            weight = torch.randn(out, fan_in, side, side, generator=generator)
            params[f"{conv}.weight"] = weight * math.sqrt(2 / (out * side * side))
            params |= norm(bn, out)
            buffers[f"{bn}.running_mean"] = torch.zeros(out)
            buffers[f"{bn}.running_var"] = torch.ones(out)
        return params | layer("fc", self.head, generator), buffers

    def _layers(self) -> Iterator[tuple[str, str, tuple[int, int, int]]]:
        """Names of each convolution and its norm, and channels out, channels in, kernel side."""
        yield "conv1", "bn1", (self.width, self.channels, 3)
        for block in self.blocks:
            name, inputs, outputs, _ = block
            yield f"{name}.conv1", f"{name}.bn1", (outputs, inputs, 3)
            yield f"{name}.conv2", f"{name}.bn2", (outputs, outputs, 3)
            if block.projects:
                yield f"{name}.downsample.0", f"{name}.downsample.1", (outputs, inputs, 1)

    def apply(
        self, params: Params, buffers: Buffers, x: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, Buffers]:
        """Logits [B, C] for `x` [B, channels, height, width], and buffers moved by this batch."""
        moving = dict(buffers)
        training = noise is not None

        def conv(x: Tensor, conv: str, bn: str, stride: int = 1) -> Tensor:
            weight = params[f"{conv}.weight"]
            x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
            return _normed(x, params, moving, bn, training)

        x = F.relu(conv(x, "conv1", "bn1"))
        for block in self.blocks:
            name = block.name
            inside = F.relu(conv(x, f"{name}.conv1", f"{name}.bn1", block.stride))
            inside = conv(inside, f"{name}.conv2", f"{name}.bn2")
            if block.projects:
                x = conv(x, f"{name}.downsample.0", f"{name}.downsample.1", block.stride)
            x = F.relu(x + inside)
        logits = linear(x.mean((2, 3)), params, "fc")
        if noise is not None and self.dropout:
            keep = keep_mask(logits.shape, self.dropout, noise, 0)
            logits = logits * (keep.to(logits.dtype) / (1 - self.dropout))
        return logits, moving


def stages(width: int, blocks: tuple[int, ...]) -> Iterator[Block]:
    """All blocks, in their order."""
    inputs = width
    for stage, count in enumerate(blocks):
        outputs = width << stage
        for i in range(count):
            stride = 2 if stage and not i else 1
            yield Block(f"layer{stage + 1}.{i}", inputs, outputs, stride)
            inputs = outputs


def _normed(x: Tensor, params: Params, moving: Buffers, name: str, training: bool) -> Tensor:
    """Batch normalisation of `x` [B, C, H, W]; in training, `moving` gets new buffers."""
    weight, bias = params[f"{name}.weight"], params[f"{name}.bias"]
    names = f"{name}.running_mean", f"{name}.running_var"
    running = moving[names[0]], moving[names[1]]
    if not training:
        return normalise(x, running, weight, bias)
    x, moments = batch_norm(x, weight, bias)
    moving[names[0]], moving[names[1]] = moved(running, moments, x.numel() // x.shape[1])
    return x
