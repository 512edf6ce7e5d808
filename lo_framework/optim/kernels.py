"""Fast paths of the AdamW family on a CPU: what ``host`` runs in place of a rule's ``measure`` and ``apply``.

The rules in ``lo_framework.learned`` are the reference, and a test holds these equal to them. They are pure and differentiable;
here the same arithmetic is done in place, in AdamW's own fused loop or in scratch memory that stays in cache. Each kernel works on
one float32 tensor at a time, flat, with its hyper-parameters as plain numbers: on an accelerator that would wait for the device,
so there the rules themselves run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from lo_framework.learned.adamw_rule import AdamWChannels
from lo_framework.learned.attention import Attention
from lo_framework.learned.attention_mlp import DECAYS, FEATURES, AttentionMLP
from lo_framework.learned.base import LearnedOptimizer, State
from lo_framework.learned.hyper_adamw import HyperAdamW

HYPER = len(AdamWChannels._fields)


class AdamWKernel:
    """``hyper-adamw`` and ``attention``: torch's fused AdamW loop, with the bias corrections folded into its numbers."""

    chunk: ClassVar[int | None] = None  # one pass over the memory: nothing to keep in cache
    small: ClassVar[bool] = True  # also worth a call for each small tensor

    def __init__(self, learned: LearnedOptimizer) -> None:
        self.long_ago = torch.tensor(1e30)  # at this step AdamW's own bias corrections are 1

    def apply(
        self, params: Tensor, grads: Tensor, state: State, column: Tensor, numbers: Sequence[float], shared: Tensor,
        multiplier: float,
    ) -> None:  # fmt: skip
        """One tensor ``[n]``; ``column [C]`` are its channels, ``numbers`` the same as floats, the first all AdamW's."""
        step_size, decay, keep1, keep2, unbias2, eps = numbers[:HYPER]
        root = math.sqrt(unbias2)
        lr = multiplier * step_size / root
        torch._fused_adamw_(
            [params], [grads], [state["m"]], [state["v"]], [], [self.long_ago], lr=lr, beta1=1.0 - keep1,
            beta2=1.0 - keep2, weight_decay=multiplier * decay / lr, eps=eps / root, amsgrad=False, maximize=False,
        )  # fmt: skip


class AttentionMLPKernel:
    """``attention-mlp``: features, network and update in scratch memory; constants of a tensor enter as one bias."""

    chunk: ClassVar[int | None] = 8192
    small: ClassVar[bool] = False  # some forty operations: small tensors are better off side by side

    def __init__(self, learned: AttentionMLP) -> None:
        hidden, rows = learned.config.hidden, FEATURES - 1
        self.by_feature = learned.first[:, :rows]
        self.by_context = learned.first[:, FEATURES:]
        self.constant = learned.first[:, rows] + learned.first_bias[:, 0]  # the last feature is 1
        self.second = torch.cat([learned.second, learned.second_bias], 1)
        self.last = learned.last.detach()
        self.follow = torch.tensor([1.0 - decay for decay in DECAYS])[:, None]
        size = self.chunk or 0
        self.x = torch.ones(rows + 1, size)
        self.h = torch.ones(hidden + 1, size)
        self.k = torch.empty(hidden, size)
        self.out = torch.empty(2, size)
        self.inverse, self.adam = torch.empty(2, size)

    def apply(
        self, params: Tensor, grads: Tensor, state: State, column: Tensor, numbers: Sequence[float], shared: Tensor,
        multiplier: float,
    ) -> None:  # fmt: skip
        """One chunk of a tensor, ``[n]``."""
        step_size, decay, keep1, keep2, unbias2, eps = numbers[:HYPER]
        p_scale, v_scale = numbers[-2:]
        n = params.shape[0]
        x, h, k, out = self.x[:, :n], self.h[:, :n], self.k[:, :n], self.out[:, :n]
        inverse, adam = self.inverse[:n], self.adam[:n]

        m, v, momenta = state["m"], state["v"], state["momenta"]
        m.lerp_(grads, keep1)
        v.mul_(1.0 - keep2).addcmul_(grads, grads, value=keep2)
        momenta.lerp_(grads.expand_as(momenta), self.follow)
        torch.mul(v, unbias2, out=inverse).sqrt_().add_(eps).reciprocal_()
        torch.mul(m, inverse, out=adam)

        num = len(DECAYS)
        features = x[:-1]  # the last row stays 1
        torch.mul(momenta, inverse, out=features[:num]).mul_(shared[:, None])
        torch.mul(grads, inverse, out=features[num])
        features[num + 1].copy_(adam)
        torch.mul(params, p_scale, out=features[num + 2])
        torch.mul(v, v_scale * v_scale, out=features[num + 3]).add_(1e-8).log_().mul_(0.25)
        features.clamp_(-5.0, 5.0)

        bias = self.constant + self.by_context @ column[HYPER:-2]
        torch.mm(torch.cat([self.by_feature, bias[:, None]], 1), x, out=h[:-1]).relu_()
        torch.mm(self.second, h, out=k).relu_()
        direction, magnitude = torch.mm(self.last, k, out=out)
        step = magnitude.exp_().mul_(adam).add_(direction)
        params.mul_(1.0 - multiplier * decay).add_(step, alpha=-multiplier * step_size)


Kernel = AdamWKernel | AttentionMLPKernel


def kernel_for(learned: LearnedOptimizer) -> Kernel | None:
    """The fast path of exactly this class, with its frozen weights; None where there is none."""
    if type(learned) is AttentionMLP:
        return AttentionMLPKernel(learned)
    if type(learned) in (HyperAdamW, Attention) and hasattr(torch, "_fused_adamw_"):
        return AdamWKernel(learned)
    return None


def ordinary(numbers: Sequence[float]) -> bool:
    """Whether a kernel can fold these channels: it divides by the step size, and exact zeros and infinities are the rule's."""
    return 0.0 < numbers[0] < math.inf and numbers[4] < math.inf


def attention_sums(params: Tensor, grads: Tensor, state: State) -> list[Tensor]:
    """Sums over a chunk of what ``Attention.measure`` measures, without writing the products to memory."""
    m = state["m"]
    pairs = [(grads, grads), (m, m), (params, params), (grads, m)]
    return [*(torch.dot(a, b) for a, b in pairs), state["v"].sum()]
