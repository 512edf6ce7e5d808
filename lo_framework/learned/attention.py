"""``attention``: a transformer encoder over per-tensor tokens modulates AdamW's hyper-parameters, step by step.

MetaAdamW's rule (self-attention over parameter groups, arXiv 2605.04055) with decoupled decay, tokens bounded by
construction, and a head that starts at zero, so that the optimizer starts as the ``hyper-adamw`` it grew from.
Attention never runs over single parameters: the sequence is the 10-300 tensors of a model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lo_framework.layout import Layout
from lo_framework.learned.base import State
from lo_framework.learned.features import TOKEN_WIDTH, token_features
from lo_framework.learned.hyper_adamw import HYPER, HyperAdamW, HyperAdamWConfig


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(HyperAdamWConfig):
    """``head``: ``exp`` adds to every hyper-parameter in log space; ``bounded`` keeps MetaAdamW's factors in (1/2,
    3/2).
    """

    width: int = 16
    heads: int = 4
    layers: int = 1
    head: str = "exp"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width < 1 or self.heads < 1 or self.layers < 1 or self.width % self.heads:
            raise ValueError(
                f"width ({self.width}) must be a positive multiple of heads ({self.heads}), layers at least 1"
            )
        if self.head not in ("exp", "bounded"):
            raise ValueError(f"head must be exp or bounded, not {self.head!r}")


def _norm(x: Tensor) -> Tensor:
    """Layer normalisation over features, ``[D, S]``; the next matrix holds any gain."""
    x = x - x.mean(0)
    return x * torch.rsqrt((x * x).mean(0) + 1e-5)


def matrix(rows: int, cols: int, generator: torch.Generator, scale: float = 1.0) -> nn.Parameter:
    return nn.Parameter(torch.randn(rows, cols, generator=generator) * (scale / math.sqrt(cols)))


class Block(nn.Module):
    """Pre-norm encoder block on ``[D, S]`` tokens. Softmax attention is written out (the fused one has no second
    derivative);
    keys have no bias, which softmax would ignore."""

    def __init__(self, width: int, heads: int, generator: torch.Generator) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = matrix(3 * width, width, generator)
        self.out = matrix(width, width, generator)
        self.up = matrix(2 * width, width, generator)
        self.up_bias = nn.Parameter(torch.zeros(2 * width, 1))
        self.down = matrix(width, 2 * width, generator)

    def forward(self, x: Tensor) -> Tensor:
        width, num = x.shape
        q, k, v = (self.qkv @ _norm(x)).reshape(3, self.heads, width // self.heads, num).unbind(0)
        weights = torch.softmax(q.transpose(-1, -2) @ k * math.sqrt(self.heads / width), dim=-1)  # [heads, S, S]
        x = x + self.out @ (v @ weights.transpose(-1, -2)).reshape(width, num)
        return x + self.down @ torch.relu(self.up @ _norm(x) + self.up_bias)


class Attention(HyperAdamW):
    """hyper-adamw + encoder over tensors; ``head [H + E, D]`` starts at zero."""

    kind = "attention"
    Config = AttentionConfig
    context = 0  # extra channels for subclasses
    config: AttentionConfig

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__(config)
        generator = torch.Generator().manual_seed(config.seed)
        self.embed = matrix(config.width, TOKEN_WIDTH, generator)
        self.embed_bias = nn.Parameter(torch.zeros(config.width, 1))
        self.blocks = nn.ModuleList(Block(config.width, config.heads, generator) for _ in range(config.layers))
        self.head = nn.Parameter(torch.zeros(len(HYPER), config.width))

    def measure(self, params: Tensor, grads: Tensor, state: State) -> Tensor:
        m = state["m"]
        return torch.stack([grads * grads, m * m, params * params, grads * m, state["v"]])

    def stats(self, layout: Layout, params: Tensor, grads: Tensor, state: State) -> Tensor:
        return layout.mean(self.measure(params, grads, state))

    def encode(self, layout: Layout, stats: Tensor, state: State, progress: Tensor) -> Tensor:
        """Statistics ``[F, S]`` to encoded tokens ``[D, S]``."""
        x = self.embed @ token_features(layout, stats, state, progress) + self.embed_bias
        for block in self.blocks:
            x = block(x)
        return _norm(x)

    def modulate(
        self, layout: Layout, raw: Tensor, stats: Tensor, state: State, progress: Tensor
    ) -> tuple[Tensor, Tensor]:
        x = self.encode(layout, stats, state, progress)
        change = self.config.gain * (self.head @ x)
        if self.config.head == "bounded":  # 1 + range (sigmoid - 1/2), range 1, on the factors of lr and weight decay
            factor = 0.5 + torch.sigmoid(change)
            still = torch.zeros_like(change[1:3])
            change = torch.stack([factor[0].log(), *still, factor[3].log(), still[0]])
        return raw + change, self.extra(x)

    def extra(self, x: Tensor) -> Tensor:
        """Extra channels ``[E, S]`` from the encoded tokens; none here."""
        return x[:0]
