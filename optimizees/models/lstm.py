"""``imdb``'s network: a bidirectional LSTM (Hochreiter & Schmidhuber 1997) from linear cells."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lo_framework.optimizees.models.blocks import Dropout
from lo_framework.optimizees.models.initial import layer, linear, uniform
from lo_framework.optimizees.task import Buffers, Model, Params

WAYS = ("", "_reverse")  # from the first word to the last, and back: what names end in
SHAPES = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


@dataclass(frozen=True, kw_only=True)
class LSTMSizes:
    """Of the vocabulary, of embeddings, of the states and of the output. Rows end where the word
    `pad` begins; None: nowhere.
    """

    vocab: int
    embed: int
    hidden: int
    layers: int
    classes: int
    dropout: float
    pad: int | None


class BiLSTM(Model):
    """Embeddings -> layers of two LSTMs, one for each way -> both last states -> linear head.

    The parameters are "embed.weight" [V, E]; for each layer l and way those of nn.LSTM,
    "lstm.weight_ih_l0" [4 H, E] (2 H in place of E in later layers), "lstm.weight_hh_l0" [4 H, H],
    "lstm.bias_ih_l0" and "lstm.bias_hh_l0" [4 H] (input, forget, cell, output), the same with
    "_reverse"; "head.weight" [C, 2 H] and "head.bias".
    """

    def __init__(self, sizes: LSTMSizes) -> None:
        self.sizes = sizes

    def init(self, generator: torch.Generator) -> tuple[Params, Buffers]:
        """Draw as nn.Embedding, nn.LSTM and nn.Linear do."""
        s = self.sizes
        params = {"embed.weight": torch.randn(s.vocab, s.embed, generator=generator)}
        for i in range(s.layers):
            inputs = 2 * s.hidden if i else s.embed
            for way in WAYS:
                for name, rest in zip(SHAPES, ((inputs,), (s.hidden,), (), ())):
                    shape = (4 * s.hidden, *rest)
                    params[f"lstm.{name}_l{i}{way}"] = uniform(shape, s.hidden, generator)
        return params | layer("head", (s.classes, 2 * s.hidden), generator), {}

    def apply(
        self, params: Params, buffers: Buffers, x: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, Buffers]:
        """Logits [B, C] of the words `x`, int64 [B, T]; dropout only with `noise`: between layers,
        as nn.LSTM has it, and before the head.
        """
        s = self.sizes
        drop = Dropout(s.dropout, noise)
        words = None if s.pad is None else x != s.pad
        seen = F.embedding(x, params["embed.weight"])
        for i in range(s.layers):
            states, last = self._layer(seen, words, params, i)
            if i + 1 < s.layers:
                seen = drop(torch.stack(states, 1), i)
        return linear(drop(last, s.layers), params, "head"), buffers

    def _layer(
        self, seen: Tensor, words: Tensor | None, params: Params, index: int
    ) -> tuple[list[Tensor], Tensor]:
        """The states [B, 2 H] at each of T places, and the last ones of both ways [B, 2 H].

        Both ways are one batch of products. Past the end of a row states stay as they are.
        """
        ih, hh, b, c = (
            torch.stack([params[f"lstm.{name}_l{index}{way}"] for way in WAYS]) for name in SHAPES
        )
        both = torch.stack([seen, seen.flip(1)])  # [2, B, T, E]
        gates = both.flatten(1, 2) @ ih.transpose(1, 2) + (b + c)[:, None]
        steps = gates.reshape(*both.shape[:3], -1).unbind(2)
        here = None if words is None else torch.stack([words, words.flip(1)])[..., None].unbind(2)
        turned = hh.transpose(1, 2)
        h = cell = seen.new_zeros(2, len(seen), self.sizes.hidden)
        states = []
        for t, step in enumerate(steps):
            i, f, g, o = (step + h @ turned).chunk(4, -1)
            new_cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
            new = torch.sigmoid(o) * torch.tanh(new_cell)
            if here is not None:
                new, new_cell = torch.where(here[t], new, h), torch.where(here[t], new_cell, cell)
            h, cell = new, new_cell
            states.append(h)
        pairs = zip(states, reversed(states))
        return [torch.cat([one[0], two[1]], -1) for one, two in pairs], torch.cat([*h], -1)
