"""A transformer that says the next hours of a series from those before them."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lo_framework.optimizees.models.blocks import DROPS, Dropout, block
from lo_framework.optimizees.models.initial import linear, norm
from lo_framework.optimizees.task import Buffers, Model, Params


@dataclass(frozen=True, kw_only=True)
class Shape:
    """Of a forecaster.

    Attributes:
        window: T, hours that it sees.
        horizon: hours that it says.
        features: F, numbers of an hour.
        width: D, numbers of a token; a multiple of `heads`.
        heads: attention heads.
        layers: blocks.
        ffn: hidden width of a block's two-layer network.
        dropout: probability, in every place of a block.
    """

    window: int
    horizon: int
    features: int
    width: int
    heads: int
    layers: int
    ffn: int
    dropout: float


class Forecaster(Model):
    """Hours -> linear + sinusoids -> blocks with ReLU -> the last hour's token -> linear head.

    The parameters are "input.weight" [D, F], "input.bias", those of the blocks, whose names begin
    with "blocks.i" (see `block`), "head.weight" [horizon * F, D], "head.bias". No norm comes after
    the last block, as published (MetaAdamW, arXiv 2605.04055).
    """

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.places = sinusoids(shape.window, shape.width)

    def init(self, generator: torch.Generator) -> tuple[Params, Buffers]:
        """Matrices Xavier-uniform (Glorot & Bengio 2010), zero biases, norms the identity."""
        s, params = self.shape, Params()

        def matrix(name: str, rows: int, columns: int) -> None:
            bound = math.sqrt(6 / (rows + columns))
            drawn = torch.rand(rows, columns, generator=generator)
            params[f"{name}.weight"] = (2 * drawn - 1) * bound
            params[f"{name}.bias"] = torch.zeros(rows)

        matrix("input", s.width, s.features)
        for name in (f"blocks.{i}" for i in range(s.layers)):
            params.update(norm(f"{name}.norm1", s.width))
            matrix(f"{name}.attn.qkv", 3 * s.width, s.width)
            matrix(f"{name}.attn.out", s.width, s.width)
            params.update(norm(f"{name}.norm2", s.width))
            matrix(f"{name}.mlp.up", s.ffn, s.width)
            matrix(f"{name}.mlp.down", s.width, s.ffn)
        matrix("head", s.horizon * s.features, s.width)
        return params, {}

    def to(self, device: torch.device | str) -> Forecaster:
        other = copy.copy(self)
        other.places = self.places.to(device)
        return other

    def apply(
        self, params: Params, buffers: Buffers, x: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, Buffers]:
        """Hours to come [B, horizon, F] for hours seen `x` [B, T, F]; dropout only with `noise`."""
        s, rows = self.shape, len(x)
        drop = Dropout(s.dropout, noise)
        tokens = linear(x, params, "input") + self.places.to(x.dtype)
        tokens = tokens.reshape(-1, s.width)
        for i in range(s.layers):
            there = replace(drop, first=DROPS * i)
            tokens = block(
                tokens,
                params,
                f"blocks.{i}",
                (rows, s.window, s.heads),
                there,
                "relu",
                last=i == s.layers - 1,  # the head looks at no other token
            )
        return linear(tokens, params, "head").reshape(rows, s.horizon, s.features), buffers


class LastValue(Model):
    """The last hour seen, said for every hour of the `horizon`; no parameters."""

    def __init__(self, horizon: int) -> None:
        self.horizon = horizon

    def init(self, generator: torch.Generator) -> tuple[Params, Buffers]:
        return {}, {}

    def apply(
        self, params: Params, buffers: Buffers, x: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, Buffers]:
        return x[:, -1:].expand(-1, self.horizon, -1), buffers


def sinusoids(count: int, width: int) -> Tensor:
    """Sines (even) and cosines (odd places) of `count` positions, [count, width] (Vaswani et al.
    2017, section 3.5).
    """
    place = torch.arange(count, dtype=torch.float64)[:, None]
    rate = 10000 ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    both = torch.stack([(place * rate).sin(), (place * rate).cos()], -1)
    return both.flatten(1)[:, :width].float()
