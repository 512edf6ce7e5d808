"""``wikitext``'s network: a small GPT (Radford et al. 2019) that tells the word after each one."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from lo_framework.optimizees.models.blocks import DROPS, Dropout, block, folded
from lo_framework.optimizees.models.initial import norm
from lo_framework.optimizees.models.norms import hat
from lo_framework.optimizees.task import Buffers, Model, Params
from lo_framework.spec import UserError

STD = 0.02  # of every matrix and embedding at the start


@dataclass(frozen=True, kw_only=True)
class GPTSizes:
    """Of the vocabulary, of the longest text, and of a transformer."""

    vocab: int
    context: int
    width: int
    layers: int
    heads: int
    ffn: int
    dropout: float


class GPT(Model):
    """Embeddings of words and places -> pre-norm blocks -> LayerNorm -> linear head, not tied.

    With V words, at most T places and D = `width`, the parameters are "token_embed.weight" [V, D],
    "position_embed.weight" [T, D], for each block i those of `blocks.block` after "blocks.i.", and
    last "norm.weight", "norm.bias" [D], "head.weight" [V, D], "head.bias" [V].
    """

    def __init__(self, sizes: GPTSizes) -> None:
        self.sizes = sizes
        # A place does not see those after it.
        self.hidden = torch.ones(sizes.context, sizes.context, dtype=torch.bool).triu(1)

    def init(self, generator: torch.Generator) -> tuple[Params, Buffers]:
        """Draw matrices and embeddings normally with a std of 0.02; biases are zero, and norms the
        identity.
        """
        s = self.sizes

        def normal(*shape: int) -> Tensor:
            return STD * torch.randn(shape, generator=generator)

        params = {
            "token_embed.weight": normal(s.vocab, s.width),
            "position_embed.weight": normal(s.context, s.width),
        }
        for name in (f"blocks.{i}" for i in range(s.layers)):
            params |= norm(f"{name}.norm1", s.width)
            for part, shape in (("qkv", (3 * s.width, s.width)), ("out", (s.width, s.width))):
                params[f"{name}.attn.{part}.weight"] = normal(*shape)
                params[f"{name}.attn.{part}.bias"] = torch.zeros(shape[0])
            params |= norm(f"{name}.norm2", s.width)
            for part, shape in (("up", (s.ffn, s.width)), ("down", (s.width, s.ffn))):
                params[f"{name}.mlp.{part}.weight"] = normal(*shape)
                params[f"{name}.mlp.{part}.bias"] = torch.zeros(shape[0])
        params |= norm("norm", s.width)
        params["head.weight"] = normal(s.vocab, s.width)
        params["head.bias"] = torch.zeros(s.vocab)
        return params, {}

    def apply(
        self, params: Params, buffers: Buffers, x: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, Buffers]:
        """Logits [B * T, V] of the word after each of `x`, int64 [B, T]; dropout only with `noise`.

        Raises:
            UserError: T is more than the model has places for.
        """
        s = self.sizes
        rows, length = x.shape
        if length > s.context:
            raise UserError(f"gpt: {length} words in a row, and the model takes {s.context}")
        drop = Dropout(s.dropout, noise)
        places = params["position_embed.weight"][:length]
        seen = F.embedding(x, params["token_embed.weight"]) + places
        h = drop(seen.reshape(rows * length, s.width), 0)
        hidden = self.hidden[:length, :length]
        for i in range(s.layers):
            place = replace(drop, first=1 + DROPS * i)
            h = block(h, params, f"blocks.{i}", (rows, length, s.heads), place, "gelu", hidden)
        return F.linear(hat(h), *folded(params, "head", "norm")), buffers

    def to(self, device: torch.device | str) -> GPT:
        other = copy.copy(self)
        other.hidden = self.hidden.to(device)
        return other
