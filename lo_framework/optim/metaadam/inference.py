"""The encoder without derivatives, in few operations: tokens ``[S, D]`` in rows, torch's own norms
and attention.

At a step the network sees ten tokens or so, and what its blocks cost is the number of operations,
not their size. The definition is `learned.encoder.Block`, which can be differentiated twice; a test
holds them equal.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lo_framework.learned.attention import Attention
from lo_framework.learned.encoder import Block


class Weights(NamedTuple):
    """Of one block, transposed where a product wants them so; biases and gains of a plain block are
    None.
    """

    qkv: Tensor
    qkv_bias: Tensor | None
    out: Tensor  # [D, D], transposed
    out_bias: Tensor | None
    up: Tensor
    up_bias: Tensor
    down: Tensor  # [hidden, D], transposed
    down_bias: Tensor | None
    norms: tuple[tuple[Tensor | None, Tensor | None], tuple[Tensor | None, Tensor | None]]
    heads: int


class Inference:
    """Views of a network's weights: they follow whatever trains it or moves it."""

    def __init__(self, network: Attention) -> None:
        self.network = network
        self.published = network.config.encoder == "published"
        self._look()

    def _look(self) -> None:
        self.head = self.network.head.detach()  # held, so that no other memory gets its address
        self.blocks = [_weights(block) for block in self.network.blocks]  # type: ignore[arg-type]

    def __call__(self, tokens: Tensor) -> Tensor:
        """``[columns, G]`` to the head's output ``[H, G]``, as
        ``network.raw(network.encode(tokens))``.
        """
        network = self.network
        if (
            network.head.data_ptr() != self.head.data_ptr()
        ):  # `Module.to` has put new memory under its parameters
            self._look()
        x = tokens.t()
        if not self.published:
            x = torch.addmm(network.embed_bias.view(-1), x, network.embed.t())
        for w in self.blocks:
            x = _block(x, w)
        if self.published:
            return torch.addmm(network.head_bias, network.head, x.t())
        return network.config.gain * (network.head @ torch.layer_norm(x, x.shape[1:]).t())


def _weights(block: Block) -> Weights:
    if not block.affine:
        up_bias = block.up_bias.view(-1)
        norm = (None, None)
        return Weights(
            block.qkv,
            None,
            block.out.t(),
            None,
            block.up,
            up_bias,
            block.down.t(),
            None,
            (norm, norm),
            block.heads,
        )
    first, second = ((block.gains[i].view(-1), block.shifts[i].view(-1)) for i in range(2))
    return Weights(
        block.qkv,
        block.qkv_bias.view(-1),
        block.out.t(),
        block.out_bias.view(-1),
        block.up,
        block.up_bias.view(-1),
        block.down.t(),
        block.down_bias.view(-1),
        (first, second),
        block.heads,
    )


def _block(x: Tensor, w: Weights) -> Tensor:
    num, width = x.shape
    shape = x.shape[1:]
    qkv = F.linear(torch.layer_norm(x, shape, *w.norms[0]), w.qkv, w.qkv_bias)
    q, k, v = (
        qkv.view(1, num, 3, w.heads, width // w.heads).permute(2, 0, 3, 1, 4).unbind(0)
    )  # [1, heads, S, d]
    mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(num, width)
    x = torch.addmm(x, mixed, w.out)
    if w.out_bias is not None:
        x = x.add_(w.out_bias)
    h = F.linear(torch.layer_norm(x, shape, *w.norms[1]), w.up, w.up_bias).relu_()
    x = torch.addmm(x, h, w.down)
    return x if w.down_bias is None else x.add_(w.down_bias)
