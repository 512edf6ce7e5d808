"""The controller of ``scaled``: a small network over tokens, one of a tensor, that says how much
more or less than the law its step should be.

Tokens are relative: sizes are compared with those of the other tensors, with the start of the run
or with one another, so that they mean the same on a net of any size.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lo_framework.layout import POSITIONS
from lo_framework.learned.base import Clock, State, zeros
from lo_framework.learned.encoder import Block, matrix
from lo_framework.roles import ROLES

EXCHANGES = ("none", "mean", "attention")
MOVING = 11
TOKENS = MOVING + len(ROLES) + len(POSITIONS)
WARM_UP = 30.0  # steps, after which they are counted only where the horizon is unknown
TINY = 1e-20


def log_rms(square: Tensor) -> Tensor:
    return 0.5 * torch.log(square + TINY)


def cosine(product: Tensor, square1: Tensor, square2: Tensor) -> Tensor:
    return product * torch.rsqrt(square1 + TINY) * torch.rsqrt(square2 + TINY)


def agreement(gm: Tensor, g2: Tensor, m2: Tensor, keep: Tensor) -> Tensor:
    """Cosine of a gradient with the momentum ``m`` before it was added to it with weight ``keep``:
    near 1 where steps are too short, negative where they zigzag. Zero at the first step.
    """
    before = m2 - 2.0 * keep * gm + keep * keep * g2  # (1 - keep)^2 times its mean square
    before = torch.maximum(before, 1e-6 * m2)
    return cosine(gm - keep * g2, g2, before)


def tokens(tensors: State, turn: Tensor, step: Tensor, clock: Clock) -> Tensor:
    """``[TOKENS, S]`` from the means of `Scaled.measure`, the present `agreement`, its average and
    the size at the start, and the tensors' places.
    """
    u2, p2, g2, m2, _, up = tensors["stats"]
    g, p = log_rms(g2), log_rms(p2)
    known = clock.horizon > 0
    count = torch.where(known, step.clamp_max(WARM_UP), step)
    moving = torch.stack(
        [
            (g - g.mean()) / 3.0,
            (p - p.mean()) / 3.0,
            (log_rms(m2) - g).clamp(-3.0, 3.0),
            log_rms(u2).clamp(-3.0, 3.0),
            turn,
            3.0 * tensors["agreement"],
            (p - tensors["size"]).clamp(-3.0, 3.0),
            cosine(up, u2, p2),
            clock.progress.expand_as(g),
            known.to(g).expand_as(g),
            (torch.log1p(count) / 5.0).expand_as(g),
        ]
    )
    return torch.cat([moving, tensors["places"]])


class Controller(nn.Module):
    """Tokens ``[TOKENS, S]`` to numbers ``[S]``, zero at the start. ``exchange``: what tokens know
    of one another ("none", "mean": the average, "attention").
    """

    def __init__(self, width: int, heads: int, exchange: str, generator: torch.Generator) -> None:
        super().__init__()
        self.exchange = exchange
        self.embed = matrix(width, TOKENS, generator)
        self.embed_bias = zeros(width, 1)
        if exchange == "attention":
            self.block = Block(width, heads, generator)
        self.mix = matrix(width, width * (1 + (exchange == "mean")), generator)
        self.head = zeros(1, width)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.embed @ x + self.embed_bias)
        if self.exchange == "attention":
            x = self.block(x)
        elif self.exchange == "mean":
            x = torch.cat([x, x.mean(-1, keepdim=True).expand_as(x)])
        return (self.head @ torch.tanh(self.mix @ x))[0]
