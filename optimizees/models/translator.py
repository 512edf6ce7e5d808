"""``multi30k``'s network: an encoder and a decoder (Vaswani et al. 2017), with norms after each
part as nn.Transformer has them.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from lo_framework.optimizees.models.blocks import Dropout, attend, weighed
from lo_framework.optimizees.models.initial import layer, linear, norm
from lo_framework.optimizees.models.norms import hat
from lo_framework.optimizees.task import Buffers, Params

ENCODER, DECODER = 4, 6  # places in a layer where dropout applies


@dataclass(frozen=True, kw_only=True)
class TranslatorSizes:
    """Of both vocabularies, of the longest row, and of the transformers. What is `pad` in a row is
    not looked at; None: nothing is. `shared`: one embedding for both languages.
    """

    source: int
    target: int
    places: int
    width: int
    layers: int
    heads: int
    ffn: int
    dropout: float
    pad: int | None
    shared: bool


class Translator:
    """Embeddings and sines of places -> encoder; the same -> decoder, which looks at the encoder ->
    linear head: the next word at every place of the target.

    The parameters are "source_embed.weight" and "target_embed.weight" [V, D]; for each layer i
    after "encoder.i." "attn.qkv", "attn.out", "norm1", "mlp.up", "mlp.down", "norm2"; after
    "decoder.i." "attn.qkv", "attn.out", "norm1", "cross.q", "cross.kv", "cross.out", "norm2",
    "mlp.up", "mlp.down", "norm3"; "encoder.norm", "decoder.norm" and "head"; each with ".weight"
    and ".bias".
    """

    def __init__(self, sizes: TranslatorSizes) -> None:
        self.sizes = sizes
        places = torch.arange(sizes.places)
        # A word does not see those after it.
        self.hidden = places[None, :] > places[:, None]
        even = torch.arange(0, sizes.width, 2)
        angles = places[:, None] * torch.exp(even * (-math.log(10_000) / sizes.width))
        both = torch.stack([angles.sin(), angles.cos()], -1)
        self.sines = both.flatten(1)[:, : sizes.width]

    def init(self, generator: torch.Generator) -> tuple[Params, Buffers]:
        """Draw matrices Xavier-uniformly, as nn.Transformer does, embeddings normally with a
        variance of 1 / D, and the head as nn.Linear; biases are zero, norms the identity.
        """
        s, params = self.sizes, {}

        def matrix(name: str, rows: int, columns: int, outputs: int = 0) -> Params:
            bound = math.sqrt(6 / ((outputs or rows) + columns))
            drawn = (torch.rand(rows, columns, generator=generator) * 2 - 1) * bound
            return {f"{name}.weight": drawn, f"{name}.bias": torch.zeros(rows)}

        for name, count in (("source", s.source), ("target", s.target)):
            if name == "source" or not s.shared:
                drawn = torch.randn(count, s.width, generator=generator)
                params[f"{name}_embed.weight"] = drawn / math.sqrt(s.width)
        for side in ("encoder", "decoder"):
            crossed = side == "decoder"
            for at in (f"{side}.{i}" for i in range(s.layers)):
                params |= matrix(f"{at}.attn.qkv", 3 * s.width, s.width)
                params |= matrix(f"{at}.attn.out", s.width, s.width)
                params |= norm(f"{at}.norm1", s.width)
                if crossed:  # drawn as parts of one matrix of three
                    params |= matrix(f"{at}.cross.q", s.width, s.width, 3 * s.width)
                    params |= matrix(f"{at}.cross.kv", 2 * s.width, s.width, 3 * s.width)
                    params |= matrix(f"{at}.cross.out", s.width, s.width)
                    params |= norm(f"{at}.norm2", s.width)
                params |= matrix(f"{at}.mlp.up", s.ffn, s.width)
                params |= matrix(f"{at}.mlp.down", s.width, s.ffn)
                params |= norm(f"{at}.norm{3 if crossed else 2}", s.width)
            params |= norm(f"{side}.norm", s.width)
        return params | layer("head", (s.target, s.width), generator), {}

    def outputs(
        self, params: Params, source: Tensor, target: Tensor, noise: Tensor | None = None
    ) -> Tensor:
        """Logits [B * T, V] of the word after each of `target` int64 [B, T], for `source` int64
        [B, S]; dropout only with `noise`.
        """
        return self.decode(params, target, *self.encode(params, source, noise), noise)

    def encode(
        self, params: Params, source: Tensor, noise: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The encoder's output [B * S, D], and which of its places are not to be looked at."""
        drop = Dropout(self.sizes.dropout, noise)
        padded = self._padded(source)
        x = self._embedded(params, "source", source, drop, 0)
        for i in range(self.sizes.layers):
            here = replace(drop, first=2 + ENCODER * i)
            x = self._attended(x, params, f"encoder.{i}", source.shape, here, padded)
            x = self._fed(x, params, f"encoder.{i}", "norm2", replace(here, first=here.first + 2))
        return _normed(x, params, "encoder.norm"), padded

    def decode(
        self,
        params: Params,
        target: Tensor,
        memory: Tensor,
        padded: Tensor | None,
        noise: Tensor | None = None,
    ) -> Tensor:
        """Logits [B * T, V], given what `encode` found."""
        s, (rows, length) = self.sizes, target.shape
        drop = Dropout(s.dropout, noise)
        hidden, own = self.hidden[:length, :length], self._padded(target)
        hidden = hidden if own is None else hidden | own
        x = self._embedded(params, "target", target, drop, 1)
        for i in range(s.layers):
            name = f"decoder.{i}"
            here = replace(drop, first=2 + ENCODER * s.layers + DECODER * i)
            x = self._attended(x, params, name, target.shape, here, hidden)
            later = replace(here, first=here.first + 2)
            q = linear(x, params, f"{name}.cross.q").reshape(rows, length, s.heads, -1)
            kv = linear(memory, params, f"{name}.cross.kv").reshape(
                rows, -1, 2, s.heads, q.shape[-1]
            )
            k, v = (part.transpose(1, 2) for part in kv.unbind(2))
            seen = weighed(q.transpose(1, 2), k, v, later, padded)
            x = _normed(
                x + later(linear(seen, params, f"{name}.cross.out"), 1), params, f"{name}.norm2"
            )
            x = self._fed(x, params, name, "norm3", replace(here, first=here.first + 4))
        return linear(_normed(x, params, "decoder.norm"), params, "head")

    def to(self, device: torch.device | str) -> Translator:
        other = copy.copy(self)
        other.hidden, other.sines = self.hidden.to(device), self.sines.to(device)
        return other

    def _padded(self, words: Tensor) -> Tensor | None:
        """Bool [B, 1, 1, T], True where a row has ended."""
        return None if self.sizes.pad is None else (words == self.sizes.pad)[:, None, None]

    def _embedded(
        self, params: Params, side: str, words: Tensor, drop: Dropout, place: int
    ) -> Tensor:
        weight = params[f"{'source' if self.sizes.shared else side}_embed.weight"]
        x = F.embedding(words, weight) * math.sqrt(self.sizes.width)
        return drop((x + self.sines[: words.shape[1]]).reshape(-1, self.sizes.width), place)

    def _attended(
        self,
        x: Tensor,
        params: Params,
        name: str,
        shape: torch.Size,
        drop: Dropout,
        hidden: Tensor | None,
    ) -> Tensor:
        rows, length = shape
        qkv = linear(x, params, f"{name}.attn.qkv")
        seen = attend(qkv, (rows, length, self.sizes.heads), drop, hidden)
        return _normed(
            x + drop(linear(seen, params, f"{name}.attn.out"), 1), params, f"{name}.norm1"
        )

    def _fed(self, x: Tensor, params: Params, name: str, last: str, drop: Dropout) -> Tensor:
        inside = drop(torch.relu(linear(x, params, f"{name}.mlp.up")), 0)
        y = x + drop(linear(inside, params, f"{name}.mlp.down"), 1)
        return _normed(y, params, f"{name}.{last}")


def _normed(x: Tensor, params: Params, name: str) -> Tensor:
    return hat(x) * params[f"{name}.weight"] + params[f"{name}.bias"]
