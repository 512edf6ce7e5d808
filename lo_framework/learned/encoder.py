"""The encoder over tokens ``[D, S]``: pre-norm transformer blocks, written out.

The fused attention of torch has no second derivative, which meta-training needs. ``affine`` blocks
have all biases and the gains of the norms, as ``torch.nn.TransformerEncoderLayer`` has; a test
holds them equal.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lo_framework.learned.base import zeros


def layer_norm(x: Tensor) -> Tensor:
    """Layer normalisation over features, ``[D, S]``; the next matrix holds any gain."""
    x = x - x.mean(0)
    return x * torch.rsqrt((x * x).mean(0) + 1e-5)


def uniform(rows: int, cols: int, bound: float, generator: torch.Generator) -> nn.Parameter:
    return nn.Parameter((2.0 * torch.rand(rows, cols, generator=generator) - 1.0) * bound)


def matrix(rows: int, cols: int, generator: torch.Generator, scale: float = 1.0) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, cols, generator=generator) * (scale / math.sqrt(cols)))


def xavier(rows: int, cols: int, generator: torch.Generator) -> nn.Parameter:
    return uniform(rows, cols, math.sqrt(6.0 / (rows + cols)), generator)


class Block(nn.Module):
    """Keys have no bias, which softmax would ignore (an affine block's is a part of ``qkv_bias``
    and stays idle).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        generator: torch.Generator,
        hidden: int = 0,
        affine: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.affine, hidden = heads, affine, hidden or 2 * width
        new = xavier if affine else matrix
        self.qkv = new(3 * width, width, generator)
        self.out = new(width, width, generator)
        self.up = new(hidden, width, generator)
        self.up_bias = zeros(hidden, 1)
        self.down = new(width, hidden, generator)
        if affine:
            # as torch's linear layers
            self.up_bias = uniform(hidden, 1, 1.0 / math.sqrt(width), generator)
            self.down_bias = uniform(width, 1, 1.0 / math.sqrt(hidden), generator)
            self.qkv_bias = zeros(3 * width, 1)
            self.out_bias = zeros(width, 1)
            self.gains = nn.Parameter(torch.ones(2, width, 1))
            self.shifts = zeros(2, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._attend(self._norm(x, 0))
        h = torch.relu(self.up @ self._norm(x, 1) + self.up_bias)
        x = x + self.down @ h
        return x + self.down_bias if self.affine else x

    def _norm(self, x: Tensor, which: int) -> Tensor:
        x = layer_norm(x)
        return x * self.gains[which] + self.shifts[which] if self.affine else x

    def _attend(self, x: Tensor) -> Tensor:
        width, num = x.shape
        projected = self.qkv @ x
        if self.affine:
            projected = projected + self.qkv_bias
        q, k, v = projected.reshape(3, self.heads, width // self.heads, num).unbind(0)
        weights = torch.softmax(
            q.transpose(-1, -2) @ k * math.sqrt(self.heads / width), dim=-1
        )  # [heads, S, S]
        mixed = self.out @ (v @ weights.transpose(-1, -2)).reshape(width, num)
        return mixed + self.out_bias if self.affine else mixed
