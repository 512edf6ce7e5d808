"""The block of pre-norm transformers (Vaswani et al. 2017; Xiong et al. 2020) as plain functions.

Tokens and batch are one dimension of every matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from lo_framework.optimizees.dropout import keep_mask
from lo_framework.optimizees.models.initial import linear
from lo_framework.optimizees.models.mlp import ACTIVATIONS
from lo_framework.optimizees.models.norms import hat
from lo_framework.optimizees.task import Params

DROPS = 4  # places in a block where dropout applies

Shape = tuple[int, int, int]  # rows B, tokens of a row T, attention heads


@dataclass(frozen=True)
class Dropout:
    """Counter-based dropout in places `first`, `first` + 1, ... of one forward pass."""

    p: float
    noise: Tensor | None
    first: int = 0

    def __call__(self, x: Tensor, place: int) -> Tensor:
        if self.p == 0 or self.noise is None:
            return x
        return x * (
            keep_mask(x.shape, self.p, self.noise, self.first + place).to(x.dtype) / (1 - self.p)
        )


def block(
    x: Tensor,
    params: Params,
    name: str,
    shape: Shape,
    drop: Dropout,
    act: str,
    hidden: Tensor | None = None,
    *,
    last: bool = False,
) -> Tensor:
    """One block on `x` [B * T, D]; nn.TransformerEncoderLayer with ``norm_first=True``.

    The parameters after "`name`." are "norm1.weight" and ".bias" [D], "attn.qkv.weight" [3 D, D]
    and ".bias", "attn.out.weight" [D, D] and ".bias", "norm2.weight" and ".bias", "mlp.up.weight"
    [ffn, D] and ".bias", "mlp.down.weight" [D, ffn] and ".bias".

    Args:
        hidden: bool [T, T], True where the token of a row must not see that of a column.
        last: only the last token of each row is wanted, [B, D]; of the others nothing but keys and
            values is computed then.
    """
    qkv = F.linear(hat(x), *folded(params, f"{name}.attn.qkv", f"{name}.norm1"))
    seen = attend(qkv, shape, drop, hidden, last=last)
    if last:
        x = x.reshape(shape[0], shape[1], -1)[:, -1]
    x = x + drop(linear(seen, params, f"{name}.attn.out"), 1)
    inside = ACTIVATIONS[act](F.linear(hat(x), *folded(params, f"{name}.mlp.up", f"{name}.norm2")))
    return x + drop(linear(drop(inside, 2), params, f"{name}.mlp.down"), 3)


def attend(
    qkv: Tensor, shape: Shape, drop: Dropout, hidden: Tensor | None = None, *, last: bool = False
) -> Tensor:
    """softmax(q k^T / sqrt(d)) v for each head of d = D / heads numbers: [B * T, 3 D] to [B * T,
    D], or for the `last` token of each row to [B, D].

    Written out: torch's fused attention has no second derivative. One `unbind`, because its
    derivative is one `stack` that writes straight into the layout of `qkv`.
    """
    rows, tokens, heads = shape
    size = qkv.shape[-1] // (3 * heads)
    parts = qkv.reshape(rows, tokens, 3, heads, size).unbind(2)
    q, k, v = (part.transpose(1, 2) for part in parts)  # [B, heads, T, d]
    q = q[:, :, -1:] if last else q
    return weighed(q, k, v, drop, hidden)


def weighed(q: Tensor, k: Tensor, v: Tensor, drop: Dropout, hidden: Tensor | None = None) -> Tensor:
    """What `attend` gives, [B * T, D], for queries [B, heads, T, d] and S keys and values
    [B, heads, S, d]; `hidden` goes with [B, heads, T, S].
    """
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if hidden is not None:
        scores = scores.masked_fill(hidden, -torch.inf)
    width = q.shape[1] * q.shape[-1]
    return (drop(torch.softmax(scores, -1), 0) @ v).transpose(1, 2).reshape(-1, width)


def folded(params: Params, name: str, norm: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of the linear layer `name` with the LayerNorm's gain g and bias b before it
    taken in.

    ``W (g * x + b) + c = (W * g) x + (W b + c)``: two passes over the activations less, and more
    than that in the derivative; loss and gradient take three quarters of the time.
    """
    weight = params[f"{name}.weight"]
    return weight * params[f"{norm}.weight"], weight @ params[f"{norm}.bias"] + params[
        f"{name}.bias"
    ]
