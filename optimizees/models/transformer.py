"""``transformer``: a small pre-norm transformer that classifies images by their patches
(Dosovitskiy et al. 2021).

Made for vmap on a CPU, where a width of 32 spends its time in memory traffic: tokens and batch are
one dimension of every matrix product, and what can be done to a matrix of weights is not done to
the activations (`blocks.folded`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from lo_framework.optimizees.models.blocks import DROPS, Dropout, block, folded
from lo_framework.optimizees.models.initial import (
    StartOptions,
    layer,
    linear,
    norm,
    restarted,
    uniform,
)
from lo_framework.optimizees.models.norms import hat
from lo_framework.optimizees.registry import register_model
from lo_framework.optimizees.task import Buffers, Model, Params, Rows
from lo_framework.schema import Checked, Layers, Range, Width, check_heads
from lo_framework.spec import UserError


@dataclass(frozen=True, kw_only=True)
class TransformerConfig(Checked, StartOptions):
    """Options of ``transformer``, besides those of `StartOptions`.

    Attributes:
        width: numbers in a token; a multiple of `heads`.
        heads: attention heads.
        layers: blocks of attention and a two-layer network.
        ffn: hidden width of that network.
        patch: side of a patch in pixels; it must divide the image's height and width.
        act: the activation of that network.
        dropout: probability, at the places where nn.TransformerEncoderLayer has it.
        batch: rows of one batch.
    """

    width: Width = 32
    heads: Width = 4
    layers: Layers = 2
    ffn: Width = 64
    patch: Width = 2
    act: Literal["gelu", "relu"] = "gelu"
    dropout: Annotated[float, Range(low=0, high=1, open_high=True)] = 0.0
    batch: Rows = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        check_heads(self.width, self.heads)


@register_model(
    "transformer",
    config=TransformerConfig,
    varied="width=16..64,heads=2|4,layers=1..2,ffn=16..128,batch=16..256,"
    "init=default|lecun,spread=1|2,zero_last=0|0|0|0|1",
    images=True,
)
class Transformer(Model):
    """Patches -> linear + position -> blocks -> LayerNorm -> mean over tokens -> linear head.

    With T patches, D = `width` and P numbers in a patch, the parameters are "patch.weight" [D, P],
    "patch.bias", "position_embed.weight" [T, D], then for each block i (after "blocks.i.")
    "norm1.weight" and ".bias" [D], "attn.qkv.weight" [3 D, D] and ".bias", "attn.out.weight" [D, D]
    and ".bias", "norm2.weight" and ".bias", "mlp.up.weight" [ffn, D] and ".bias", "mlp.down.weight"
    [D, ffn] and ".bias", and last "norm.weight", "norm.bias", "head.weight" [C, D], "head.bias". A
    block is nn.TransformerEncoderLayer with ``norm_first=True``. The name of the first matrix keeps
    clear of "embed", by which a layout knows embeddings: it is a matrix like any other, with a
    dense gradient.
    """

    def __init__(
        self, config: TransformerConfig, shape: tuple[int, int, int], classes: int
    ) -> None:
        channels, height, width = shape
        if height % config.patch or width % config.patch:
            raise UserError(
                f"transformer: patch={config.patch} does not divide images of {height}x{width} "
                "pixels"
            )
        self.config = config
        self.classes = classes
        self.tokens = (height // config.patch) * (width // config.patch)
        self.inputs = channels * config.patch**2

    def init(self, generator: torch.Generator) -> tuple[Params, Buffers]:
        """Draw as torch does for nn.Linear (patch, mlp, head), nn.Embedding, nn.LayerNorm and
        nn.MultiheadAttention.

        That is: uniform on +-1 / sqrt(fan in); standard normal; the identity; the packed matrix
        Xavier-uniform, the output matrix as nn.Linear's, zero biases. Positions of std 0.02, as
        vision transformers have them, learn more slowly: 200 AdamW steps on digits reach a test
        accuracy of .90 then, .94 with these.
        """
        wide, ffn = self.config.width, self.config.ffn
        params = layer("patch", (wide, self.inputs), generator)
        params["position_embed.weight"] = torch.randn(self.tokens, wide, generator=generator)
        for name in (f"blocks.{i}" for i in range(self.config.layers)):
            params |= norm(f"{name}.norm1", wide)
            # uniform's bound is 1 / sqrt(fan in); Xavier's is sqrt(6 / (rows + columns)), here of
            # [3 D, D]
            packed = uniform((3 * wide, wide), 4 * wide, generator) * math.sqrt(6)
            params[f"{name}.attn.qkv.weight"] = packed
            params[f"{name}.attn.qkv.bias"] = torch.zeros(3 * wide)
            params[f"{name}.attn.out.weight"] = uniform((wide, wide), wide, generator)
            params[f"{name}.attn.out.bias"] = torch.zeros(wide)
            params |= norm(f"{name}.norm2", wide)
            params |= layer(f"{name}.mlp.up", (ffn, wide), generator)
            params |= layer(f"{name}.mlp.down", (wide, ffn), generator)
        params |= norm("norm", wide)
        params |= layer("head", (self.classes, wide), generator)
        return restarted(params, self.config, generator), {}

    def apply(
        self, params: Params, buffers: Buffers, x: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, Buffers]:
        """Logits [B, C] for `x` [B, channels, height, width]; dropout only with `noise`."""
        rows, wide = len(x), self.config.width
        shape = rows, self.tokens, self.config.heads
        drop = Dropout(self.config.dropout, noise)
        x = linear(self._patches(x), params, "patch").reshape(rows, self.tokens, wide)
        x = (x + params["position_embed.weight"]).reshape(-1, wide)  # [B * T, D]
        for i in range(self.config.layers):
            place = replace(drop, first=DROPS * i)
            x = block(x, params, f"blocks.{i}", shape, place, self.config.act)
        # A mean over tokens and a gain for each feature may change places: the gain then meets one
        # token, not T.
        x = hat(x).reshape(rows, self.tokens, wide).mean(1)
        return F.linear(x, *folded(params, "head", "norm")), buffers

    def _patches(self, x: Tensor) -> Tensor:
        """[B, channels, height, width] to [B * T, P]: row by row, each patch in the order of a
        convolution's weight.
        """
        side = self.config.patch
        rows, channels, height, width = x.shape
        x = x.reshape(rows, channels, height // side, side, width // side, side)
        return x.permute(0, 2, 4, 1, 3, 5).reshape(-1, self.inputs)
